package sibling_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// A stall is a process that stands still right before one of its calls.
type stall struct {
	at      chan struct{} // closed when it stands still
	goOn    chan struct{} // closed to let it go on
	outcome chan error
}

// promoteStalled begins to promote token and returns when the process is about
// to make the call.
func (b *backend) promoteStalled(t *testing.T, r ref.Ref, token, call string) *stall {
	t.Helper()
	st := &stall{at: make(chan struct{}), goOn: make(chan struct{}), outcome: make(chan error, 1)}
	var once sync.Once
	d := &driver{b: b.service, before: func(name string) {
		if name == call {
			once.Do(func() {
				close(st.at)
				<-st.goOn
			})
		}
	}}
	s := sibling.New(d, &sibling.Options{Locker: b.lock, Logger: b.logs.Logger()})
	go func() {
		_, err := s.Promote(t.Context(), r, token)
		st.outcome <- err
	}()
	select {
	case <-st.at:
	case err := <-st.outcome:
		t.Fatalf("promote ended before its %s: %v", call, err)
	}
	return st
}

// resume lets the process go on and returns what came of it.
func (st *stall) resume() error {
	close(st.goOn)
	return <-st.outcome
}

func rotate(t *testing.T, s secrets.Store, r ref.Ref, token, value string) {
	t.Helper()
	if _, err := s.PutPending(t.Context(), r, token, secrets.NewString(value)); err != nil {
		t.Fatalf("put pending: %v", err)
	}
	if _, err := s.Promote(t.Context(), r, token); err != nil {
		t.Fatalf("promote: %v", err)
	}
}

// TestStalledWriter shows why a backend without compare-and-swap needs a
// Locker. One process stalls between its look and its append, as a suspended
// function does. Its twin finishes the rotation, and the next rotation follows.
// Then the first one wakes up.
func TestStalledWriter(t *testing.T) {
	for name, c := range map[string]struct {
		kind
		lock bool
		want string     // what a plain reader gets in the end
		err  fault.Kind // what the stalled process is told
	}{
		"neither":                {kind{}, false, "first", fault.Unknown},
		"neither, but it notes":  {kind{notes: true}, false, "first", fault.Unknown},
		"a locker":               {kind{}, true, "second", fault.Unavailable},
		"a locker, and it notes": {kind{notes: true}, true, "second", fault.Unavailable},
		"compare-and-swap":       {kind{swaps: true}, false, "second", fault.Conflict},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(c.kind)
			if !c.lock {
				b.lock = nil
			}
			r := b.Create(t, secrets.NewString("old"))
			twin := b.Open(t, nil)
			if _, err := twin.PutPending(t.Context(), r, "rotation-1", secrets.NewString("first")); err != nil {
				t.Fatal(err)
			}
			st := b.promoteStalled(t, r, "rotation-1", "Append")
			if c.lock {
				// The twin waits while the lock is held, and takes over when
				// its lease has run out.
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
				defer cancel()
				if _, err := twin.Promote(ctx, r, "rotation-1"); !fault.Is(err, fault.Unavailable) {
					t.Errorf("promote beside the lock's holder: %v, expected unavailable", err)
				}
				b.lock.(*locker).revoke("secret " + r.String())
			}
			if _, err := twin.Promote(t.Context(), r, "rotation-1"); err != nil {
				t.Fatal(err)
			}
			rotate(t, twin, r, "rotation-2", "second")
			if err := st.resume(); fault.KindOf(err) != c.err {
				t.Errorf("the stalled process was told %v of kind %s, expected %s", err, fault.KindOf(err), c.err)
			}
			if got := b.newest(r); got != c.want {
				t.Errorf("readers get %q, expected %q", got, c.want)
			}
		})
	}
}

