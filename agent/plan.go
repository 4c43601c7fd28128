package agent

import (
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

const (
	// minGap keeps a burst of events from becoming a burst of reads when
	// there is no jitter.
	minGap = 20 * time.Millisecond
	// maxHints bounds what is kept of a burst; one is enough for the read.
	maxHints = 32
	// lagTries is how often a store that still returns the old version after
	// an event, or again, is asked again: after 100, 300, 900 and 2700 ms.
	lagTries = 4
	// A read that failed is tried again after these.
	minRetry = 500 * time.Millisecond
	maxRetry = time.Minute
)

// A plan is when a secret is read next, and why. Secret.mu guards it.
type plan struct {
	poll   time.Duration
	pollAt time.Time
	due    time.Time // zero if only the poll is due
	cause  Cause
	hints  []events.Event // events that no read has answered yet
	tries  int            // reads that came back without what was announced
	// seen is the last answered event of each type: a replay after a
	// reconnect brings the same ones again.
	seen map[events.Type]occurrence
	// newest is when the event that announced the held version happened. An
	// older one announces nothing.
	newest occurrence
}

type occurrence struct {
	id            string
	at, published time.Time
}

func occurrenceOf(e *events.Event) occurrence {
	return occurrence{e.ID, e.Time, e.Data.Published}
}

func (o occurrence) same(p occurrence) bool { return o.id == p.id && o.at.Equal(p.at) }

// before says which of two things happened first. A provider's time may have
// seconds only; then the time of publication decides.
func (o occurrence) before(p occurrence) bool {
	if !o.at.Equal(p.at) {
		return o.at.Before(p.at)
	}
	return o.published.Before(p.published)
}

// eventTypes are those after which a plain reader may get something else.
func eventTypes() []events.Type {
	return []events.Type{
		events.VersionActivated, events.VersionEnabled, events.VersionDisabled, events.VersionDestroyed,
		events.VersionRevoked, events.VersionRetired,
		events.SecretDeleted, events.SecretRestored, events.SecretChanged,
	}
}

// urgent reports whether e is read for without jitter.
func urgent(e *events.Event) bool { return e.Type == events.VersionRevoked }

// wants reports whether e calls for a read by an agent that holds v.
func (p *plan) wants(e *events.Event, v *secrets.Version) bool {
	if p.seen[e.Type].same(occurrenceOf(e)) {
		return false
	}
	named := e.Data.Version
	if named == "" || v == nil {
		return true
	}
	switch e.Type {
	case events.VersionActivated, events.VersionEnabled:
		return named != v.ID
	case events.VersionDisabled, events.VersionDestroyed, events.VersionRevoked, events.VersionRetired:
		// The end of a version that is not held changes nothing here: after
		// each rotation the old one ends.
		return named == v.ID
	}
	return true
}

// hint puts an event on the plan. An event is never believed, only followed
// by a read.
func (s *Secret) hint(e events.Event) {
	now := time.Now()
	s.mu.Lock()
	p := &s.plan
	known := p.seen[e.Type].same(occurrenceOf(&e)) // an old revocation may have been taken back
	if !known {
		s.drop(&e)
	}
	if !p.wants(&e, s.held) {
		p.settle(&e, s.held)
		s.mu.Unlock()
		s.c.observe(Observation{Op: OpSkip, Ref: s.ref, Version: e.Data.Version})
		return
	}
	if !slices.ContainsFunc(p.hints, func(h events.Event) bool { return occurrenceOf(&h).same(occurrenceOf(&e)) }) {
		if len(p.hints) == maxHints {
			p.hints = slices.Delete(p.hints, 0, 1)
		}
		p.hints = append(p.hints, e)
		p.tries = 0
	}
	at := now
	if !urgent(&e) {
		at = now.Add(s.c.jitter(s, &e))
		if first := s.landed.Add(minGap); at.Before(first) {
			at = first
		}
	}
	p.want(at, CauseEvent)
	s.mu.Unlock()
	s.c.observe(Observation{Op: OpEvent, Ref: s.ref, Version: e.Data.Version})
	s.poke()
}

// jitter is the same for the same agent and event, and evenly spread over
// the agents.
func (c *Client) jitter(s *Secret, e *events.Event) time.Duration {
	if c.opts.Jitter <= 0 {
		return 0
	}
	h := fnv.New64a()
	for _, part := range []string{c.opts.Instance, s.ref.String(), e.ID} {
		_, _ = h.Write([]byte(part))
		_, _ = h.Write([]byte{0})
	}
	// FNV's low bits differ little between names that differ at the end.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return time.Duration(x % uint64(c.opts.Jitter)) //nolint:gosec // positive
}

// want asks for a read at t unless one is due earlier.
func (p *plan) want(t time.Time, cause Cause) {
	if p.due.IsZero() || t.Before(p.due) {
		p.due, p.cause = t, cause
	}
}

// take hands the hints to a read that starts now.
func (p *plan) take() []events.Event {
	h := p.hints
	p.hints, p.due = nil, time.Time{}
	return h
}

// settle marks e as answered.
func (p *plan) settle(e *events.Event, v *secrets.Version) {
	if p.seen == nil {
		p.seen = map[events.Type]occurrence{}
	}
	p.seen[e.Type] = occurrenceOf(e)
	if v != nil && announces(e, v.ID) && p.newest.before(occurrenceOf(e)) {
		p.newest = occurrenceOf(e)
	}
}

// announces reports whether e says that a plain reader may now get version id.
func announces(e *events.Event, id string) bool {
	return e.Type == events.VersionActivated && e.Data.Version == id
}

// announced returns the event that a flight's version came with, or nil.
func announced(f *flight, id string) *events.Event {
	var found *events.Event
	for i := range f.hints {
		e := &f.hints[i]
		if announces(e, id) {
			return e
		}
		if e.Data.Version == "" || e.Type != events.VersionActivated {
			found = e
		}
	}
	return found
}

// read settles what a good read answers, and reports whether the store still
// lags behind an event: then the event stays and the store is asked again.
func (p *plan) read(now time.Time, f *flight, v, old *secrets.Version) (lagging bool) {
	newest, match := p.newest, -1
	for i := range f.hints {
		if o := occurrenceOf(&f.hints[i]); announces(&f.hints[i], v.ID) && !o.before(newest) {
			newest, match = o, i
		}
	}
	var again []events.Event
	for i := range f.hints {
		e := &f.hints[i]
		missing := e.Type == events.VersionActivated && e.Data.Version != "" && e.Data.Version != v.ID
		// What happened before the version that came will not come; where the
		// times do not tell, the order of arrival does.
		o := occurrenceOf(e)
		older := o.before(newest) || !newest.before(o) && i < match
		if missing && !older && p.tries < lagTries {
			again = append(again, *e)
			continue
		}
		p.settle(e, v)
	}
	p.newest = newest
	if old == nil || old.ID != v.ID {
		p.tries = 0
	}
	if len(again) == 0 {
		p.tries = 0
		return false
	}
	p.keep(again)
	p.want(now.Add(lagDelay(p.tries)), CauseRetry)
	p.tries++
	return true
}

// failed plans the read after one that failed for the n-th time in a row.
func (p *plan) failed(now time.Time, f *flight, k fault.Kind, n int) {
	switch k {
	case fault.NotFound, fault.Denied, fault.Invalid:
		// Asking again helps only where a change has not spread yet.
		if len(f.hints) == 0 || p.tries >= lagTries {
			for i := range f.hints {
				p.settle(&f.hints[i], nil)
			}
			p.tries = 0
			return
		}
		p.keep(f.hints)
		p.want(now.Add(lagDelay(p.tries)), CauseRetry)
		p.tries++
	case fault.Unknown, fault.Conflict, fault.Unavailable:
		p.keep(f.hints)
		d := min(minRetry<<min(n-1, 10), maxRetry)
		if p.poll > 0 {
			d = min(d, p.poll)
		}
		p.want(now.Add(spread(d, 0.5)), CauseRetry)
	}
}

// keep puts hints back before those that came meanwhile.
func (p *plan) keep(hints []events.Event) {
	p.hints = append(slices.Clip(hints), p.hints...)
	if n := len(p.hints) - maxHints; n > 0 {
		p.hints = p.hints[n:]
	}
}

// landed puts off the next poll.
func (p *plan) landed(now time.Time) {
	if p.poll > 0 {
		p.pollAt = now.Add(spread(p.poll, 0.2))
	}
}

func lagDelay(tries int) time.Duration {
	d := 100 * time.Millisecond
	for range tries {
		d *= 3
	}
	return spread(d, 0.25)
}

// spread returns d, more or less up to the given part of it.
func spread(d time.Duration, part float64) time.Duration {
	return d + time.Duration((2*rand.Float64()-1)*part*float64(d)) //nolint:gosec // not a secret
}
