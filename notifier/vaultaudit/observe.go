package vaultaudit

import (
	"sync/atomic"
	"time"
)

// What became of entries.
type What string

// The values of What. All of them are few, so that they fit a metric's label.
const (
	// Stored entries are in the spool, and their senders were answered.
	Stored What = "stored"
	// Irrelevant entries mean no event and were thrown away.
	Irrelevant What = "irrelevant"
	// Unreadable lines are no audit entries. One of a kind and minute goes to
	// the handler, without its content.
	Unreadable What = "unreadable"
	// Dropped entries may have meant an event and are lost. Alert on the first.
	Dropped What = "dropped"
	// Delivered entries were acknowledged by the handler.
	Delivered What = "delivered"
	// Refused entries were found Invalid by the handler, and are done.
	Refused What = "refused"
	// Retried counts failed calls of the handler; the entry is kept.
	Retried What = "retried"
)

// An Observation says what became of N entries.
type Observation struct {
	// Source is the source's name.
	Source string
	// Transport is "http", "socket" or "file", or "" for what is about the
	// spool.
	Transport string
	What      What
	// Reason is why entries were dropped: "full" (the spool has MaxBytes),
	// "disk" (it could not be written, or not in time), "too_long", "cut" (the
	// connection or file ended within a line), "overload" (too many at a time),
	// "missed" (a tailed file was rotated away unread) or "corrupt" (what was
	// stored could not be read back; N counts bytes).
	Reason string
	N      int
}

const (
	viaHTTP   = "http"
	viaSocket = "socket"
	viaFile   = "file"
)

func (s *Source) count(via string, what What, reason string, n int) {
	if n > 0 {
		s.o.Observe(Observation{Source: s.o.Name, Transport: via, What: what, Reason: reason, N: n})
	}
}

// drop says loudly that n entries are lost. One line a second is enough; it has
// the sum.
func (s *Source) drop(via, reason string, n int) {
	if n == 0 {
		return
	}
	s.count(via, Dropped, reason, n)
	if held, ok := s.dropped.allow(time.Now(), int64(n)); ok {
		s.o.Logger.Error("audit entries dropped: changes of secrets may go unheard until the next resync", "source", s.o.Name, "transport", via, "reason", reason, "entries", held)
	}
}

// A throttle lets one through in a while and sums up the rest.
type throttle struct{ next, held atomic.Int64 }

const loud = time.Second

// allow reports whether this one may pass, with the sum since the last.
func (t *throttle) allow(now time.Time, n int64) (held int64, ok bool) {
	t.held.Add(n)
	next := t.next.Load()
	if now.UnixNano() < next || !t.next.CompareAndSwap(next, now.Add(loud).UnixNano()) {
		return 0, false
	}
	return t.held.Swap(0), true
}
