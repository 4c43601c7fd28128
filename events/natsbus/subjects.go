package natsbus

import (
	"container/list"
	"context"
	"sync"
	"time"
)

const (
	// maxSubjects is how many subjects a Bus knows the last event of, at about
	// 500 bytes each. One that is not known costs a direct get.
	maxSubjects = 8192
	// maxIDs bounds the ids that are kept of histories, over all subjects, at
	// about 100 bytes each.
	maxIDs = 1 << 16
	// maxTrust is how long what is known is enough to acknowledge an event that
	// is not written where it was published to. A write needs no such bound: the
	// server compares what it relies on.
	maxTrust = 2 * time.Second
)

// place is what is known of a subject's messages in one stream.
type place struct {
	known  bool // whether the rest of it says anything
	read   time.Time
	seq    uint64
	id     string
	newest newest
	ids    map[string]struct{} // all ids there; nil: not read
}

// forget makes that it is read again before it is relied on.
func (p *place) forget() { *p = place{} }

// expire forgets what was read too long ago: messages expire, an operator
// purges a stream, or restores an older one.
func (p *place) expire() {
	if time.Since(p.read) > maxTrust {
		p.forget()
	}
}

// A subject is one subject of the events stream, with its counterpart in the
// stream of late events. Who holds it has it alone within this Bus.
type subject struct {
	name        string
	hold        chan struct{}
	event, late place
	kept        int // ids counted in subjects.ids
	users       int
	at          *list.Element
}

// subjects is a bounded memory of subjects, the least recently used of which
// are dropped. What it tells may be out of date: another process may have
// published since, which the server notices.
type subjects struct {
	max int

	mu  sync.Mutex
	m   map[string]*subject
	lru list.List // of *subject, the latest first
	ids int
}

// take waits for the subject and holds it until release.
func (s *subjects) take(ctx context.Context, name string) (*subject, error) {
	s.mu.Lock()
	if s.m == nil {
		s.m = map[string]*subject{}
	}
	sub := s.m[name]
	if sub == nil {
		sub = &subject{name: name, hold: make(chan struct{}, 1)}
		s.m[name] = sub
		sub.at = s.lru.PushFront(sub)
	} else {
		s.lru.MoveToFront(sub.at)
	}
	sub.users++
	s.shrink()
	s.mu.Unlock()
	select {
	case sub.hold <- struct{}{}:
		return sub, nil
	default:
	}
	select {
	case sub.hold <- struct{}{}:
		return sub, nil
	case <-ctx.Done():
		s.mu.Lock()
		sub.users--
		s.mu.Unlock()
		return nil, ctx.Err()
	}
}

func (s *subjects) release(sub *subject) {
	s.mu.Lock()
	s.ids += len(sub.event.ids) + len(sub.late.ids) - sub.kept
	sub.kept = len(sub.event.ids) + len(sub.late.ids)
	if s.ids > maxIDs {
		sub.event.ids = nil
		sub.late.forget()
		s.ids, sub.kept = s.ids-sub.kept, 0
	}
	sub.users--
	s.shrink()
	s.mu.Unlock()
	<-sub.hold
}

// shrink drops what is too much and not in use. The lock is held.
func (s *subjects) shrink() {
	for e := s.lru.Back(); e != nil && len(s.m) > s.max; {
		sub, before := e.Value.(*subject), e.Prev()
		if sub.users == 0 {
			s.lru.Remove(e)
			delete(s.m, sub.name)
			s.ids -= sub.kept
		}
		e = before
	}
}
