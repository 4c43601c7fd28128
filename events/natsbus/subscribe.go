package natsbus

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

const (
	// typesApart is up to how many types of one secret are subscribed one by
	// one. Beyond it one subscription takes all types of the secret and the
	// client drops those that are not asked for: a rotation has few events, and
	// each subscription costs the server memory.
	typesApart = 3
	// maxSeen bounds the ids that are remembered while a replay runs.
	maxSeen = 4096
)

// A Subscriber takes events from a bus. It is safe for concurrent use: many
// subscriptions share one connection, each in its own goroutines, and none
// touches the connection's handlers.
//
// It needs these rights, where "acme" is the tenant's subject token:
//
//	subscribe  keyturn.v1.acme.>  and the connection's inbox prefix
//	publish    $JS.API.DIRECT.GET.KEYTURN_EVENTS.keyturn.v1.acme.>
//
// Both are bound to the tenant, so the server itself keeps tenants apart. That
// needs a filter with a tenant and refs; types may be left out. A filter
// without, and [Options.MultiLast], need the right to publish on
// $JS.API.DIRECT.GET.KEYTURN_EVENTS, which reads all tenants' events.
type Subscriber struct {
	nc      *nats.Conn
	opts    Options
	ignored atomic.Uint64
	settle  time.Duration // for tests; see settleAfter
}

// NewSubscriber returns a Subscriber on nc. It sends nothing yet. nc should
// reconnect for ever (nats.MaxReconnects(-1)). opts may be nil.
func NewSubscriber(nc *nats.Conn, opts *Options) *Subscriber {
	return newSubscriber(nc, opts.withDefaults())
}

func newSubscriber(nc *nats.Conn, o Options) *Subscriber { return &Subscriber{nc: nc, opts: o} }

// Ignored counts messages that were not handed to a handler because they are
// no events, or of a type that this version does not know.
func (s *Subscriber) Ignored() uint64 { return s.ignored.Load() }

// Subscribe implements [events.Subscriber]. Live events come by plain
// subscription; the last stored event of each subject is read when the
// subscription stands, after each reconnect, and whenever live events had to
// be dropped because h was too slow. A replay that fails for a while is
// repeated until ctx ends, and live events flow meanwhile.
//
// Nothing is said about order: a replayed event may arrive after a newer live
// one. The same event may arrive more than once, except that a replay leaves
// out what arrived live since it began.
//
// The error is of kind Denied if the server refuses the subjects, Unavailable
// if the connection is closed for good, Invalid for a filter with an unknown
// type or bad ref.
func (s *Subscriber) Subscribe(ctx context.Context, f events.Filter, h events.Handler, ready func()) error {
	if err := validFilter(f); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return nil
	}
	own, cancel := context.WithCancel(ctx)
	sn := &session{
		s: s, f: f, h: h, ready: ready,
		live:     make(chan *nats.Msg, s.opts.Buffer),
		replayed: make(chan item),
		again:    make(chan struct{}, 1),
		closed:   make(chan struct{}),
	}
	// The listener comes first: a reconnect between the subscription and the
	// first replay must not go unseen.
	status := s.nc.StatusChanged(nats.CONNECTED, nats.CLOSED)
	var wg sync.WaitGroup
	defer func() {
		cancel()
		s.nc.RemoveStatusListener(status)
		for _, sub := range sn.subs {
			_ = sub.Unsubscribe() // fails only where the connection is gone
		}
		wg.Wait()
	}()
	wg.Go(func() { sn.watch(status) })
	if err := sn.listen(own); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return classify("subscribe", err)
	}
	wg.Go(func() { sn.replay(own) })
	return sn.run(ctx)
}

func validFilter(f events.Filter) error {
	for _, t := range f.Types {
		if !t.Valid() {
			return fault.Newf(fault.Invalid, "natsbus: subscribe", "unknown type %q; expected one of events.Types", string(t))
		}
	}
	for _, r := range f.Refs {
		if err := r.Validate(); err != nil {
			return fault.New(fault.Invalid, "natsbus: subscribe", err)
		}
	}
	return nil
}

// A session is one call of Subscribe.
type session struct {
	s     *Subscriber
	f     events.Filter
	h     events.Handler
	ready func()

	subs     []*nats.Subscription
	dropped  int
	live     chan *nats.Msg // bounded: a full one drops
	replayed chan item      // unbuffered: the replay waits for the handler
	again    chan struct{}
	closed   chan struct{}

	// seen holds the ids handled live since the running replay began.
	seen map[string]struct{}
}

