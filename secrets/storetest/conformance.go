package storetest

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// conformance checks the contract sentence by sentence.
func conformance(t *testing.T, b Backend, _ abilities) {
	for _, c := range []struct {
		name string
		run  func(ctx context.Context, t *testing.T, b Backend, s secrets.Store)
	}{
		{"fresh secret has current only", testFresh},
		{"pending is not current", testPending},
		{"pending is never overwritten", testNeverOverwritten},
		{"another rotation's pending", testRival},
		{"promote", testPromote},
		{"promoted tokens", testPromotedTokens},
		{"activation", testActivation},
		{"promote without a version", testPromoteNothing},
		{"discard", testDiscard},
		{"discard of what is not there", testDiscardNothing},
		{"unknown secret", testUnknownSecret},
		{"bad input", testBadInput},
		{"values of every kind and length", testValues},
		{"buffers are not shared", testBuffers},
		{"a context that ended", testContext},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(tctx(t), t, b, b.Open(t, nil)) })
	}
}

// put begins a rotation and stores v as its pending version.
func put(ctx context.Context, t *testing.T, b Backend, s secrets.Store, r ref.Ref, tok string, v secrets.Value) *secrets.Version {
	t.Helper()
	b.Begin(t, r, tok)
	return must[*secrets.Version](t, "put pending")(s.PutPending(ctx, r, tok, v))
}

func testFresh(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	v := value()
	r := b.Create(t, v)
	wantStages(ctx, t, s, r, stages{current: v})
}

func testPending(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	v0, v1, tok := value(), value(), token()
	r := b.Create(t, v0)
	b.Begin(t, r, tok)
	// Labelled pending or not, what has no value is not found.
	_, err := s.Get(ctx, r, secrets.Pending)
	wantKind(t, "get pending before there is a value", err, fault.NotFound)
	got := must[*secrets.Version](t, "put pending")(s.PutPending(ctx, r, tok, v1))
	wantVersion(t, "put pending", got, tok, v1)
	// Another process sees the same.
	wantStages(ctx, t, b.Open(t, nil), r, stages{current: v0, pending: v1, pendingToken: tok})
	d := must[*secrets.Description](t, "describe")(s.Describe(ctx, r))
	if !d.Has(tok, secrets.Pending) || d.Has(tok, secrets.Current) || !d.Known(tok) {
		t.Errorf("described as %+v, expected rotation %s as pending", d, tok)
	}
}

func testNeverOverwritten(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	v0, v1, tok := value(), value(), token()
	r := b.Create(t, v0)
	first := put(ctx, t, b, s, r, tok, v1)
	for _, again := range []secrets.Value{v1, value(), binary(100)} {
		got := must[*secrets.Version](t, "put pending again")(b.Open(t, nil).PutPending(ctx, r, tok, again))
		wantVersion(t, "put pending again", got, tok, v1)
		if got.ID != first.ID {
			t.Errorf("put pending again returned version %s, expected %s", got.ID, first.ID)
		}
	}
	wantStages(ctx, t, s, r, stages{current: v0, pending: v1, pendingToken: tok})
}

func testRival(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	v0, v1, tok, rival := value(), value(), token(), token()
	r := b.Create(t, v0)
	put(ctx, t, b, s, r, tok, v1)
	_, err := s.PutPending(ctx, r, rival, value())
	wantKind(t, "put pending beside another rotation", err, fault.Conflict)
	_, err = s.PutPending(ctx, r, rival, v1)
	wantKind(t, "put the same value beside another rotation", err, fault.Conflict)
	_, err = s.Promote(ctx, r, rival)
	wantKind(t, "promote while another rotation is pending", err, fault.Conflict, fault.NotFound)
	wantKind(t, "discard another rotation's pending", s.Discard(ctx, r, rival), fault.Conflict)
	wantStages(ctx, t, s, r, stages{current: v0, pending: v1, pendingToken: tok})
}

