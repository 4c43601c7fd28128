package natsbus

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

const (
	// workLookBack is how far back the events begin for a consumer that is
	// made. It covers the time between a notifier's start and the first
	// worker's, and a consumer that somebody has deleted.
	workLookBack = time.Hour
	// maxWorkSubjects bounds what one consumer selects: the server compares
	// each event with each of them.
	maxWorkSubjects = 100
	maxDurable      = 64
	maxReason       = 512
)

// Work calls h with the events that f selects until ctx is done, which it
// returns as nil after the running handlers have ended. Unlike with Subscribe
// each event goes to one of the replicas that work under the name, and waits
// in the stream while none does. So name is what the replicas of one
// deployment share: 1 to 64 letters, digits, "-" and "_". The first call
// begins with the events of the last hour; f of the latest call counts.
//
// An event is done once h returns nil. An error of kind Invalid makes it a
// dead letter, whose source is name. After any other error it comes again with
// back-off from one second to five minutes, or when [After] says, on any
// replica, as long as the stream keeps it; an unclassified error makes it a
// dead letter after 100 attempts. h is called concurrently, for events of one
// secret too. A replica that dies may have done its work already, and who
// deletes the consumer brings the last hour back, so h must be idempotent by
// the event's id.
//
// The error is of kind Invalid for a bad name or filter, else as of
// [Bus.RunSchedules]. It needs the rights to publish on
// $JS.API.CONSUMER.{INFO,CREATE,MSG.NEXT}.KEYTURN_EVENTS.<name> and
// $JS.ACK.KEYTURN_EVENTS.<name>.>, and to park dead letters.
func (b *Bus) Work(ctx context.Context, name string, f events.Filter, h func(ctx context.Context, e events.Event) error) error {
	const op = "natsbus: work"
	if !validDurable(name) {
		return fault.Newf(fault.Invalid, op, "the name is %.80q; expected 1 to %d letters, digits, hyphens and underscores", name, maxDurable)
	}
	if err := validFilter(f); err != nil {
		return err
	}
	subjects := f.Subjects()
	slices.Sort(subjects)
	subjects = slices.Compact(subjects)
	if len(subjects) > maxWorkSubjects {
		return fault.Newf(fault.Invalid, op, "the filter has %d subjects; expected at most %d (leave out the refs, and pass over events of others)", len(subjects), maxWorkSubjects)
	}
	d := &durable{
		b:      b,
		obtain: func(ctx context.Context) (jetstream.Consumer, error) { return b.worker(ctx, name, subjects) },
		read: func(ctx context.Context, m jetstream.Msg, md *jetstream.MsgMetadata) (job, bool) {
			e, err := decode(m.Subject(), m.Headers(), m.Data())
			if err != nil {
				b.ignore(ctx, m.Subject(), err)
				return job{}, false
			}
			return job{
				name: e.Data.Ref.String(),
				do:   func(ctx context.Context) error { return h(ctx, e) },
				bury: func(ctx context.Context, why error) error {
					return b.Park(ctx, unworkable(name, m, md, e, why))
				},
			}, true
		},
	}
	return d.run(ctx)
}

func validDurable(name string) bool {
	return name != "" && len(name) <= maxDurable && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
	})
}

// worker creates the durable consumer of that name, or takes the one that is
// there, with its place in the stream.
func (b *Bus) worker(ctx context.Context, name string, subjects []string) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	api := b.opts.api() + "CONSUMER."
	at := EventStream + "." + name
	var c jetstream.Consumer
	err := guarded(ctx, b.nc, []string{api + "INFO." + at, api + "CREATE." + at}, func(ctx context.Context) error {
		for attempt := 0; ; attempt++ {
			cfg := b.durableConfig(name, "Keyturn: events, for one replica each")
			cfg.FilterSubjects = subjects
			have, err := b.js.Consumer(ctx, EventStream, name)
			switch {
			case errors.Is(err, jetstream.ErrConsumerNotFound):
				start := time.Now().Add(-workLookBack)
				cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &start
			case err != nil:
				return err
			default: // where it has begun cannot be changed
				old := have.CachedInfo().Config
				cfg.DeliverPolicy, cfg.OptStartTime, cfg.OptStartSeq = old.DeliverPolicy, old.OptStartTime, old.OptStartSeq
			}
			c, err = b.js.CreateOrUpdateConsumer(ctx, EventStream, cfg)
			// Another replica may have created it in between.
			if err == nil || apiError(err) == nil || attempt >= 2 || !pause(ctx, minRetry) {
				return err
			}
		}
	})
	return c, classify("work", err)
}

// unworkable is the dead letter of an event that can never be worked on.
func unworkable(name string, m jetstream.Msg, md *jetstream.MsgMetadata, e events.Event, why error) notifier.DeadLetter {
	reason := why.Error()
	if len(reason) > maxReason {
		reason = strings.ToValidUTF8(reason[:maxReason], "")
	}
	attrs := map[string]string{"subject": m.Subject()}
	for key := range m.Headers() {
		if strings.HasPrefix(strings.ToLower(key), "ce-") {
			attrs[key] = lastValue(m.Headers(), key)
		}
	}
	return notifier.DeadLetter{
		Delivery: notifier.Delivery{
			Source: name, ID: e.ID, Body: m.Data(), Attributes: attrs,
			Attempt: int(md.NumDelivered), Received: md.Timestamp,
		},
		Reason: reason, Kind: fault.KindOf(why),
	}
}
