package sibling

import (
	"context"
	"sync"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// local is the [secrets.Locker] of a Store that was given none: it keeps the
// callers of one process apart, so that they do not fight by compare-and-swap
// what a lock in memory settles. It keeps no other process out.
type local struct {
	mu   sync.Mutex
	held map[string]*holder
}

// A holder is a name that somebody holds or waits for.
type holder struct {
	free  chan struct{} // holds one element while nobody has the lock
	users int           // who has it or waits for it
}

var _ secrets.Locker = (*local)(nil)

func newLocal() *local { return &local{held: map[string]*holder{}} }

// Lock implements [secrets.Locker]. The lock is never lost, so the context is
// the caller's own.
func (l *local) Lock(ctx context.Context, name string) (context.Context, func(), error) {
	l.mu.Lock()
	h := l.held[name]
	if h == nil {
		h = &holder{free: make(chan struct{}, 1)}
		h.free <- struct{}{}
		l.held[name] = h
	}
	h.users++
	l.mu.Unlock()

	select {
	case <-h.free:
	case <-ctx.Done():
		l.leave(name, h)
		return nil, nil, fault.New(fault.Unavailable, "sibling: lock "+name, ctx.Err())
	}
	var once sync.Once
	return ctx, func() {
		once.Do(func() {
			h.free <- struct{}{}
			l.leave(name, h)
		})
	}, nil
}

// leave forgets a name that nobody uses any more: a daemon sees many.
func (l *local) leave(name string, h *holder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.users--; h.users == 0 {
		delete(l.held, name)
	}
}
