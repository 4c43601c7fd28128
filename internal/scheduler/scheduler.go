// Package scheduler decides when the secrets of one configuration rotate and
// when what they supersede is retired. The clock is JetStream's: schedules,
// deadlines and repetitions are messages there, so any replica may act and a
// restart forgets nothing. What is decided here is whether a firing may turn
// into a rotation now: the calendar, the order between secrets, whether
// another trigger has had its rotation already, and when to try again.
//
// Every trigger of a secret, its own schedule, a cloud's event, a repetition,
// arrives as a firing of one name, so that of several that wait one is left.
package scheduler

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// A Job is what the configuration says about one secret.
type Job struct {
	Ref    ref.Ref
	Tenant string
	// Spec is the secret's own schedule; zero without one.
	Spec     natsbus.Spec
	Calendar Calendar
	// Jitter spreads the firings of Spec: each secret begins a fixed time
	// below Jitter later than its schedule says.
	Jitter time.Duration
	// After names the secrets whose credentials this one's rotation uses, such
	// as a superuser's. It waits for theirs, and they for its.
	After []ref.Ref
	Retry Retry
	// Gated reports that a deadline retires what is superseded.
	Gated bool
	// Open gives the secret's runner and store, the same ones each time. It is
	// asked whenever they are needed: a store that is away at the start must
	// not keep the others from being served.
	Open func(ctx context.Context) (Runner, secrets.Store, error)
}

// open is Open with an error that names the secret.
func (j *Job) open(ctx context.Context) (Runner, secrets.Store, error) {
	r, st, err := j.Open(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("open the store of %s: %w", j.Ref, err)
	}
	return r, st, nil
}

// describe asks the secret's store.
func (j *Job) describe(ctx context.Context) (*secrets.Description, error) {
	_, st, err := j.open(ctx)
	if err != nil {
		return nil, err
	}
	d, err := st.Describe(ctx, j.Ref)
	if err != nil {
		return nil, fmt.Errorf("describe %s: %w", j.Ref, err)
	}
	return d, nil
}

// A Runner is what the scheduler needs of a [rotators.Runner].
type Runner interface {
	Rotate(ctx context.Context, id ref.Ref, token string) (rotators.Result, error)
	Sweep(ctx context.Context, id ref.Ref) (rotators.Retirement, error)
}

// Locks keeps secrets apart across replicas; see package natslock.
type Locks interface {
	Lock(ctx context.Context, name string) (held context.Context, unlock func(), err error)
	RLock(ctx context.Context, name string) (held context.Context, unlock func(), err error)
}

// Bus is what the scheduler needs of a [natsbus.Bus].
type Bus interface {
	events.Publisher
	ScheduleFor(ctx context.Context, name, target string, spec natsbus.Spec, payload []byte) error
	Fire(ctx context.Context, name, id string, payload []byte) error
	Due(ctx context.Context, name string) (bool, error)
	Scheduled(ctx context.Context, name string) (bool, error)
}

// Options of a [Scheduler]. The zero value of each field means its default.
type Options struct {
	// Logger discards by default.
	Logger *slog.Logger
	// OrderWait is how long a secret waits for one that comes before it. An
	// hour by default: one that fails for longer does not hold up the others.
	OrderWait time.Duration
	// SweepEvery is how often every gate is asked, besides its own deadline.
	// An hour by default.
	SweepEvery time.Duration
	// Canonical spells the ref of an event as the jobs spell theirs. By
	// default it is taken as it is.
	Canonical func(ref.Ref) ref.Ref
	// Now is the clock; time.Now by default.
	Now func() time.Time
}

// A Scheduler acts on firings. It is safe for concurrent use.
type Scheduler struct {
	bus   Bus
	locks Locks
	owner string
	jobs  map[ref.Ref]*Job
	o     Options
	// waits is since when a secret waits for one that comes before it, as far
	// as this process knows.
	waits sync.Map
}

// New returns the Scheduler of the deployment named owner. The order between
// jobs must have no circle; the error is of kind Invalid.
func New(bus Bus, locks Locks, owner string, jobs []*Job, opts *Options) (*Scheduler, error) {
	s := &Scheduler{bus: bus, locks: locks, owner: owner, jobs: map[ref.Ref]*Job{}}
	if opts != nil {
		s.o = *opts
	}
	if s.o.Logger == nil {
		s.o.Logger = slog.New(slog.DiscardHandler)
	}
	if s.o.OrderWait == 0 {
		s.o.OrderWait = time.Hour
	}
	if s.o.SweepEvery == 0 {
		s.o.SweepEvery = time.Hour
	}
	if s.o.Canonical == nil {
		s.o.Canonical = func(r ref.Ref) ref.Ref { return r }
	}
	if s.o.Now == nil {
		s.o.Now = time.Now
	}
	for _, j := range jobs {
		s.jobs[j.Ref] = j
	}
	return s, s.checkOrder()
}

