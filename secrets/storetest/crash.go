package storetest

import (
	"context"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// crash fails every outward call of a rotation, of its abandonment, and of what
// else the store is able to do, before and after its effect, and checks that whoever comes next, with the same
// token, ends as if nothing had happened.
func crash(t *testing.T, b Backend, can abilities) {
	points := 0
	for _, op := range []struct {
		name    string
		applies bool
		run     func(ctx context.Context, t *testing.T, b Backend, in *crashtest.Injector)
	}{
		{"promote", true, crashPromote},
		{"discard", true, crashDiscard},
		{"create", can.create, crashCreate},
		{"disable", can.disable, crashDisable},
		{"enable", can.disable, crashEnable},
		{"destroy", can.disable, crashDestroy},
	} {
		if !op.applies {
			continue
		}
		t.Run(op.name, func(t *testing.T) {
			points += crashtest.Run(t, func(t *testing.T, in *crashtest.Injector) { op.run(tctx(t), t, b, in) })
		})
	}
	t.Logf("crash points of the store: %d", points)
}

// rotate is a process that works on one rotation, as a runner does: it looks
// where the rotation stands and goes on from there. Of one that is finished it
// clears what it left.
func rotate(ctx context.Context, s secrets.Store, r ref.Ref, tok string, v secrets.Value) error {
	d, err := s.Describe(ctx, r)
	if err != nil {
		return err
	}
	if d.Has(tok, secrets.Current) {
		return s.Discard(ctx, r, tok)
	}
	if _, err := s.Get(ctx, r, secrets.Pending); fault.Is(err, fault.NotFound) {
		if _, err := s.PutPending(ctx, r, tok, v); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	_, err = s.Promote(ctx, r, tok)
	return err
}

func crashPromote(ctx context.Context, t *testing.T, b Backend, in *crashtest.Injector) {
	v0, want, tok := value(), value(), token()
	r := b.Create(t, v0)
	b.Begin(t, r, tok)
	if err := rotate(ctx, b.Open(t, in), r, tok, want); err != nil {
		in.Restart()
		stored := journal(ctx, t, b.Open(t, nil), r, tok, v0)
		// The next process makes a value of its own, and keeps to what it
		// finds.
		next := value()
		if err := rotate(ctx, b.Open(t, in), r, tok, next); err != nil {
			t.Fatalf("retry after a failure at %q: %v", in.Fired(), err)
		}
		if stored.IsZero() {
			// Nothing could be seen, but the first value may have been stored
			// out of sight, and then it is the truth.
			got := must[*secrets.Version](t, "get current")(b.Open(t, nil).Get(ctx, r, secrets.Current))
			if got.Value.Equal(next) {
				want = next
			}
		} else if !stored.Equal(want) {
			t.Error("what was stored before the failure is not what was given")
		}
	}
	for range 2 {
		wantCleared(t, b, r, "a rotation that failed at "+in.Fired()+", and its retry")
		wantStages(ctx, t, b.Open(t, nil), r, stages{current: want, currentToken: tok, previous: v0})
		if err := rotate(ctx, b.Open(t, nil), r, tok, value()); err != nil {
			t.Errorf("one more retry: %v", err)
		}
	}
	next(ctx, t, b, r, want)
}

// journal checks that a failure left either the old state or the new one, and
// returns the value that was stored for tok, if any.
func journal(ctx context.Context, t *testing.T, s secrets.Store, r ref.Ref, tok string, v0 secrets.Value) secrets.Value {
	t.Helper()
	current, err := s.Get(ctx, r, secrets.Current)
	if err != nil {
		t.Fatalf("a failure left no current version: %v", err)
	}
	if current.Token == tok {
		return current.Value
	}
	wantVersion(t, "current after a failure", current, "", v0)
	pending, err := s.Get(ctx, r, secrets.Pending)
	if fault.Is(err, fault.NotFound) {
		return secrets.Value{}
	}
	if err != nil {
		t.Fatalf("read pending after a failure: %v", err)
	}
	if pending.Token != tok {
		t.Errorf("pending belongs to rotation %q, expected %q", pending.Token, tok)
	}
	return pending.Value
}

// next runs one more rotation: what the one before left is not in its way.
func next(ctx context.Context, t *testing.T, b Backend, r ref.Ref, before secrets.Value) {
	t.Helper()
	v, tok := value(), token()
	b.Begin(t, r, tok)
	if err := rotate(ctx, b.Open(t, nil), r, tok, v); err != nil {
		t.Fatalf("the next rotation: %v", err)
	}
	wantStages(ctx, t, b.Open(t, nil), r, stages{current: v, currentToken: tok, previous: before})
}

// crashDiscard repeats the step that failed: who abandons a rotation does not
// store its value again.
func crashDiscard(ctx context.Context, t *testing.T, b Backend, in *crashtest.Injector) {
	v0, v1, tok := value(), value(), token()
	r := b.Create(t, v0)
	b.Begin(t, r, tok)
	if _, err := b.Open(t, in).PutPending(ctx, r, tok, v1); err != nil {
		in.Restart()
		must[*secrets.Version](t, "retry of put pending")(b.Open(t, in).PutPending(ctx, r, tok, v1))
	}
	wantStages(ctx, t, b.Open(t, nil), r, stages{current: v0, pending: v1, pendingToken: tok})
	if err := b.Open(t, in).Discard(ctx, r, tok); err != nil {
		in.Restart()
		if err := b.Open(t, in).Discard(ctx, r, tok); err != nil {
			t.Fatalf("retry after a failure at %q: %v", in.Fired(), err)
		}
	}
	wantCleared(t, b, r, "a discard that failed at "+in.Fired()+", and its retry")
	wantStages(ctx, t, b.Open(t, nil), r, stages{current: v0})
	if err := b.Open(t, nil).Discard(ctx, r, tok); err != nil {
		t.Errorf("one more retry: %v", err)
	}
	next(ctx, t, b, r, v0)
}

// crashCreate allows a Conflict on the retry, whose first attempt may have
// taken effect; the secret is then as it was asked for.
func crashCreate(ctx context.Context, t *testing.T, b Backend, in *crashtest.Injector) {
	v, r := value(), b.Create(t, value())
	r.Name += "-crash-" + token()[:8]
	if _, err := b.Open(t, in).(secrets.Creator).CreateSecret(ctx, r, v); err != nil {
		in.Restart()
		if _, err := b.Open(t, in).(secrets.Creator).CreateSecret(ctx, r, v); err != nil {
			wantKind(t, "retry of create", err, fault.Conflict)
		}
	}
	wantStages(ctx, t, b.Open(t, nil), r, stages{current: v})
	next(ctx, t, b, r, v)
}