func testPromote(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	vs := []secrets.Value{value(), value(), value(), value()}
	r := b.Create(t, vs[0])
	for i := 1; i < len(vs); i++ {
		tok := token()
		put(ctx, t, b, s, r, tok, vs[i])
		for range 3 { // the first does it, the others change nothing
			got := must[*secrets.Version](t, "promote")(s.Promote(ctx, r, tok))
			wantVersion(t, "promote", got, tok, vs[i])
			wantStages(ctx, t, b.Open(t, nil), r, stages{current: vs[i], currentToken: tok, previous: vs[i-1]})
			wantCleared(t, b, r, "a promotion")
		}
		if d := must[*secrets.Description](t, "describe")(s.Describe(ctx, r)); !d.Has(tok, secrets.Current) {
			t.Errorf("described as %+v, expected rotation %s as current", d, tok)
		}
	}
}

func testPromotedTokens(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	v0, v1, v2, tok1, tok2 := value(), value(), value(), token(), token()
	r := b.Create(t, v0)
	put(ctx, t, b, s, r, tok1, v1)
	must[*secrets.Version](t, "promote")(s.Promote(ctx, r, tok1))
	for _, v := range []secrets.Value{v1, value()} {
		_, err := s.PutPending(ctx, r, tok1, v)
		wantKind(t, "put pending under the current version's token", err, fault.Conflict)
	}
	wantStages(ctx, t, s, r, stages{current: v1, currentToken: tok1, previous: v0})

	put(ctx, t, b, s, r, tok2, v2)
	must[*secrets.Version](t, "promote")(s.Promote(ctx, r, tok2))
	_, err := s.PutPending(ctx, r, tok1, v1)
	wantKind(t, "put pending under the previous version's token", err, fault.Conflict)
	_, err = s.Promote(ctx, r, tok1)
	wantKind(t, "promote what was superseded", err, fault.Conflict)
	if err := s.Discard(ctx, r, tok1); err != nil {
		t.Errorf("discard of a superseded rotation with nothing pending: %v", err)
	}
	wantStages(ctx, t, s, r, stages{current: v2, currentToken: tok2, previous: v1})
}

func testPromoteNothing(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	v0 := value()
	r := b.Create(t, v0)
	_, err := s.Promote(ctx, r, token())
	wantKind(t, "promote a rotation that has no version", err, fault.NotFound)
	tok := token()
	b.Begin(t, r, tok)
	_, err = s.Promote(ctx, r, tok)
	wantKind(t, "promote a rotation that was begun and stored nothing", err, fault.NotFound)
	wantStages(ctx, t, s, r, stages{current: v0, begun: tok})
}

func testDiscard(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	v0, v1, tok := value(), value(), token()
	r := b.Create(t, v0)
	put(ctx, t, b, s, r, tok, v1)
	for range 2 {
		if err := s.Discard(ctx, r, tok); err != nil {
			t.Fatalf("discard: %v", err)
		}
		wantStages(ctx, t, b.Open(t, nil), r, stages{current: v0})
		wantCleared(t, b, r, "a discard")
	}
	_, err := s.Promote(ctx, r, tok)
	wantKind(t, "promote what was discarded", err, fault.NotFound, fault.Conflict)
	wantStages(ctx, t, s, r, stages{current: v0})

	// The way is free for the next rotation, which the old token cannot hurt.
	v2, tok2 := value(), token()
	put(ctx, t, b, s, r, tok2, v2)
	wantKind(t, "discard of a finished rotation while another is pending", s.Discard(ctx, r, tok), fault.Conflict)
	must[*secrets.Version](t, "promote")(s.Promote(ctx, r, tok2))
	if err := s.Discard(ctx, r, tok2); err != nil {
		t.Errorf("discard of the current version's token: %v", err)
	}
	wantStages(ctx, t, s, r, stages{current: v2, currentToken: tok2, previous: v0})
}

func testDiscardNothing(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	v0 := value()
	r := b.Create(t, v0)
	if err := s.Discard(ctx, r, token()); err != nil {
		t.Errorf("discard with nothing pending: %v", err)
	}
	wantStages(ctx, t, s, r, stages{current: v0})
}

