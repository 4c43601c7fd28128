// Package pull is what the sources have in common that take messages from a
// queue of a cloud under a lease: bounded work in flight, leases that are
// extended while a handler runs, acknowledgements in batches, back-off, and an
// orderly end. What differs between clouds is a [Queue].
//
// A message is acknowledged only after its handler returned nil, or Invalid.
// Whatever else happens, a crash included, the lease runs out and the cloud
// delivers the message again.
package pull

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

const (
	// lastCall is how long Run waits for handlers whose context it has
	// cancelled, and again for the last answers of the cloud.
	lastCall = 2 * time.Second
	// linger is how long an acknowledgement waits for company.
	linger = 5 * time.Millisecond
	// concurrent bounds requests of one sort to the cloud at a time.
	concurrent = 8
)

// A Message is one message under a lease.
type Message struct {
	// Token names the lease.
	Token string
	// Group orders messages: those of one group are handled one after the
	// other. "" orders nothing.
	Group string
	// Delivery is what the handler gets. Its body and attributes count into
	// the bytes in flight.
	Delivery notifier.Delivery
}

func (m *Message) size() int {
	n := len(m.Delivery.Body)
	for k, v := range m.Delivery.Attributes {
		n += len(k) + len(v)
	}
	return n
}

// A Return is a lease that ends without an acknowledgement.
type Return struct {
	Token string
	Delay time.Duration // until the message may be delivered again
}

// A Refusal is one lease for which a request that as a whole worked did
// nothing.
type Refusal struct {
	Token string
	// Lost means that the lease is over: to try again is of no use, and the
	// message comes again.
	Lost bool
	// Code is the cloud's.
	Code string
}

// A Queue is the cloud's side of a subscription. Its methods are called
// concurrently and obey their context. Their errors are of package fault. They
// get at most Config.Batch leases at a time.
type Queue interface {
	// Receive waits for messages for a while, and returns at most n. None is
	// no error.
	Receive(ctx context.Context, n int) ([]Message, error)
	// Acknowledge ends leases, and the messages with them.
	Acknowledge(ctx context.Context, tokens []string) ([]Refusal, error)
	// Release ends leases, and has their messages delivered again.
	Release(ctx context.Context, rs []Return) ([]Refusal, error)
	// Extend begins leases anew, each for Config.Lease from now.
	Extend(ctx context.Context, tokens []string) ([]Refusal, error)
}

// Config of a [Puller]; every field is required.
type Config struct {
	Log *slog.Logger
	// Batch bounds how many leases one request is about.
	Batch int
	// Receivers bounds how many requests for messages are made at a time. All
	// but the first rest while there is little to receive.
	Receivers int
	// MaxInFlight and MaxBytes bound what is received and not yet settled.
	MaxInFlight, MaxBytes int
	// MaxMessage is the size of the largest message that the cloud delivers,
	// in bytes: room for it is taken before it is asked for.
	MaxMessage int
	// Lease is how long a lease lasts. It is extended when a third is over.
	Lease time.Duration
	// Timeout bounds one call of the handler. It gets no longer lease.
	Timeout time.Duration
	// Hold bounds how long a message waits in place for a handler that is
	// unavailable.
	Hold time.Duration
	// Drain bounds how long handlers go on after the end of the context.
	Drain time.Duration
	// Again is the delay of a message that is given back, by its attempt.
	Again Backoff
	// Retry is the pause between requests that fail.
	Retry Backoff
}

// Stats counts since the start.
type Stats struct {
	Received     int64 // deliveries, repeated ones included
	Acknowledged int64
	Invalid      int64 // of the acknowledged, those that could never work
	Released     int64 // given back, to be delivered again
	// Lost counts leases that ended before their message was settled: it is
	// delivered again.
	Lost     int64
	Extended int64
	// Refused counts leases that the cloud refused to settle in an answer that
	// as a whole was a success.
	Refused int64
	// InFlight and Bytes are those of the present, with the room taken for
	// messages that are asked for.
	InFlight, Bytes int
	// Down reports that messages cannot be received at present.
	Down bool
}

type counters struct {
	received, acknowledged, invalid, released, lost, extended, refused atomic.Int64
}

// A Puller takes messages from a Queue, and hands them to a handler.
type Puller struct {
	c    Config
	q    Queue
	gate *gate

	receiving, extending *Outage
	acks, returns        *batcher
	busy                 chan struct{} // wakes one more receiver
	n                    counters
	handlers             sync.WaitGroup

	mu     sync.Mutex
	live   map[*lease]struct{}
	groups map[string][]*lease // waiting behind the one of their group that is handled
}

