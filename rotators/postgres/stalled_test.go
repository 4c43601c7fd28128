package postgres_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
)

// pausing is a store whose second description takes as long as in does.
type pausing struct {
	*memstore.Store
	n  atomic.Int32
	in func()
}

func (s *pausing) Describe(ctx context.Context, r ref.Ref) (*secrets.Description, error) {
	d, err := s.Store.Describe(ctx, r)
	if s.n.Add(1) == 2 {
		s.in()
	}
	return d, err
}

// A sweep that stalls right before it scrambles the superseded user, while
// somebody rolls back to just that user, leaves current signing in: the
// rollback waits for the sweep's lock, and puts the password right.
func TestRollbackBesideRetire(t *testing.T) {
	f := newUser(t, "beside", "first")
	st := memstore.New()
	id := ref.Ref{Provider: ref.NATS, Scope: "mem", Name: "k"}
	if _, err := st.CreateSecret(t.Context(), id, f.value(f.secret)); err != nil {
		t.Fatal(err)
	}
	cli := rotators.NewRunner(st, f.alternating(options()), nil)
	if _, err := cli.Rotate(t.Context(), id, ""); err != nil {
		t.Fatal(err)
	}
	rolled := make(chan error, 1)
	beside := &pausing{Store: st, in: func() {
		go func() {
			_, err := cli.Rollback(context.WithoutCancel(t.Context()), id, false)
			rolled <- err
		}()
		time.Sleep(500 * time.Millisecond) // long enough to stage, and to reach the lock
	}}
	sweep := rotators.NewRunner(beside, f.alternating(options()), &rotators.Options{Gate: rotators.Gate{After: time.Nanosecond}})
	_, sweepErr := sweep.Sweep(t.Context(), id)
	if err := <-rolled; err != nil {
		t.Fatal(err)
	}
	cur, err := st.Get(t.Context(), id, secrets.Current)
	if err != nil {
		t.Fatal(err)
	}
	if !f.signsIn(cur.Value) {
		t.Errorf("current does not sign in after a rollback beside a sweep (%v)", sweepErr)
	}
}
