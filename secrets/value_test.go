package secrets_test

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"text/template"

	"go.yaml.in/yaml/v3"

	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/secrets"
)

type exported struct {
	Name string
	V    secrets.Value
	P    *secrets.Value
}

type hidden struct {
	name string
	v    secrets.Value
	p    *secrets.Value
	in   struct{ v secrets.Value }
}

type embedded struct {
	secrets.Value
	N int
}

// holders returns v in everything that might hold it.
func holders(v secrets.Value) map[string]any {
	h := hidden{name: "n", v: v, p: &v}
	h.in.v = v
	version := secrets.Version{ID: "1", Token: "t", Value: v}
	return map[string]any{
		"value": v, "pointer": &v, "pointer to pointer": ptr(&v),
		"exported": exported{"n", v, &v}, "pointer to exported": &exported{"n", v, &v},
		"hidden": h, "pointer to hidden": &h, "embedded": embedded{v, 1}, "pointer to embedded": &embedded{v, 1},
		"slice": []secrets.Value{v}, "array": [1]secrets.Value{v}, "slice of pointers": []*secrets.Value{&v},
		"slice of any": []any{v, &v}, "slice of hidden": []hidden{h},
		"map": map[string]secrets.Value{"k": v}, "map of any": map[string]any{"k": v}, "map of hidden": map[string]hidden{"k": h},
		"version": version, "pointer to version": &version, "slice of versions": []*secrets.Version{&version},
		"interface": struct{ X any }{v}, "hidden interface": struct{ x any }{v}, "hidden pointer in interface": struct{ x any }{&h},
		"error": valueError{v}, "wrapped": fmt.Errorf("failed for %v, %w", v, valueError{v}),
		"chan": make(chan secrets.Value), "method value": v.Reveal,
	}
}

func ptr[T any](v T) *T { return &v }

type valueError struct{ v secrets.Value }

func (e valueError) Error() string {
	return fmt.Sprintf("bad value %s in %v", e.v, e) + fmt.Sprint(e.v)
}

func (e valueError) Format(s fmt.State, verb rune) { _, _ = fmt.Fprintf(s, "%"+string(verb), e.v) }

// TestNoVerbPrints tries every verb and flag that fmt has and some it has not.
func TestNoVerbPrints(t *testing.T) {
	canary := leaktest.Canary()
	v := secrets.NewString(canary)
	rec := &leaktest.Recorder{}
	verbs := "vTtbcdoOqxXUeEfFgGspyzw!"
	for name, h := range holders(v) {
		for _, verb := range verbs {
			for _, flags := range []string{"", "+", "#", "-", " ", "0", "+#", "# ", "200", ".200", "-60.3"} {
				out := fmt.Sprintf("%"+flags+string(verb), h)
				_, _ = fmt.Fprintln(rec, name, out)
			}
		}
		_, _ = fmt.Fprint(rec, h, "\n")
		_, _ = fmt.Fprintln(rec, h)
		rec.Record(h)
	}
	// Bad calls print their arguments too.
	for _, format := range []string{"%d %!", "%[1]*d", "%[9]d", "%.*d", "no verb"} {
		_, _ = fmt.Fprintf(rec, format, v, v, v)
	}
	rec.Check(t, canary)
	if got := fmt.Sprintf("%v %s %+v %#v %q %x %d", v, v, v, v, v, v, v); got != strings.TrimSpace(strings.Repeat("[redacted] ", 7)) {
		t.Errorf("a value prints as %s", got)
	}
	if v.String() != "[redacted]" || v.GoString() != "[redacted]" {
		t.Errorf("a value's strings are %s and %s", v.String(), v.GoString())
	}
}

func TestNoLoggerPrints(t *testing.T) {
	canary := leaktest.Canary()
	v := secrets.NewString(canary)
	rec := &leaktest.Recorder{}
	log := rec.Logger()
	for name, h := range holders(v) {
		log.Info("holder", name, h)
		log.With(name, h).WithGroup("g").Error("with", "err", h, slog.Group("in", name, h))
		log.Info(fmt.Sprint(h), slog.Any(name, h)) //nolint:sloglint // on purpose
	}
	odd := []any{v}
	log.Info("odd", odd...) // in the place of a key
	rec.Check(t, canary)
	var b bytes.Buffer
	slog.New(slog.NewJSONHandler(&b, nil)).Info("m", "v", v)
	if !strings.Contains(b.String(), `"v":"[redacted]"`) {
		t.Errorf("slog writes %s", b.String())
	}
}

