package natskv

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// TestTampering changes what is in the bucket as somebody could who may write
// there. Each change must be refused where it would be believed.
func TestTampering(t *testing.T) {
	b := newBackend(t)
	s, canary := b.seeds, leaktest.Canary()
	rec := &leaktest.Recorder{}
	full := func() ref.Ref {
		r := b.Create(t, secrets.NewString(canary))
		putRotation(t, s, r, "rotation-1", "rotation-2", secrets.NewString(canary+"1"), secrets.NewString(canary+"2"))
		return r
	}
	other, _, err := s.read(t.Context(), "test", full())
	if err != nil {
		t.Fatal(err)
	}
	for name, tamper := range map[string]func(r *record){
		"pending as current":       func(r *record) { r.Current, r.Pending = r.Pending, nil },
		"previous as current":      func(r *record) { r.Current = r.Previous },
		"current and previous":     func(r *record) { r.Current, r.Previous = r.Previous, r.Current },
		"of another secret":        func(r *record) { r.Current = other.Current },
		"box of another stage":     func(r *record) { r.Current.Box = r.Pending.Box },
		"box of another secret":    func(r *record) { r.Current.Box = other.Current.Box },
		"another token":            func(r *record) { r.Current.Token = "rotation-9" },
		"another id":               func(r *record) { r.Current.ID = "x" },
		"another time":             func(r *record) { r.Current.Created = r.Current.Created.Add(1) },
		"a bit of the nonce":       func(r *record) { r.Current.Box[0] ^= 1 },
		"a bit of the ciphertext":  func(r *record) { r.Current.Box[30] ^= 1 },
		"a bit of the tag":         func(r *record) { r.Current.Box[len(r.Current.Box)-1] ^= 1 },
		"cut off":                  func(r *record) { r.Current.Box = r.Current.Box[:len(r.Current.Box)-1] },
		"shorter than a nonce":     func(r *record) { r.Current.Box = r.Current.Box[:5] },
		"no box":                   func(r *record) { r.Current.Box = nil },
		"a key that nobody has":    func(r *record) { r.Current.Key = strings.Repeat("é", 4000) },
		"no current":               func(r *record) { r.Current = nil },
		"another format":           func(r *record) { r.Format = 2 },
		"token and id moved over":  func(r *record) { r.Current.Token, r.Current.ID = r.Current.ID, r.Current.Token },
		"ends of id and token cut": func(r *record) { r.Current.ID += r.Current.Token; r.Current.Token = "" },
	} {
		t.Run(name, func(t *testing.T) {
			r := full()
			entry, revision, err := s.read(t.Context(), "test", r)
			if err != nil {
				t.Fatal(err)
			}
			tamper(entry)
			if err := s.write(t.Context(), "test", r, EntryKey(r.Name), entry, revision); err != nil {
				t.Fatal(err)
			}
			v, err := s.Get(t.Context(), r, secrets.Current)
			rec.Record(v, err)
			if !fault.Is(err, fault.Denied) || len(err.Error()) > 500 {
				t.Errorf("get of a tampered current: %v of kind %s, expected denied", err, fault.KindOf(err))
			}
			_, err = s.Promote(t.Context(), r, "rotation-2")
			rec.Record(err)
			if err == nil {
				t.Error("a rotation was promoted on top of a tampered current")
			}
		})
	}
	for name, raw := range map[string]string{
		"text": "hello", "empty": "", "array": "[]", "null": "null", "number": "1",
		"unknown field": `{"format":1,"current":{"id":"x"},"plain":"` + canary + `"}`,
		"trailing":      `{"format":1,"current":{"id":"x"}}{}`,
		"wrong type":    `{"format":1,"current":{"id":["` + canary + `"]}}`,
	} {
		t.Run("entry is "+name, func(t *testing.T) {
			r := full()
			_, revision, err := s.read(t.Context(), "test", r)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := s.kv.Update(t.Context(), EntryKey(r.Name), []byte(raw), revision); err != nil {
				t.Fatal(err)
			}
			_, gerr := s.Get(t.Context(), r, secrets.Current)
			_, derr := s.Describe(t.Context(), r)
			_, perr := s.PutPending(t.Context(), r, "rotation-3", secrets.NewString(canary))
			for _, err := range []error{gerr, derr, perr} {
				rec.Record(err)
				if !fault.Is(err, fault.Denied) {
					t.Errorf("call on a foreign entry: %v of kind %s, expected denied", err, fault.KindOf(err))
				}
			}
		})
	}
	rec.Check(t, canary)
}

