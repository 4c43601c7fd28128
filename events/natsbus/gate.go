package natsbus

import (
	"context"
	"slices"
	"sync"

	"github.com/keyturn/keyturn/fault"
)

// A gate bounds what is under way, and how many wait for it. First come,
// first served.
type gate struct {
	size, queue int // places, and callers that may wait

	mu      sync.Mutex
	used    int
	waiting []*waiter
}

type waiter struct {
	n  int
	in chan struct{}
}

// enter takes n places, at most the gate's size, and returns how many to give
// to leave. A caller beyond those that may wait is refused at once: to pile up
// would cost memory, and its sender has the better queue.
func (g *gate) enter(ctx context.Context, n int) (int, error) {
	n = min(n, g.size)
	g.mu.Lock()
	if len(g.waiting) == 0 && g.used+n <= g.size {
		g.used += n
		g.mu.Unlock()
		return n, nil
	}
	if len(g.waiting) >= g.queue {
		g.mu.Unlock()
		return 0, &fault.Error{Kind: fault.Unavailable, Class: fault.ClassQuota, Op: "natsbus: publish", Msg: "too many callers wait for NATS; it is away, or slower than events come in"}
	}
	w := &waiter{n: n, in: make(chan struct{})}
	g.waiting = append(g.waiting, w)
	g.mu.Unlock()
	select {
	case <-w.in:
		return n, nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.waiting, w); i >= 0 {
		g.waiting = slices.Delete(g.waiting, i, i+1)
	} else { // let in at the same moment
		g.used -= n
	}
	g.admit()
	return 0, ctx.Err()
}

func (g *gate) leave(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used -= n
	g.admit()
}

// admit lets in who fits. The lock is held.
func (g *gate) admit() {
	for len(g.waiting) > 0 && g.used+g.waiting[0].n <= g.size {
		w := g.waiting[0]
		g.waiting = slices.Delete(g.waiting, 0, 1)
		g.used += w.n
		close(w.in)
	}
}
