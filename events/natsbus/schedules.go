package natsbus

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

const (
	headerName = "Keyturn-Schedule-Name" // percent-encoded
	maxName    = 256
	maxPayload = 64 << 10
	// dueTTL is how long a firing waits for somebody to handle it.
	dueTTL = "720h"
)

// A Spec says when a schedule fires. Exactly one of Every, At and Cron is set.
// The server keeps the clock, so a schedule fires while every replica is down,
// and is then due when one comes back.
type Spec struct {
	// Every is a period of at least one second, counted from when the
	// schedule was set.
	Every time.Duration
	// At fires once, at once if it is in the past; then the schedule is gone.
	At time.Time
	// Cron has six fields: second, minute, hour, day of month, month, day of
	// week. @hourly, @daily, @weekly, @monthly and @yearly are known too.
	Cron string
	// TimeZone is an IANA name for Cron, as "Europe/Berlin"; "" is UTC. The
	// server must know it.
	TimeZone string
}

// pattern returns the Nats-Schedule header of s. The server checks cron
// expressions and time zones.
func (s Spec) pattern() (string, error) {
	bad := func(format string, args ...any) (string, error) {
		return "", fault.Newf(fault.Invalid, "natsbus: schedule", format, args...)
	}
	set := 0
	for _, is := range []bool{s.Every != 0, !s.At.IsZero(), s.Cron != ""} {
		if is {
			set++
		}
	}
	switch {
	case set != 1:
		return bad("%d of Every, At and Cron are set; expected one", set)
	case s.TimeZone != "" && s.Cron == "":
		return bad("a time zone is only for Cron; give At as an instant")
	case s.Every != 0:
		if s.Every < time.Second {
			return bad("Every is %s; expected at least 1s", s.Every)
		}
		return "@every " + s.Every.String(), nil
	case !s.At.IsZero():
		return "@at " + s.At.UTC().Format(time.RFC3339Nano), nil
	}
	cron := strings.Join(strings.Fields(s.Cron), " ")
	if !strings.HasPrefix(cron, "@") && strings.Count(cron, " ") != 5 {
		return bad("the cron expression %.80q has %d fields; expected six: second, minute, hour, day of month, month, day of week", s.Cron, len(strings.Fields(s.Cron)))
	}
	if strings.HasPrefix(cron, "@every") || strings.HasPrefix(cron, "@at") {
		return bad("the cron expression is %.80q; use Every or At", s.Cron)
	}
	return cron, nil
}

// parseSpec is the inverse of pattern.
func parseSpec(pattern, zone string) (Spec, bool) {
	if d, ok := strings.CutPrefix(pattern, "@every "); ok {
		every, err := time.ParseDuration(d)
		return Spec{Every: every}, err == nil
	}
	if at, ok := strings.CutPrefix(pattern, "@at "); ok {
		t, err := time.Parse(time.RFC3339Nano, at)
		return Spec{At: t}, err == nil
	}
	return Spec{Cron: pattern, TimeZone: zone}, pattern != ""
}

// A Schedule is one that is set.
type Schedule struct {
	Name    string
	Spec    Spec
	Payload []byte
	// Set is when it was set or last changed.
	Set time.Time
}