// A trigger is the payload of a firing that is not a schedule's own, which
// has none that is read.
type trigger struct {
	// Token is the rotation's, "" for a new one named by the firing.
	Token string `json:"token,omitempty"`
	// Requested is when the rotation was asked for first.
	Requested time.Time `json:"requested,omitzero"`
	// Current is the version that was current when the rotation was asked for
	// first, "" if nobody looked: one that finds another has had its rotation.
	Current string `json:"current,omitempty"`
	// Failed counts the attempts that failed.
	Failed int `json:"failed,omitempty"`
	// Cause says who asked, for the log.
	Cause string `json:"cause,omitempty"`
}

// isTrigger is how every such payload begins.
const isTrigger = '{'

// Fire is the handler for [natsbus.Bus.RunSchedules].
func (s *Scheduler) Fire(ctx context.Context, f natsbus.Firing) error {
	what, r, err := parseName(f.Name)
	if err != nil {
		return err
	}
	if what == sweepAll {
		if f.Name != s.sweepName() {
			return fault.Newf(fault.Unavailable, "schedule", "%q is another deployment's", f.Name)
		}
		return s.sweepAll(ctx)
	}
	j := s.jobs[r]
	if j == nil {
		// Another replica may have a newer configuration, or another
		// deployment may share the server: it is theirs.
		return fault.Newf(fault.Unavailable, "schedule", "%s is not in the configuration of this process", r)
	}
	if what == retireOne {
		return s.sweep(ctx, j)
	}
	return s.rotate(ctx, j, triggerOf(j, f))
}

// triggerOf reads the payload of a firing. The token of a schedule's own is
// the firing's, so that one which is delivered twice is one rotation.
func triggerOf(j *Job, f natsbus.Firing) trigger {
	var t trigger
	own := true
	if len(f.Payload) > 0 && f.Payload[0] == isTrigger {
		own = json.Unmarshal(f.Payload, &t) != nil
	}
	if own {
		t = trigger{Cause: "schedule"}
	}
	if t.Token == "" {
		t.Token = rotators.TokenOf(f.ID)
	}
	if t.Requested.IsZero() {
		t.Requested = f.At
		if own && j.Jitter > 0 {
			t.Requested = f.At.Add(Offset(j.Ref, j.Jitter))
		}
	}
	return t
}

// Offset is the fixed part of jitter by which the schedule of r begins later.
func Offset(r ref.Ref, jitter time.Duration) time.Duration {
	if jitter <= 0 {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(r.String()))
	return time.Duration(h.Sum64() % uint64(jitter)) //nolint:gosec // jitter is positive, and the rest below it
}

// Hear is the handler for events that ask for a rotation: GCP's SECRET_ROTATE
// and Azure's SecretNearExpiry. Those of other secrets are left alone, and so
// is a notice about a version that has been superseded since. An event that is
// heard twice asks for one rotation.
func (s *Scheduler) Hear(ctx context.Context, e events.Event) error {
	if !slices.Contains(Wanted(), e.Type) {
		return nil
	}
	r := s.o.Canonical(e.Data.Ref)
	j := s.jobs[r]
	if j == nil {
		return nil
	}
	d, err := j.describe(ctx)
	if err != nil {
		return err
	}
	if v := e.Data.Version; v != "" && v != d.HolderID(secrets.Current) {
		s.o.Logger.InfoContext(ctx, "a notice about a superseded version starts nothing", "secret", r.String(), "version", v)
		return nil
	}
	b, err := json.Marshal(trigger{
		Token: rotators.TokenOf(e.ID), Requested: e.Time, Current: d.HolderID(secrets.Current), Cause: string(e.Type),
	})
	if err != nil {
		return fmt.Errorf("encode a trigger: %w", err)
	}
	return s.bus.Fire(ctx, rotateName(r), e.ID, b)
}

// Wanted lists the events that Hear acts on.
func Wanted() []events.Type { return []events.Type{events.RotationRequested, events.SecretNearExpiry} }
