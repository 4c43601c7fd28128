package vault

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice/noticetest"
	"github.com/keyturn/keyturn/ref"
)

var update = flag.Bool("update", false, "write testdata/golden.json anew")

var (
	received = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	stripe   = ref.Ref{Provider: ref.Vault, Scope: "main//secret", Name: "agents/payments/stripe"}
	decoder  = Decoder{Cluster: "main"}
)

func decode(body []byte) ([]events.Event, error) { return decoder.Decode(body, received) }

// sample is one captured notice, as servers write it: on one line.
func sample(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/notices/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(name, ".jsonl") {
		return b
	}
	var out bytes.Buffer
	if err := json.Compact(&out, b); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// with is a notice with members replaced, or added, or, nil, removed. A key is
// a path with slashes.
func with(t testing.TB, body []byte, pairs ...any) []byte {
	t.Helper()
	var top map[string]any
	if err := json.Unmarshal(body, &top); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(pairs); i += 2 {
		in, keys := top, strings.Split(pairs[i].(string), "/")
		for _, k := range keys[:len(keys)-1] {
			next, ok := in[k].(map[string]any)
			if !ok {
				next = map[string]any{}
				in[k] = next
			}
			in = next
		}
		if last := keys[len(keys)-1]; pairs[i+1] == nil {
			delete(in, last)
		} else {
			in[last] = pairs[i+1]
		}
	}
	b, err := json.Marshal(top)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// notices are the captured ones and the variants that they lack.
func notices(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/notices/*")
	if err != nil || len(files) != 47 {
		t.Fatalf("found %d samples (%v); expected 47", len(files), err)
	}
	out := map[string][]byte{}
	for _, f := range files {
		name := filepath.Base(f)
		out["file/"+strings.TrimSuffix(strings.TrimSuffix(name, ".jsonl"), ".json")] = sample(t, name)
	}
	write, del := out["file/audit-kv2-create.response"], out["file/audit-kv2-delete-latest.response"]
	event, v1, rotateRole := out["file/event.kv-v2.data-write"], out["file/audit-kv1-create.response"], out["file/audit-db-rotate-role.response"]
	deep := []any{"request/mount_point", "team/a/kv/", "request/path", "team/a/kv/data/data/metadata/x"}
	for name, b := range map[string][]byte{
		"audit/pretty":                pretty(t, write),
		"audit/mount with slashes":    with(t, write, deep...),
		"audit/namespace":             with(t, write, "request/namespace", map[string]any{"id": "a1B2c", "path": "acme/prod/"}, "request/mount_point", "acme/prod/secret/"),
		"audit/namespace as mount":    with(t, write, "request/namespace", map[string]any{"id": "a1B2c", "path": "secret/"}, "request/mount_point", "secret/secret/"),
		"audit/mount of namespace":    with(t, write, "request/namespace", map[string]any{"id": "a1B2c", "path": "acme/"}),
		"audit/namespace unnamed":     with(t, write, "request/namespace", map[string]any{"id": "a1B2c"}),
		"audit/namespace odd":         with(t, write, "request/namespace", map[string]any{"id": "a1B2c", "path": "a b/"}),
		"audit/called data":           with(t, write, "request/path", "secret/data/data"),
		"audit/blanks in path":        with(t, write, "request/path", "secret/data/ a b "),
		"audit/odd path":              with(t, write, "request/path", "secret/data/a/../b"),
		"audit/long path":             with(t, write, "request/path", "secret/data/"+strings.Repeat("&", 900)),
		"audit/too long path":         with(t, write, "request/path", "secret/data/"+strings.Repeat("&", 1100)),
		"audit/sibling":               with(t, write, "request/path", "secret/data/agents/payments/stripe--pending"),
		"audit/sibling destroyed":     with(t, out["file/audit-kv2-destroy.response"], "request/path", "secret/destroy/agents/payments/stripe--pending"),
		"audit/no version":            with(t, write, "response/data/version", nil),
		"audit/hashed version":        with(t, write, "response/data/version", "hmac-sha256:00"),
		"audit/no time":               with(t, write, "time", nil),
		"audit/no id, no time":        with(t, del, "time", nil, "request/id", nil),
		"audit/other mount":           with(t, write, "request/mount_point", "kv/"),
		"audit/no mount":              with(t, write, "request/mount_point", nil, "request/mount_type", nil),
		"audit/no mount, sys":         with(t, write, "request/mount_point", nil, "request/mount_type", nil, "request/path", "sys/policies/acl/x"),
		"audit/pki":                   with(t, write, "request/mount_type", "pki"),
		"audit/plugin":                with(t, write, "request/mount_type", nil),
		"audit/no path":               with(t, write, "request/path", nil),
		"audit/no request":            with(t, write, "request", nil),
		"audit/metadata patch":        with(t, out["file/audit-kv2-metadata-write.response"], "request/operation", "patch"),
		"audit/config":                with(t, v1, "request/path", "kv1/config", "request/operation", "update", "request/data", map[string]any{"max_versions": 3}),
		"audit/deleted in OpenBao":    with(t, out["file/audit-kv2-delete-versions.response"], "request/data", map[string]any{"versions": []int{7}}),
		"audit/wrong engine path":     with(t, write, "request/path", "secret/agents/x"),
		"audit/list":                  with(t, del, "request/operation", "list"),
		"audit/read, written widely":  pretty(t, out["file/audit-db-creds-read.response"]),
		"audit/kv1 update":            with(t, v1, "request/operation", "update"),
		"audit/kv1 patch":             with(t, v1, "request/operation", "patch"),
		"audit/kv1 under data":        with(t, v1, "request/path", "kv1/data/foo"),
		"audit/kv1 under delete":      with(t, v1, "request/path", "kv1/delete/foo"),
		"audit/kv1 under destroy":     with(t, v1, "request/path", "kv1/destroy/foo", "request/operation", "update"),
		"audit/kv1 under metadata":    with(t, v1, "request/path", "kv1/metadata/foo"),
		"audit/kv1 called data":       with(t, v1, "request/path", "kv1/data"),
		"audit/kv1 called config":     with(t, v1, "request/path", "kv1/config"),
		"audit/rotate on deep mount":  with(t, rotateRole, "request/mount_point", "team/db/", "request/path", "team/db/rotate-role/r"),
		"audit/rotate odd role":       with(t, rotateRole, "request/path", "database/rotate-role/a b"),
		"audit/rotate failed":         with(t, rotateRole, "error", "1 error occurred:\n\t* x\n\n"),
		"event/not modified":          with(t, event, "data/event/metadata/modified", "false"),
		"event/modified a boolean":    with(t, event, "data/event/metadata/modified", true),
		"event/namespace":             with(t, event, "data/namespace", "acme/prod/"),
		"event/namespace odd":         with(t, event, "data/namespace", "a b"),
		"event/namespace root":        with(t, event, "data/namespace", "root"),
		"event/mount with slashes":    with(t, event, "data/plugin_info/mount_path", "team/a/kv/", "data/event/metadata/path", "team/a/kv/data/data/metadata/x"),
		"event/outer type":            with(t, event, "type", "kv-v2/data-delete"),
		"event/no version":            with(t, event, "data/event/metadata/current_version", nil),
		"event/no id":                 with(t, out["file/event.kv-v1.write"], "id", nil, "data/event/id", nil),
		"event/no id, no time":        with(t, out["file/event.kv-v1.write"], "id", nil, "data/event/id", nil, "time", nil),
		"event/metadata patch":        with(t, out["file/event.kv-v2.metadata-write"], "data/event_type", "kv-v2/metadata-patch"),
		"event/two deleted":           with(t, out["file/event.kv-v2.delete"], "data/event/metadata/deleted_versions", "[1,3,1]"),
		"event/odd deleted":           with(t, out["file/event.kv-v2.delete"], "data/event/metadata/deleted_versions", "[0]"),
		"event/other mount":           with(t, event, "data/plugin_info/mount_path", "kv/"),
		"event/no plugin":             with(t, event, "data/plugin_info", nil),
		"event/sibling":               with(t, event, "data/event/metadata/path", "secret/data/agents/payments/stripe--pending"),
		"event/rotate on deep mount":  with(t, out["file/event.database.rotate.automatic"], "data/plugin_info/mount_path", "team/db/", "data/event/metadata/path", "team/db"),
		"event/rotate elsewhere":      with(t, out["file/event.database.rotate.automatic"], "data/event/metadata/path", "databases"),
		"event/rotate nobody":         with(t, out["file/event.database.rotate.automatic"], "data/event/metadata/name", nil),
		"event/new type":              with(t, event, "data/event_type", "kv-v3/fold"),
		"lines/audit":                 lines(out["file/audit-kv2-create.request"], write, nil, out["file/audit-db-creds-read.response"], del),
		"lines/one bad":               lines(write, []byte(`{"type":"resp`), del),
		"lines/Windows":               bytes.ReplaceAll(lines(write, del), []byte("\n"), []byte("\r\n")),
		"broken/empty":                nil,
		"broken/blank lines":          []byte("\n\n"),
		"broken/null":                 []byte("null"),
		"broken/array":                []byte("[]"),
		"broken/object":               []byte("{}"),
		"broken/request without one":  []byte(`{"type":"other"}`),
		"broken/prefix":               append([]byte("@cee: "), write...),
		"broken/cut":                  write[:len(write)/2],
		"broken/only the outer type":  []byte(`{"id":"1","type":"*","specversion":"1.0","data":{}}`),
		"broken/event without a path": with(t, event, "data/event/metadata/path", nil),
	} {
		out[name] = b
	}
	return out
}

func lines(bs ...[]byte) []byte { return append(bytes.Join(bs, []byte("\n")), '\n') }

func pretty(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// short is what a notice came to, for tables: noun.verb version name.
func short(es []events.Event, err error) string {
	var got []string
	for _, e := range es {
		noun, verb := e.Type.Parts()
		got = append(got, strings.TrimSpace(noun+"."+verb+" "+strings.TrimPrefix(e.Data.Ref.String(), "vault://main/")+" "+e.Data.Version))
	}
	if err != nil {
		got = append(got, "error")
	}
	return strings.Join(got, "; ")
}

const s = "/secret/agents/payments/stripe"

// TestDecodeTypes says what each notice must come to, in a form that can be
// checked against the documents.
func TestDecodeTypes(t *testing.T) {
	want := map[string]string{
		"file/audit-approle-secret-id.response": "", "file/audit-db-creds-read.response": "", "file/audit-db-rotate-role.request": "",
		"file/audit-db-rotate-role.response": "rotation.succeeded /database/static-creds/agent-manual; version.activated /database/static-creds/agent-manual",
		"file/audit-db-rotate-root.response": "", "file/audit-db-static-creds-read.response": "", "file/audit-events-subscribe-unsupported-on-ce.response": "",
		"file/audit-kv1-create.response":     "version.activated /kv1/agents/foo",
		"file/audit-kv1-delete.response":     "secret.deleted /kv1/agents/foo",
		"file/audit-kv2-create.request":      "", // trap 35
		"file/audit-kv2-create.response":     "version.activated " + s + " 1",
		"file/audit-kv2-patch.response":      "version.activated " + s + " 3",
		"file/audit-kv2-update-cas.response": "version.activated " + s + " 2",
		"file/audit-kv2-failed-cas.response": "", "file/audit-startup-probe.request": "",
		"file/audit-kv2-json-number-bool.response": "version.activated /secret/agents/raw 1",
		"file/audit-kv2-delete-latest.response":    "version.disabled " + s, "file/audit-kv2-delete-versions.response": "version.disabled " + s,
		"file/audit-kv2-undelete.response": "version.enabled " + s, "file/audit-kv2-destroy.response": "version.destroyed " + s,
		"file/audit-kv2-metadata-delete.response": "secret.deleted " + s, "file/audit-kv2-metadata-write.response": "secret.changed " + s,
		"file/audit-lease-renew.response": "", "file/audit-lease-revoke.response": "", "file/audit-lease-revoke-prefix.response": "",
		"file/openbao-audit-kv2-update.request": "", "file/openbao-audit-kv2-update.response": "version.activated " + s + " 2",

		"file/event.automatic-rotation-pair": "rotation.succeeded /database/static-creds/agent-static; version.activated /database/static-creds/agent-static",
		"file/event.database.config-write":   "", "file/event.database.creds-create": "", "file/event.database.role-create": "", "file/event.database.rotate-root": "",
		"file/event.database.rotate.automatic":    "rotation.succeeded /database/static-creds/agent-static; version.activated /database/static-creds/agent-static",
		"file/event.database.rotate.manual":       "rotation.succeeded /database/static-creds/agent-manual; version.activated /database/static-creds/agent-manual",
		"file/event.database.static-creds-create": "", "file/event.database.static-creds-create-fail": "", "file/event.database.static-role-create": "",
		"file/event.kv-v1.write": "version.activated /kv1/agents/foo", "file/event.kv-v1.delete": "secret.deleted /kv1/agents/foo",
		"file/event.kv-v2.data-write": "version.activated " + s + " 1", "file/event.kv-v2.data-patch": "version.activated " + s + " 3",
		"file/event.kv-v2.data-delete": "version.disabled " + s + " 4", "file/event.kv-v2.delete": "version.disabled " + s + " 1",
		"file/event.kv-v2.undelete": "version.enabled " + s + " 2", "file/event.kv-v2.destroy": "version.destroyed " + s + " 1",
		"file/event.kv-v2.metadata-write": "secret.changed " + s, "file/event.kv-v2.metadata-delete": "secret.deleted " + s,

		"audit/pretty": "version.activated " + s + " 1", "audit/no time": "version.activated " + s + " 1",
		"audit/mount with slashes": "version.activated /team%2Fa%2Fkv/data/metadata/x 1", // trap 41
		"audit/namespace":          "version.activated acme%2Fprod/secret/agents/payments/stripe 1",
		"audit/namespace as mount": "version.activated secret/secret/agents/payments/stripe 1",
		"audit/mount of namespace": "version.activated acme/secret/agents/payments/stripe 1",
		"audit/namespace unnamed":  "error", "audit/namespace odd": "error", "audit/odd path": "error", "audit/too long path": "error",
		"audit/called data":    "version.activated /secret/data 1",
		"audit/blanks in path": "version.activated /secret/%20a%20b%20 1",
		"audit/long path":      "version.activated /secret/" + strings.Repeat("&", 900) + " 1",
		"audit/sibling":        "", "audit/sibling destroyed": "",
		"audit/no version": "version.activated " + s, "audit/hashed version": "version.activated " + s,
		"audit/no id, no time": "version.disabled " + s,
		"audit/other mount":    "error", "audit/no mount": "error", "audit/no mount, sys": "", "audit/pki": "", "audit/plugin": "",
		"audit/no path": "error", "audit/no request": "error", "audit/config": "", "audit/wrong engine path": "", "audit/list": "", "audit/read, written widely": "",
		"audit/metadata patch":     "secret.changed " + s,
		"audit/deleted in OpenBao": "version.disabled " + s, // trap 39
		"audit/kv1 update":         "version.activated /kv1/agents/foo", "audit/kv1 patch": "",
		"audit/kv1 under data":   "version.activated /kv1/data/foo",
		"audit/kv1 under delete": "version.activated /kv1/delete/foo", "audit/kv1 under destroy": "version.activated /kv1/destroy/foo",
		"audit/kv1 under metadata": "version.activated /kv1/metadata/foo",
		"audit/kv1 called data":    "version.activated /kv1/data", "audit/kv1 called config": "version.activated /kv1/config",
		"audit/rotate on deep mount": "rotation.succeeded /team%2Fdb/static-creds/r; version.activated /team%2Fdb/static-creds/r",
		"audit/rotate odd role":      "error", "audit/rotate failed": "",

		"event/not modified": "", "event/modified a boolean": "", "event/new type": "", "event/sibling": "",
		"event/namespace": "version.activated acme%2Fprod/secret/agents/payments/stripe 1", "event/namespace odd": "error", "event/namespace root": "version.activated " + s + " 1",
		"event/mount with slashes": "version.activated /team%2Fa%2Fkv/data/metadata/x 1",
		"event/outer type":         "version.activated " + s + " 1",
		"event/no version":         "version.activated " + s, "event/no id": "version.activated /kv1/agents/foo", "event/no id, no time": "version.activated /kv1/agents/foo",
		"event/metadata patch": "secret.changed " + s,
		"event/two deleted":    "version.disabled " + s + " 1; version.disabled " + s + " 3", "event/odd deleted": "version.disabled " + s,
		"event/other mount": "error", "event/no plugin": "error", "event/rotate elsewhere": "error", "event/rotate nobody": "error",
		"event/rotate on deep mount": "rotation.succeeded /team%2Fdb/static-creds/agent-static; version.activated /team%2Fdb/static-creds/agent-static",

		"lines/audit":   "version.activated " + s + " 1; version.disabled " + s,
		"lines/one bad": "version.activated " + s + " 1; version.disabled " + s + "; error",
		"lines/Windows": "version.activated " + s + " 1; version.disabled " + s,
		"broken/empty":  "error", "broken/blank lines": "error", "broken/null": "error", "broken/array": "error", "broken/object": "error", "broken/prefix": "error",
		"broken/cut": "error", "broken/only the outer type": "error", "broken/event without a path": "error", "broken/request without one": "error",
	}
	all := notices(t)
	for name, body := range all {
		es, err := decode(body)
		noticetest.Sound(t, es, err, fault.Invalid)
		if got, w := short(es, err), want[name]; got != w {
			t.Errorf("%s: got %q, expected %q (%v)", name, got, w, err)
		}
	}
	for name := range want {
		if all[name] == nil && name != "broken/empty" {
			t.Errorf("there is no notice %s", name)
		}
	}
	if len(want) != len(all) {
		t.Errorf("%d notices and %d expectations", len(all), len(want))
	}
}

// outcome is what Decode made of one notice, as the golden file holds it.
type outcome struct {
	Events []goldenEvent `json:"events,omitempty"`
	Error  string        `json:"error,omitempty"`
}

type goldenEvent struct {
	ID      string      `json:"id"`
	Type    events.Type `json:"type"`
	Time    time.Time   `json:"time"`
	Subject string      `json:"subject"`
	Data    events.Data `json:"data"`
}

func TestDecodeGolden(t *testing.T) {
	const file = "testdata/golden.json"
	got := map[string]outcome{}
	for name, body := range notices(t) {
		es, err := decode(body)
		var o outcome
		if err != nil {
			o.Error = err.Error()
		}
		for _, e := range es {
			o.Events = append(o.Events, goldenEvent{e.ID, e.Type, e.Time, e.Subject(), e.Data})
		}
		got[name] = o
	}
	noticetest.Golden(t, file, *update, got)
}

func FuzzDecode(f *testing.F) {
	for _, body := range notices(f) {
		f.Add(body)
		if json.Valid(body) {
			f.Add(pretty(f, body))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		es, err := decode(body)
		noticetest.Sound(t, es, err, fault.Invalid)
		// What is dropped unread means nothing when it is read, either.
		line := bytes.TrimSpace(body)
		if irrelevant(line) && json.Valid(line) {
			if wide, _ := decode(pretty(t, line)); len(wide) > 0 {
				t.Fatalf("an entry that means %s is taken for one that means nothing", short(wide, nil))
			}
		}
	})
}

func TestDecodeIsTotal(t *testing.T) { noticetest.Total(t, notices(t), decode, fault.Invalid) }

func TestDecodeNeverEchoes(t *testing.T) {
	// Of each shape, those that have the most in them.
	some := map[string][]byte{}
	for name, body := range notices(t) {
		switch name {
		case "file/event.kv-v2.undelete", "file/event.database.rotate.manual", "event/namespace", "file/event.kv-v1.write", "file/event.kv-v2.data-write", "file/event.kv-v2.data-delete",
			"audit/namespace", "file/openbao-audit-kv2-update.response", "file/audit-kv1-create.response", "file/audit-db-rotate-role.response":
			some[name] = body
		}
		if strings.HasPrefix(name, "lines/") || strings.HasPrefix(name, "broken/") && !json.Valid(body) {
			some[name] = body
		}
	}
	noticetest.NeverEchoes(t, some, decode, func(key string) bool {
		switch key {
		case "path", "mount_point", "mount_path", "name", "namespace", "id":
			return true
		}
		return false
	}, 2000)
}

// Without a cluster nothing can be named, and the error says where to say it.
func TestClusterIsNeeded(t *testing.T) {
	if _, err := (Decoder{}).Decode(sample(t, "event.kv-v2.data-write.json"), received); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "cluster") {
		t.Errorf("%v; expected an error that names the cluster", err)
	}
}

// The error of a batch says which line it was and what is wrong with it.
func TestBatchError(t *testing.T) {
	_, err := decode(notices(t)["lines/one bad"])
	if want := "1 of 3 lines cannot be read; line 2: "; err == nil || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), opDecode) != 1 {
		t.Errorf("%v; expected %q in it", err, fmt.Sprint(want))
	}
}
