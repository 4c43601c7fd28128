package webhook

import (
	"sync/atomic"
	"time"
)

// A gate bounds how many requests are inside, and how many bytes of bodies they
// hold. It never waits: who does not get in is told to come again.
type gate struct {
	slots    chan struct{}
	bytes    atomic.Int64
	maxBytes int64
}

func newGate(slots int, bytes int64) *gate {
	return &gate{slots: make(chan struct{}, max(1, slots)), maxBytes: bytes}
}

func (g *gate) enter() bool {
	select {
	case g.slots <- struct{}{}:
		return true
	default:
		return false
	}
}

func (g *gate) leave(bytes int64) {
	g.bytes.Add(-bytes)
	<-g.slots
}

func (g *gate) grow(n int64) bool {
	if g.bytes.Add(n) > g.maxBytes {
		g.bytes.Add(-n)
		return false
	}
	return true
}

// idle takes every slot, so that no request is or will be inside, and reports
// whether it got them within limit.
func (g *gate) idle(limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	for range cap(g.slots) {
		select {
		case g.slots <- struct{}{}:
		case <-t.C:
			return false
		}
	}
	return true
}

// A ticket is one request's place behind the gates. It is not for concurrent
// use.
type ticket struct {
	gates []*gate
	bytes int64
}

// admit enters every gate, or none.
func admit(gates ...*gate) *ticket {
	for i, g := range gates {
		if !g.enter() {
			for _, in := range gates[:i] {
				in.leave(0)
			}
			return nil
		}
	}
	return &ticket{gates: gates}
}

// grow reserves n bytes more.
func (t *ticket) grow(n int64) bool {
	for i, g := range t.gates {
		if !g.grow(n) {
			for _, in := range t.gates[:i] {
				in.bytes.Add(-n)
			}
			return false
		}
	}
	t.bytes += n
	return true
}

// prove leaves all but the first gate: the sender is known now.
func (t *ticket) prove() {
	for _, g := range t.gates[1:] {
		g.leave(t.bytes)
	}
	t.gates = t.gates[:1]
}

func (t *ticket) leave() {
	for _, g := range t.gates {
		g.leave(t.bytes)
	}
}
