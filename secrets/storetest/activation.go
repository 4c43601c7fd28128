package storetest

import (
	"context"
	"testing"
	"time"

	"github.com/keyturn/keyturn/secrets"
)

// testActivation: the age of the current version counts from its promotion,
// however long ago it was made. A gate that counted from the pending write
// would open too early.
func testActivation(ctx context.Context, t *testing.T, b Backend, s secrets.Store) {
	r := b.Create(t, value())
	activated := func() time.Time {
		t.Helper()
		d := must[*secrets.Description](t, "describe")(s.Describe(ctx, r))
		h := d.Holder(secrets.Current)
		if h == nil {
			t.Fatal("nobody is described as current")
		}
		return h.Activated
	}
	const age = time.Hour
	ahead := time.Duration(0) // of the service's clock
	for range 2 {
		v, tok := value(), token()
		put(ctx, t, b, s, r, tok, v)
		wantStages(ctx, t, s, r, stages{
			current:      must[*secrets.Version](t, "get current")(s.Get(ctx, r, secrets.Current)).Value,
			pending:      v,
			pendingToken: tok,
			previous:     previousOf(ctx, t, s, r),
		})
		begun := time.Now()
		if c, ok := b.(Clocked); ok {
			c.Advance(age)
			ahead += age
			begun = begun.Add(ahead)
		}
		must[*secrets.Version](t, "promote")(s.Promote(ctx, r, tok))
		wantActivated(t, "promote", activated(), begun, ahead)
		was := ahead
		if c, ok := b.(Clocked); ok {
			c.Advance(age) // repeated later, it is no later activation
			ahead += age
		}
		must[*secrets.Version](t, "promote again")(s.Promote(ctx, r, tok))
		wantActivated(t, "promote again", activated(), begun, was)
	}
}

// wantActivated fails t if at is before the promotion began, or was still to
// come when the service's clock was ahead of ours by that much. A provider that tells whole seconds is allowed two.
func wantActivated(t *testing.T, what string, at, begun time.Time, ahead time.Duration) {
	t.Helper()
	slack := time.Duration(0)
	if at.Nanosecond() == 0 {
		slack = 2 * time.Second
	}
	// The wall clock is what the provider's time can be compared with.
	if at.Before(begun.Round(0).Truncate(time.Millisecond).Add(-slack)) {
		t.Errorf("after %s current is described as activated at %s, before its promotion began at %s", what, at, begun)
	}
	if at.After(time.Now().Add(ahead + 2*time.Second)) {
		t.Errorf("after %s current is described as activated at %s, which is to come", what, at)
	}
}
