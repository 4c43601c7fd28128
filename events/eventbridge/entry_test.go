package eventbridge

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// put is what a rule's target gets after PutEvents of an entry.
func put(source, detailType string, detail []byte) []byte {
	return fmt.Appendf(nil, `{"version":"0","id":"00000000-0000-4000-a000-0000000000bb","detail-type":%q,"source":%q,"account":"111122223333","time":"2026-06-01T10:00:09Z","region":"eu-west-1","resources":[],"detail":%s}`, detailType, source, detail)
}

// announced sends e as a rotator does and returns what the notifier decodes.
func announced(t testing.TB, e events.Event) []events.Event {
	t.Helper()
	source, typ, detail, err := Entry(e)
	if err != nil {
		t.Fatal(err)
	}
	es, err := Decode(put(source, typ, detail), received)
	if err != nil || len(es) != 1 {
		t.Fatalf("%d events, %v; expected one", len(es), err)
	}
	return es
}

func TestAnnouncementRoundTrip(t *testing.T) {
	refs := []string{"aws://111122223333/eu-west-1/prod/agents/pay+ments=@.-_!", "aws://111122223333/us-east-1/x.y"}
	rapid.Check(t, func(rt *rapid.T) {
		r, err := ref.Parse(rapid.SampledFrom(refs).Draw(rt, "ref"))
		if err != nil {
			rt.Fatal(err)
		}
		plain := rapid.StringMatching(`[!-~]{0,80}`)
		prose := rapid.StringOfN(rapid.RuneFrom([]rune("aZ09 /:-.ü€")), 0, 60, -1)
		at := time.Unix(rapid.Int64Range(0, 1<<33).Draw(rt, "s"), rapid.Int64Range(0, 999999999).Draw(rt, "ns"))
		e := events.New(rapid.SampledFrom(events.Types()).Draw(rt, "type"), r, at, plain.Draw(rt, "key"))
		e.Data.Tenant, e.Data.Version, e.Data.PreviousVersion = prose.Draw(rt, "tenant"), plain.Draw(rt, "version"), plain.Draw(rt, "previous")
		e.Data.Cause, e.Data.Reason, e.Data.Label = prose.Draw(rt, "cause"), prose.Draw(rt, "reason"), prose.Draw(rt, "label")
		e.Data.Provider = events.Provider{EventID: plain.Draw(rt, "pid"), Type: prose.Draw(rt, "ptype"), ID: plain.Draw(rt, "parn"), Time: at.UTC()}
		if d := cmp.Diff([]events.Event{e}, announced(t, e)); d != "" {
			rt.Fatalf("an announcement changed on its way (-sent +decoded):\n%s", d)
		}
	})
}

// TestAnnouncementOfAnother: an account that may put events on the bus speaks
// for its own secrets alone.
func TestAnnouncementOfAnother(t *testing.T) {
	for _, text := range []string{"aws://444455556666/eu-west-1/s", "gcp://p/s", "vault://c//kv/s", "nats://b/s", "azure://v/s"} {
		r, err := ref.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		source, typ, detail, err := Entry(events.New(events.VersionActivated, r, received, "1"))
		if err != nil {
			t.Fatal(err)
		}
		if es, err := Decode(put(source, typ, detail), received); !fault.Is(err, fault.Invalid) || len(es) != 0 {
			t.Errorf("%s: %d events, %v; expected none, and Invalid", text, len(es), err)
		}
	}
}

func TestEntryFits(t *testing.T) {
	e := events.New(events.VersionActivated, paymentsRef, received, rotation)
	source, typ, detail, err := Entry(e)
	if err != nil || source != "keyturn.rotator" || typ != "dev.keyturn.version.activated.v1" {
		t.Fatalf("%s %s %v", source, typ, err)
	}
	// What it says is a contract with rules and other consumers.
	var got map[string]any
	if err := json.Unmarshal(detail, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"id": e.ID, "time": "2026-06-01T12:00:00Z", "ref": paymentsRef.String(), "provider": map[string]any{}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("detail (-want +got):\n%s", d)
	}
}

func TestEntryRefuses(t *testing.T) {
	good := events.New(events.VersionActivated, paymentsRef, received, rotation)
	for name, spoil := range map[string]func(*events.Event){
		"type":      func(e *events.Event) { e.Type = "dev.keyturn.version.invented.v1" },
		"id":        func(e *events.Event) { e.ID = "short" },
		"no id":     func(e *events.Event) { e.ID = "" },
		"time":      func(e *events.Event) { e.Time = time.Time{} },
		"far time":  func(e *events.Event) { e.Time = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"far ptime": func(e *events.Event) { e.Data.Provider.Time = time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC) },
		"no ref":    func(e *events.Event) { e.Data.Ref = ref.Ref{} },
		"bad scope": func(e *events.Event) { e.Data.Ref.Scope = "one" },
		"raw scope": func(e *events.Event) { e.Data.Ref.Scope = "a b/c" },
		"version":   func(e *events.Event) { e.Data.Version = "has space" },
		"long":      func(e *events.Event) { e.Data.Reason = strings.Repeat("x", 300) },
		"control":   func(e *events.Event) { e.Data.Reason = "a\nb" },
		"utf8":      func(e *events.Event) { e.Data.Tenant = "\xff" },
		"trace":     func(e *events.Event) { e.Data.TraceParent = "\x00" },
		"provider":  func(e *events.Event) { e.Data.Provider.ID = strings.Repeat("x", 600) },
	} {
		e := good
		spoil(&e)
		if _, _, _, err := Entry(e); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v; expected an error of kind invalid", name, err)
		}
	}
}

func TestAnnouncementRefused(t *testing.T) {
	_, typ, detail, err := Entry(events.New(events.VersionActivated, paymentsRef, received, rotation))
	if err != nil {
		t.Fatal(err)
	}
	swap := func(old, with string) []byte {
		if !strings.Contains(string(detail), old) {
			t.Fatalf("%s is not in %s", old, detail)
		}
		return put(Source, typ, []byte(strings.Replace(string(detail), old, with, 1)))
	}
	for name, body := range map[string][]byte{
		"detail-type":  put(Source, "Secret Label Updated", detail),
		"no detail":    put(Source, typ, []byte("null")),
		"other detail": put(Source, typ, []byte(`"x"`)),
		"no ref":       swap(paymentsRef.String(), ""),
		"bad ref":      swap("aws://", "ftp://"),
		"short ref":    swap("/eu-west-1/"+payments, ""),
		"bad id":       swap(`"id":"`, `"id":"x`),
		"number":       swap(`"time":"2026-06-01T12:00:00Z"`, `"time":7`),
		"year":         swap("2026-06-01T12:00:00Z", "9999-12-31T23:59:59-23:00"),
		"version":      swap(`"id":`, `"version":"a b","id":`),
	} {
		if es, err := Decode(body, received); !fault.Is(err, fault.Invalid) || len(es) != 0 {
			t.Errorf("%s: got %d events and %v; expected an error of kind invalid", name, len(es), err)
		}
	}
}
