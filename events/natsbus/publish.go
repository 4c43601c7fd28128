package natsbus

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// maxDecisions bounds how often an event is decided anew.
const maxDecisions = 16

// Publish is [Bus.PublishReceipt] without the receipt.
func (b *Bus) Publish(ctx context.Context, es ...events.Event) error {
	_, err := b.PublishReceipt(ctx, es...)
	return err
}

// PublishReceipt implements [events.ReceiptPublisher]. It returns once every
// event is in a stream, once, and says what became of them:
//
//   - Stored: it is now the last event of its subject.
//   - Duplicate: the bus has its id already, however long ago.
//   - Late: the subject tells of something newer. The event is in the stream
//     [LateStream], which no agent reads, so that the last event of a subject
//     stays the newest.
//
// An id counts as known as long as the subject's history keeps it. One that
// was pushed out by [Options.MaxPerSubject] newer events is stored once more:
// as late, unless all of them are within [Options.Skew] of one another.
//
// What the bus knows already, as its last event of a subject, is not sent. A
// recent event whose id is not the last is sent and left to the server, so
// that live subscribers hear it once more: after a rollback an old version is
// current again, under its old id.
//
// Events of one subject go out one after the other, others together. Nothing
// is sent if one of them is invalid; on any other error some may have been
// stored, and all may be sent again.
//
// Kinds: Invalid for an event that can never be stored, Denied for missing
// rights, Unavailable for a server or stream that does not answer within
// [Options.PublishTimeout], and at once when too many callers wait. A
// connection that is away at the call and comes back sooner is waited for.
//
// It needs the rights to publish on keyturn.v1.>, keyturn.late.v1.>, and, to
// read what is there, $JS.API.DIRECT.GET.{KEYTURN_EVENTS,KEYTURN_LATE} and all
// below it.
func (b *Bus) PublishReceipt(ctx context.Context, es ...events.Event) (events.Receipt, error) {
	var sum events.Receipt
	if len(es) == 0 {
		return sum, nil
	}
	ctx, cancel := context.WithTimeout(ctx, b.opts.PublishTimeout)
	defer cancel()
	now := time.Now().UTC()
	bySubject := make(map[string][]*outgoing, len(es))
	for _, e := range es {
		e.Data.Published = now
		m, err := encode(e)
		if err != nil {
			return sum, err
		}
		o := &outgoing{e: e, msg: m, id: escape(e.ID), subject: m.Subject}
		o.identify()
		if limit := b.nc.MaxPayload(); limit > 0 && int64(m.Size()+addedHeaders) > limit {
			return sum, tooLarge("publish")
		}
		bySubject[o.subject] = append(bySubject[o.subject], o)
	}
	places, err := b.gate.enter(ctx, len(bySubject))
	if err != nil {
		return sum, classify("publish", err)
	}
	defer b.gate.leave(places)
	if err := connected(ctx, b.nc); err != nil {
		return sum, classify("publish", err)
	}
	if len(bySubject) == 1 {
		for _, os := range bySubject {
			err = b.settle(ctx, os, &sum)
		}
		return sum, err
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	turn := make(chan struct{}, places)
	for _, os := range bySubject {
		turn <- struct{}{}
		wg.Go(func() {
			defer func() { <-turn }()
			var part events.Receipt
			failed := b.settle(ctx, os, &part)
			mu.Lock()
			defer mu.Unlock()
			sum.Add(part)
			if failed != nil && err == nil {
				err = failed
			}
		})
	}
	wg.Wait()
	return sum, err
}

// addedHeaders is the room for headers that are added to an encoded event.
const addedHeaders = 512

func tooLarge(op string) error {
	return &fault.Error{Kind: fault.Invalid, Op: "natsbus: " + op, Msg: "the message is larger than the server takes (max_payload)", Err: nats.ErrMaxPayload}
}

// outgoing is one event on its way.
type outgoing struct {
	e       events.Event
	msg     *nats.Msg
	id      string // escaped
	subject string // of the event
}

// identify sets the id by which the server tells repetitions. It belongs to
// the subject: ids are unique in a whole stream, and whoever may announce for
// one tenant must not be able to use up the id of another's next event.
func (o *outgoing) identify() {
	sum := sha256.Sum256([]byte(o.subject))
	o.msg.Header[jetstream.MsgIDHeader] = []string{o.id + "." + hex.EncodeToString(sum[:8])}
}

// settle publishes events of one subject, one after the other.
func (b *Bus) settle(ctx context.Context, os []*outgoing, sum *events.Receipt) error {
	s, err := b.subjects.take(ctx, os[0].subject)
	if err != nil {
		return classify("publish", err)
	}
	defer b.subjects.release(s)
	for _, o := range os {
		if err := b.decide(ctx, s, o, sum); err != nil {
			return err
		}
	}
	return nil
}

// decide finds out what o is, again while others publish on the subject, and
// when the connection is a new one.
func (b *Bus) decide(ctx context.Context, s *subject, o *outgoing, sum *events.Receipt) error {
	var err error
	for try := range maxDecisions {
		if try > 1 && !pause(ctx, rand.N(min(2*time.Millisecond<<try, 200*time.Millisecond))) {
			return classify("publish", ctx.Err())
		}
		err = b.attempt(ctx, s, o, sum)
		if errors.Is(err, nats.ErrDisconnected) {
			// It may be stored or not, which the next attempt finds out: a new
			// connection, as with renewed credentials, is no reason to turn away
			// what was under way.
			if away := connected(ctx, b.nc); away != nil {
				return classify("publish", away)
			}
			continue
		}
		if err == nil || !undecided(err) {
			return classify("publish", err)
		}
	}
	return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassConcurrency, Op: "natsbus: publish", Msg: "other publishers on the subject were faster each time, or the connection was lost each time", Err: err}
}

