package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// A Status is how a client stands with one secret. It holds no value.
type Status struct {
	Ref ref.Ref
	// Version is the id of the last good version, "" before the first read.
	Version string
	// Adopted is when it was taken into use.
	Adopted time.Time
	// ReadAt is the start of the last read that confirmed it, and Age the
	// time since then: the store may have moved on for at most so long.
	ReadAt time.Time
	Age    time.Duration
	// Withdrawn reports that Options.MaxStale has passed, or that the version
	// was revoked under Options.DropRevoked: Current reads the store, and
	// fails if that does.
	Withdrawn bool
	// Failures counts failed reads since the last good one, the last at
	// FailedAt with Kind and Class.
	Failures int
	FailedAt time.Time
	Kind     fault.Kind
	Class    fault.Class
	// Listening reports that events are heard: every subscription has been
	// set up and replayed. The bus may be away since, which the subscriber
	// mends by itself.
	Listening bool
}

// Status tells how c stands with r. A ref that is not watched gives a Status
// without anything but the ref.
func (c *Client) Status(r ref.Ref) Status {
	st := Status{Ref: r}
	s := c.lookup(r)
	if s == nil {
		return st
	}
	st.Listening = c.subs.Load() > 0 && c.listening.Load() == c.subs.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held != nil {
		st.Version, st.Adopted, st.ReadAt = s.held.ID, s.adopted, s.readAt
		st.Age = time.Since(s.readAt)
		st.Withdrawn = s.cur.Load() == nil
	}
	if s.fail.err != nil {
		st.Failures, st.FailedAt = s.fail.n, s.fail.at
		st.Kind, st.Class = fault.KindOf(s.fail.err), fault.ClassOf(s.fail.err)
	}
	return st
}

// A Cause is why the store was read: a bounded set, fit for a metric's label.
type Cause string

// The causes.
const (
	CauseStart      Cause = "start"      // Run's first read
	CauseMiss       Cause = "miss"       // somebody asked and nothing was held
	CauseEvent      Cause = "event"      // an event told of a change
	CausePoll       Cause = "poll"       // the time had come
	CauseRetry      Cause = "retry"      // the read before failed, or lagged behind an event
	CauseInvalidate Cause = "invalidate" // a service refused the credential
	CauseRefresh    Cause = "refresh"    // Refresh was called
)

// An Op is what an [Observation] tells of.
type Op string

// The ops.
const (
	OpRead         Op = "read"         // the store was read: Cause, Duration, and Version or Failed and Kind
	OpAdopt        Op = "adopt"        // another version came into use: Version, Cause, Lag
	OpEvent        Op = "event"        // an event called for a read
	OpSkip         Op = "skip"         // an event or refusal told nothing new
	OpInvalidate   Op = "invalidate"   // a refusal of the held version
	OpUnsubscribed Op = "unsubscribed" // a subscription failed: Kind
)

// An Observation is one thing that happened, for metrics.
type Observation struct {
	Op       Op
	Ref      ref.Ref
	Version  string
	Cause    Cause
	Duration time.Duration
	Lag      time.Duration
	Failed   bool
	Kind     fault.Kind // of the failure
}

func (c *Client) observe(o Observation) {
	if c.opts.Observe != nil {
		c.opts.Observe(o)
	}
}

const (
	levelDebug = slog.LevelDebug
	levelInfo  = slog.LevelInfo
	levelWarn  = slog.LevelWarn
	levelError = slog.LevelError
)

func (s *Secret) attr() slog.Attr { return slog.String("ref", s.ref.String()) }

func versionAttr(v *secrets.Version) slog.Attr { return slog.String("version", id(v)) }

// logRead tells when reads begin to fail, fail otherwise, or work again.
func (c *Client) logRead(s *Secret, said, now failState, err error) {
	switch {
	case now == said:
	case now.bad:
		c.log.LogAttrs(context.Background(), levelWarn, "cannot read the secret; the last good version stays in use",
			append(kindAttrs(err), s.attr())...)
	default:
		c.log.LogAttrs(context.Background(), levelInfo, "the secret can be read again", s.attr())
	}
}

func kindAttrs(err error) []slog.Attr {
	if err == nil {
		return nil
	}
	as := []slog.Attr{slog.String("kind", fault.KindOf(err).String())}
	if c := fault.ClassOf(err); c != "" {
		as = append(as, slog.String("class", string(c)))
	}
	if e := safe(err); e != nil {
		as = append(as, slog.String("error", e.Error()))
	}
	return as
}

// safe returns the part of err whose text may be shown: what package fault
// made, since that holds no value by its contract, or how a context ended.
func safe(err error) error {
	var e *fault.Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return context.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		return context.Canceled
	}
	return nil
}

// panicAttr names the type only.
func panicAttr(p any) slog.Attr { return slog.String("panic", fmt.Sprintf("%T", p)) }