// TestLateBookkeeping: who stalls after its append finds its work done by
// others, and undoes nothing of theirs.
func TestLateBookkeeping(t *testing.T) {
	for _, call := range []string{"Record", "Clear"} {
		for name, k := range map[string]kind{"plain": {swaps: true}, "notes": {swaps: true, notes: true}} {
			t.Run(call+"/"+name, func(t *testing.T) {
				b := newBackend(k)
				r := b.Create(t, secrets.NewString("old"))
				s := b.Open(t, nil)
				if _, err := s.PutPending(t.Context(), r, "rotation-1", secrets.NewString("first")); err != nil {
					t.Fatal(err)
				}
				st := b.promoteStalled(t, r, "rotation-1", call)
				if _, err := s.PutPending(t.Context(), r, "rotation-2", secrets.NewString("second")); err != nil {
					t.Fatal(err)
				}
				if err := st.resume(); err != nil {
					t.Errorf("the stalled process: %v", err)
				}
				wantStage(t, s, r, secrets.Previous, "", "old")
				wantStage(t, s, r, secrets.Current, "rotation-1", "first")
				wantStage(t, s, r, secrets.Pending, "rotation-2", "second")
				if _, err := s.Promote(t.Context(), r, "rotation-2"); err != nil {
					t.Fatal(err)
				}
				wantStage(t, s, r, secrets.Previous, "rotation-1", "first")
			})
		}
	}
}

// TestDiscardBesidePromote: no provider compares two secrets in one step, so
// that without a Locker a discarded value may become current. The rotation
// that was begun meanwhile then notices that it was made from a version that
// is gone, rather than undo anything.
func TestDiscardBesidePromote(t *testing.T) {
	b := newBackend(kind{swaps: true})
	r := b.Create(t, secrets.NewString("old"))
	s := b.Open(t, nil)
	if _, err := s.PutPending(t.Context(), r, "rotation-1", secrets.NewString("first")); err != nil {
		t.Fatal(err)
	}
	st := b.promoteStalled(t, r, "rotation-1", "Append")
	if err := s.Discard(t.Context(), r, "rotation-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutPending(t.Context(), r, "rotation-2", secrets.NewString("second")); err != nil {
		t.Fatal(err)
	}
	if err := st.resume(); err != nil {
		t.Errorf("the stalled process: %v", err)
	}
	wantStage(t, s, r, secrets.Current, "rotation-1", "first")
	wantStage(t, s, r, secrets.Pending, "rotation-2", "second")
	if _, err := s.Promote(t.Context(), r, "rotation-2"); !fault.Is(err, fault.Conflict) {
		t.Errorf("promote what was made from a version that is gone: %v, expected a conflict", err)
	}
	if err := s.Discard(t.Context(), r, "rotation-2"); err != nil {
		t.Fatal(err)
	}
	rotate(t, s, r, "rotation-3", "third")
	wantStage(t, s, r, secrets.Previous, "rotation-1", "first")
}

// TestLockLost: a process whose lock is gone stops, and says why.
func TestLockLost(t *testing.T) {
	b := newBackend(kind{})
	r := b.Create(t, secrets.NewString("old"))
	rotate(t, b.Open(t, nil), r, "rotation-1", "first")
	for name, f := range map[string]func(s *sibling.Store) error{
		"put pending": func(s *sibling.Store) error {
			_, err := s.PutPending(t.Context(), r, "rotation-2", secrets.NewString("second"))
			return err
		},
		"promote": func(s *sibling.Store) error { _, err := s.Promote(t.Context(), r, "rotation-2"); return err },
		"discard": func(s *sibling.Store) error { return s.Discard(t.Context(), r, "rotation-2") },
		"disable": func(s *sibling.Store) error { return s.Disable(t.Context(), r, "1") },
		"enable":  func(s *sibling.Store) error { return s.Enable(t.Context(), r, "1") },
		"destroy": func(s *sibling.Store) error { return s.Destroy(t.Context(), r, "1") },
	} {
		d := &driver{b: b.service, before: func(string) { b.lock.(*locker).revoke("secret " + r.String()) }}
		err := f(sibling.New(d, &sibling.Options{Locker: b.lock, Logger: b.logs.Logger()}))
		if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassConcurrency {
			t.Errorf("%s: %v of kind %s and class %q, expected the lost lock", name, err, fault.KindOf(err), fault.ClassOf(err))
		}
	}
	wantStage(t, b.Open(t, nil), r, secrets.Current, "rotation-1", "first")
	wantStage(t, b.Open(t, nil), r, secrets.Previous, "", "old")
}