// A lease is a message from when it was received until it is settled.
type lease struct {
	Message
	bytes int

	// Of the Puller's lock.
	ends    time.Time // the lease, as far as we know
	keep    time.Time // when to stop extending it
	started bool      // its handler
	lost    bool
	settled bool // being released, or done with
	cancel  context.CancelFunc
}

// New returns a Puller.
func New(c Config, q Queue) *Puller {
	p := &Puller{
		c: c, q: q, gate: newGate(c.MaxInFlight, c.MaxBytes),
		receiving: NewOutage(c.Log, "receive"), extending: NewOutage(c.Log, "extend"),
		busy: make(chan struct{}, c.Receivers),
		live: map[*lease]struct{}{}, groups: map[string][]*lease{},
	}
	p.acks = newBatcher(c.Batch, NewOutage(c.Log, "acknowledge"), &p.n.refused, func(ctx context.Context, rs []Return) ([]Refusal, error) {
		tokens := make([]string, len(rs))
		for i, r := range rs {
			tokens[i] = r.Token
		}
		return q.Acknowledge(ctx, tokens)
	})
	p.returns = newBatcher(c.Batch, NewOutage(c.Log, "release"), &p.n.refused, q.Release)
	return p
}

// Stats returns the counts. It may be called at any time, concurrently.
func (p *Puller) Stats() Stats {
	s := Stats{
		Received: p.n.received.Load(), Acknowledged: p.n.acknowledged.Load(), Invalid: p.n.invalid.Load(), Released: p.n.released.Load(),
		Lost: p.n.lost.Load(), Extended: p.n.extended.Load(), Refused: p.n.refused.Load(), Down: p.receiving.Down(),
	}
	s.InFlight, s.Bytes = p.gate.used()
	return s
}

// Run receives until ctx is done. Then handlers in flight go on for at most
// Drain, and what is not done by then is given back. It always returns nil: no
// failure of the cloud is for ever. Run is called once.
func (p *Puller) Run(ctx context.Context, h notifier.Handler) error {
	detached := context.WithoutCancel(ctx)
	work, cut := context.WithCancel(detached) // the handlers' context
	defer cut()
	settle, hangUp := context.WithCancel(detached) // of requests other than Receive
	defer hangUp()
	attempts := &Attempts{Handler: h, Timeout: p.c.Timeout, Hold: p.c.Hold, Log: p.c.Log}

	var service, receivers sync.WaitGroup
	service.Go(func() { p.acks.run(settle) })
	service.Go(func() { p.returns.run(settle) })
	service.Go(func() { p.keep(settle) })
	r := &run{p: p, attempts: attempts, stop: ctx, work: work, settle: settle}
	for i := range p.c.Receivers {
		receivers.Go(func() { r.receive(i == 0) })
	}

	<-ctx.Done()
	receivers.Wait()
	if !waitFor(&p.handlers, p.c.Drain) {
		p.c.Log.WarnContext(ctx, "handlers in flight are cut off; their messages are given back", "after", p.c.Drain)
		cut()
		if !waitFor(&p.handlers, lastCall) {
			p.abandon(ctx, settle)
		}
	}
	hangUp()
	service.Wait()
	return nil
}

// waitFor waits for wg, at most for d, and reports whether it is done.
func waitFor(wg *sync.WaitGroup, d time.Duration) bool {
	done := make(chan struct{})
	go func() {
		wg.Wait()
		close(done)
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// abandon gives back the messages whose handlers do not obey their context.
func (p *Puller) abandon(ctx, settle context.Context) {
	p.mu.Lock()
	var left []*lease
	for l := range p.live {
		if !l.settled {
			l.settled = true
			left = append(left, l)
		}
	}
	p.mu.Unlock()
	p.c.Log.ErrorContext(ctx, "handlers do not obey their context, or the cloud does not answer; their messages are given back or come again when their leases end", "count", len(left))
	settle, cancel := context.WithTimeout(settle, lastCall)
	defer cancel()
	var wg sync.WaitGroup
	for _, l := range left {
		wg.Go(func() { p.giveBack(settle, l, 0) })
	}
	wg.Wait()
}

// kind for the log of a handler's error.
func kind(err error) string { return fault.KindOf(err).String() }