// Schedule sets the schedule of that name, in place of the one before. Nothing
// is written if it is set already with the same spec and payload, so a start
// of the process does not begin a period anew. Names are any text of 1 to 256
// bytes. It may be repeated and is safe for concurrent use, by several
// replicas too.
func (b *Bus) Schedule(ctx context.Context, name string, spec Spec, payload []byte) error {
	const op = "schedule"
	pattern, err := spec.pattern()
	if err != nil {
		return err
	}
	if err := validName(name); err != nil {
		return err
	}
	if len(payload) > maxPayload {
		return fault.Newf(fault.Invalid, "natsbus: "+op, "the payload of %q has %d bytes; expected at most %d", name, len(payload), maxPayload)
	}
	subject := specPrefix + events.Token(name)
	for attempt := 0; ; attempt++ {
		old, err := b.lastOf(ctx, ScheduleStream, subject)
		if err != nil {
			return err
		}
		m := &nats.Msg{Subject: subject, Data: payload, Header: nats.Header{
			headerName:                          {escape(name)},
			jetstream.ScheduleHeader:            {pattern},
			jetstream.ScheduleTargetHeader:      {duePrefix + events.Token(name)},
			jetstream.ScheduleTTLHeader:         {dueTTL},
			jetstream.ExpectedLastSubjSeqHeader: {"0"},
		}}
		if spec.TimeZone != "" {
			m.Header[jetstream.ScheduleTimeZoneHeader] = []string{spec.TimeZone}
		}
		if old != nil {
			if bytes.Equal(old.msg.Data, payload) && same(old.msg, m, headerName, jetstream.ScheduleHeader, jetstream.ScheduleTargetHeader, jetstream.ScheduleTTLHeader, jetstream.ScheduleTimeZoneHeader) {
				return nil
			}
			m.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{utoa(old.seq)}
		}
		err = b.publish(ctx, op, ScheduleStream, []*nats.Msg{m})
		// Another replica was faster; most likely it has set the same.
		if attempt < 5 && fault.Is(err, fault.Conflict) && pause(ctx, 20*time.Millisecond) {
			continue
		}
		return err
	}
}

func same(a, b *nats.Msg, names ...string) bool {
	for _, n := range names {
		if header(a, n) != header(b, n) {
			return false
		}
	}
	return true
}

func validName(name string) error {
	if name == "" || len(name) > maxName || !utf8.ValidString(name) {
		return fault.Newf(fault.Invalid, "natsbus: schedule", "the name has %d bytes; expected 1 to %d of UTF-8", len(name), maxName)
	}
	return nil
}

// Unschedule removes the schedule of that name, and a firing of it that nobody
// has taken yet. That there is none is no error.
func (b *Bus) Unschedule(ctx context.Context, name string) error {
	if err := validName(name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, b.opts.PublishTimeout)
	defer cancel()
	api := b.opts.api() + "STREAM."
	return classify("unschedule", guarded(ctx, b.nc, []string{api + "INFO." + ScheduleStream, api + "PURGE." + ScheduleStream}, func(ctx context.Context) error {
		s, err := b.js.Stream(ctx, ScheduleStream)
		for _, prefix := range []string{specPrefix, duePrefix} {
			if err == nil {
				err = s.Purge(ctx, jetstream.WithPurgeSubject(prefix+events.Token(name)))
			}
		}
		return err
	}))
}

// ListSchedules returns the schedules that are set, by name.
func (b *Bus) ListSchedules(ctx context.Context) ([]Schedule, error) {
	rd := reader{nc: b.nc, opts: b.opts, stream: ScheduleStream}
	var out []Schedule
	err := rd.last(ctx, []string{specPrefix + ">"}, func(st stored) error {
		name, ok := unescape(header(st.msg, headerName))
		spec, parsed := parseSpec(header(st.msg, jetstream.ScheduleHeader), header(st.msg, jetstream.ScheduleTimeZoneHeader))
		if !ok || name == "" || !parsed {
			b.opts.Logger.WarnContext(ctx, "a message in the schedule stream is no schedule", "subject", st.subject)
			return nil
		}
		out = append(out, Schedule{Name: name, Spec: spec, Payload: st.msg.Data, Set: st.at})
		return nil
	})
	if err != nil {
		return nil, classify("list schedules", err)
	}
	slices.SortFunc(out, func(a, b Schedule) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// lastOf returns the last message on a literal subject, or nil.
func (b *Bus) lastOf(ctx context.Context, stream, subject string) (*stored, error) {
	ctx, cancel := context.WithTimeout(ctx, b.opts.PublishTimeout)
	defer cancel()
	if err := connected(ctx, b.nc); err != nil {
		return nil, classify("read", err)
	}
	var last *stored
	err := reader{nc: b.nc, opts: b.opts, stream: stream}.last(ctx, []string{subject}, func(st stored) error {
		last = &st
		return nil
	})
	return last, classify("read", err)
}

// isGone reports that a consumer or its stream is not there, or that nobody
// answers for it.
func isGone(err error) bool {
	for _, e := range []error{jetstream.ErrConsumerDeleted, jetstream.ErrConsumerNotFound, jetstream.ErrConsumerDoesNotExist, nats.ErrNoResponders} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
