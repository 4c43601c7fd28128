package pull

import (
	"context"
	"sync"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// A run is one call of Run.
type run struct {
	p        *Puller
	attempts *Attempts
	stop     context.Context //nolint:containedctx // done when nothing new is taken
	work     context.Context //nolint:containedctx // the handlers'
	settle   context.Context //nolint:containedctx // of requests other than Receive
}

// receive asks for messages until the end. The first receiver always does;
// the others begin when one before them found all that it asked for, and rest
// when they find nothing.
func (r *run) receive(first bool) {
	p, failures := r.p, 0
	awake := first
	for r.stop.Err() == nil {
		if !awake {
			select {
			case <-p.busy:
			case <-r.stop.Done():
				return
			}
		}
		// One receiver leaves room for the others.
		room := p.gate.take(r.stop, min(p.c.Batch, max(1, p.c.MaxBytes/p.c.Receivers/p.c.MaxMessage)), p.c.MaxMessage)
		if room == 0 {
			return
		}
		ms, err := p.q.Receive(r.stop, room)
		if err != nil {
			p.gate.give(room, room*p.c.MaxMessage)
			if r.stop.Err() != nil {
				return
			}
			failures++
			p.receiving.Failed(r.stop, err)
			Sleep(r.stop, p.c.Retry.Delay(failures))
			continue
		}
		failures = 0
		p.receiving.Worked(r.stop)
		if len(ms) >= room {
			select {
			case p.busy <- struct{}{}:
			default:
			}
		}
		awake = first || len(ms) > 0
		r.dispatch(ms, room)
	}
}

// dispatch begins to handle ms, for which room was taken.
func (r *run) dispatch(ms []Message, room int) {
	p, now := r.p, time.Now()
	leases, bytes := make([]*lease, len(ms)), 0
	for i := range ms {
		l := &lease{Message: ms[i], bytes: ms[i].size(), ends: now.Add(p.c.Lease)}
		if l.Delivery.Received.IsZero() {
			l.Delivery.Received = now
		}
		leases[i], bytes = l, bytes+l.bytes
	}
	p.n.received.Add(int64(len(ms)))
	p.gate.give(room-len(ms), room*p.c.MaxMessage-bytes)
	for _, l := range leases {
		p.mu.Lock()
		p.live[l] = struct{}{}
		queued := false
		if l.Group != "" {
			var waiting []*lease
			if waiting, queued = p.groups[l.Group]; queued {
				p.groups[l.Group] = append(waiting, l)
			} else {
				p.groups[l.Group] = nil
			}
		}
		p.mu.Unlock()
		switch {
		case queued:
		case l.Group == "":
			p.handlers.Go(func() { r.handle(l) })
		default:
			p.handlers.Go(func() { r.chain(l) })
		}
	}
}

// chain handles l and then what waits behind it in its group, each after the
// one before is acknowledged. If one is not, those behind it are given back.
// The cloud delivers none of a group while one of it is leased, hence they
// come again in order.
func (r *run) chain(l *lease) {
	p, group := r.p, l.Group
	for {
		done := r.handle(l)
		p.mu.Lock()
		waiting := p.groups[group]
		if len(waiting) == 0 {
			delete(p.groups, group)
			p.mu.Unlock()
			return
		}
		if done {
			l, p.groups[group] = waiting[0], waiting[1:]
			p.mu.Unlock()
			continue
		}
		p.groups[group] = nil
		for _, w := range waiting {
			w.settled = true
		}
		p.mu.Unlock()
		var wg sync.WaitGroup
		for _, w := range waiting {
			wg.Go(func() {
				p.giveBack(r.settle, w, 0)
				p.forget(w)
			})
		}
		wg.Wait()
		p.mu.Lock()
		// Newer ones may have come in meanwhile.
		waiting = p.groups[group]
		if len(waiting) == 0 {
			delete(p.groups, group)
			p.mu.Unlock()
			return
		}
		l, p.groups[group] = waiting[0], waiting[1:]
		p.mu.Unlock()
	}
}

// handle handles one message and settles it. It reports whether the message is
// acknowledged.
func (r *run) handle(l *lease) bool {
	p := r.p
	defer p.forget(l)
	ctx, cancel := context.WithCancel(r.work)
	defer cancel()
	p.mu.Lock()
	l.cancel, l.started = cancel, true
	l.keep = time.Now().Add(p.c.Hold + p.c.Timeout + lastCall)
	over := l.lost || l.Group != "" && time.Now().After(l.ends)
	p.mu.Unlock()
	if over {
		return false
	}
	if r.stop.Err() != nil {
		// Received while Run was asked to end.
		p.settling(l)
		p.giveBack(r.settle, l, 0)
		return false
	}
	err := r.attempts.Do(ctx, r.stop, l.Delivery)
	if err == nil || fault.Is(err, fault.Invalid) {
		if err != nil {
			p.c.Log.ErrorContext(ctx, "the handler can never take this message; it is acknowledged", "source", l.Delivery.Source, "key", l.Delivery.Key(), "attempt", l.Delivery.Attempt)
		}
		if !p.acknowledge(r.settle, l) {
			return false
		}
		p.n.acknowledged.Add(1)
		if err != nil {
			p.n.invalid.Add(1)
		}
		return true
	}
	if !p.settling(l) {
		return false // lost, or given back already
	}
	delay := p.c.Again.Delay(max(1, l.Delivery.Attempt))
	if r.stop.Err() != nil {
		delay = 0 // somebody else may be able to
	}
	p.c.Log.DebugContext(ctx, "message given back", "source", l.Delivery.Source, "key", l.Delivery.Key(), "attempt", l.Delivery.Attempt, "kind", kind(err), "delay", delay)
	p.giveBack(r.settle, l, delay)
	return false
}

// settling marks l as one whose lease is not extended any more. It reports
// false if it is lost, or if somebody else settles it.
func (p *Puller) settling(l *lease) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := l.settled || l.lost
	l.settled = true
	return !was
}

// forget ends l.
func (p *Puller) forget(l *lease) {
	p.mu.Lock()
	l.settled = true
	_, live := p.live[l]
	delete(p.live, l)
	p.mu.Unlock()
	if live {
		p.gate.give(1, l.bytes)
	}
}
