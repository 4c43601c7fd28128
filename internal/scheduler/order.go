package scheduler

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// checkOrder refuses a circle of secrets that come after one another.
func (s *Scheduler) checkOrder() error {
	const (
		entered = iota + 1
		left
	)
	state := map[ref.Ref]int{}
	var visit func(r ref.Ref, path []string) error
	visit = func(r ref.Ref, path []string) error {
		path = append(path, r.String())
		switch state[r] {
		case entered:
			return fault.Newf(fault.Invalid, "order", "the secrets come after one another in a circle: %s; remove one after", strings.Join(path, " after "))
		case left:
			return nil
		}
		state[r] = entered
		if j := s.jobs[r]; j != nil {
			for _, a := range j.After {
				if err := visit(a, path); err != nil {
					return err
				}
			}
		}
		state[r] = left
		return nil
	}
	for r := range s.jobs {
		if err := visit(r, nil); err != nil {
			return err
		}
	}
	return nil
}

// waiting is how long j has been waiting for one that comes before it. A newer
// firing takes the place of one that waits, so the time is kept here; it is
// forgotten when the rotation begins.
func (s *Scheduler) waiting(j *Job) time.Duration {
	since, _ := s.waits.LoadOrStore(j.Ref, s.o.Now())
	return s.o.Now().Sub(since.(time.Time))
}

// before names a secret that j comes after and that is due, put off or
// half-way.
func (s *Scheduler) before(ctx context.Context, j *Job) (ref.Ref, bool) {
	for _, r := range j.After {
		p := s.jobs[r]
		if p == nil {
			continue
		}
		if due, err := s.bus.Due(ctx, rotateName(r)); err == nil && due {
			return r, true
		}
		if off, err := s.bus.Scheduled(ctx, laterName(r)); err == nil && off {
			return r, true
		}
		if d, err := p.describe(ctx); err == nil && d.Unfinished() != nil {
			return r, true
		}
	}
	return ref.Ref{}, false
}

// Hold takes the locks that a rotation of r needs: r's own for itself alone,
// and those of the secrets it comes after together with others. They are
// taken in one order everywhere, so nobody waits in a circle. It waits at most
// wait; the error is of kind Unavailable.
func (s *Scheduler) Hold(ctx context.Context, r ref.Ref, wait time.Duration) (held context.Context, unlock func(), err error) {
	type lock struct {
		name   string
		shared bool
	}
	locks := []lock{{name: lockName(r)}}
	if j := s.jobs[r]; j != nil {
		for _, a := range j.After {
			locks = append(locks, lock{lockName(a), true})
		}
	}
	slices.SortFunc(locks, func(a, b lock) int { return strings.Compare(a.name, b.name) })
	var unlocks []func()
	unlock = func() {
		for i := len(unlocks) - 1; i >= 0; i-- {
			unlocks[i]()
		}
	}
	held = ctx
	deadline := time.Now().Add(wait)
	for _, l := range locks {
		take := s.locks.Lock
		if l.shared {
			take = s.locks.RLock
		}
		// The wait ends by itself; the lock, once taken, does not.
		lctx, cancel := context.WithCancel(held)
		timer := time.AfterFunc(time.Until(deadline), cancel)
		h, u, err := take(lctx, l.name)
		timer.Stop()
		if err != nil {
			cancel()
			unlock()
			return nil, nil, fmt.Errorf("%s waits for a rotation that holds %q: %w", r, l.name, err)
		}
		held = h
		unlocks = append(unlocks, func() { u(); cancel() })
	}
	return held, unlock, nil
}

func lockName(r ref.Ref) string { return "rotate " + r.String() }