func TestWrongKey(t *testing.T) {
	b := newBackend(t)
	v := secrets.NewString("v0")
	r := b.Create(t, v)
	s := b.open(t, testKeys(t), nil)
	_, err := s.Get(t.Context(), r, secrets.Current)
	if !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), b.keys.IDs()[0]) {
		t.Errorf("get with another key: %v of kind %s, expected denied, naming key %s", err, fault.KindOf(err), b.keys.IDs()[0])
	}
	// What it cannot open it does not replace.
	if _, err := s.PutPending(t.Context(), r, "rotation-1", v); err != nil {
		t.Errorf("put pending beside a current of another key: %v", err)
	}
	if _, err := s.Promote(t.Context(), r, "rotation-1"); !fault.Is(err, fault.Denied) {
		t.Errorf("promote over a current of another key: %v, expected denied", err)
	}
	wantValue(t, b.seeds, r, secrets.Current, v)
	if d, err := s.Describe(t.Context(), r); err != nil || !d.Has("rotation-1", secrets.Pending) {
		t.Errorf("describe needs no key: %+v, %v", d, err)
	}
}

// TestChangeOfKey walks through what the comment of Keys says.
func TestChangeOfKey(t *testing.T) {
	b := newBackend(t)
	newer := testKeys(t)
	both := Keys{ring: append(append([]sealingKey(nil), newer.ring...), b.keys.ring...)}
	v0, v1, v2 := secrets.NewString("v0"), secrets.NewString("v1"), secrets.NewString("v2")
	r, untouched := b.Create(t, v0), b.Create(t, v0)
	putRotation(t, b.seeds, r, "rotation-1", "rotation-2", v1, v2)

	s := b.open(t, both, nil)
	wantValue(t, s, r, secrets.Pending, v2)
	if _, err := s.Promote(t.Context(), r, "rotation-2"); err != nil {
		t.Fatal(err)
	}
	wantValue(t, s, r, secrets.Current, v2)
	if _, err := b.seeds.Get(t.Context(), r, secrets.Current); !fault.Is(err, fault.Denied) {
		t.Errorf("the old key opens what was written since: %v", err)
	}
	for _, want := range []int{1, 0} { // the promotion moved r's to the new key already
		if n, err := s.Reseal(t.Context()); n != want || err != nil {
			t.Errorf("resealed %d secrets, %v; expected %d", n, err, want)
		}
	}
	s = b.open(t, newer, nil)
	wantValue(t, s, r, secrets.Current, v2)
	wantValue(t, s, r, secrets.Previous, v1)
	wantValue(t, s, untouched, secrets.Current, v0)
}

// TestNoncesDiffer seals one value often: no two boxes begin alike.
func TestNoncesDiffer(t *testing.T) {
	keys := testKeys(t)
	r := ref.Ref{Provider: ref.NATS, Scope: "b", Name: "n"}
	seen := map[string]bool{}
	for range 1000 {
		v, err := keys.seal("test", r, secrets.Current, newVersion("t", secrets.NewString("v")), standing{})
		if err != nil {
			t.Fatal(err)
		}
		seen[string(v.Box[:24])] = true
	}
	if len(seen) != 1000 {
		t.Errorf("1000 values were sealed under %d nonces", len(seen))
	}
}

// TestStoredForm pins what is on the server, which the next version of this
// program must read.
func TestStoredForm(t *testing.T) {
	const entry = `{"format":1,"current":{"id":"ID","token":"T","created":"2026-01-02T03:04:05.000000006Z","key":"KEY","box":"BOX"}}`
	keys, err := ParseKeys([]byte("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="))
	if err != nil {
		t.Fatal(err)
	}
	r := ref.Ref{Provider: ref.NATS, Scope: "keyturn", Name: "acme/db"}
	const box = "YNvwNqEig4rs3VEhoJawOBA1ot6Uafbpvs2OE3+xxFh5OPQmRQ/7i4dWC/u4A9dT9gfBKTcSicuR8Q=="
	text := strings.NewReplacer("KEY", keys.IDs()[0], "BOX", box).Replace(entry)
	rec, err := decodeRecord("test", r, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	v, err := keys.open("test", r, secrets.Current, rec.Current)
	if err != nil {
		t.Fatal(err)
	}
	if string(v.Value.Reveal()) != "stored by format 1" {
		t.Error("the stored value opened as another")
	}
	if b, err := json.Marshal(rec); err != nil || string(b) != text {
		t.Errorf("stored again as %s, %v", b, err)
	}
}
