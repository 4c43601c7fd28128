package natslock

import "time"

// A sighting is since when a member's beat was seen as it is, by this
// process's own monotonic clock.
type sighting struct {
	beat  uint64
	since time.Time
}

// A plan is what a waiter does about an entry.
type plan struct {
	next    *entry    // to be stored, or nil to wait
	entered bool      // next has the waiter in
	evicted []string  // ids that next lacks
	wake    time.Time // when to plan again if nothing changes
}

// plan decides, from what was seen so far and without looking at anything
// else.
func (w *waiter) plan(e *entry, now time.Time) plan {
	w.observe(e, now)
	p := plan{next: e.clone(), wake: now.Add(w.locks.ttl)}
	for _, m := range e.members() {
		if m.ID == w.id {
			continue
		}
		if dead := w.seen[m.ID].since.Add(m.ttl()); !now.Before(dead) {
			p.next.remove(m.ID)
			p.evicted = append(p.evicted, m.ID)
		} else if dead.Before(p.wake) {
			p.wake = dead
		}
	}
	me := w.member()
	note := p.next.Next
	switch {
	case p.next.holds(w.id):
		// A write whose answer was lost had us in. Others saw that beat we do
		// not know when: hold by a new one.
		p.next.find(w.id).Beat = me.Beat
		p.entered = true
	case p.next.free(w.mode, w.id):
		p.next.enter(w.mode, me)
		p.entered = true
	case w.mode == write && p.next.Writer == nil && (note == nil || note.ID == w.id && !now.Before(w.noted.Add(w.locks.ttl/3))):
		p.next.Next = &me
	case p.evicted == nil:
		p.next = nil
	}
	if due := w.noted.Add(w.locks.ttl / 3); note != nil && note.ID == w.id && due.Before(p.wake) {
		p.wake = due
	}
	return p
}

// observe notes beats that are new and forgets members that left.
func (w *waiter) observe(e *entry, now time.Time) {
	for _, m := range e.members() {
		if s, ok := w.seen[m.ID]; !ok || s.beat != m.Beat {
			w.seen[m.ID] = sighting{m.Beat, now}
		}
	}
	for id := range w.seen {
		if e.find(id) == nil {
			delete(w.seen, id)
		}
	}
}