// TestNoEncoderWrites: an encoder either fails or writes nothing of a value.
// Where a Value is reached it must fail: a placeholder in a file would be a
// lost credential.
func TestNoEncoderWrites(t *testing.T) {
	canary := leaktest.Canary()
	v := secrets.NewString(canary)
	encoders := map[string]func(any) ([]byte, error){
		"json": json.Marshal,
		"xml":  xml.Marshal,
		"yaml": yaml.Marshal,
		"gob": func(x any) ([]byte, error) {
			var b bytes.Buffer
			err := gob.NewEncoder(&b).Encode(x)
			return b.Bytes(), err
		},
		"template": func(x any) ([]byte, error) {
			var b bytes.Buffer
			err := template.Must(template.New("").Parse(`{{.}} {{printf "%s %x %+v" . . .}} {{. | js}} {{. | html}} {{. | urlquery}}`)).Execute(&b, x)
			return b.Bytes(), err
		},
	}
	rec := &leaktest.Recorder{}
	for enc, encode := range encoders {
		for _, h := range holders(v) {
			out, err := try(encode, h)
			rec.Record(string(out), err)
		}
		if enc == "template" {
			continue
		}
		for name, h := range map[string]any{
			"value": v, "pointer": &v, "exported": exported{"n", v, &v}, "slice": []secrets.Value{v},
			"embedded": embedded{v, 1}, "version": &secrets.Version{Value: v}, "map": map[string]secrets.Value{"k": v},
			"zero": secrets.Value{}, "wiped": wiped(),
		} {
			if out, err := try(encode, h); err == nil {
				t.Errorf("%s of %s wrote %q, expected an error", enc, name, out)
			}
		}
	}
	rec.Check(t, canary)
}

// try calls encode and takes a panic for an error.
func try(encode func(any) ([]byte, error), x any) (out []byte, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return encode(x)
}

func wiped() secrets.Value {
	v := secrets.NewString("x")
	v.Wipe()
	return v
}

func TestMarshalersFail(t *testing.T) {
	v := secrets.NewString("x")
	for name, f := range map[string]func() ([]byte, error){
		"json": v.MarshalJSON, "text": v.MarshalText, "binary": v.MarshalBinary, "gob": v.GobEncode,
	} {
		b, err := f()
		if err == nil || len(b) != 0 || !strings.Contains(err.Error(), "Reveal") {
			t.Errorf("%s: %q, %v; expected an error that names Reveal", name, b, err)
		}
	}
}

func TestReveal(t *testing.T) {
	in := []byte("p\x00\xff\n")
	v := secrets.NewValue(in)
	clear(in)
	out := v.Reveal()
	if string(out) != "p\x00\xff\n" || v.Len() != 4 || v.IsZero() {
		t.Fatalf("revealed %d bytes, length %d, zero %t", len(out), v.Len(), v.IsZero())
	}
	clear(out)
	if string(v.Reveal()) != "p\x00\xff\n" {
		t.Error("a revealed copy shares its buffer with the value")
	}
	for name, z := range map[string]secrets.Value{"zero": {}, "nil": secrets.NewValue(nil), "empty": secrets.NewString("")} {
		if !z.IsZero() || z.Len() != 0 || len(z.Reveal()) != 0 {
			t.Errorf("the %s value is not zero", name)
		}
	}
}

func TestEqual(t *testing.T) {
	a := secrets.NewString("abc")
	for name, c := range map[string]struct {
		a, b secrets.Value
		want bool
	}{
		"itself": {a, a, true}, "same bytes": {a, secrets.NewValue([]byte("abc")), true}, "other bytes": {a, secrets.NewString("abd"), false},
		"prefix": {a, secrets.NewString("ab"), false}, "zero": {a, secrets.Value{}, false}, "two zeros": {secrets.Value{}, secrets.NewString(""), true},
		"case": {a, secrets.NewString("ABC"), false}, "wiped and zero": {wiped(), secrets.Value{}, true},
	} {
		if c.a.Equal(c.b) != c.want || c.b.Equal(c.a) != c.want {
			t.Errorf("%s: equal is not %t", name, c.want)
		}
	}
}

func TestWipe(t *testing.T) {
	v := secrets.NewString("abc")
	cp, in, kept := v, exported{V: v, P: &v}, v.Reveal()
	v.Wipe()
	for name, w := range map[string]secrets.Value{"value": v, "copy": cp, "field": in.V, "pointer": *in.P} {
		if !w.IsZero() || w.Len() != 0 || len(w.Reveal()) != 0 {
			t.Errorf("the %s is not wiped", name)
		}
	}
	if string(kept) != "abc" {
		t.Error("a revealed copy was wiped too")
	}
	v.Wipe() // once more
	(secrets.Value{}).Wipe()
	if fmt.Sprint(v) != "[redacted]" {
		t.Error("a wiped value prints differently")
	}
}

// TestConcurrentReads is for the race detector.
func TestConcurrentReads(t *testing.T) {
	v := secrets.NewString("abc")
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if string(v.Reveal()) != "abc" || !v.Equal(secrets.NewString("abc")) || v.Len() != 3 || fmt.Sprint(v) != "[redacted]" {
					t.Error(errors.New("a reader saw something else"))
					return
				}
			}
		})
	}
	wg.Wait()
}
