package agent

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// A ticket is one read that the limiter lets through, at once or later,
// shared by all who ask before it starts.
type ticket struct {
	done chan struct{}
	v    *secrets.Version
	err  error
}

// Invalidate tells that a service has refused the version with the given id
// as a credential. If that is the version held, the store is read, at once
// or when the limiter allows (see [Options]); if it is not, the refusal came
// late and nothing happens. Invalidate does not wait, and the version stays
// in use until the store returns another one. It works without Run too.
func (c *Client) Invalidate(r ref.Ref, versionID string) {
	s := c.lookup(r)
	if s == nil {
		return
	}
	s.mu.Lock()
	stale := s.held == nil || s.held.ID != versionID
	if !stale {
		s.ask(CauseInvalidate)
	}
	s.mu.Unlock()
	op := OpInvalidate
	if stale {
		op = OpSkip
	}
	c.observe(Observation{Op: op, Ref: r, Version: versionID})
}

// Refresh reads the store again and returns what is current then. It waits
// for the limiter that it shares with Invalidate, and shares the read with
// whoever asks before it starts. The error is the store's, Unavailable when
// ctx ends first, Invalid for a ref that is not watched; the last good
// version stays in use.
func (c *Client) Refresh(ctx context.Context, r ref.Ref) (*secrets.Version, error) {
	s := c.lookup(r)
	if s == nil {
		return nil, c.unwatched(r)
	}
	s.mu.Lock()
	t := s.ask(CauseRefresh)
	s.mu.Unlock()
	select {
	case <-t.done:
		return t.v, t.err
	case <-ctx.Done():
		return nil, fault.New(fault.Unavailable, "agent: refresh "+r.String(), ctx.Err())
	}
}

// ask returns the ticket of the next read. s.mu is held.
func (s *Secret) ask(cause Cause) *ticket {
	if s.ticket != nil {
		return s.ticket
	}
	t := &ticket{done: make(chan struct{})}
	s.ticket = t
	delay := s.limit.Reserve().Delay()
	if delay > 0 {
		delay += time.Duration(rand.Float64() * 0.2 * float64(s.c.opts.InvalidateEvery)) //nolint:gosec // not a secret
	}
	// Run waits for it; before and after Run it is on its own.
	if !s.c.track(func() { s.redeem(t, delay, cause) }) {
		go s.redeem(t, delay, cause)
	}
	return t
}

// redeem reads once delay has passed.
func (s *Secret) redeem(t *ticket, delay time.Duration, cause Cause) {
	defer close(t.done)
	ctx := s.c.life
	if ctx.Err() != nil {
		ctx = context.Background() // Run is over, and somebody still asks
	}
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	// Who asks once the read has started wants a later one.
	t.v, t.err = s.readAnew(ctx, cause, func() { s.ticket = nil })
	s.mu.Lock()
	if s.ticket == t {
		s.ticket = nil // ctx ended first
	}
	s.mu.Unlock()
}
