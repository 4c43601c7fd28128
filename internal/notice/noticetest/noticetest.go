// Package noticetest tries decoders with everything that JSON can be: spoiled
// notices, cut ones, and canaries in every place.
package noticetest

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
)

// A Decode is the decoder under test.
type Decode func(body []byte) ([]events.Event, error)

type failer interface {
	Helper()
	Fatalf(string, ...any)
}

// idForm is what versions and ids of events look like with every provider.
var idForm = regexp.MustCompile(`^[!-~]{0,512}$`)

// Sound fails t unless the answer of a decoder can be published or parked.
// Kinds are those that its errors may have.
func Sound(t failer, es []events.Event, err error, kinds ...fault.Kind) {
	t.Helper()
	if err != nil && !slices.Contains(kinds, fault.KindOf(err)) {
		t.Fatalf("error of kind %s; expected one of %v: %v", fault.KindOf(err), kinds, err)
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
		for _, id := range []string{e.Data.Version, e.Data.PreviousVersion, e.Data.Provider.EventID} {
			if !idForm.MatchString(id) {
				t.Fatalf("%q was copied; it has not the form of an identifier", id)
			}
		}
		for _, text := range []string{e.Data.Tenant, e.Data.Cause, e.Data.Reason, e.Data.Label, e.Data.Provider.Type, e.Data.Provider.ID, e.Data.TraceParent} {
			if len(text) > 2048 || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl) {
				t.Fatalf("%q was copied; it is no text of one line", text)
			}
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

// Total spoils good notices in the ways in which JSON can be wrong and still be
// JSON, any member becoming anything, and cuts them.
func Total(t *testing.T, notices map[string][]byte, decode Decode, kinds ...fault.Kind) {
	var names []string
	for n, body := range notices {
		if json.Valid(body) {
			names = append(names, n)
		}
	}
	slices.Sort(names)
	odd := []string{
		`null`, `7`, `-1e300`, `""`, `"x"`, `[]`, `{}`, `true`, `[[{}]]`, `"\u0000\ud800"`, `{"a":{"name":"x"}}`, `["a",7]`,
		`"projects/1/secrets/s"`, `"https://a.b.c/secrets/"`, `"AAAA"`,
		`{"a":{"arn":"x"}}`, `["AWSCURRENT",7]`, `"arn:aws:secretsmanager:r:a:secret:"`, `"` + strings.Repeat("y", 5000) + `"`,
	}
	rapid.Check(t, func(rt *rapid.T) {
		var v any
		if err := json.Unmarshal(notices[rapid.SampledFrom(names).Draw(rt, "notice")], &v); err != nil {
			rt.Fatal(err)
		}
		for range rapid.IntRange(1, 3).Draw(rt, "n") {
			v = spoil(rt, v, odd, 0)
		}
		b, err := json.Marshal(v)
		if err != nil {
			rt.Fatal(err)
		}
		for _, body := range [][]byte{b, b[:rapid.IntRange(0, len(b)).Draw(rt, "cut")]} {
			es, err := decode(body)
			Sound(rt, es, err, kinds...)
		}
	})
}

// spoil replaces one member somewhere in v.
func spoil(rt *rapid.T, v any, odd []string, depth int) any {
	stop := depth > 0 && rapid.IntRange(0, 3).Draw(rt, "here") == 0
	switch v := v.(type) {
	case map[string]any:
		if len(v) == 0 || stop {
			break
		}
		keys := make([]string, 0, len(v))
		for k := range v {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		k := rapid.SampledFrom(keys).Draw(rt, "key")
		v[k] = spoil(rt, v[k], odd, depth+1)
		return v
	case []any:
		if len(v) == 0 || stop {
			break
		}
		i := rapid.IntRange(0, len(v)-1).Draw(rt, "index")
		v[i] = spoil(rt, v[i], odd, depth+1)
		return v
	}
	return json.RawMessage(rapid.SampledFrom(odd).Draw(rt, "odd"))
}

// NeverEchoes plants a canary as, and beside, every member of every notice,
// and fails t if it comes out in an event or an error. Members that identity
// names, and those of their lists, are read as names: there the canary is planted in forms that are none.
func NeverEchoes(t *testing.T, notices map[string][]byte, decode Decode, identity func(key string) bool, atLeast int) {
	canary := leaktest.Canary()
	var rec leaktest.Recorder
	plants := 0
	seen := map[string]bool{}
	look := func(body []byte) {
		plants++
		es, err := decode(body)
		// Most plants come to the same events and errors.
		said := fmt.Sprintf("%v %+v", err, es)
		if seen[said] {
			return
		}
		seen[said] = true
		rec.Record(err)
		for _, e := range es {
			rec.Record(e, e.Subject())
		}
	}
	for _, body := range notices {
		var top any
		if json.Unmarshal(body, &top) != nil {
			look([]byte(canary + string(body)))
			look([]byte(string(body) + canary))
			look([]byte(`"` + canary))
			continue
		}
		for _, path := range paths(top, nil) {
			named := identity(keyOf(path))
			if named {
				for _, wrap := range []string{"%s with spaces", "projects/1/secrets/%s z", "https://v.vault.azure.net/secrets/%s z", "arn:aws:secretsmanager:x:y:secret:%s z", "\x00%s", "%s?"} {
					look(planted(t, body, path, fmt.Sprintf(wrap, canary)))
				}
			} else {
				look(planted(t, body, path, canary))
			}
			look(planted(t, body, path, map[string]any{canary: canary, "value": canary, "secretString": canary, "SecretString": canary}))
			if !named || !isList(top, path) { // a list of names stays one
				look(planted(t, body, path, []any{canary}))
			}
			for _, key := range []string{"value", "secretString", canary} {
				look(planted(t, body, append(slices.Clone(path[:len(path)-1]), key), canary))
			}
		}
	}
	rec.Check(t, canary)
	if plants < atLeast {
		t.Errorf("only %d notices were tried", plants)
	}
	t.Logf("canary planted in %d notices", plants)
}

// keyOf is the key of the member that path leads to, or of the list that it is
// in.
func keyOf(path []any) string {
	for _, step := range slices.Backward(path) {
		if key, ok := step.(string); ok {
			return key
		}
	}
	return ""
}

// isList reports whether path leads to a list.
func isList(v any, path []any) bool {
	for _, step := range path {
		switch in := v.(type) {
		case map[string]any:
			v = in[step.(string)]
		case []any:
			v = in[step.(int)]
		}
	}
	_, is := v.([]any)
	return is
}

// paths lists the way to every member of v, by keys and indexes.
func paths(v any, at []any) [][]any {
	var out [][]any
	if len(at) > 0 {
		out = append(out, at)
	}
	switch v := v.(type) {
	case map[string]any:
		for k, c := range v {
			out = append(out, paths(c, append(slices.Clone(at), k))...)
		}
	case []any:
		for i, c := range v {
			out = append(out, paths(c, append(slices.Clone(at), i))...)
		}
	}
	return out
}

// planted is body with v at path.
func planted(t testing.TB, body []byte, path []any, v any) []byte {
	t.Helper()
	var top any
	if err := json.Unmarshal(body, &top); err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(set(top, path, v))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func set(in any, path []any, v any) any {
	if len(path) == 0 {
		return v
	}
	switch step := path[0].(type) {
	case string:
		m, ok := in.(map[string]any)
		if !ok {
			m = map[string]any{}
		}
		m[step] = set(m[step], path[1:], v)
		return m
	case int:
		if a, ok := in.([]any); ok && step < len(a) {
			a[step] = set(a[step], path[1:], v)
			return a
		}
	}
	return v
}
