package sibling_test

import (
	"context"
	"sync"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// locker is a lock service in memory that several processes share. Unlike a
// mutex it can take a lock away from who holds it.
type locker struct {
	mu   sync.Mutex
	held map[string]*grant
}

type grant struct {
	done   chan struct{}
	cancel context.CancelFunc
}

var _ secrets.Locker = (*locker)(nil)

func newLocker() *locker { return &locker{held: map[string]*grant{}} }

func (l *locker) Lock(ctx context.Context, name string) (context.Context, func(), error) {
	for {
		l.mu.Lock()
		g := l.held[name]
		if g == nil {
			held, cancel := context.WithCancel(ctx)
			g = &grant{done: make(chan struct{}), cancel: cancel}
			l.held[name] = g
			l.mu.Unlock()
			return held, func() { l.release(name, g) }, nil
		}
		l.mu.Unlock()
		select {
		case <-g.done:
		case <-ctx.Done():
			return nil, nil, fault.New(fault.Unavailable, "locker: lock "+name, ctx.Err())
		}
	}
}

func (l *locker) release(name string, g *grant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g.cancel()
	if l.held[name] == g {
		delete(l.held, name)
		close(g.done)
	}
}

// revoke takes name away from its holder: its lease ran out.
func (l *locker) revoke(name string) {
	l.mu.Lock()
	g := l.held[name]
	l.mu.Unlock()
	if g != nil {
		l.release(name, g)
	}
}
