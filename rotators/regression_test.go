package rotators_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// edited takes "v1 edited" for the credential v1, as a secret is whose JSON
// somebody edited.
type edited struct{ *able }

func credential(v secrets.Value) secrets.Value {
	s, _, _ := strings.Cut(string(v.Reveal()), " ")
	return secrets.NewString(s)
}

func (g edited) Verify(_ context.Context, _ rotators.Change, v secrets.Value) error {
	return g.look(credential(v))
}

func (g edited) Retire(ctx context.Context, c rotators.Change, old secrets.Value) error {
	if g.SameCredential(old, c.Current) {
		return nil
	}
	return g.able.Retire(ctx, c, credential(old))
}

func (g edited) SameCredential(a, b secrets.Value) bool { return credential(a).Equal(credential(b)) }

// A secret that was edited by hand, its credential being the same, is rotated,
// retired and swept like any other.
func TestEditedSecret(t *testing.T) {
	for name, do := range map[string]func(r *rotators.Runner, l *life) error{
		"rotate": func(r *rotators.Runner, l *life) error {
			_, err := r.Rotate(l.Context(), l.id, "")
			return err
		},
		"retire": func(r *rotators.Runner, l *life) error {
			got, err := r.Retire(l.Context(), l.id, false)
			if err == nil && (!got.Now || got.Proven) {
				l.Errorf("%+v; want it retired in the store, and nothing proven", got)
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLife(t)
			if _, err := l.store.PutPending(t.Context(), l.id, "edit", secrets.NewString("v0 edited")); err != nil {
				t.Fatal(err)
			}
			if _, err := l.store.Promote(t.Context(), l.id, "edit"); err != nil {
				t.Fatal(err)
			}
			r := rotators.NewRunner(l.store, edited{l.g}, &rotators.Options{Publisher: l.bus})
			if err := do(r, l); err != nil {
				t.Fatal(err)
			}
			l.g.mu.Lock()
			defer l.g.mu.Unlock()
			if !l.g.is(secrets.NewString("v0")) {
				t.Error("the credential that current holds too was revoked")
			}
		})
	}
}

// A revocation that the target refuses to carry out keeps the next rotation
// from beginning: each would leave one more credential alive.
func TestRevocationRefused(t *testing.T) {
	l := newLife(t)
	l.rotate()
	l.g.before = func(_ context.Context, call string, _ rotators.Change) error {
		if strings.HasPrefix(call, "retire") {
			return fault.Newf(fault.Invalid, "target", "unexpected answer 422")
		}
		return nil
	}
	if _, err := l.runner().Rotate(t.Context(), l.id, ""); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v; want the refusal", err)
	}
	l.want("state", l.state(), "v1 - v0 | v0 v1")
}

// A rollback that comes to nothing leaves nothing behind that would keep
// rotations from beginning.
func TestFailedRollbackHoldsNothing(t *testing.T) {
	l := newLife(t)
	l.rotate()
	if _, err := l.runner().Retire(t.Context(), l.id, false); err != nil {
		t.Fatal(err)
	}
	l.g.gone = []string{"v0"}
	if _, err := l.runner().Rollback(t.Context(), l.id, false); !fault.Is(err, fault.Invalid) {
		t.Fatal(err)
	}
	l.want("after the rollback", l.state(), "v1 - - disabled | v1")
	l.rotate()
}

// mem is what a memstore is.
type mem interface {
	secrets.Store
	secrets.Succeeder
	secrets.Disabler
}

// dies is a store whose process dies once pending is stored.
type dies struct {
	mem
	die func()
}

func (s dies) PutPendingAfter(ctx context.Context, r secrets.Ref, token, current string, v secrets.Value) (*secrets.Version, error) {
	out, err := s.mem.PutPendingAfter(ctx, r, token, current, v)
	s.die()
	return out, err
}

