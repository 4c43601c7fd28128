package natsbus

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// The headers of a schedule, which its firings have too; values are
// percent-encoded. A firing is named by the target where there is one.
const (
	headerName   = "Keyturn-Schedule-Name"
	headerTarget = "Keyturn-Schedule-Target" // only where it is not the name
	headerOwner  = "Keyturn-Schedule-Owner"  // only what Reconcile has set
)

const (
	// maxName holds an AWS name of 512 characters behind a prefix. Escaped to
	// triples, name, target and owner stay below the 64 KB that the server
	// takes as headers; subjects have a digest of what is long.
	maxName    = 1024
	maxPayload = 64 << 10
	// dueTTL is how long a firing waits for somebody to handle it.
	dueTTL = "720h"
)

// A Schedule is one that is set.
type Schedule struct {
	Name string
	// Target is the name of its firings: its own, unless it was set by
	// [Bus.ScheduleFor] or a [Bus.Reconcile] with another.
	Target string
	// Owner is whose [Bus.Reconcile] has set it; "" for one that was set by
	// itself.
	Owner   string
	Spec    Spec
	Payload []byte
	// Set is when it was set or last changed.
	Set time.Time
}

// Schedule sets the schedule of that name, in place of the one before. Nothing
// is written if it is set already with the same spec and payload, so a start
// of the process does not begin a period anew. Names are any text of 1 to 1024
// bytes. It may be repeated and is safe for concurrent use, by several
// replicas too.
func (b *Bus) Schedule(ctx context.Context, name string, spec Spec, payload []byte) error {
	return b.ScheduleFor(ctx, name, name, spec, payload)
}

// ScheduleFor is like Schedule, but what fires is named target. So several
// schedules, and [Bus.Fire], can ask for one job: of the firings of one name
// that wait only the latest is kept. An example is a one-shot "later x" beside
// the schedule "x", to repeat a job out of turn.
func (b *Bus) ScheduleFor(ctx context.Context, name, target string, spec Spec, payload []byte) error {
	sc := Schedule{Name: name, Target: target, Spec: spec, Payload: payload}
	if err := sc.validate(); err != nil {
		return err
	}
	old, err := b.lastOf(ctx, sc.subject())
	if err != nil {
		return err
	}
	_, err = b.put(ctx, sc, old)
	return err
}

func (sc Schedule) subject() string { return specPrefix + events.Token(sc.Name) }

func (sc Schedule) validate() error {
	const op = "schedule"
	if err := validName(op, "the name", sc.Name); err != nil {
		return err
	}
	if err := validName(op, "the target", sc.Target); err != nil {
		return err
	}
	if len(sc.Payload) > maxPayload {
		return fault.Newf(fault.Invalid, "natsbus: "+op, "the payload of %q has %d bytes; expected at most %d", sc.Name, len(sc.Payload), maxPayload)
	}
	_, err := sc.Spec.pattern()
	return err
}

func validName(op, what, name string) error {
	if name == "" || len(name) > maxName || !utf8.ValidString(name) {
		return fault.Newf(fault.Invalid, "natsbus: "+op, "%s has %d bytes; expected 1 to %d of UTF-8", what, len(name), maxName)
	}
	return nil
}

// encode returns the message that holds sc, which is valid.
func (sc Schedule) encode() (*nats.Msg, error) {
	pattern, err := sc.Spec.pattern()
	if err != nil {
		return nil, err
	}
	m := &nats.Msg{Subject: sc.subject(), Data: sc.Payload, Header: nats.Header{
		headerName:                     {escape(sc.Name)},
		jetstream.ScheduleHeader:       {pattern},
		jetstream.ScheduleTargetHeader: {duePrefix + events.Token(sc.Target)},
		jetstream.ScheduleTTLHeader:    {dueTTL},
	}}
	if sc.Target != sc.Name {
		m.Header[headerTarget] = []string{escape(sc.Target)}
	}
	if sc.Owner != "" {
		m.Header[headerOwner] = []string{escape(sc.Owner)}
	}
	if sc.Spec.TimeZone != "" {
		m.Header[jetstream.ScheduleTimeZoneHeader] = []string{sc.Spec.TimeZone}
	}
	return m, nil
}