// calls makes each call of s, for what they have in common.
func calls(ctx context.Context, s secrets.Store, r ref.Ref, tok string, v secrets.Value, f func(what string, err error)) {
	for _, st := range []secrets.Stage{secrets.Current, secrets.Pending, secrets.Previous} {
		_, err := s.Get(ctx, r, st)
		f("get "+string(st), err)
	}
	_, err := s.PutPending(ctx, r, tok, v)
	f("put pending", err)
	_, err = s.Promote(ctx, r, tok)
	f("promote", err)
	f("discard", s.Discard(ctx, r, tok))
	_, err = s.Describe(ctx, r)
	f("describe", err)
}

func testUnknownSecret(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	r := b.Create(t, value())
	r.Name += "-unknown"
	calls(ctx, s, r, token(), value(), func(what string, err error) {
		wantKind(t, what+" of an unknown secret", err, fault.NotFound)
	})
}

func testBadInput(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	v0, v1, tok := value(), value(), token()
	r := b.Create(t, v0)
	b.Begin(t, r, tok)

	_, err := s.PutPending(ctx, r, "", v1)
	wantKind(t, "put pending with an empty token", err, fault.Invalid)
	_, err = s.Promote(ctx, r, "")
	wantKind(t, "promote with an empty token", err, fault.Invalid)
	wantKind(t, "discard with an empty token", s.Discard(ctx, r, ""), fault.Invalid)

	wiped := value()
	wiped.Wipe()
	for name, v := range map[string]secrets.Value{"zero": {}, "empty": secrets.NewString(""), "wiped": wiped} {
		_, err = s.PutPending(ctx, r, tok, v)
		wantKind(t, "put pending of a "+name+" value", err, fault.Invalid)
	}
	_, err = s.Get(ctx, r, "latest")
	wantKind(t, "get of a stage that does not exist", err, fault.Invalid, fault.NotFound)
	wantStages(ctx, t, s, r, stages{current: v0, begun: tok})

	elsewhere := ref.Ref{Provider: ref.Azure, Scope: "elsewhere", Name: "x"}
	if r.Provider == ref.Azure {
		elsewhere = ref.Ref{Provider: ref.GCP, Scope: "elsewhere", Name: "x"}
	}
	for _, bad := range []ref.Ref{{}, elsewhere} {
		calls(ctx, s, bad, tok, v1, func(what string, err error) {
			wantKind(t, fmt.Sprintf("%s of ref %q", what, bad), err, fault.Invalid, fault.NotFound)
		})
	}
}

func testValues(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	for name, v := range map[string]secrets.Value{
		"one byte":     secrets.NewString("x"),
		"zero byte":    secrets.NewValue([]byte{0}),
		"spaces":       secrets.NewString(" \t\r\n "),
		"json":         secrets.NewString(`{"username":"app","password":"p<>&\u2028 \\ \"","port":5432}`),
		"unicode":      secrets.NewString("Schlüssel 鍵 🔑"),
		"broken utf-8": secrets.NewValue([]byte{0xff, 0xfe, 0xc3, 0x28, 0xed, 0xa0, 0x80}),
		"255 bytes":    binary(255),
		"4 KiB":        binary(4 << 10),
		"64 KiB":       binary(maxValue),
		"64 KiB text":  secrets.NewString(strings.Repeat("0123456789abcdef", maxValue/16)),
	} {
		t.Run(name, func(t *testing.T) {
			if lack := lacking(b, v); lack != "" {
				t.Logf("the service takes no %s", lack)
				testRefused(ctx, t, b, s, v)
				return
			}
			r := b.Create(t, v)
			wantStages(ctx, t, s, r, stages{current: v})
			tok := token()
			got := put(ctx, t, b, s, r, tok, v)
			wantVersion(t, "put pending", got, tok, v)
			must[*secrets.Version](t, "promote")(s.Promote(ctx, r, tok))
			// All three stages full at their longest.
			tok2 := token()
			put(ctx, t, b, s, r, tok2, v)
			wantStages(ctx, t, b.Open(t, nil), r, stages{current: v, currentToken: tok, pending: v, pendingToken: tok2, previous: v})
		})
	}
	t.Run("over 64 KiB", func(t *testing.T) {
		v0, v, tok := value(), binary(maxValue+1), token()
		r := b.Create(t, v0)
		b.Begin(t, r, tok)
		got, err := s.PutPending(ctx, r, tok, v)
		if err != nil {
			wantKind(t, "put pending of a long value", err, fault.Invalid)
			wantStages(ctx, t, s, r, stages{current: v0, begun: tok})
			return
		}
		wantVersion(t, "put pending of a long value", got, tok, v)
	})
}

