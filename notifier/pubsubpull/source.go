package pubsubpull

import (
	"context"
	"strings"
	"sync/atomic"
	"time"

	"cloud.google.com/go/pubsub/v2"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/pull"
	"github.com/keyturn/keyturn/notifier"
)

var _ notifier.Source = (*Source)(nil)

// lastCall is how long Run waits for handlers whose context it has cancelled,
// and again for the last requests to the service.
const lastCall = 2 * time.Second

// Stats counts what a [Source] did. Extended and Refused stay 0: the client
// does not tell.
type Stats = pull.Stats

// A Source is one subscription.
type Source struct {
	o      Options
	outage *pull.Outage
	acks   *pull.Outage

	ending  atomic.Bool  // no stream is opened any more
	streams atomic.Int64 // that work

	received, acknowledged, invalid, released, lost, inFlight, bytes atomic.Int64
}

// New returns a Source. It makes no request and reads no credentials. The
// error is Invalid, for options that cannot work.
func New(o Options) (*Source, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	log := o.Logger.With("source", o.Name)
	return &Source{o: o, outage: pull.NewOutage(log, "receive"), acks: pull.NewOutage(log, "acknowledge")}, nil
}

// Stats returns the counts so far. It may be called at any time.
func (s *Source) Stats() Stats {
	return Stats{
		Received: s.received.Load(), Acknowledged: s.acknowledged.Load(), Invalid: s.invalid.Load(), Released: s.released.Load(),
		Lost: s.lost.Load(), InFlight: int(s.inFlight.Load()), Bytes: int(s.bytes.Load()), Down: s.outage.Down(),
	}
}

// A run is one call of Run.
type run struct {
	s        *Source
	attempts *pull.Attempts
	stop     context.Context //nolint:containedctx // done when nothing new is taken
	work     context.Context //nolint:containedctx // the handlers'
	leave    context.Context //nolint:containedctx // done when no handler is waited for any more
}

// Run receives until ctx is done, then lets handlers in flight finish within
// Drain, refuses what is not done, and returns nil. It returns nothing else: an
// outage, missing credentials and a subscription that is not there are tried
// until they are repaired, and logged. Run is called once.
//
// The client keeps its streams open until the last message is settled, so the
// service may send it a refused message once more; nobody takes it there, and
// others get it when its deadline of a minute is over.
func (s *Source) Run(ctx context.Context, h notifier.Handler) error {
	detached := context.WithoutCancel(ctx)
	work, cut := context.WithCancel(detached)
	defer cut()
	leave, abandon := context.WithCancel(detached)
	defer abandon()
	r := &run{
		s: s, stop: ctx, work: work, leave: leave,
		attempts: &pull.Attempts{Handler: h, Timeout: s.o.Timeout, Hold: s.o.Hold, Log: s.o.Logger},
	}
	for failures := 1; ctx.Err() == nil; failures++ {
		start := time.Now()
		err := r.receive(ctx, cut, abandon)
		if ctx.Err() != nil {
			break
		}
		if time.Since(start) > time.Minute {
			failures = 1
		}
		s.outage.Failed(ctx, classify("receive", err))
		pull.Sleep(ctx, s.o.retry.Delay(failures))
	}
	return nil
}

// receive makes a client and receives with it until ctx is done, or the service
// refuses.
func (r *run) receive(ctx context.Context, cut, abandon func()) error {
	o := &r.s.o
	client, err := pubsub.NewClient(ctx, o.Project, o.client(r.s.watch)...)
	if err != nil {
		return err
	}
	sub := client.Subscriber(o.Subscription)
	sub.ReceiveSettings = pubsub.ReceiveSettings{
		MaxOutstandingMessages: o.MaxInFlight, MaxOutstandingBytes: o.MaxBytes, NumGoroutines: o.Streams,
		// As long as a handler can take; then the message comes again.
		MaxExtension: o.Hold + 2*o.Timeout + o.AckTimeout + o.again.Max + time.Minute,
	}
	var failed error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		failed = sub.Receive(ctx, func(_ context.Context, m *pubsub.Message) { r.handle(m) })
	}()
	defer func() { _ = client.Close() }()
	select {
	case <-ended:
		if ctx.Err() == nil {
			return failed
		}
	case <-ctx.Done():
	}
	r.s.ending.Store(true)
	for i, step := range []struct {
		wait time.Duration
		then func()
	}{{o.Drain, cut}, {lastCall, abandon}, {lastCall, func() { _ = client.Close() }}, {lastCall, func() {}}} {
		select {
		case <-ended:
			return nil
		case <-time.After(step.wait):
			if i == 0 {
				o.Logger.WarnContext(ctx, "handlers in flight are cut off; their messages are refused", "source", o.Name, "after", o.Drain)
			}
			step.then()
		}
	}
	o.Logger.ErrorContext(ctx, "the Pub/Sub client does not end", "source", o.Name)
	return nil
}

