package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// A Change is a version that took another's place. Printing it shows ids.
type Change struct {
	Ref ref.Ref
	// Old is nil for the first version that a callback gets.
	Old, New *secrets.Version
	// Event is what told of the change, nil when a poll or another read found
	// it.
	Event *events.Event
	// Lag is from the event's publication to the new version being in use, by
	// the clocks of two machines and never negative; zero without an event.
	Lag time.Duration
}

// Format shows no more than the ids.
func (ch Change) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "%s: version %s after %s", ch.Ref, id(ch.New), id(ch.Old))
}

func id(v *secrets.Version) string {
	if v == nil {
		return "none"
	}
	return v.ID
}

// A registration is one callback and what it has not been given yet.
type registration struct {
	s      *Secret
	fn     func(context.Context, Change)
	ctx    context.Context //nolint:containedctx // ends with the registration
	cancel context.CancelFunc

	// Under Secret.mu.
	queue   []Change
	running bool
}

// OnChange calls fn with each new version of r, in order and one at a time,
// and at once with the version that is held already, if there is one. r is
// watched if it is not yet. Callbacks of different registrations run side by
// side, so a slow one delays no other and no read. Each gets a context that
// ends with the registration or with Run; a panic is logged and ends that
// call only. unregister may be called from fn and more than once; a call
// under way may still finish after it. After Run's end there are no calls.
func (c *Client) OnChange(r ref.Ref, fn func(ctx context.Context, ch Change)) (unregister func()) {
	s := c.Secret(r)
	g := &registration{s: s, fn: fn}
	g.ctx, g.cancel = context.WithCancel(c.life)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.regs = append(s.regs, g)
	if s.held != nil {
		g.push(Change{Ref: s.ref, New: s.held})
	}
	return func() {
		g.cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		g.queue = nil
		s.regs = slices.DeleteFunc(s.regs, func(o *registration) bool { return o == g })
	}
}

// tell queues ch for every callback. s.mu is held.
func (s *Secret) tell(ch Change) {
	for _, g := range s.regs {
		g.push(ch)
	}
}

// push queues ch and sees to it that somebody delivers. s.mu is held.
func (g *registration) push(ch Change) {
	g.queue = append(g.queue, ch)
	if !g.running {
		g.running = g.s.c.track(g.deliver)
	}
}

// deliver calls the callback until its queue is empty.
func (g *registration) deliver() {
	for {
		g.s.mu.Lock()
		if len(g.queue) == 0 || g.ctx.Err() != nil {
			g.queue, g.running = nil, false
			g.s.mu.Unlock()
			return
		}
		ch := g.queue[0]
		g.queue = g.queue[1:]
		g.s.mu.Unlock()
		g.call(ch)
	}
}

func (g *registration) call(ch Change) {
	defer func() {
		if p := recover(); p != nil {
			// What it panicked with could hold the value.
			g.s.c.log.LogAttrs(g.ctx, levelError, "a callback panicked", g.s.attr(), panicAttr(p))
		}
	}()
	g.fn(g.ctx, ch)
}