// wantStage reads a stage by Get and Describe.
func wantStage(t *testing.T, s secrets.Store, r ref.Ref, stage secrets.Stage, token, value string) {
	t.Helper()
	v, err := s.Get(t.Context(), r, stage)
	if err != nil {
		t.Errorf("get %s: %v", stage, err)
		return
	}
	if v.Token != token || !v.Value.Equal(secrets.NewString(value)) {
		t.Errorf("%s is version %s of rotation %q, expected %q and value %q", stage, v.ID, v.Token, token, value)
	}
	d, err := s.Describe(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if h := d.Holder(stage); h == nil || h.ID != v.ID || h.Token != v.Token {
		t.Errorf("%s is version %s of rotation %q when read, and %+v when described", stage, v.ID, v.Token, h)
	}
}

func wantNone(t *testing.T, s secrets.Store, r ref.Ref, stage secrets.Stage) {
	t.Helper()
	if _, err := s.Get(t.Context(), r, stage); !fault.Is(err, fault.NotFound) {
		t.Errorf("get %s: %v, expected not found", stage, err)
	}
	d, err := s.Describe(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if h := d.Holder(stage); h != nil {
		t.Errorf("%s is described as %+v, expected nobody", stage, h)
	}
}

// between is a store whose process calls f once, right before its nth call of
// that name.
func (b *backend) between(call string, n int, f func()) *sibling.Store {
	return sibling.New(&driver{b: b.service, before: func(name string) {
		if name != call {
			return
		}
		if n--; n == 0 {
			f()
		}
	}}, &sibling.Options{Logger: b.logs.Logger()})
}

// TestEnabledBeforeDestroy: what somebody enables right before it would be
// destroyed stays.
func TestEnabledBeforeDestroy(t *testing.T) {
	b := newBackend(kind{swaps: true})
	r := b.Create(t, secrets.NewString("old"))
	other := b.Open(t, nil).(*sibling.Store)
	rotate(t, other, r, "rotation-1", "first")
	if err := other.Disable(t.Context(), r, "1"); err != nil {
		t.Fatal(err)
	}
	s := b.between("Destroy", 1, func() {
		if err := other.Enable(t.Context(), r, "1"); err != nil {
			t.Error(err)
		}
	})
	if err := s.Destroy(t.Context(), r, "1"); !fault.Is(err, fault.Conflict) {
		t.Errorf("destroy of what was enabled: %v, expected a conflict", err)
	}
	wantStage(t, other, r, secrets.Previous, "", "old")
}

// TestPromotedBeforeDiscard: a discard that looked before the rotation was
// promoted looks again, and notes whose version that is.
func TestPromotedBeforeDiscard(t *testing.T) {
	b := newBackend(kind{swaps: true})
	r := b.Create(t, secrets.NewString("old"))
	other := b.Open(t, nil)
	if _, err := other.PutPending(t.Context(), r, "rotation-1", secrets.NewString("first")); err != nil {
		t.Fatal(err)
	}
	s := b.between("Main", 2, func() { b.died(t, r) })
	if err := s.Discard(t.Context(), r, "rotation-1"); err != nil {
		t.Errorf("discard of what was promoted: %v", err)
	}
	wantStage(t, other, r, secrets.Current, "rotation-1", "first")
	wantStage(t, other, r, secrets.Previous, "", "old")
	if got, want := b.noted(r), "rotation-1 after 1"; got != want {
		t.Errorf("noted is %q, expected %q", got, want)
	}
	if got := b.leftover(t, r); len(got) > 0 {
		t.Errorf("the sibling still holds %q", got)
	}
}
