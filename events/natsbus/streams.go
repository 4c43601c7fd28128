package natsbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// The streams, and the subjects that they take.
const (
	EventStream      = "KEYTURN_EVENTS"
	LateStream       = "KEYTURN_LATE"
	DeadLetterStream = "KEYTURN_DEADLETTERS"
	ScheduleStream   = "KEYTURN_SCHEDULES"

	eventSubjects      = events.SubjectPrefix + ">"
	latePrefix         = "keyturn.late.v1."
	deadLetterPrefix   = "keyturn.deadletter."
	schedulePrefix     = "keyturn.schedule."
	specPrefix         = schedulePrefix + "spec."
	duePrefix          = schedulePrefix + "due."
	deadLetterMaxAge   = 90 * 24 * time.Hour
	deadLetterMaxBytes = 1 << 30
	deadLetterMaxMsgs  = 200_000 // each has a subject, which the server holds in memory

	openTimeout = 30 * time.Second // for one stream
	openAttempt = 3 * time.Second
)

// streams returns the streams as they are created.
func streams(o Options) []jetstream.StreamConfig {
	replicas := max(o.Replicas, 1)
	ev := jetstream.StreamConfig{
		Name:        EventStream,
		Description: "Keyturn: events about secrets; no values",
		Subjects:    []string{eventSubjects},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		// The oldest events go first; a full stream must not stop new ones.
		Discard:           jetstream.DiscardOld,
		MaxAge:            o.MaxAge,
		MaxMsgsPerSubject: o.MaxPerSubject,
		Duplicates:        o.Duplicates,
		AllowDirect:       true,
		Replicas:          replicas,
	}
	if ev.MaxAge <= 0 {
		ev.MaxAge = max(DefaultMaxAge, o.Duplicates)
	}
	if ev.MaxMsgsPerSubject <= 0 {
		ev.MaxMsgsPerSubject = DefaultMaxPerSubject
	}
	late := ev
	late.Name, late.Description, late.Subjects = LateStream, "Keyturn: events that came after newer ones; for audits", []string{latePrefix + ">"}
	return []jetstream.StreamConfig{ev, late, {
		Name:        DeadLetterStream,
		Description: "Keyturn: notices that can never be handed on",
		Subjects:    []string{deadLetterPrefix + ">"},
		Storage:     jetstream.FileStorage,
		Retention:   jetstream.LimitsPolicy,
		Discard:     jetstream.DiscardOld,
		MaxAge:      deadLetterMaxAge,
		// Anybody who may send notices can send bad ones: bound what they fill.
		MaxBytes:    deadLetterMaxBytes,
		MaxMsgs:     deadLetterMaxMsgs,
		Duplicates:  2 * time.Minute, // not used: a letter's subject holds its key
		AllowDirect: true,
		Replicas:    replicas,
	}, {
		Name:        ScheduleStream,
		Description: "Keyturn: schedules and what is due",
		Subjects:    []string{schedulePrefix + ">"},
		Storage:     jetstream.FileStorage,
		// What is done is gone: were the consumer made anew, it must not begin
		// old jobs again. Specifications stay, since no consumer takes them.
		Retention: jetstream.WorkQueuePolicy,
		Discard:   jetstream.DiscardOld,
		// One specification a name, and of what is due only the latest.
		MaxMsgsPerSubject: 1,
		Duplicates:        2 * time.Minute,
		AllowDirect:       true,
		AllowRollup:       true,
		AllowMsgTTL:       true,
		AllowMsgSchedules: true,
		Replicas:          replicas,
	}}
}

// ensure creates the stream, or verifies the one that is there.
func (b *Bus) ensure(ctx context.Context, want jetstream.StreamConfig) error {
	op := "open stream " + want.Name
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	s, created, err := b.obtain(ctx, want)
	// A cluster without a leader, as when it has just started, does not answer,
	// or says so. Both pass.
	for wait := minRetry; err != nil && passing(err) && pause(ctx, wait); wait = min(2*wait, time.Second) {
		s, created, err = b.obtain(ctx, want)
	}
	if err != nil {
		return classify(op, err)
	}
	if created {
		b.opts.Logger.InfoContext(ctx, "stream created", "stream", want.Name)
		// A server that is too old drops the fields it does not know.
		return verify(b.opts, want, s.CachedInfo().Config)
	}
	have := s.CachedInfo().Config
	differs := verify(b.opts, want, have)
	if differs == nil || !b.opts.Update {
		return differs
	}
	for _, f := range fields(b.opts, want, have) {
		if !f.same {
			f.set(&have)
		}
	}
	s, err = b.js.UpdateStream(ctx, have)
	if err != nil {
		return &fault.Error{Kind: fault.Conflict, Op: "natsbus: " + op, Msg: "the server refuses the change (" + differs.Error() + "); copy what you need out of the stream, delete it, and open again", Err: err}
	}
	b.opts.Logger.InfoContext(ctx, "stream updated", "stream", want.Name)
	return verify(b.opts, want, s.CachedInfo().Config)
}

