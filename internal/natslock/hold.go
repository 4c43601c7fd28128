package natslock

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// grace is how long a holder may go on after it sent its last beat. Others
// wait for a whole TTL.
func grace(ttl time.Duration) time.Duration { return ttl * 3 / 4 }

// A hold is a lock that is held.
type hold struct {
	seat
	parent context.Context //nolint:containedctx // that of Lock, without which unlock would have none
	ctx    context.Context //nolint:containedctx // what Lock returns
	cancel context.CancelCauseFunc
	lost   *time.Timer // ends ctx when no beat was stored in time
	done   chan struct{}
	once   sync.Once
}

// newHold begins to beat. sent is when the beat that others know was sent.
func newHold(parent context.Context, s seat, sent time.Time) *hold {
	h := &hold{seat: s, parent: parent, done: make(chan struct{})}
	h.ctx, h.cancel = context.WithCancelCause(parent)
	h.lost = time.AfterFunc(time.Until(sent.Add(grace(s.locks.ttl))), func() {
		h.lose("no beat of it was stored in time")
	})
	go h.beat()
	return h
}

// lose ends what runs under the lock.
func (h *hold) lose(why string) {
	if h.ctx.Err() == nil {
		h.locks.log.WarnContext(h.ctx, "a lock was lost", "name", h.name, "why", why)
	}
	h.cancel(fault.Newf(fault.Unavailable, "natslock", "lock %q was lost: %s; stop, and begin again", h.name, why))
}

// beat beats until the hold's context ends.
func (h *hold) beat() {
	defer close(h.done)
	third := h.locks.ttl / 3
	for {
		if sleep(h.ctx, third-rand.N(third/4)) != nil { //nolint:gosec // jitter
			return
		}
		for try := 0; h.ctx.Err() == nil; try++ {
			if h.renew() == nil {
				break
			}
			_ = pause(h.ctx, try)
		}
	}
}

// renew stores one more beat. That others wrote, or that the last answer was
// lost, is looked at by the caller's repetition.
func (h *hold) renew() error {
	const op = "natslock: beat"
	if h.entry == nil {
		if err := h.read(h.ctx, op); err != nil {
			return err
		}
	}
	next := h.entry.clone()
	m := next.find(h.id)
	if m == nil {
		h.lose("it was evicted, or the bucket was emptied")
		return nil
	}
	*m = h.member()
	sent := time.Now()
	if err := h.store(h.ctx, op, next, h.locks.ttl/4); err != nil {
		return err
	}
	if h.ctx.Err() == nil {
		h.lost.Reset(time.Until(sent.Add(grace(h.locks.ttl))))
	}
	return nil
}

// unlock ends the hold and gives the lock back, as far as it can.
func (h *hold) unlock() {
	h.once.Do(func() {
		h.cancel(nil)
		h.lost.Stop()
		<-h.done
		h.release(h.parent)
	})
}