// handle handles one message and settles it. It returns only then, since the
// client counts what is in flight by it.
func (r *run) handle(m *pubsub.Message) {
	s := r.s
	if r.stop.Err() != nil {
		m.Nack() // received while Run was asked to end
		return
	}
	s.received.Add(1)
	s.inFlight.Add(1)
	s.bytes.Add(int64(len(m.Data)))
	defer s.inFlight.Add(-1)
	defer s.bytes.Add(-int64(len(m.Data)))
	d := s.delivery(m)
	result := make(chan error, 1)
	go func() { result <- r.attempts.Do(r.work, r.stop, d) }()
	var err error
	select {
	case err = <-result:
	case <-r.leave.Done():
		s.o.Logger.ErrorContext(r.work, "a handler does not obey its context; its message is refused", "source", d.Source, "key", d.Key())
		err = r.leave.Err()
	}
	if err == nil || fault.Is(err, fault.Invalid) {
		if err != nil {
			s.o.Logger.ErrorContext(r.work, "the handler can never take this message; it is acknowledged", "source", d.Source, "key", d.Key(), "attempt", d.Attempt)
		}
		if r.acknowledge(m, d) && err != nil {
			s.invalid.Add(1)
		}
		return
	}
	// Without a retry policy Pub/Sub delivers a refused message at once.
	delay := s.o.again.Delay(max(1, d.Attempt))
	s.o.Logger.DebugContext(r.work, "message refused", "source", d.Source, "key", d.Key(), "attempt", d.Attempt, "kind", fault.KindOf(err).String(), "delay", delay)
	pull.Sleep(r.stop, delay)
	m.Nack()
	s.released.Add(1)
}

// acknowledge acknowledges m, and reports whether it did. Without exactly-once
// delivery the client answers at once, and sends it in a batch a moment later.
func (r *run) acknowledge(m *pubsub.Message, d notifier.Delivery) bool {
	result := m.AckWithResult()
	ctx, cancel := context.WithTimeout(r.leave, r.s.o.AckTimeout)
	defer cancel()
	status, err := result.Get(ctx)
	if err == nil && status == pubsub.AcknowledgeStatusSuccess {
		r.s.acks.Worked(r.work)
		r.s.acknowledged.Add(1)
		return true
	}
	r.s.lost.Add(1)
	if status == pubsub.AcknowledgeStatusInvalidAckID {
		r.s.o.Logger.WarnContext(r.work, "the lease of a message is lost; it comes again", "source", d.Source, "key", d.Key(), "attempt", d.Attempt, "why", "its acknowledgement came too late")
		return false
	}
	if r.leave.Err() == nil {
		r.s.acks.Failed(r.work, classify("acknowledge", err))
	}
	return false
}

// reserved begins the attributes that Google's clients use among themselves.
const reserved = "googclient_"

// delivery turns a message into ours. Attributes keep their names.
func (s *Source) delivery(m *pubsub.Message) notifier.Delivery {
	d := notifier.Delivery{
		Source: s.o.Name, ID: m.ID, Body: m.Data, Received: time.Now(),
		Attributes: make(map[string]string, len(m.Attributes)+1),
	}
	for k, v := range m.Attributes {
		if !strings.HasPrefix(k, reserved) {
			d.Attributes[k] = v
		}
	}
	// A publisher that traces with Google's client puts it here.
	if t := m.Attributes[reserved+"traceparent"]; t != "" && d.Attributes["traceparent"] == "" {
		d.Attributes["traceparent"] = t
	}
	if !m.PublishTime.IsZero() {
		d.Attributes["publishtime"] = m.PublishTime.UTC().Format(time.RFC3339Nano)
	}
	if m.DeliveryAttempt != nil { // only with a dead-letter policy
		d.Attempt = *m.DeliveryAttempt
	}
	return d
}