// obtain gets the stream that is there, or creates it.
func (b *Bus) obtain(ctx context.Context, want jetstream.StreamConfig) (s jetstream.Stream, created bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, openAttempt)
	defer cancel()
	api := b.opts.api() + "STREAM."
	err = guarded(ctx, b.nc, []string{api + "INFO." + want.Name, api + "CREATE." + want.Name}, func(ctx context.Context) (err error) {
		s, err = b.js.Stream(ctx, want.Name)
		if !errors.Is(err, jetstream.ErrStreamNotFound) {
			return err
		}
		s, err = b.js.CreateStream(ctx, want)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // another replica was faster
			s, err = b.js.Stream(ctx, want.Name)
			return err
		}
		created = err == nil
		return err
	})
	return s, created, err
}

// passing reports whether Open should ask again.
func passing(err error) bool {
	api := apiError(err)
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrDisconnected) ||
		api != nil && api.Code == 503 && !errors.Is(err, jetstream.ErrJetStreamNotEnabled) && !errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount)
}

// A field is one property of a stream that matters.
type field struct {
	name           string
	expected, have any
	same           bool
	set            func(*jetstream.StreamConfig)
}

// fields compares what matters. Limits that the operator did not ask for are
// the operator's own business.
func fields(o Options, want, have jetstream.StreamConfig) []field {
	fs := []field{
		{"subjects", want.Subjects, have.Subjects, slices.Equal(want.Subjects, have.Subjects), func(c *jetstream.StreamConfig) { c.Subjects = want.Subjects }},
		{"storage", want.Storage, have.Storage, want.Storage == have.Storage, func(c *jetstream.StreamConfig) { c.Storage = want.Storage }},
		{"retention", want.Retention, have.Retention, want.Retention == have.Retention, func(c *jetstream.StreamConfig) { c.Retention = want.Retention }},
		{"discard", want.Discard, have.Discard, want.Discard == have.Discard, func(c *jetstream.StreamConfig) { c.Discard = want.Discard }},
		{"allow_direct", want.AllowDirect, have.AllowDirect, want.AllowDirect == have.AllowDirect, func(c *jetstream.StreamConfig) { c.AllowDirect = want.AllowDirect }},
		{"allow_msg_schedules", want.AllowMsgSchedules, have.AllowMsgSchedules, !want.AllowMsgSchedules || have.AllowMsgSchedules, func(c *jetstream.StreamConfig) { c.AllowMsgSchedules = true }},
		{"allow_msg_ttl", want.AllowMsgTTL, have.AllowMsgTTL, !want.AllowMsgTTL || have.AllowMsgTTL, func(c *jetstream.StreamConfig) { c.AllowMsgTTL = true }},
		{"allow_rollup_hdrs", want.AllowRollup, have.AllowRollup, !want.AllowRollup || have.AllowRollup, func(c *jetstream.StreamConfig) { c.AllowRollup, c.DenyPurge = true, false }},
		{"no_ack", want.NoAck, have.NoAck, want.NoAck == have.NoAck, func(c *jetstream.StreamConfig) { c.NoAck = want.NoAck }},
		{"duplicate_window", want.Duplicates, have.Duplicates, have.Duplicates >= want.Duplicates, func(c *jetstream.StreamConfig) { c.Duplicates = want.Duplicates }},
	}
	if o.Replicas > 0 {
		fs = append(fs, field{"num_replicas", want.Replicas, have.Replicas, want.Replicas == have.Replicas, func(c *jetstream.StreamConfig) { c.Replicas = want.Replicas }})
	}
	if (want.Name == EventStream || want.Name == LateStream) && o.MaxAge > 0 {
		fs = append(fs, field{"max_age", want.MaxAge, have.MaxAge, want.MaxAge == have.MaxAge, func(c *jetstream.StreamConfig) { c.MaxAge = want.MaxAge }})
	}
	if want.MaxMsgsPerSubject > 0 && (want.Name == ScheduleStream || o.MaxPerSubject > 0) {
		fs = append(fs, field{"max_msgs_per_subject", want.MaxMsgsPerSubject, have.MaxMsgsPerSubject, want.MaxMsgsPerSubject == have.MaxMsgsPerSubject, func(c *jetstream.StreamConfig) { c.MaxMsgsPerSubject = want.MaxMsgsPerSubject }})
	}
	return fs
}

// verify returns an error that names every difference that matters, or nil.
func verify(o Options, want, have jetstream.StreamConfig) error {
	var diff string
	for _, f := range fields(o, want, have) {
		if !f.same {
			diff += fmt.Sprintf("%s: expected %v, found %v; ", f.name, f.expected, f.have)
		}
	}
	if diff == "" {
		return nil
	}
	return fault.Newf(fault.Conflict, "natsbus: open stream "+want.Name,
		"the stream is not as it must be: %schange it with nats stream edit, or open with Options.Update (needs nats-server 2.12 or later)", diff)
}
