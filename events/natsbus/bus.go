// Package natsbus carries events over NATS JetStream.
//
// Three streams hold what must not be lost: events, dead letters, schedules.
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
	// acknowledged, over all callers of one Bus.
	DefaultMaxInFlight = 256
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
	// Duplicates is the duplicate window of the events and dead-letter
	// streams. An existing stream may have a longer one, not a shorter one.
	Duplicates time.Duration
	// Update changes an existing stream that differs. Without it Open returns
	// an error that names the difference.
	Update bool
	// Domain is the JetStream domain, where the servers have one, as behind a
	// leaf node.
	Domain string

	// PublishTimeout bounds each Publish and each Park.
	PublishTimeout time.Duration
	// MaxInFlight bounds unacknowledged events.
	MaxInFlight int

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
}

var (
	_ events.Publisher     = (*Bus)(nil)
	_ events.Subscriber    = (*Bus)(nil)
	_ events.Subscriber    = (*Subscriber)(nil)
	_ notifier.DeadLetters = (*Bus)(nil)
)

// Open returns a Bus on nc once the three streams exist and are as they must
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
	b := &Bus{Subscriber: newSubscriber(nc, o), nc: nc, js: js, opts: o, tries: maxUnclassified}
	for _, s := range streams(o) {
		if err := b.ensure(ctx, s); err != nil {
			return nil, err
		}
	}
	return b, nil
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