// testBuffers wipes what was given to the store and what it gave back.
func testBuffers(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	cp := func(v secrets.Value) secrets.Value { return secrets.NewValue(v.Reveal()) }
	v0, v1, tok := value(), value(), token()
	given := cp(v0)
	r := b.Create(t, given)
	given.Wipe()
	given = cp(v1)
	got := put(ctx, t, b, s, r, tok, given)
	given.Wipe()
	wantVersion(t, "put pending, its argument wiped since", got, tok, v1)
	got.Value.Wipe()
	for _, st := range []secrets.Stage{secrets.Current, secrets.Pending} {
		must[*secrets.Version](t, "get")(s.Get(ctx, r, st)).Value.Wipe()
	}
	wantStages(ctx, t, s, r, stages{current: v0, pending: v1, pendingToken: tok})
	must[*secrets.Version](t, "promote")(s.Promote(ctx, r, tok)).Value.Wipe()
	wantStages(ctx, t, s, r, stages{current: v1, currentToken: tok, previous: v0})
}

func testContext(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	v0, v1, tok := value(), value(), token()
	r := b.Create(t, v0)
	put(ctx, t, b, s, r, tok, v1)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	calls(ended, s, r, tok, v1, func(what string, err error) {
		wantKind(t, what+" after the context ended", err, fault.Unavailable)
	})
	wantStages(ctx, t, s, r, stages{current: v0, pending: v1, pendingToken: tok})
}

// creator checks [secrets.Creator].
func creator(t *testing.T, b Backend, _ abilities) {
	s := b.Open(t, nil)
	c := s.(secrets.Creator)
	ctx, v := tctx(t), value()
	r := b.Create(t, value())
	existing := must[*secrets.Version](t, "get")(s.Get(ctx, r, secrets.Current))
	_, err := c.CreateSecret(ctx, r, v)
	wantKind(t, "create a secret that exists", err, fault.Conflict)
	wantStages(ctx, t, s, r, stages{current: existing.Value})

	r.Name += "-new-" + token()[:8]
	_, err = c.CreateSecret(ctx, r, secrets.Value{})
	wantKind(t, "create a secret with an empty value", err, fault.Invalid)
	_, err = s.Describe(ctx, r)
	wantKind(t, "describe what was not created", err, fault.NotFound)
	given := secrets.NewValue(v.Reveal())
	got := must[*secrets.Version](t, "create")(c.CreateSecret(ctx, r, given))
	wantVersion(t, "create", got, "", v)
	given.Wipe()
	wantStages(ctx, t, b.Open(t, nil), r, stages{current: v})
	// A created secret rotates like any other.
	tok, v1 := token(), value()
	put(ctx, t, b, s, r, tok, v1)
	must[*secrets.Version](t, "promote")(s.Promote(ctx, r, tok))
	wantStages(ctx, t, s, r, stages{current: v1, currentToken: tok, previous: v})
	_, err = c.CreateSecret(ctx, r, v)
	wantKind(t, "create a secret again", err, fault.Conflict)
	wantStages(ctx, t, s, r, stages{current: v1, currentToken: tok, previous: v})

	_, err = c.CreateSecret(ctx, ref.Ref{}, v)
	wantKind(t, "create a secret with a zero ref", err, fault.Invalid)
}
