// Package natsbus carries events over NATS JetStream.
//
// Four streams hold what must not be lost: events, late events, dead letters,
// schedules.
// A [Bus] is for the side that publishes and runs schedules; it may create the
// streams. A [Subscriber] is for agents: it needs no JetStream consumer and no
// right on a stream but to read single messages from it.
//
// Package notifier hands events in, package agent takes them out; neither
// imports this package.
package natsbus

import (
	"context"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

// The defaults of [Options].
const (
	// DefaultMaxAge is how long an event stays readable.
	DefaultMaxAge = 30 * 24 * time.Hour
	// DefaultMaxPerSubject is how many events of one type stay for one secret.
	DefaultMaxPerSubject = 64
	// DefaultDuplicates is the time within which an id is stored once. Notices
	// of one change can be that far apart, since CloudTrail may be minutes
	// late. The server keeps each id in memory for that long, about 100 bytes
	// a piece: 1000 changes a minute cost 2 MB.
	DefaultDuplicates = 20 * time.Minute
	// DefaultPublishTimeout bounds a Publish whose context has no earlier
	// deadline. It is below the five seconds that EventBridge waits.
	DefaultPublishTimeout = 4 * time.Second
	// DefaultMaxInFlight bounds the events that are published and not yet
	// acknowledged, over all callers of one Bus: one batch that is being
	// committed and one that gathers.
	DefaultMaxInFlight = 512
	// DefaultMaxWaiting bounds the calls that wait for a place in flight.
	DefaultMaxWaiting = 1024
	// DefaultSkew is how much older than the newest an event may be.
	DefaultSkew = time.Minute
	// DefaultBuffer is how many live messages a subscription holds while its
	// handler works. Beyond it messages are dropped and a replay follows.
	DefaultBuffer = 1024
)

// Options of a [Bus] and a [Subscriber]. The zero value of each field means
// its default, and a nil *Options means all defaults.
type Options struct {
	// Replicas of a stream when it is created: 1, 3 or 5. Default 1. When it
	// is set, an existing stream must have as many.
	Replicas int
	// MaxAge and MaxPerSubject limit the events stream. When they are set, an
	// existing stream must have them; when not, it may have others.
	MaxAge        time.Duration
	MaxPerSubject int64
	// Duplicates is the duplicate window of the streams of events and late
	// events. An existing stream may have a longer one, not a shorter one.
	// Repetitions beyond it are found in the subject's history.
	Duplicates time.Duration
	// Update changes an existing stream that differs. Without it Open returns
	// an error that names the difference.
	Update bool
	// Domain is the JetStream domain, where the servers have one, as behind a
	// leaf node.
	Domain string

	// PublishTimeout bounds each Publish and each Park.
	PublishTimeout time.Duration
	// MaxInFlight bounds unacknowledged events, and MaxWaiting the Publish
	// calls that wait beyond them. One more call is refused at once, with an
	// error of kind Unavailable and class quota.
	MaxInFlight, MaxWaiting int
	// Skew is how far the clocks of clouds, rotators and notifiers may differ:
	// an event is late if it is older than the newest by more. EventBridge's
	// times have whole seconds. A newer event that is taken for late leaves
	// agents as they are until they poll; an older one that is not does no
	// harm, since agents read the store. All replicas should use the same.
	Skew time.Duration
	// Observe is called after each commit of events, for metrics. It must not
	// block.
	Observe func(Commit)
	// GroupCommit makes one atomic batch of the events that gather while a
	// commit is under way, if they are many. It pays with one server that
	// syncs each commit to its disk (sync_interval: always), under load; with
	// a server that does not, it costs. It is not used with several replicas,
	// nor where the server cannot.
	GroupCommit bool

	// Buffer is the number of live messages held for a slow handler.
	Buffer int
	// MultiLast reads the last events of named secrets in a few large requests
	// instead of one small request a subject. It needs the right to publish on
	// $JS.API.DIRECT.GET.KEYTURN_EVENTS, and whoever has that may read every
	// tenant's events in the stream: use it only where a tenant has an account
	// and a stream of its own.
	MultiLast bool

	// Workers is how many firings one RunSchedules, and how many events one
	// Work, handles at a time. Default 4.
	Workers int
	// AckWait is how long a firing or event whose replica died waits until
	// another replica gets it. Default 30 s. A handler may take longer: it is
	// kept alive. All replicas should use the same.
	AckWait time.Duration

	// Logger takes warnings and state changes. Default: discard.
	Logger *slog.Logger
}

func (o *Options) withDefaults() Options {
	var d Options
	if o != nil {
		d = *o
	}
	if d.Duplicates <= 0 {
		d.Duplicates = DefaultDuplicates
	}
	if d.PublishTimeout <= 0 {
		d.PublishTimeout = DefaultPublishTimeout
	}
	if d.MaxInFlight <= 0 {
		d.MaxInFlight = DefaultMaxInFlight
	}
	if d.MaxWaiting <= 0 {
		d.MaxWaiting = DefaultMaxWaiting
	}
	if d.Skew <= 0 {
		d.Skew = DefaultSkew
	}
	if d.Observe == nil {
		d.Observe = func(Commit) {}
	}
	if d.Buffer <= 0 {
		d.Buffer = DefaultBuffer
	}
	if d.Workers <= 0 {
		d.Workers = 4
	}
	if d.AckWait <= 0 {
		d.AckWait = 30 * time.Second
	}
	if d.Logger == nil {
		d.Logger = slog.New(slog.DiscardHandler)
	}
	return d
}

// A Bus publishes events, keeps dead letters and runs schedules. It is safe
// for concurrent use. It does not close its connection.
type Bus struct {
	*Subscriber
	nc    *nats.Conn
	js    jetstream.JetStream
	opts  Options
	tries uint64 // maxUnclassified, except in tests

	gate      *gate
	subjects  subjects
	news, old *committer // of the events stream, and of the late ones
}

var (
	_ events.ReceiptPublisher = (*Bus)(nil)
	_ events.Subscriber       = (*Bus)(nil)
	_ events.Subscriber       = (*Subscriber)(nil)
	_ notifier.DeadLetters    = (*Bus)(nil)
)

// Open returns a Bus on nc once the four streams exist and are as they must
// be. It creates those that are missing; several replicas may open at once. A
// stream that differs is an error of kind Conflict which names the field, what
// is expected and found, and what to do; with [Options.Update] it is changed.
// opts may be nil.
func Open(ctx context.Context, nc *nats.Conn, opts *Options) (*Bus, error) {
	o := opts.withDefaults()
	js, err := newJetStream(nc, o)
	if err != nil {
		return nil, fault.New(fault.Invalid, "natsbus: open", err)
	}
	b := newBus(nc, js, o)
	for _, s := range streams(o) {
		if err := b.ensure(ctx, s); err != nil {
			return nil, err
		}
	}
	if o.GroupCommit {
		for _, c := range []*committer{b.news, b.old} {
			c.atomic.Store(b.allowAtomic(ctx, c.stream))
		}
	}
	return b, nil
}

func newBus(nc *nats.Conn, js jetstream.JetStream, o Options) *Bus {
	b := &Bus{Subscriber: newSubscriber(nc, o), nc: nc, js: js, opts: o, tries: maxUnclassified}
	b.gate = &gate{size: o.MaxInFlight, queue: o.MaxWaiting}
	b.subjects.max = maxSubjects
	b.news, b.old = &committer{b: b, stream: EventStream, least: minBatch}, &committer{b: b, stream: LateStream, least: minBatch}
	return b
}

func newJetStream(nc *nats.Conn, o Options) (jetstream.JetStream, error) {
	jo := []jetstream.JetStreamOpt{
		jetstream.WithPublishAsyncMaxPending(o.MaxInFlight),
		// An acknowledgement that never comes must not hold its place for ever.
		jetstream.WithPublishAsyncTimeout(o.PublishTimeout),
	}
	if o.Domain != "" {
		return jetstream.NewWithDomain(nc, o.Domain, jo...)
	}
	return jetstream.New(nc, jo...)
}

// api is the prefix of the JetStream API's subjects.
func (o Options) api() string {
	if o.Domain != "" {
		return "$JS." + o.Domain + ".API."
	}
	return "$JS.API."
}
