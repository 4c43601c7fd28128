package vault

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/leaktest"
)

// must decodes a notice that can be read.
func must(t testing.TB, body []byte) []events.Event {
	t.Helper()
	es, err := decode(body)
	if err != nil {
		t.Fatal(err)
	}
	return es
}

func TestTraps(t *testing.T) {
	all := notices(t)
	t.Run("trap 35: two entries a call, and only an answer without error counts", func(t *testing.T) {
		for _, name := range []string{"file/audit-kv2-create.request", "file/audit-kv2-failed-cas.response"} {
			if es := must(t, all[name]); len(es) > 0 {
				t.Errorf("%s means %s", name, short(es, nil))
			}
		}
		both := must(t, lines(all["file/audit-kv2-create.request"], all["file/audit-kv2-create.response"]))
		if len(both) != 1 || both[0].Data.Provider.EventID == "" {
			t.Errorf("a call means %s; expected one event with the id of the request", short(both, nil))
		}
	})
	t.Run("trap 36: the first write is create", func(t *testing.T) {
		if es := must(t, all["file/audit-kv2-create.response"]); len(es) != 1 || es[0].Type != events.VersionActivated {
			t.Errorf("it means %s", short(es, nil))
		}
	})
	t.Run("trap 37: a rotation by schedule is a notification", func(t *testing.T) {
		es := must(t, all["file/event.database.rotate.automatic"])
		if len(es) != 2 || es[1].Data.Ref.Name != "static-creds/agent-static" || es[0].ID == es[1].ID {
			t.Errorf("it means %s", short(es, nil))
		}
	})
	t.Run("trap 38: versions are hashed", func(t *testing.T) {
		es := must(t, all["file/audit-kv2-destroy.response"])
		if len(es) != 1 || es[0].Data.Version != "" {
			t.Errorf("it means %s; expected no version", short(es, nil))
		}
	})
	t.Run("trap 39: OpenBao tells numbers and times of values", func(t *testing.T) {
		const pin, when = 918273645, "2019-09-08T07:06:05Z"
		body := with(t, all["file/openbao-audit-kv2-update.response"],
			"request/data/data/n", pin, "request/data/data/rotated_at", when, "response/data/n", pin, "response/data/created_time", when,
			"request/data/data/version", pin, "request/data/versions", []int{pin}, "request/data/options/cas", pin)
		es := must(t, body)
		var rec leaktest.Recorder
		for _, e := range es {
			rec.Record(e, e.Subject())
		}
		rec.Check(t, "918273645", when, "2019")
		del := with(t, all["audit/deleted in OpenBao"], "request/data/versions", []int{pin})
		if es := must(t, del); len(es) != 1 || es[0].Data.Version != "" {
			t.Errorf("%s; expected nothing of what was sent", short(es, nil))
		}
	})
	t.Run("trap 41: mounts with slashes, namespaces, the path database, pairs, the type *", func(t *testing.T) {
		for name, want := range map[string]string{
			"audit/mount with slashes":   "vault://main//team%2Fa%2Fkv/data/metadata/x",
			"event/mount with slashes":   "vault://main//team%2Fa%2Fkv/data/metadata/x",
			"audit/namespace":            "vault://main/acme%2Fprod/secret/agents/payments/stripe",
			"event/namespace":            "vault://main/acme%2Fprod/secret/agents/payments/stripe",
			"event/rotate on deep mount": "vault://main//team%2Fdb/static-creds/agent-static",
		} {
			es := must(t, all[name])
			if len(es) == 0 || es[len(es)-1].Data.Ref.String() != want {
				t.Errorf("%s means %s; expected %s", name, short(es, nil), want)
			}
		}
		pair := must(t, all["file/event.automatic-rotation-pair"])
		if len(pair) != 2 || pair[0].Type != events.RotationSucceeded || pair[1].Type != events.VersionActivated {
			t.Errorf("one rotation means %s", short(pair, nil))
		}
	})
	t.Run("trap 43: reads are dropped early", func(t *testing.T) {
		for _, name := range []string{"file/audit-db-static-creds-read.response", "file/audit-db-creds-read.response", "file/audit-kv2-create.request", "audit/list"} {
			body := all[name]
			if allocs := testing.AllocsPerRun(10, func() {
				if es, err := decode(body); err != nil || len(es) > 0 {
					t.Fatalf("%s means %s, %v", name, short(es, err), err)
				}
			}); allocs > 0 {
				t.Errorf("%s costs %v allocations; expected none", name, allocs)
			}
		}
		// What is in data was not looked at: it could not be read.
		body := bytes.Replace(all["file/audit-db-creds-read.response"], []byte(`"data":{`), []byte(`"data":{]]`), 1)
		if json.Valid(body) {
			t.Fatal("the data is not broken")
		}
		if es, err := decode(body); err != nil || len(es) > 0 {
			t.Errorf("%s, %v; expected nothing", short(es, err), err)
		}
		// And a write is never taken for a read, whatever it holds.
		for _, body := range [][]byte{
			with(t, all["file/openbao-audit-kv2-update.response"], "request/data/data/operation", "read", "request/data/data/type", "request"),
			bytes.Replace(all["file/audit-kv2-create.response"], []byte(`"operation":"create"`), []byte(`"operation":"\u0063reate","x":{"operation":"read"}`), 1),
			with(t, all["file/event.kv-v2.data-write"], "operation", "read"),
		} {
			if es := must(t, body); len(es) != 1 || es[0].Type != events.VersionActivated {
				t.Errorf("%s means %s; expected a write", body, short(es, nil))
			}
		}
	})
}

