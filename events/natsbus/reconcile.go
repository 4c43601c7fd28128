package natsbus

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/keyturn/keyturn/fault"
)

// atOnce is how many schedules one Reconcile writes or removes at a time.
const atOnce = 64

// Reconciled counts what a [Bus.Reconcile] has done.
type Reconciled struct {
	// Set were written, Removed are gone, Kept were as they must be.
	Set, Removed, Kept int
}

// Reconcile makes the recurring schedules of owner those in want, where an
// owner is a deployment or anything else that has one list of schedules. It
// lists once and writes only what differs, so with the same list again it
// writes nothing, and no period begins anew. Set and Owner of want do not
// matter; an empty Target means the name.
//
// What it removes is the owner's and recurring. It leaves alone the schedules
// of other owners, those that [Bus.Schedule] has set, and one-shots: a deadline
// is not in a configuration, and ends by itself. So a one-shot in want is
// Invalid; it would be set again by each start. A wanted name that is another
// owner's becomes this owner's. Schedules from before there were owners are
// the owner's whose name is their payload.
//
// It is safe for concurrent use, by several replicas too, and may be repeated
// after an error. Nothing is written if a name, target or spec in want is
// Invalid. A cron expression that only the server knows to be wrong is the
// error after all others are set, and nothing is removed then; with any other
// error it stops early.
func (b *Bus) Reconcile(ctx context.Context, owner string, want []Schedule) (Reconciled, error) {
	var done Reconciled
	wanted, err := validWant(owner, want)
	if err != nil {
		return done, err
	}
	have, err := b.list(ctx)
	if err != nil {
		return done, err
	}
	var set, kept atomic.Int64
	err = each(ctx, wanted, func(ctx context.Context, sc Schedule) error {
		var old *stored
		if h, is := have[sc.Name]; is {
			old = &h.stored
		}
		written, err := b.put(ctx, sc, old)
		switch {
		case err != nil:
			return fmt.Errorf("schedule %q: %w", sc.Name, err)
		case written:
			set.Add(1)
		default:
			kept.Add(1)
		}
		return nil
	})
	done.Set, done.Kept = int(set.Load()), int(kept.Load())
	if err != nil {
		return done, err
	}
	keep := make(map[string]bool, len(wanted))
	for _, sc := range wanted {
		keep[sc.Name] = true
	}
	var gone []listed
	for name, h := range have {
		mine := h.schedule.Owner == owner || ownedBefore(h.stored.msg, escape(owner))
		if mine && h.schedule.Spec.At.IsZero() && !keep[name] {
			gone = append(gone, h)
		}
	}
	done.Removed, err = b.remove(ctx, gone)
	return done, err
}

// validWant returns want as it is to be stored. The error is of kind Invalid.
func validWant(owner string, want []Schedule) ([]Schedule, error) {
	const op = "reconcile schedules"
	if err := validName(op, "the owner", owner); err != nil {
		return nil, err
	}
	out := make([]Schedule, len(want))
	seen := make(map[string]bool, len(want))
	for i, sc := range want {
		sc.Owner = owner
		if sc.Target == "" {
			sc.Target = sc.Name
		}
		if err := sc.validate(); err != nil {
			return nil, err
		}
		if !sc.Spec.At.IsZero() {
			return nil, fault.Newf(fault.Invalid, "natsbus: "+op, "%q fires once; expected Every or Cron (set a deadline with Schedule)", sc.Name)
		}
		if seen[sc.Name] {
			return nil, fault.Newf(fault.Invalid, "natsbus: "+op, "%q is wanted twice; expected each name once", sc.Name)
		}
		seen[sc.Name] = true
		out[i] = sc
	}
	return out, nil
}

// each calls f for all items, atOnce at a time, and returns an error of one
// after the calls have ended. After an error that is not of kind Invalid it
// begins no further call, which would wait for the same server, and returns
// that one.
func each[T any](ctx context.Context, items []T, f func(context.Context, T) error) error {
	goOn, stop := context.WithCancel(ctx)
	defer stop()
	work := make(chan T)
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		worst  error
		failed int
	)
	for range min(atOnce, len(items)) {
		wg.Go(func() {
			for item := range work {
				err := f(ctx, item)
				if err == nil {
					continue
				}
				if !fault.Is(err, fault.Invalid) {
					stop()
				}
				mu.Lock()
				if failed++; worst == nil || fault.Is(worst, fault.Invalid) {
					worst = err
				}
				mu.Unlock()
			}
		})
	}
	for _, item := range items {
		select {
		case work <- item:
			continue
		case <-goOn.Done():
		}
		break
	}
	close(work)
	wg.Wait()
	switch {
	case failed > 1:
		return fmt.Errorf("%w (and %d more)", worst, failed-1)
	case worst != nil:
		return worst
	}
	return ctx.Err()
}
