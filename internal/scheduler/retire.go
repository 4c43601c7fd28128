package scheduler

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// sweepers is how many gates are asked at once.
const sweepers = 4

// sweep asks the gate of one secret, and sets its deadline if it is closed.
func (s *Scheduler) sweep(ctx context.Context, j *Job) error {
	if !j.Gated {
		return nil
	}
	runner, _, err := j.open(ctx)
	if err != nil {
		return err
	}
	held, unlock, err := s.Hold(ctx, j.Ref, lockWait)
	if err != nil {
		return natsbus.After(orderPoll, err)
	}
	defer unlock()
	got, err := runner.Sweep(held, j.Ref)
	switch {
	case err != nil:
		return fmt.Errorf("retire what %s superseded: %w", j.Ref, err)
	case got.Now:
		s.o.Logger.InfoContext(ctx, "superseded version retired", "secret", j.Ref.String(), "version", got.Version)
		return nil
	case got.Overdue:
		s.o.Logger.WarnContext(ctx, "superseded version still in use after its gate's limit", "secret", j.Ref.String(), "version", got.Version, "waiting", got.Waiting)
	}
	if got.Next.IsZero() || got.Retired {
		return nil // no time alone changes it; the next sweep looks again
	}
	return s.bus.ScheduleFor(ctx, retireName(j.Ref), retireName(j.Ref), natsbus.Spec{At: got.Next}, s.payload())
}

// AskGate sets the deadline of a secret's gate after a rotation that this
// scheduler did not run. What fails here the next sweep makes good.
func (s *Scheduler) AskGate(ctx context.Context, r ref.Ref) {
	if j := s.jobs[r]; j != nil {
		s.succeeded(ctx, j)
	}
}

// sweepAll asks every gate: a deadline may have been lost with the process
// that was to set it, and some gates no time opens.
func (s *Scheduler) sweepAll(ctx context.Context) error {
	work := make(chan *Job)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for range sweepers {
		wg.Go(func() {
			for j := range work {
				// One that is rotating has its gate asked when it ends.
				if err := s.sweep(ctx, j); err != nil && !fault.Is(err, fault.Unavailable) {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	for _, j := range s.jobs {
		if ctx.Err() != nil {
			break
		}
		work <- j
	}
	close(work)
	wg.Wait()
	for _, err := range errs {
		s.o.Logger.WarnContext(ctx, "a gate could not be asked", "err", err)
	}
	if ctx.Err() != nil {
		return errors.Join(errs...)
	}
	return nil // the next sweep is soon enough
}