// undecided reports whether another publication came between reading and
// writing, or is about to: what is right must be found out anew.
func undecided(err error) bool {
	if fault.Is(err, fault.Conflict) {
		return true
	}
	api := apiError(err)
	return api != nil && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant || api.ErrorCode == errCodeDuplicateInProcess)
}

// attempt decides once.
func (b *Bus) attempt(ctx context.Context, s *subject, o *outgoing, sum *events.Receipt) error {
	now := time.Now()
	if s.event.id == o.id || s.event.newest.older(&o.e, b.opts.Skew) || !b.recent(&o.e, s.event.newest, now) {
		s.event.expire()
		s.late.expire()
	}
	if !s.event.known {
		if err := b.look(ctx, EventStream, o.subject, &s.event); err != nil {
			return err
		}
	}
	isLate := s.event.newest.older(&o.e, b.opts.Skew)
	switch {
	case s.event.id == o.id:
		sum.Duplicates++
		return nil
	case isLate || !b.recent(&o.e, s.event.newest, now):
		seen, err := b.seen(ctx, s, o)
		if err != nil {
			return err
		}
		if seen {
			sum.Duplicates++
			return nil
		}
		if s.event.newest.older(&o.e, b.opts.Skew) { // the history may have told something newer
			return b.store(ctx, b.old, lateSubject(o.subject), &s.late, o, newest{}, false, &sum.Late, &sum.Duplicates)
		}
	}
	n := s.event.newest.with(&o.e, now, b.margin())
	n.write(o.msg.Header, &o.e)
	// That the id is there, but not the last, is known to be refused.
	_, again := s.event.ids[o.id]
	return b.store(ctx, b.news, o.subject, &s.event, o, n, again, &sum.Stored, &sum.Duplicates)
}

// recent reports whether the server's duplicate window is sure to hold e's id,
// if e was stored. An event is not published before it happens, so half of the
// window is left for clocks that differ and for a commit that takes long.
func (b *Bus) recent(e *events.Event, n newest, now time.Time) bool {
	return !e.Time.IsZero() && e.Time.After(now.Add(-b.opts.Duplicates/2)) && !e.Time.After(now.Add(b.margin())) && e.Time.After(n.ahead)
}

// margin is how far ahead of now the time of a recent event may be.
func (b *Bus) margin() time.Duration { return min(b.opts.Skew, b.opts.Duplicates/4) }

// seen reports whether one of the streams has o's id.
func (b *Bus) seen(ctx context.Context, s *subject, o *outgoing) (bool, error) {
	if s.event.ids == nil {
		if err := b.scan(ctx, EventStream, o.subject, &s.event); err != nil {
			return false, err
		}
	}
	if _, is := s.event.ids[o.id]; is {
		return true, nil
	}
	if s.late.ids == nil {
		if err := b.scan(ctx, LateStream, lateSubject(o.subject), &s.late); err != nil {
			return false, err
		}
	}
	_, is := s.late.ids[o.id]
	return is, nil
}

// store sends o if p's last message is still the last. Whatever else happens,
// p is read anew next time.
func (b *Bus) store(ctx context.Context, c *committer, subject string, p *place, o *outgoing, n newest, alone bool, count, duplicates *int) error {
	m := o.msg
	m.Subject = subject
	m.Header[jetstream.ExpectedStreamHeader] = []string{c.stream}
	m.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(p.seq, 10)}
	r := c.commit(ctx, m, alone)
	switch {
	case r.err != nil:
		p.forget()
		return r.err
	case r.duplicate:
		if r.seq > p.seq {
			p.forget()
		}
		*duplicates++
	default:
		p.stored(r.seq, o.id, n)
		*count++
	}
	return nil
}
