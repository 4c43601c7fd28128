package scheduler

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// Retry says what follows a rotation that failed. The zero value of each
// field means its default.
type Retry struct {
	First   time.Duration // wait after the first failure, doubled each time; 30 s
	Longest time.Duration // 1 h
	Limit   int           // attempts before it gives up until the next trigger; 8
}

func (r Retry) withDefaults() Retry {
	if r.First == 0 {
		r.First = 30 * time.Second
	}
	if r.Longest == 0 {
		r.Longest = time.Hour
	}
	if r.Limit == 0 {
		r.Limit = 8
	}
	return r
}

// wait is how long to wait after so many failures, spread so that secrets
// that failed together do not come back together.
func (r Retry) wait(failed int) time.Duration {
	d := r.First << min(max(failed-1, 0), 30)
	if d <= 0 || d > r.Longest {
		d = r.Longest
	}
	return d/2 + rand.N(d/2+1) //nolint:gosec // jitter, not a secret
}

const (
	// orderPoll is how often a secret looks whether the one before it is done.
	orderPoll = 5 * time.Second
	// lockWait is how long a firing waits for another replica's rotation.
	lockWait = 5 * time.Second
	// closedPoll is when a rotation looks again at a gate that no time opens.
	closedPoll = time.Hour
)

// rotate turns a trigger into a rotation, or into a later trigger. It returns
// an error only where the firing itself is to be delivered again.
func (s *Scheduler) rotate(ctx context.Context, j *Job, t trigger) error {
	log := s.o.Logger.With("secret", j.Ref.String(), "token", t.Token, "cause", t.Cause)
	d, err := j.describe(ctx)
	if err != nil {
		return s.failed(ctx, j, t, err)
	}
	// What was begun is finished at any time: half-way is the worst place.
	if d.Unfinished() == nil {
		if done(d, t) {
			log.InfoContext(ctx, "rotated since this was asked for; nothing to do")
			return nil
		}
		if t.Current == "" {
			t.Current = d.HolderID(secrets.Current)
		}
		now := s.o.Now()
		if wait := t.Requested.Sub(now); wait > time.Second {
			return s.later(ctx, j, t, t.Requested) // jitter
		}
		opens, ok := j.Calendar.Next(now)
		if !ok {
			return s.failed(ctx, j, t, fault.Newf(fault.Invalid, "schedule", "windows and freezes of %s leave no time within a year", j.Ref))
		}
		if opens.After(now) {
			log.InfoContext(ctx, "not now: outside its windows, or in a freeze", "until", opens)
			// Spread over the opening, and never beyond it.
			return s.later(ctx, j, t, opens.Add(Offset(j.Ref, min(j.Jitter, j.Calendar.Closes(opens).Sub(opens)))))
		}
	}
	if name, waits := s.before(ctx, j); waits && s.waiting(j) < s.o.OrderWait {
		return natsbus.After(orderPoll, fault.Newf(fault.Unavailable, "schedule", "%s waits for %s, which rotates before it", j.Ref, name))
	}
	s.waits.Delete(j.Ref)
	return s.locked(ctx, j, t, func(ctx context.Context) error {
		// Whoever held the lock until now may have done it.
		d, err := j.describe(ctx)
		if err != nil {
			return err
		}
		if d.Unfinished() == nil && done(d, t) {
			log.InfoContext(ctx, "rotated since this was asked for; nothing to do")
			return nil
		}
		runner, _, err := j.open(ctx)
		if err != nil {
			return err
		}
		_, err = runner.Rotate(ctx, j.Ref, t.Token)
		return err
	})
}

// done reports whether another trigger's rotation, which ended after this one
// was asked for, was this one too. One of the same token is left to the
// runner, which announces it once more. By time alone only a firing is judged
// that nobody has looked at yet: some stores tell a later time than the true.
func done(d *secrets.Description, t trigger) bool {
	c := d.Holder(secrets.Current)
	switch {
	case c == nil || c.Token != "" && c.Token == t.Token:
		return false
	case t.Current != "":
		return c.ID != t.Current
	}
	return !t.Requested.IsZero() && c.Activated.After(t.Requested)
}