// An item is what a replay hands to the session.
type item struct {
	begin, end bool
	err        error
	subject    string
	msg        *nats.Msg
}

// listen subscribes, and returns once the server has the subscriptions.
func (sn *session) listen(ctx context.Context) error {
	if err := connected(ctx, sn.s.nc); err != nil {
		return err
	}
	before := sn.s.nc.LastError()
	subjects := liveSubjects(sn.f)
	for _, subj := range subjects {
		sub, err := sn.s.nc.ChanSubscribe(subj, sn.live)
		if err != nil {
			return err
		}
		sn.subs = append(sn.subs, sub)
	}
	// A connection that goes away now comes back with the subscriptions, and
	// the status listener asks for another replay.
	if err := flush(ctx, sn.s.nc); err != nil && (sn.s.nc.IsClosed() || ctx.Err() != nil) {
		return err
	}
	for _, subj := range subjects {
		if d := denied(sn.s.nc, before, subj); d != nil {
			return d
		}
	}
	return nil
}

// liveSubjects returns what to subscribe to for f.
func liveSubjects(f events.Filter) []string {
	if len(f.Refs) > 0 && len(f.Types) > typesApart {
		f.Types = nil
	}
	out := f.Subjects()
	slices.Sort(out)
	return slices.Compact(out)
}

func flush(ctx context.Context, nc *nats.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	return nc.FlushWithContext(ctx)
}

// watch turns the connection's changes of status into replays.
func (sn *session) watch(status chan nats.Status) {
	for st := range status {
		switch st {
		case nats.CONNECTED:
			sn.trigger()
		case nats.CLOSED:
			close(sn.closed)
			return
		}
	}
}

// trigger asks for a replay; one that is asked for already is enough.
func (sn *session) trigger() {
	select {
	case sn.again <- struct{}{}:
	default:
	}
}

// run calls the handler until ctx is done. It is the only goroutine that does.
func (sn *session) run(ctx context.Context) error {
	for {
		// A select picks at random; the end must not wait for its luck.
		if ctx.Err() != nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-sn.closed:
			return classify("subscribe", nats.ErrConnectionClosed)
		case m := <-sn.live:
			sn.handle(ctx, m.Subject, m, false)
			// Messages are dropped only while live is full. So once it has been
			// emptied, the count holds every drop there was.
			if len(sn.live) == 0 && sn.lost() {
				sn.s.opts.Logger.WarnContext(ctx, "events were dropped for a slow handler; reading them again")
				sn.trigger()
			}
		case it := <-sn.replayed:
			switch {
			case it.err != nil:
				return it.err
			case it.begin:
				sn.seen = map[string]struct{}{}
			case it.end:
				sn.seen = nil
				if sn.ready != nil {
					sn.ready()
					sn.ready = nil
				}
			default:
				sn.handle(ctx, it.subject, it.msg, true)
			}
		}
	}
}

// handle decodes m and calls the handler.
func (sn *session) handle(ctx context.Context, subject string, m *nats.Msg, replayed bool) {
	e, err := decode(subject, m.Header, m.Data)
	if err != nil {
		sn.s.ignore(ctx, subject, err)
		return
	}
	if len(sn.f.Types) > 0 && !slices.Contains(sn.f.Types, e.Type) {
		return
	}
	if _, had := sn.seen[e.ID]; had && replayed {
		return
	}
	if !replayed && sn.seen != nil && len(sn.seen) < maxSeen {
		sn.seen[e.ID] = struct{}{}
	}
	sn.h(ctx, e)
}

// ignore counts m, and logs the 1st, 2nd, 4th, 8th and so on: somebody who may
// publish must not be able to fill the log.
func (s *Subscriber) ignore(ctx context.Context, subject string, err error) {
	n := s.ignored.Add(1)
	if n&(n-1) != 0 {
		return
	}
	if errors.Is(err, errUnknownType) {
		s.opts.Logger.InfoContext(ctx, "an event of an unknown type was ignored; a newer Keyturn may know it", "subject", subject, "ignored", n)
		return
	}
	s.opts.Logger.WarnContext(ctx, "a message that is no event was ignored", "subject", subject, "ignored", n, "error", err)
}

// lost reports whether the client dropped messages since the last call.
func (sn *session) lost() bool {
	n := 0
	for _, sub := range sn.subs {
		d, err := sub.Dropped()
		if err == nil {
			n += d
		}
	}
	more := n > sn.dropped
	sn.dropped = n
	return more
}
