package pull

import (
	"context"
	"sync"
)

// A gate bounds how many messages, and how many bytes of them, are in flight.
type gate struct {
	maxCount, maxBytes int

	mu           sync.Mutex
	count, bytes int
	changed      chan struct{} // closed when room is given back
}

func newGate(count, bytes int) *gate {
	return &gate{maxCount: count, maxBytes: bytes, changed: make(chan struct{})}
}

// take waits until there is room for one message of each bytes, and takes as
// many as there is room for, at most n. It returns 0 when ctx is done.
func (g *gate) take(ctx context.Context, n, each int) int {
	for {
		g.mu.Lock()
		fit := min(n, g.maxCount-g.count, (g.maxBytes-g.bytes)/each)
		if fit > 0 && ctx.Err() == nil {
			g.count += fit
			g.bytes += fit * each
			g.mu.Unlock()
			return fit
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return 0
		}
	}
}

// give returns room.
func (g *gate) give(count, bytes int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.count -= count
	g.bytes -= bytes
	close(g.changed)
	g.changed = make(chan struct{})
}

// used is what is taken at present.
func (g *gate) used() (count, bytes int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.count, g.bytes
}
