package secrets

import (
	"context"
	"sync"

	"github.com/keyturn/keyturn/fault"
)

// Locks is the [Locker] of one process: it keeps that process's own callers
// apart, and no other process out. Make one with [NewLocks].
type Locks struct {
	mu   sync.Mutex
	held map[string]*holder
}

// A holder is a name that somebody holds or waits for.
type holder struct {
	free  chan struct{} // holds one element while nobody has the lock
	users int           // who has it or waits for it
}

var _ Locker = (*Locks)(nil)

// NewLocks returns Locks of which none is held.
func NewLocks() *Locks { return &Locks{held: map[string]*holder{}} }

// Lock implements [Locker]. The lock is never lost, so the context is
// the caller's own.
func (l *Locks) Lock(ctx context.Context, name string) (context.Context, func(), error) {
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
		return nil, nil, fault.New(fault.Unavailable, "lock "+name, ctx.Err())
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
func (l *Locks) leave(name string, h *holder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.users--; h.users == 0 {
		delete(l.held, name)
	}
}