// decodeSchedule is the inverse of encode. It reports false for what is no
// schedule.
func decodeSchedule(st stored) (Schedule, bool) {
	sc := Schedule{Payload: st.msg.Data, Set: st.at}
	var named, owned, parsed bool
	sc.Name, named = unescape(header(st.msg, headerName))
	sc.Owner, owned = unescape(header(st.msg, headerOwner))
	sc.Target = targetOf(st.msg.Header)
	sc.Spec, parsed = parseSpec(header(st.msg, jetstream.ScheduleHeader), header(st.msg, jetstream.ScheduleTimeZoneHeader))
	return sc, named && owned && parsed && sc.Target != "" && st.subject == sc.subject()
}

// targetOf returns the name of the firings of a schedule, from its headers or
// a firing's, or "".
func targetOf(h nats.Header) string {
	for _, key := range []string{headerTarget, headerName} {
		if v := lastValue(h, key); v != "" {
			name, _ := unescape(v)
			return name
		}
	}
	return ""
}

// put stores sc, which is valid, and reports whether there was anything to
// write. old is the message that sc replaces as far as is known, or nil.
func (b *Bus) put(ctx context.Context, sc Schedule, old *stored) (written bool, err error) {
	m, err := sc.encode()
	if err != nil {
		return false, err
	}
	for attempt := 0; ; attempt++ {
		var seq uint64
		if old != nil {
			if unchanged(old.msg, m) {
				return false, nil
			}
			seq = old.seq
		}
		m.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{utoa(seq)}
		err := b.publish(ctx, "schedule", ScheduleStream, []*nats.Msg{m})
		// Another replica was faster; most likely it has set the same.
		if attempt >= 5 || !fault.Is(err, fault.Conflict) || !pause(ctx, 20*time.Millisecond) {
			return err == nil, err
		}
		if old, err = b.lastOf(ctx, m.Subject); err != nil {
			return false, err
		}
	}
}

// unchanged reports whether the stored message says what m says.
func unchanged(old, m *nats.Msg) bool {
	for _, name := range []string{
		headerName, headerTarget, jetstream.ScheduleHeader, jetstream.ScheduleTargetHeader,
		jetstream.ScheduleTTLHeader, jetstream.ScheduleTimeZoneHeader,
	} {
		if header(old, name) != header(m, name) {
			return false
		}
	}
	// One from before there were owners stays as it is: to write it again
	// would begin its period anew.
	owner := header(m, headerOwner)
	return bytes.Equal(old.Data, m.Data) && (header(old, headerOwner) == owner || ownedBefore(old, owner))
}

// ownedBefore reports that old has no owner and is the owner's all the same:
// until there was the header, the payload told.
func ownedBefore(old *nats.Msg, owner string) bool {
	return owner != "" && header(old, headerOwner) == "" && escape(string(old.Data)) == owner && !strings.HasPrefix(header(old, jetstream.ScheduleHeader), "@at ")
}

// Unschedule removes the schedule of that name, and a firing of it that nobody
// has taken yet; what [Bus.Fire] or another schedule has put in its place
// stays. That there is none is no error.
func (b *Bus) Unschedule(ctx context.Context, name string) error {
	if err := validName("unschedule", "the name", name); err != nil {
		return err
	}
	sc := Schedule{Name: name, Target: name}
	old, err := b.lastOf(ctx, sc.subject())
	if err != nil {
		return err
	}
	if old != nil {
		sc.Target = targetOf(old.msg.Header)
	}
	_, err = b.remove(ctx, []listed{{schedule: sc}})
	return err
}

