package pgxauth

import (
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/secrets"
)

// tagKey is where a connection's custom data holds its tag.
const tagKey = "keyturn.pgxauth"

// A tag is what a connection knows of its credential.
type tag struct {
	version *secrets.Version
	moment  float64 // when in the drain window it closes, in [0, 1)
	in      atomic.Bool
	seen    atomic.Int64 // when it was first seen superseded, in ns since 1970
}

func tagOf(c *pgx.Conn) *tag {
	g, _ := c.PgConn().CustomData()[tagKey].(*tag)
	return g
}

// superseded reports whether g's connection signed in with another version
// than the current one.
func (h *Hook) superseded(g *tag) bool {
	cur := h.secret.Current()
	return g != nil && cur != nil && g.version != cur
}

// due reports whether c is superseded and its moment has come.
func (h *Hook) due(c *pgx.Conn) bool {
	g := tagOf(c)
	return h.superseded(g) && !h.moment(g).After(time.Now())
}

// moment is when a superseded connection is to close, counted from the first
// call.
func (h *Hook) moment(g *tag) time.Time {
	g.seen.CompareAndSwap(0, time.Now().UnixNano())
	wait := time.Duration(g.moment * float64(max(h.opts.DrainAfter, 0)))
	return time.Unix(0, g.seen.Load()).Add(wait)
}

// next returns when the next superseded connection is to close, not before
// from, and false if there is none. Those in use count too.
func (h *Hook) next(from time.Time) (at time.Time, any bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for g := range h.conns {
		if !h.superseded(g) {
			continue
		}
		m := h.moment(g)
		if m.Before(from) {
			m = from
		}
		if !any || m.Before(at) {
			at, any = m, true
		}
	}
	return at, any
}

// rush makes the moment of every connection of v come: it was revoked.
func (h *Hook) rush(v *secrets.Version) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for g := range h.conns {
		if g.version == v {
			g.seen.Store(1)
		}
	}
}

func (h *Hook) opened(g *tag) {
	if g == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.conns[g] = struct{}{}
}

func (h *Hook) closed(g *tag) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.conns, g)
}

// Conns returns the number of open connections by the version that they
// signed in with: once only the current one is left, this process has moved.
func (h *Hook) Conns() map[string]int {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]int{}
	for g := range h.conns {
		out[g.version.ID]++
	}
	return out
}