// A rollback to a dead credential that died half-way is given up by whoever
// comes next.
func TestDeadRollbackResumed(t *testing.T) {
	for name, next := range map[string]func(l *life) error{
		"by rotate": func(l *life) error {
			_, err := l.runner().Rotate(l.Context(), l.id, "")
			return err
		},
		"by doctor": func(l *life) error {
			found, err := l.runner().Examine(l.Context(), l.id, 0)
			if err != nil || len(found) != 1 || found[0].Problem != rotators.StuckPending {
				l.Fatalf("found %+v, %v", found, err)
			}
			return found[0].Fix(l.Context())
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLife(t)
			l.rotate()
			if _, err := l.runner().Retire(t.Context(), l.id, false); err != nil {
				t.Fatal(err)
			}
			l.g.gone = []string{"v0"}
			ctx, cancel := context.WithCancel(t.Context())
			r := rotators.NewRunner(dies{l.store, cancel}, l.g, &rotators.Options{Publisher: l.bus})
			if _, err := r.Rollback(ctx, l.id, false); err == nil {
				t.Fatal("a process that died reported success")
			}
			l.want("half-way", l.state(), "v1 v0 v0 held | v1")
			_ = next(l)
			l.want("given up", l.state(), "v1 - - disabled | v1")
			l.rotate()
		})
	}
}

// A pending credential that somebody revoked by hand is given up by the
// repair that is proposed.
func TestRevokedPending(t *testing.T) {
	l := newLife(t)
	if _, err := l.store.PutPending(t.Context(), l.id, tokenA, secrets.NewString("p")); err != nil {
		t.Fatal(err)
	}
	l.g.gone = []string{"p"}
	found, err := l.runner().Examine(t.Context(), l.id, 0)
	if err != nil || len(found) != 1 {
		t.Fatalf("%+v, %v", found, err)
	}
	if err := found[0].Fix(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.want("state", l.state(), "v0 - - | v0")
}

// What is for another target was not seen to be refused by this one.
func TestNothingProvenElsewhere(t *testing.T) {
	l := newLife(t)
	l.id.Name = "moved"
	if _, err := l.store.CreateSecret(t.Context(), l.id, secrets.NewString("elsewhere")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.store.PutPending(t.Context(), l.id, tokenA, secrets.NewString("v0")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.store.Promote(t.Context(), l.id, tokenA); err != nil {
		t.Fatal(err)
	}
	l.g.before = func(_ context.Context, call string, _ rotators.Change) error {
		if strings.HasPrefix(call, "retire") {
			return fault.Newf(fault.Invalid, "target", "another target")
		}
		return nil
	}
	if got, err := l.runner().Retire(t.Context(), l.id, true); err != nil || !got.Now || got.Proven {
		t.Errorf("%+v, %v", got, err)
	}
	// And it keeps no rotation from beginning.
	if _, err := l.runner(func(o *rotators.Options) { o.Force = true }).Rotate(t.Context(), l.id, ""); err != nil {
		t.Error(err)
	}
}

func TestDryRunPublishesNothing(t *testing.T) {
	l := newLife(t)
	l.rotate()
	r := l.runner(gate(rotators.Gate{Manual: true, Max: time.Nanosecond}))
	r.DryRun(t.Context(), l.id)
	l.want("events", l.bus.took(), "")
}

// The repair of a rotation that stored nothing looks once more: it may have
// stored, and set, the only credential that works.
func TestFixLooksAgain(t *testing.T) {
	f := setUp(t)
	f.store.begun = tokenA
	found, err := f.runner().Examine(t.Context(), f.id, 0)
	if err != nil || len(found) != 1 || found[0].Problem != rotators.PendingWithoutValue {
		t.Fatalf("%+v, %v", found, err)
	}
	if _, err := f.store.PutPending(t.Context(), f.id, tokenA, secrets.NewString("v9")); err != nil {
		t.Fatal(err)
	}
	f.store.took()
	if err := found[0].Fix(t.Context()); !fault.Is(err, fault.Conflict) {
		t.Errorf("%v; want a conflict", err)
	}
	f.want("writes", f.store.took(), "")
}

// A service that opens rotations tells no age of what is pending; the value
// itself does.
func TestStalledRetireBesideAService(t *testing.T) {
	f := setUp(t)
	f.rotate(tokenA)
	f.store.opened = true
	f.target.before = func(ctx context.Context, call string, c rotators.Change) error {
		if !strings.HasPrefix(call, "retire") {
			return nil
		}
		if err := c.StillPending(ctx); err != nil {
			t.Errorf("before anything happened: %v", err)
		}
		if _, err := f.store.Store.PutPending(ctx, f.id, tokenB, secrets.NewString("v9")); err != nil {
			t.Fatal(err)
		}
		return c.StillPending(ctx)
	}
	if _, err := f.runner().Retire(t.Context(), f.id, false); !fault.Is(err, fault.Conflict) {
		t.Errorf("%v; want a conflict", err)
	}
}