// locked calls rotate with the secret held against all other replicas, and
// those whose credentials it uses held against their own rotation.
func (s *Scheduler) locked(ctx context.Context, j *Job, t trigger, rotate func(context.Context) error) error {
	held, unlock, err := s.Hold(ctx, j.Ref, lockWait)
	if err != nil {
		return natsbus.After(orderPoll, err)
	}
	err = rotate(held)
	unlock() // the gate, asked next, takes the locks by itself
	if err == nil {
		s.succeeded(ctx, j)
		return nil
	}
	if ctx.Err() != nil {
		return err // another replica takes over
	}
	return s.failed(ctx, j, t, err)
}

// succeeded sets the deadline of the gate. A failure to is made good by the
// next sweep.
func (s *Scheduler) succeeded(ctx context.Context, j *Job) {
	if err := s.sweep(context.WithoutCancel(ctx), j); err != nil {
		s.o.Logger.WarnContext(ctx, "the gate could not be asked; the next sweep does", "secret", j.Ref.String(), "err", err)
	}
}

// failed decides what follows a failure: a rotation that may not begin yet
// waits, one that can work later is tried again with back-off, and the rest
// is given up until the next trigger and said so.
func (s *Scheduler) failed(ctx context.Context, j *Job, t trigger, err error) error {
	if n, ok := rotators.IsNotYet(err); ok {
		if n.Until.IsZero() {
			s.announce(ctx, j, t, "not yet: "+n.Error(), "waiting")
			n.Until = s.o.Now().Add(closedPoll)
		}
		return s.later(ctx, j, t, n.Until)
	}
	retry := j.Retry.withDefaults()
	t.Failed++
	kind := fault.KindOf(err).String()
	if c := fault.ClassOf(err); c != "" {
		kind += "/" + string(c)
	}
	if limit := !fault.Retryable(err) || t.Failed >= retry.Limit; limit && s.halfWay(ctx, j, err) {
		// Half-way is the worst place to stop in: said once, and never given up.
		if t.Failed == retry.Limit {
			s.announce(ctx, j, t, fmt.Sprintf("half-way, and failed %d times: %s", t.Failed, kind), "half-way")
		}
	} else if limit {
		s.o.Logger.ErrorContext(ctx, "rotation given up until its next trigger", "secret", j.Ref.String(), "attempts", t.Failed, "kind", kind, "err", err)
		s.announce(ctx, j, t, fmt.Sprintf("gave up after %d attempts: %s", t.Failed, kind), "gave up")
		return nil
	}
	wait := retry.wait(t.Failed)
	s.o.Logger.WarnContext(ctx, "rotation failed; it is tried again", "secret", j.Ref.String(), "attempts", t.Failed, "wait", wait, "kind", kind, "err", err)
	return s.later(ctx, j, t, s.o.Now().Add(wait))
}

// halfWay reports whether giving up after err would leave a rotation
// half-way, as far as can be told.
func (s *Scheduler) halfWay(ctx context.Context, j *Job, err error) bool {
	if !fault.Retryable(err) {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	d, derr := j.describe(ctx)
	return fault.Is(derr, fault.Unavailable) || derr == nil && d.Unfinished() != nil
}

// later fires the trigger again at a time, in place of one that waits for
// later already.
func (s *Scheduler) later(ctx context.Context, j *Job, t trigger, at time.Time) error {
	b, err := json.Marshal(t)
	if err != nil {
		return fmt.Errorf("encode a trigger: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return s.bus.ScheduleFor(ctx, laterName(j.Ref), rotateName(j.Ref), natsbus.Spec{At: at}, b)
}

// announce tells that no rotation comes of a trigger for now.
func (s *Scheduler) announce(ctx context.Context, j *Job, t trigger, reason, key string) {
	e := events.New(events.RotationFailed, j.Ref, s.o.Now(), t.Token, key)
	e.Data.Tenant, e.Data.Cause, e.Data.Reason = j.Tenant, "scheduler", reason
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if err := s.bus.Publish(ctx, e); err != nil {
		s.o.Logger.WarnContext(ctx, "announcement failed", "secret", j.Ref.String(), "event", string(e.Type), "err", err)
	}
}
