package natsbus

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// ScheduleConsumer is the durable consumer that all replicas share.
const ScheduleConsumer = "keyturn-schedules"

// headerFiring is the id of the trigger that [Bus.Fire] was called for,
// percent-encoded.
const headerFiring = "Keyturn-Firing-Id"

// A Firing is one time at which a schedule was due, or one [Bus.Fire].
type Firing struct {
	Name    string
	Payload []byte
	// ID is the same for every delivery of this firing, to whichever replica,
	// and no other firing has it: what makes a handler idempotent. Firings
	// that came by [Bus.Fire] with one id are one firing, whenever they came.
	ID string
	// At is when the server stored it, which for a schedule is a fraction of a
	// second after it was due.
	At time.Time
	// Attempt counts deliveries from 1, those included that ended with
	// [After], or at once since a firing of the name was still at work.
	Attempt uint64
}

// RunSchedules calls h with what is due until ctx is done, which it returns as
// nil after the running handlers have ended. Of all replicas that run it one
// gets each firing; of several firings of one name that wait only the latest
// is kept.
//
// A firing is done once h returns nil. An error of kind Invalid drops it. After
// any other error it is due again with back-off from one second to five
// minutes, or when [After] says, on any replica, until a newer firing of the
// name takes its place; an unclassified error gives up after 100 attempts. A
// firing that is not done after 30 days is gone. h may take as long as it
// likes. It is called concurrently for different names, and for one name one
// at a time in this process; another replica may get the next firing while
// this one is still at work. A replica that dies may have done its work
// already, so h must be idempotent.
func (b *Bus) RunSchedules(ctx context.Context, h func(ctx context.Context, f Firing) error) error {
	d := &durable{b: b, obtain: b.firings, read: func(ctx context.Context, m jetstream.Msg, md *jetstream.MsgMetadata) (job, bool) {
		f, ok := decodeFiring(m, md)
		if !ok {
			b.opts.Logger.WarnContext(ctx, "a message on a due subject is no firing; dropped", "subject", m.Subject())
			return job{}, false
		}
		return job{name: f.Name, alone: true, do: func(ctx context.Context) error { return h(ctx, f) }}, true
	}}
	return d.run(ctx)
}

// firings creates the durable consumer, or takes the one that is there.
func (b *Bus) firings(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cfg := b.durableConfig(ScheduleConsumer, "Keyturn: what is due, for one replica each")
	cfg.FilterSubject = duePrefix + ">"
	api := b.opts.api() + "CONSUMER.CREATE." + ScheduleStream + "." + ScheduleConsumer + "." + cfg.FilterSubject
	var c jetstream.Consumer
	err := guarded(ctx, b.nc, []string{api}, func(ctx context.Context) (err error) {
		c, err = b.js.CreateOrUpdateConsumer(ctx, ScheduleStream, cfg)
		return err
	})
	return c, classify("run schedules", err)
}

// decodeFiring reads a firing. It reports false for what is none, also for one
// under the subject of another name: the server's permissions are on subjects.
func decodeFiring(m jetstream.Msg, md *jetstream.MsgMetadata) (Firing, bool) {
	f := Firing{Name: targetOf(m.Headers()), Payload: m.Data(), At: md.Timestamp, Attempt: md.NumDelivered}
	if f.Name == "" || m.Subject() != duePrefix+events.Token(f.Name) {
		return Firing{}, false
	}
	f.ID = fmt.Sprintf("%s/%d/%d", f.Name, md.Sequence.Stream, md.Timestamp.UnixNano())
	if v := lastValue(m.Headers(), headerFiring); v != "" {
		id, ok := unescape(v)
		if !ok {
			return Firing{}, false
		}
		// The last part begins with a letter and holds no slash: no other name
		// and id, and no schedule, gives this one.
		f.ID = f.Name + "/by-" + url.PathEscape(id)
	}
	return f, true
}

// Fire makes the job of that name due now, as a schedule of the name would: it
// takes the place of a firing that waits. A caller is a trigger from outside,
// such as a cloud's notice that a secret should be rotated. It returns nil
// once the server has stored the firing, and may be repeated.
//
// id names the trigger, in up to 256 bytes; all its firings have one
// [Firing.ID]. Fired again within two minutes it is not even due again, unless
// the server was restarted between. With "" each call is a firing of its own.
//
// It needs the right to publish on keyturn.schedule.due.>, or on that subject
// of the one name.
func (b *Bus) Fire(ctx context.Context, name, id string, payload []byte) error {
	const op = "fire"
	if err := validName(op, "the name", name); err != nil {
		return err
	}
	if len(id) > maxID || !utf8.ValidString(id) {
		return fault.Newf(fault.Invalid, "natsbus: "+op, "the id has %d bytes; expected at most %d of UTF-8", len(id), maxID)
	}
	if len(payload) > maxPayload {
		return fault.Newf(fault.Invalid, "natsbus: "+op, "the payload for %q has %d bytes; expected at most %d", name, len(payload), maxPayload)
	}
	m := &nats.Msg{Subject: duePrefix + events.Token(name), Data: payload, Header: nats.Header{
		headerName:             {escape(name)},
		jetstream.MsgTTLHeader: {dueTTL},
	}}
	if id != "" {
		m.Header[headerFiring] = []string{escape(id)}
		// The stream has one window for all names.
		m.Header[jetstream.MsgIDHeader] = []string{events.Token(name) + "/" + escape(id)}
	}
	return b.publish(ctx, op, ScheduleStream, []*nats.Msg{m})
}

func lastValue(h nats.Header, name string) string { return header(&nats.Msg{Header: h}, name) }

func utoa(n uint64) string { return strconv.FormatUint(n, 10) }
