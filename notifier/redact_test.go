package notifier

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
)

func TestShape(t *testing.T) {
	for body, want := range map[string]string{
		`{"a":"secret","n":4242,"t":true,"z":null,"l":["x",{"b":"yy"}]}`: `{"a":"(6 bytes)","l":["(1 bytes)",{"b":"(2 bytes)"}],"n":0,"t":true,"z":null}`,
		`"text"`:             `"(4 bytes)"`,
		`hello`:              `"5 bytes that are not JSON"`,
		`{"a":1} {"b":2}`:    `"15 bytes that are not JSON"`,
		``:                   `"0 bytes that are not JSON"`,
		`{"k\u0000\"y":"v"}`: `{"(a name of 4 bytes)":"(1 bytes)"}`,
		`[` + strings.Repeat(`[`, 40) + strings.Repeat(`]`, 41): strings.Repeat("[", 32) + `"deeper"` + strings.Repeat("]", 32),
	} {
		if got := Shape([]byte(body)); string(got) != want {
			t.Errorf("Shape(%q) = %s; expected %s", body, got, want)
		}
	}
}

func TestShapeKeepsNoValue(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		text := rapid.StringMatching(`[a-z0-9]{8,20}`).Draw(rt, "text")
		body, err := json.Marshal(map[string]any{"a": text, "b": []any{text, 7}, text + "\x01": text})
		if err != nil {
			rt.Fatal(err)
		}
		for _, in := range [][]byte{body, body[:len(body)/2]} {
			if out := Shape(in); bytes.Contains(out, []byte(text)) || !json.Valid(out) {
				rt.Fatalf("%s", out)
			}
		}
	})
}

// TestParkedPayloadMayBeRedacted: the letter says what was there, how long it
// was, and holds nothing of it.
func TestParkedPayloadMayBeRedacted(t *testing.T) {
	b := newBus()
	canary := leaktest.Canary()
	h := New(b, b, &Options{Redact: true}).Handler(gives(fault.Newf(fault.Invalid, "decode", "detail.x is missing")))
	body := []byte(`{"detail":{"userIdentity":"` + canary + `"}}`)
	d := Delivery{Source: "s", Body: body, Attributes: map[string]string{"eventType": canary}}
	key := d.Key()
	if err := h(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	l := b.only(t)
	if bytes.Contains(l.Body, []byte(canary)) || !bytes.Contains(l.Body, []byte("userIdentity")) || !l.Redacted || l.Size != len(body) || len(l.Attributes) != 0 {
		t.Errorf("parked %+v", l)
	}
	if b.dead[key].Reason == "" {
		t.Error("the letter is not under the key of the notice, so each repetition would be another letter")
	}
}
