package storetest

import (
	"context"
	"maps"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// Tagged is a [Backend] that can set the tags of a secret, as its owner does:
// all at once, in place of those that were there. What a store notes among them
// stays. A backend whose stores are a [secrets.Tagger] must be one.
type Tagged interface {
	Tag(t *testing.T, r ref.Ref, tags map[string]string)
}

// exampleTags are what every provider takes.
func exampleTags(owner string) map[string]string {
	return map[string]string{"owner": owner, "team": "payments-eu_1"}
}

func tagger(t *testing.T, b Backend, _ abilities) {
	owner, ok := b.(Tagged)
	if !ok {
		t.Fatal("the stores are Taggers, so the backend must be Tagged")
	}
	ctx := tctx(t)
	s := b.Open(t, nil)
	tg := s.(secrets.Tagger)
	want := func(t *testing.T, what string, r ref.Ref, want map[string]string) {
		t.Helper()
		got := must[map[string]string](t, what)(tg.Tags(ctx, r))
		if got == nil || !maps.Equal(got, want) {
			t.Errorf("%s: tags are %v, expected %v", what, got, want)
		}
	}
	t.Run("none", func(t *testing.T) {
		r := b.Create(t, value())
		want(t, "a fresh secret", r, map[string]string{})
	})
	t.Run("set, changed, and given to the caller", func(t *testing.T) {
		r := b.Create(t, value())
		owner.Tag(t, r, exampleTags("acme"))
		want(t, "once set", r, exampleTags("acme"))
		got := must[map[string]string](t, "tags")(tg.Tags(ctx, r))
		got["owner"] = "mallory"
		want(t, "after the caller changed its map", r, exampleTags("acme"))
		owner.Tag(t, r, map[string]string{"owner": "globex"})
		want(t, "once changed", r, map[string]string{"owner": "globex"})
		owner.Tag(t, r, map[string]string{})
		want(t, "once removed", r, map[string]string{})
	})
	t.Run("through rotations", func(t *testing.T) {
		r := b.Create(t, value())
		owner.Tag(t, r, exampleTags("acme"))
		for range 3 {
			tok := token()
			b.Begin(t, r, tok)
			must[*secrets.Version](t, "put pending")(s.PutPending(ctx, r, tok, value()))
			want(t, "while one is pending", r, exampleTags("acme"))
			must[*secrets.Version](t, "promote")(s.Promote(ctx, r, tok))
			want(t, "after it was promoted", r, exampleTags("acme"))
		}
		tok := token()
		b.Begin(t, r, tok)
		must[*secrets.Version](t, "put pending")(s.PutPending(ctx, r, tok, value()))
		if err := s.Discard(ctx, r, tok); err != nil {
			t.Fatal(err)
		}
		want(t, "after one was discarded", r, exampleTags("acme"))
	})
	t.Run("errors", func(t *testing.T) {
		r := b.Create(t, value())
		missing := r
		missing.Name += "-missing"
		_, err := tg.Tags(ctx, missing)
		wantKind(t, "tags of a secret that is not there", err, fault.NotFound)
		_, err = tg.Tags(ctx, ref.Ref{})
		wantKind(t, "tags of no ref", err, fault.Invalid)
		ended, cancel := context.WithCancel(ctx)
		cancel()
		_, err = tg.Tags(ended, r)
		wantKind(t, "tags with a context that ended", err, fault.Unavailable)
	})
}
