package agent

import (
	"context"
	"slices"
	"time"

	"github.com/keyturn/keyturn/events"
)

// next returns when to read, and why. s.mu is held.
func (p *plan) next() (time.Time, Cause) {
	if p.due.IsZero() || !p.pollAt.IsZero() && p.pollAt.Before(p.due) {
		return p.pollAt, CausePoll
	}
	return p.due, p.cause
}

// work reads when the plan says so, until ctx is done.
func (s *Secret) work(ctx context.Context) {
	s.mu.Lock()
	s.plan.poll = s.c.opts.Poll
	if s.held == nil {
		s.plan.want(time.Now(), CauseStart)
	} else {
		// Read before the subscription stood; its replay tells what came
		// between.
		s.plan.landed(time.Now())
	}
	s.mu.Unlock()
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		s.mu.Lock()
		at, cause := s.plan.next()
		s.mu.Unlock()
		var alarm <-chan time.Time
		if !at.IsZero() {
			t.Reset(time.Until(at))
			alarm = t.C
		}
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
			continue
		case <-alarm:
		}
		if !s.stillDue(cause) {
			continue
		}
		select {
		case s.c.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		_, _ = s.readAnew(ctx, cause, nil) // its outcome is in the plan
		<-s.c.slots
	}
}

// stillDue drops hints that another read has answered since they came, and
// reports whether the read is still called for.
func (s *Secret) stillDue(cause Cause) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := &s.plan
	had := len(p.hints)
	p.hints = slices.DeleteFunc(p.hints, func(e events.Event) bool {
		if p.wants(&e, s.held) {
			return false
		}
		p.settle(&e, s.held)
		return true
	})
	at, _ := p.next()
	if at.IsZero() || time.Now().Before(at) {
		return false
	}
	if cause == CauseEvent && had > 0 && len(p.hints) == 0 {
		p.due = time.Time{}
		return false
	}
	return true
}

// poke makes the worker look at the plan.
func (s *Secret) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}