// One change is one id: by audit log, by notification, and as the rotator
// announces it.
func TestOneChangeIsOneID(t *testing.T) {
	all := notices(t)
	for name, version := range map[string]string{
		"file/audit-kv2-create.response": "1", "file/event.kv-v2.data-write": "1", "audit/pretty": "1", "audit/no time": "1",
		"file/audit-kv2-update-cas.response": "2", "file/openbao-audit-kv2-update.response": "2",
		"file/audit-kv2-patch.response": "3", "file/event.kv-v2.data-patch": "3",
	} {
		announced := events.New(events.VersionActivated, stripe, received, version).ID
		if es := must(t, all[name]); len(es) != 1 || es[0].ID != announced {
			t.Errorf("%s means %s with id %s; the rotator's announcement has %s", name, short(es, nil), es[0].ID, announced)
		}
	}
	// A version is destroyed once, and that is announced too.
	if es := must(t, all["file/event.kv-v2.destroy"]); es[0].ID != events.New(events.VersionDestroyed, stripe, received, "1").ID {
		t.Error("the destruction of a version has another id than the rotator's announcement")
	}
	// A notice that comes again, later, is the same; another one is another.
	seen := map[string]string{}
	for name, body := range all {
		first, _ := decode(body)
		again, _ := decoder.Decode(slices.Clone(body), received.Add(time.Hour))
		for i := range first {
			if first[i].ID != again[i].ID {
				t.Errorf("%s: ids %s and %s", name, first[i].ID, again[i].ID)
			}
			if strings.HasPrefix(name, "file/") && first[i].Data.Version == "" {
				if other, ok := seen[first[i].ID]; ok && name != "file/event.automatic-rotation-pair" && other != "file/event.automatic-rotation-pair" {
					t.Errorf("%s and %s have one id", name, other)
				}
				seen[first[i].ID] = name
			}
		}
	}
	// What can happen again is named by its notice.
	del := all["file/event.kv-v2.delete"]
	a, b := must(t, del), must(t, with(t, del, "data/event/id", "other"))
	if a[0].ID == b[0].ID {
		t.Error("two deletions of one version have one id")
	}
}

func TestTimeIsTheProviders(t *testing.T) {
	all := notices(t)
	want := time.Date(2026, 6, 1, 10, 0, 53, 480250410, time.UTC)
	if e := must(t, all["file/event.kv-v2.data-write"])[0]; !e.Time.Equal(want) || e.Data.Cause != "vault-event" || e.Data.Provider.Type != "kv-v2/data-write" {
		t.Errorf("%+v", e)
	}
	if e := must(t, all["audit/no time"])[0]; !e.Time.Equal(received) || e.Data.Cause != "vault-audit" || e.Data.Provider.Type != "create" {
		t.Errorf("%+v", e)
	}
}

// BenchmarkDecode is what an entry costs: nine in ten are reads.
func BenchmarkDecode(b *testing.B) {
	for name, file := range map[string]string{
		"read": "audit-db-static-creds-read.response.json", "request": "audit-kv2-create.request.json",
		"write": "audit-kv2-create.response.json", "event": "event.kv-v2.data-write.json",
	} {
		body := sample(b, file)
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := decode(body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
