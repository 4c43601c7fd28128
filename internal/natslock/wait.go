package natslock

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
)

// A seat is one acquisition of one name, and the entry as it was known last.
type seat struct {
	locks         *Locks
	key, name, id string

	entry    *entry // nil when it has to be read
	revision uint64
	beats    uint64 // how many were used
}

// member is the seat with a beat that it never had, in an entry that it was
// evicted from either: who saw the old one must not take it for the new.
func (s *seat) member() member {
	s.beats++
	return member{ID: s.id, Beat: s.beats, TTL: s.locks.ttl.Milliseconds()}
}

// read fetches the entry.
func (s *seat) read(ctx context.Context, op string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	e, err := s.locks.kv.Get(ctx, s.key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		s.entry, s.revision = &entry{Name: s.name}, 0
		return nil
	}
	if err != nil {
		return classify(op, err)
	}
	return s.take(op, e)
}

// take goes on from an entry that was read or watched. An older one than is
// known is passed over.
func (s *seat) take(op string, e jetstream.KeyValueEntry) error {
	if s.entry != nil && e.Revision() <= s.revision {
		return nil
	}
	var value []byte
	if e.Operation() == jetstream.KeyValuePut {
		value = e.Value()
	}
	got, err := decode(op, s.name, value)
	if err != nil {
		return err
	}
	s.entry, s.revision = got, e.Revision()
	return nil
}

// store writes the entry if nobody else has since it was read. After any
// failure it has to be read again.
func (s *seat) store(ctx context.Context, op string, e *entry, timeout time.Duration) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fault.Newf(fault.Invalid, op, "the entry of lock %q cannot be encoded", s.name)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var revision uint64
	if s.revision == 0 {
		revision, err = s.locks.kv.Create(ctx, s.key, b)
	} else {
		revision, err = s.locks.kv.Update(ctx, s.key, b, s.revision)
	}
	if err != nil {
		s.entry = nil
		return classify(op, err)
	}
	s.entry, s.revision = e, revision
	return nil
}

// release takes the seat out of the entry, for a little while and then not at
// all: a TTL does it then.
func (s *seat) release(ctx context.Context) {
	const op = "natslock: unlock"
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(2*time.Second, s.locks.ttl))
	defer cancel()
	for try := 0; ctx.Err() == nil; try++ {
		var err error
		if s.entry == nil {
			err = s.read(ctx, op)
		}
		if err == nil {
			if s.entry.find(s.id) == nil {
				return
			}
			next := s.entry.clone()
			next.remove(s.id)
			if err = s.store(ctx, op, next, callTimeout); err == nil {
				return
			}
		}
		if final(err) {
			break
		}
		_ = pause(ctx, try)
	}
	s.locks.log.WarnContext(ctx, "a lock was not given back; others wait until it is dead", "name", s.name, "ttl", s.locks.ttl)
}

// A waiter wants a name.
type waiter struct {
	seat
	op    string
	mode  mode
	seen  map[string]sighting // by id
	noted time.Time           // when the note's last beat was sent
	wrote bool                // the entry may name us
}

// wait returns when the waiter is in, with the time at which the beat that
// says so was sent.
func (w *waiter) wait(ctx context.Context) (sent time.Time, err error) {
	updates, stop := w.watch(ctx)
	defer func() { stop() }()
	var last error // what kept us from looking
	for try := 0; ; {
		if ctx.Err() != nil {
			return time.Time{}, w.ended(ctx, last)
		}
		if w.entry == nil {
			if err := w.read(ctx, w.op); err != nil {
				if final(err) {
					return time.Time{}, err
				}
				last = err
				_ = pause(ctx, try)
				try++
				continue
			}
			last = nil
		}
		sent := time.Now()
		p := w.plan(w.entry, sent)
		if p.next != nil {
			w.wrote = true
			err := w.store(ctx, w.op, p.next, callTimeout)
			switch {
			case err == nil:
				try = 0
				for _, id := range p.evicted {
					w.locks.log.WarnContext(ctx, "a holder was silent for its TTL and lost the lock", "name", w.name, "holder", id)
				}
				if p.next.Next != nil && p.next.Next.ID == w.id {
					w.noted = sent
				}
				if p.entered && time.Since(sent) < grace(w.locks.ttl) {
					return sent, nil
				}
			case final(err):
				return time.Time{}, err
			default:
				if !fault.Is(err, fault.Conflict) {
					last = err
				}
				_ = pause(ctx, try)
				try++
			}
			continue
		}
		if updates == nil { // not yet, or the server was away
			stop()
			updates, stop = w.watch(ctx)
		}
		if err := w.idle(ctx, &updates, p.wake); err != nil {
			return time.Time{}, err
		}
	}
}