// remove removes schedules and the firings of them that wait, and counts the
// schedules. One that was set after it was listed stays: another replica knows
// better.
func (b *Bus) remove(ctx context.Context, gone []listed) (n int, err error) {
	const op = "unschedule"
	if len(gone) == 0 {
		return 0, nil
	}
	var s jetstream.Stream
	err = b.admin(ctx, op, "INFO", func(ctx context.Context) (err error) {
		s, err = b.js.Stream(ctx, ScheduleStream)
		return err
	})
	if err != nil {
		return 0, err
	}
	purge := func(ctx context.Context, subject string, upTo uint64) error {
		opts := []jetstream.StreamPurgeOpt{jetstream.WithPurgeSubject(subject)}
		if upTo > 0 {
			opts = append(opts, jetstream.WithPurgeSequence(upTo+1))
		}
		return b.admin(ctx, op, "PURGE", func(ctx context.Context) error { return s.Purge(ctx, opts...) })
	}
	var done atomic.Int64
	err = each(ctx, gone, func(ctx context.Context, l listed) error {
		if err := purge(ctx, l.schedule.subject(), l.stored.seq); err != nil {
			return fmt.Errorf("schedule %q: %w", l.schedule.Name, err)
		}
		done.Add(1)
		return nil
	})
	if err != nil {
		return int(done.Load()), err
	}
	// Then, or one could fire in between.
	firedBy := make(map[string]string, len(gone)) // by the subject of the firing
	for _, l := range gone {
		firedBy[duePrefix+events.Token(l.schedule.Target)] = l.schedule.subject()
	}
	var waiting []stored
	rd := reader{nc: b.nc, opts: b.opts, stream: ScheduleStream}
	err = rd.last(ctx, slices.Collect(maps.Keys(firedBy)), func(st stored) error {
		if header(st.msg, jetstream.SchedulerHeader) == firedBy[st.subject] {
			waiting = append(waiting, st)
		}
		return nil
	})
	if err == nil {
		err = each(ctx, waiting, func(ctx context.Context, st stored) error { return purge(ctx, st.subject, st.seq) })
	}
	return int(done.Load()), classify(op, err)
}

// admin calls f, which asks the JetStream API for verb on the schedule stream.
func (b *Bus) admin(ctx context.Context, op, verb string, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, b.opts.PublishTimeout)
	defer cancel()
	return classify(op, guarded(ctx, b.nc, []string{b.opts.api() + "STREAM." + verb + "." + ScheduleStream}, f))
}

// ListSchedules returns the schedules that are set, by name.
func (b *Bus) ListSchedules(ctx context.Context) ([]Schedule, error) {
	set, err := b.list(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]Schedule, 0, len(set))
	for _, name := range slices.Sorted(maps.Keys(set)) {
		out = append(out, set[name].schedule)
	}
	return out, nil
}

// A listed schedule, and the message that holds it.
type listed struct {
	schedule Schedule
	stored   stored
}

// list reads all schedules, by name, in the order of the stream. One that is
// set anew meanwhile moves to the end, where the reading still gets to; so
// none is missed, and of one that is met twice the second is right.
func (b *Bus) list(ctx context.Context) (map[string]listed, error) {
	up, cancel := context.WithTimeout(ctx, b.opts.PublishTimeout)
	defer cancel()
	if err := connected(up, b.nc); err != nil {
		return nil, classify("list schedules", err)
	}
	out := map[string]listed{}
	rd := reader{nc: b.nc, opts: b.opts, stream: ScheduleStream}
	err := rd.pages(ctx, getRequest{Seq: 1, NextFor: specPrefix + ">", Batch: maxPage, MaxBytes: maxPageBytes}, func(st stored) error {
		sc, ok := decodeSchedule(st)
		if !ok {
			b.opts.Logger.WarnContext(ctx, "a message in the schedule stream is no schedule", "subject", st.subject)
			return nil
		}
		out[sc.Name] = listed{sc, st}
		return nil
	})
	if err != nil {
		return nil, classify("list schedules", err)
	}
	return out, nil
}

// lastOf returns the last message on a literal subject of the schedule stream,
// or nil.
func (b *Bus) lastOf(ctx context.Context, subject string) (*stored, error) {
	ctx, cancel := context.WithTimeout(ctx, b.opts.PublishTimeout)
	defer cancel()
	if err := connected(ctx, b.nc); err != nil {
		return nil, classify("read", err)
	}
	var last *stored
	err := reader{nc: b.nc, opts: b.opts, stream: ScheduleStream}.last(ctx, []string{subject}, func(st stored) error {
		last = &st
		return nil
	})
	return last, classify("read", err)
}
