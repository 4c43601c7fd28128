package storetest

import (
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// succession is the suite of a [secrets.Succeeder], on rotations that the
// store's own service does not open.
func succession(t *testing.T, b Backend, _ abilities) {
	ctx := tctx(t)
	s := b.Open(t, nil)
	sc := s.(secrets.Succeeder)
	v0, v1, v2 := value(), value(), value()
	r := b.Create(t, v0)
	first := must[*secrets.Version](t, "get current")(s.Get(ctx, r, secrets.Current))

	// What succeeds the current version is stored, and again with the token.
	tok := token()
	for range 2 {
		got := must[*secrets.Version](t, "put after current")(sc.PutPendingAfter(ctx, r, tok, first.ID, v1))
		wantVersion(t, "put after current", got, tok, v1)
	}
	must[*secrets.Version](t, "promote")(s.Promote(ctx, r, tok))

	// What was made from a version that is gone is refused, and leaves nothing.
	late := token()
	_, err := sc.PutPendingAfter(ctx, r, late, first.ID, v2)
	wantKind(t, "put after a version that is not current any more", err, fault.Conflict)
	_, err = s.Get(ctx, r, secrets.Pending)
	wantKind(t, "get pending after the refusal", err, fault.NotFound)
	now := must[*secrets.Version](t, "get current")(s.Get(ctx, r, secrets.Current))
	if !now.Value.Equal(v1) {
		t.Error("a refused put changed current")
	}
	must[*secrets.Version](t, "put after the new current")(sc.PutPendingAfter(ctx, r, token(), now.ID, v2))
}