// watch asks for every change of the entry. Without a watch, which an outage
// may prevent, idle's floor is what there is.
func (w *waiter) watch(ctx context.Context) (<-chan jetstream.KeyValueEntry, func()) {
	if w.entry == nil {
		return nil, func() {} // most locks are free: look first
	}
	ctx, cancel := context.WithCancel(ctx)
	slow := time.AfterFunc(callTimeout, cancel) // the watch lives as long as its context
	kw, err := w.locks.kv.Watch(ctx, w.key)
	if !slow.Stop() || err != nil {
		if err == nil {
			_ = kw.Stop()
		}
		cancel()
		return nil, func() {}
	}
	return kw.Updates(), func() {
		_ = kw.Stop()
		cancel()
	}
}

// idle waits until the entry changes or wake comes. Should the watch be
// silent for another reason than that nothing changes, the entry is read after
// a jittered while.
func (w *waiter) idle(ctx context.Context, updates *<-chan jetstream.KeyValueEntry, wake time.Time) error {
	ttl := w.locks.ttl
	floor := time.NewTimer(ttl/2 + rand.N(ttl/2)) //nolint:gosec // jitter
	defer floor.Stop()
	due := time.NewTimer(time.Until(wake))
	defer due.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-floor.C:
			w.entry = nil
			return nil
		case <-due.C:
			return nil
		case e, ok := <-*updates:
			if !ok {
				*updates = nil
				w.entry = nil
				return nil
			}
			if e == nil { // all that was there before is told
				continue
			}
			before := w.revision
			if err := w.take(w.op, e); err != nil {
				return err
			}
			if w.revision == before {
				continue
			}
			if n := w.entry.Next; n == nil || n.ID != w.id {
				// All who wait saw the same. Who comes later sees who was first.
				if err := sleep(ctx, rand.N(10*time.Millisecond)); err != nil { //nolint:gosec // jitter
					return nil //nolint:nilerr // wait looks at the context itself
				}
			}
			return w.latest(*updates)
		}
	}
}

// latest takes what came in meanwhile.
func (w *waiter) latest(updates <-chan jetstream.KeyValueEntry) error {
	for {
		select {
		case e, ok := <-updates:
			if !ok {
				w.entry = nil
				return nil
			}
			if e == nil {
				continue
			}
			if err := w.take(w.op, e); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

// ended is the error of a wait whose context ended.
func (w *waiter) ended(ctx context.Context, last error) error {
	e := &fault.Error{Kind: fault.Unavailable, Op: w.op, Err: ctx.Err()}
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		e.Class = fault.ClassTimeout
	}
	switch {
	case last != nil:
		e.Msg = fmt.Sprintf("lock %q could not be looked at: %v", w.name, last)
	case w.entry != nil && w.entry.Writer != nil:
		e.Msg = fmt.Sprintf("lock %q is held by %s; wait for longer, or see what it does", w.name, w.entry.Writer.ID)
	case w.entry != nil && len(w.entry.Readers) > 0:
		e.Msg = fmt.Sprintf("lock %q is held by %d readers; wait for longer", w.name, len(w.entry.Readers))
	default:
		e.Msg = fmt.Sprintf("lock %q was not had in time", w.name)
	}
	return e
}

// pause waits a random while that grows with the number of tries, up to some
// 200 ms.
func pause(ctx context.Context, try int) error {
	limit := 2 * time.Millisecond << min(try, 6)
	return sleep(ctx, limit/2+rand.N(limit)) //nolint:gosec // jitter
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// final reports an error that waiting does not mend.
func final(err error) bool {
	switch fault.KindOf(err) {
	case fault.Denied, fault.Invalid:
		return true
	}
	return errors.Is(err, nats.ErrConnectionClosed) || errors.Is(err, jetstream.ErrConnectionClosed)
}
