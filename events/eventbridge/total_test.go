package eventbridge

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
)

// sound fails t unless Decode's answer to body can be published or parked.
func sound(t interface {
	Helper()
	Fatalf(string, ...any)
}, body []byte) {
	t.Helper()
	es, err := Decode(body, received)
	if err != nil && !fault.Is(err, fault.Invalid) {
		t.Fatalf("error of kind %s; expected invalid", fault.KindOf(err))
	}
	if err != nil && len(err.Error()) > 600 {
		t.Fatalf("an error of %d bytes", len(err.Error()))
	}
	for _, e := range es {
		if e.ID == "" || !e.Type.Valid() || e.Time.IsZero() || e.Time != e.Time.UTC() {
			t.Fatalf("an event without id, type or time: %+v", e)
		}
		if back, err := ref.Parse(e.Data.Ref.String()); err != nil || back != e.Data.Ref {
			t.Fatalf("ref %q does not survive its text form: %v", e.Data.Ref, err)
		}
		if _, err := events.ParseSubject(e.Subject()); err != nil {
			t.Fatalf("subject: %v", err)
		}
		b, err := json.Marshal(e.Data)
		if err != nil {
			t.Fatalf("the data cannot be written: %v", err)
		}
		if len(b) > 8192 {
			t.Fatalf("an event of %d bytes", len(b))
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, body := range notices(f) {
		f.Add(body)
	}
	_, typ, detail, err := Entry(events.New(events.VersionActivated, paymentsRef, received, rotation))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(put(Source, typ, detail))
	f.Fuzz(func(t *testing.T, body []byte) { sound(t, body) })
}

// TestDecodeIsTotal spoils good notices in the ways in which JSON can be wrong
// and still be JSON: any member becomes anything.
func TestDecodeIsTotal(t *testing.T) {
	all := notices(t)
	names := make([]string, 0, len(all))
	for n := range all {
		if json.Valid(all[n]) {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	odd := []string{`null`, `7`, `-1e300`, `""`, `"x"`, `[]`, `{}`, `true`, `[[{}]]`, `"\u0000\ud800"`, `{"a":{"arn":"x"}}`, `"arn:aws:secretsmanager:r:a:secret:"`, `["AWSCURRENT",7]`, `"` + strings.Repeat("y", 5000) + `"`}
	rapid.Check(t, func(rt *rapid.T) {
		var v any
		if err := json.Unmarshal(all[rapid.SampledFrom(names).Draw(rt, "notice")], &v); err != nil {
			rt.Fatal(err)
		}
		for range rapid.IntRange(1, 3).Draw(rt, "n") {
			v = spoil(rt, v, odd, 0)
		}
		b, err := json.Marshal(v)
		if err != nil {
			rt.Fatal(err)
		}
		sound(rt, b)
		cut := rapid.IntRange(0, len(b)).Draw(rt, "cut")
		sound(rt, b[:cut])
	})
}

// spoil replaces one member somewhere in v.
func spoil(rt *rapid.T, v any, odd []string, depth int) any {
	m, ok := v.(map[string]any)
	if !ok || len(m) == 0 || depth > 0 && rapid.IntRange(0, 3).Draw(rt, "here") == 0 {
		return json.RawMessage(rapid.SampledFrom(odd).Draw(rt, "odd"))
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	k := rapid.SampledFrom(keys).Draw(rt, "key")
	m[k] = spoil(rt, m[k], odd, depth+1)
	return m
}

// TestDecodeNeverEchoes plants a canary as the value of, and beside, every
// member of every notice, except where a notice's identity is read from: there
// a text that looks like a name is the name.
func TestDecodeNeverEchoes(t *testing.T) {
	canary := leaktest.Canary()
	var rec leaktest.Recorder
	plants := 0
	look := func(body string) {
		plants++
		es, err := Decode([]byte(body), received)
		rec.Record(err)
		for _, e := range es {
			rec.Record(e, e.Subject())
		}
	}
	for _, body := range notices(t) {
		var top map[string]any
		if json.Unmarshal(body, &top) != nil {
			look(canary + string(body))
			look(string(body) + canary)
			look(`"` + canary)
			continue
		}
		for _, path := range paths(top, nil) {
			if isIdentity(path[len(path)-1]) {
				// Not a name, not a token: it must not pass as one.
				for _, wrap := range []string{"%s with spaces", "arn:aws:secretsmanager:x:y:secret:%s z", "\x00%s", "%s?"} {
					look(planted(t, body, path, fmt.Sprintf(wrap, canary)))
				}
				continue
			}
			look(planted(t, body, path, canary))
			look(planted(t, body, path, map[string]any{canary: canary, "secretString": canary, "SecretString": canary}))
			look(planted(t, body, path, []any{canary}))
		}
		for _, path := range paths(top, nil) {
			look(planted(t, body, append(slices.Clone(path[:len(path)-1]), "secretString"), canary))
			look(planted(t, body, append(slices.Clone(path[:len(path)-1]), canary), canary))
		}
	}
	rec.Check(t, canary)
	if plants < 2000 {
		t.Errorf("only %d notices were tried", plants)
	}
	t.Logf("canary planted in %d notices", plants)
}

// isIdentity reports whether a member names a thing and is copied if it has the
// form of a name.
func isIdentity(key string) bool {
	switch strings.ToLower(key) {
	case "secretid", "arn", "name", "versionid", "clientrequesttoken", "movetoversionid", "removefromversionid",
		"labelupdated", "versionstage", "versionstages", "resources", "account", "region", "awsregion", "recipientaccountid", "id", "eventid", "requestid":
		return true
	}
	return false
}

func paths(v any, at []string) [][]string {
	m, ok := v.(map[string]any)
	if !ok {
		return [][]string{at}
	}
	var out [][]string
	for k, c := range m {
		if len(at) > 0 {
			out = append(out, append(slices.Clone(at), k))
		}
		out = append(out, paths(c, append(slices.Clone(at), k))...)
	}
	return slices.DeleteFunc(out, func(p []string) bool { return len(p) == 0 })
}

// planted is body with v at path.
func planted(t testing.TB, body []byte, path []string, v any) string {
	t.Helper()
	var top map[string]any
	if err := json.Unmarshal(body, &top); err != nil {
		t.Fatal(err)
	}
	m := top
	for _, k := range path[:len(path)-1] {
		next, ok := m[k].(map[string]any)
		if !ok {
			next = map[string]any{}
			m[k] = next
		}
		m = next
	}
	m[path[len(path)-1]] = v
	b, err := json.Marshal(top)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
