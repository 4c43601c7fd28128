package vaultkv_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// genJSON draws a JSON text of any shape, order and spacing.
func genJSON(depth int) *rapid.Generator[string] {
	scalar := rapid.OneOf(
		rapid.SampledFrom([]string{"null", "true", "0", "-0", "1.0", "1e3", "5432", "1e21", "12345678901234567890", "0.1", `"\u2028\u00e9\/"`, `"\ud800"`}),
		rapid.Map(rapid.String(), func(s string) string { b, _ := json.Marshal(s); return string(b) }),
	)
	if depth == 0 {
		return scalar
	}
	inner := rapid.Deferred(func() *rapid.Generator[string] { return genJSON(depth - 1) })
	return rapid.OneOf(scalar, rapid.Custom(func(t *rapid.T) string { return genObject(t, inner) }), rapid.Map(inner, func(s string) string { return "[" + s + " ]" }))
}

func genObject(t *rapid.T, inner *rapid.Generator[string]) string {
	out := "{"
	for i := range rapid.IntRange(0, 4).Draw(t, "members") {
		if i > 0 {
			out += rapid.SampledFrom([]string{",", ", ", ",\n"}).Draw(t, "comma")
		}
		key, _ := json.Marshal(rapid.SampledFrom([]string{"username", "password", "value", "value_base64", "a", "é", "<"}).Draw(t, "key"))
		out += string(key) + ":" + inner.Draw(t, "member")
	}
	return out + "}"
}

// Whatever is stored is read back byte for byte, and an object's fields are
// its own.
func TestValuesRoundTrip(t *testing.T) {
	gen := rapid.OneOf(
		rapid.SliceOfN(rapid.Byte(), 1, 50),
		rapid.Map(rapid.StringN(1, 50, -1), func(s string) []byte { return []byte(s) }),
		rapid.Map(genJSON(2), func(s string) []byte { return []byte(s) }),
		rapid.Custom(func(t *rapid.T) []byte { return []byte(genObject(t, genJSON(1))) }),
	)
	rapid.Check(t, func(t *rapid.T) {
		raw := gen.Draw(t, "value")
		stored, back, err := vaultkv.RoundTrip(secrets.NewValue(raw), "value")
		if err != nil {
			t.Fatal(err)
		}
		if got := back.Reveal(); !bytes.Equal(got, raw) {
			t.Fatalf("%q was read back as %q from %s", raw, got, stored)
		}
		var object, fields map[string]any
		if json.Unmarshal(raw, &object) != nil || object == nil {
			return
		}
		if err := json.Unmarshal(stored, &fields); err != nil {
			t.Fatal(err)
		}
		delete(fields, vaultkv.TextField)
		want, _ := json.Marshal(object)
		got, _ := json.Marshal(fields)
		if !bytes.Equal(got, want) {
			t.Fatalf("%q has the fields %s, expected %s", raw, got, want)
		}
	})
}

func TestValuesRefused(t *testing.T) {
	canary := leaktest.Canary()
	rec := &leaktest.Recorder{}
	for what, v := range map[string]secrets.Value{
		"empty": {}, "too long": secrets.NewValue(make([]byte, vaultkv.MaxValue+1)),
		"too large a number": secrets.NewString(`{"p":"` + canary + `","n":1e999}`),
		"our own field":      secrets.NewString(`{"keyturn_text":"` + canary + `"}`),
	} {
		_, _, err := vaultkv.RoundTrip(v, "value")
		rec.Record(err)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, expected invalid", what, err)
		}
	}
	for _, data := range []string{"", "null", "[]", `"` + canary + `"`, `{"a":` + canary, `{"a":1}x`} {
		_, err := vaultkv.Decode([]byte(data), "value")
		rec.Record(err)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, expected invalid", data, err)
		}
	}
	rec.Check(t, canary)
}

// What anybody has stored is read the same way each time, and what was read
// can be stored again.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{}`, `{"value":"x"}`, `{"value_base64":"eA=="}`, `{"a":1e2,"keyturn_text":"{\"a\":100}"}`, `{"a":[{"b":null}]}`, `null`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := vaultkv.Decode(data, "value")
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatalf("%v", err)
			}
			return
		}
		if v.IsZero() {
			t.Fatal("an empty value")
		}
		if v.Len() > vaultkv.MaxValue {
			return
		}
		_, back, err := vaultkv.RoundTrip(v, "value")
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Fatal(err)
			}
			return
		}
		if !back.Equal(v) {
			t.Fatalf("%q reads as %q and comes back as %q", data, v.Reveal(), back.Reveal())
		}
	})
}
