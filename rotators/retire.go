package rotators

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// A Retirement is where the superseded version of a secret stands.
type Retirement struct {
	Ref ref.Ref
	// Version is the id of the superseded version, "" if there is none.
	Version string
	// Retired reports that it is out of use, and Now that this call did it.
	Retired, Now bool
	// Proven reports that the target was seen to refuse it, by this call.
	Proven bool
	// Waiting says what keeps its gate closed, and Next when that may have
	// changed; zero is not by time alone.
	Waiting []string
	Next    time.Time
	// Overdue reports that the gate's hard limit has passed and holds.
	Overdue bool
}

// A NotYetError is the cause of the error of a rotation or a retirement that may
// not begin yet.
type NotYetError struct {
	Waiting []string
	Until   time.Time // zero: not by time alone
}

// Error says what is waited for.
func (e *NotYetError) Error() string { return strings.Join(e.Waiting, "; ") }

func notYet(op string, id ref.Ref, waiting []string, until time.Time) error {
	return &fault.Error{
		Kind: fault.Unavailable, Class: fault.ClassPolicy, Op: op,
		Msg: fmt.Sprintf("%s: not yet", id), Err: &NotYetError{Waiting: waiting, Until: until},
	}
}

// IsNotYet returns what err waits for, if it is the error of a rotation that
// may not begin yet.
func IsNotYet(err error) (*NotYetError, bool) {
	var n *NotYetError
	return n, errors.As(err, &n)
}

// Sweep retires what is superseded if its gate is open, and tells otherwise
// when to look again. It is what a deadline and a periodic function call, and
// may be called at any time by any number of processes. A rotation that is
// unfinished comes first: whether what it supersedes can go shows when it ends.
func (r *Runner) Sweep(ctx context.Context, id ref.Ref) (Retirement, error) {
	return r.retireBy(ctx, id, byTime, false)
}

// Retire is Sweep by a person: the conditions Manual and NextRotation hold,
// and what somebody restored is retired again. With force no condition counts.
// A gate that stays closed is an error whose cause is [NotYetError].
func (r *Runner) Retire(ctx context.Context, id ref.Ref, force bool) (Retirement, error) {
	out, err := r.retireBy(ctx, id, byPerson, force)
	if err == nil && out.Version != "" && !out.Retired {
		err = notYet("retire", id, out.Waiting, out.Next)
	}
	return out, err
}

func (r *Runner) retireBy(ctx context.Context, id ref.Ref, why occasion, force bool) (Retirement, error) {
	out := Retirement{Ref: id}
	unlock, err := r.lock(ctx, id)
	if err != nil {
		return out, err
	}
	defer unlock()
	d, err := r.store.Describe(ctx, id)
	if err != nil {
		return out, fmt.Errorf("describe %s: %w", id, err)
	}
	current, previous := d.Holder(secrets.Current), d.Holder(secrets.Previous)
	if previous == nil || current == nil {
		return out, nil
	}
	out.Version, out.Retired = previous.ID, previous.Disabled
	if previous.Disabled {
		return out, nil
	}
	if d.Unfinished() != nil {
		out.Waiting, out.Next = []string{"a rotation is unfinished"}, time.Now().Add(time.Minute)
		return out, nil
	}
	if !force {
		v := r.ask(ctx, id, d, why)
		if out.Waiting, out.Next, out.Overdue = v.waiting, v.next, v.overdue; !v.open {
			if v.overdue {
				r.announceOverdue(ctx, id, previous.ID)
			}
			return out, nil
		}
	}
	now, err := r.store.Get(ctx, id, secrets.Current)
	if err != nil {
		return out, fmt.Errorf("read current of %s: %w", id, err)
	}
	if now.ID != current.ID {
		return out, moved(id, "nothing was retired")
	}
	c := Change{Ref: id, Token: now.Token, Current: now.Value}
	if out.Proven, err = r.takeOut(ctx, c, current.ID, previous.ID, taking{prove: true, whatever: force}); err != nil {
		return out, fmt.Errorf("retire version %s of %s: %w", previous.ID, id, err)
	}
	if s, ok := r.store.(secrets.Disabler); ok {
		if err := s.Disable(ctx, id, previous.ID); err != nil {
			return out, fmt.Errorf("disable version %s of %s: %w", previous.ID, id, err)
		}
	}
	out.Retired, out.Now = true, true
	return out, nil
}

// Standing tells where the superseded version of d stands, and changes
// nothing.
func (r *Runner) Standing(ctx context.Context, d *secrets.Description) Retirement {
	out := Retirement{Ref: d.Ref}
	current, previous := d.Holder(secrets.Current), d.Holder(secrets.Previous)
	if previous == nil || current == nil {
		return out
	}
	out.Version, out.Retired = previous.ID, previous.Disabled
	if !previous.Disabled {
		v := r.ask(ctx, d.Ref, d, byTime)
		out.Waiting, out.Next, out.Overdue = v.waiting, v.next, v.overdue
	}
	return out
}

// ask asks the gate about the previous version of d.
func (r *Runner) ask(ctx context.Context, id ref.Ref, d *secrets.Description, why occasion) verdict {
	current, previous := d.Holder(secrets.Current), d.Holder(secrets.Previous)
	if previous.Held && why != byPerson {
		return verdict{waiting: []string{"held: somebody restored it; keyturn retire lets it go"}}
	}
	return r.opts.Gate.ask(time.Now(), current.Since(), why, func() ([]string, error) {
		if r.opts.Adoption == nil {
			return nil, errors.New("nobody here knows the fleet")
		}
		return r.opts.Adoption.Missing(ctx, id, current.ID)
	})
}

// mayBegin returns why a new rotation may not begin, or nil.
func (r *Runner) mayBegin(ctx context.Context, id ref.Ref, d *secrets.Description) error {
	current := d.Holder(secrets.Current)
	if r.opts.Force || current == nil || d.Holder(secrets.Pending) != nil && !d.Opened {
		return nil
	}
	if since := current.Since(); r.opts.MinAge > 0 && time.Since(since) < r.opts.MinAge {
		until := since.Add(r.opts.MinAge)
		return notYet("rotate", id, []string{fmt.Sprintf("minimum age: until %s", until.UTC().Format(time.RFC3339))}, until)
	}
	if previous := d.Holder(secrets.Previous); previous != nil && !previous.Disabled && (!r.opts.KeepPrevious || previous.Held) {
		if v := r.ask(ctx, id, d, byRotation); !v.open {
			return notYet("rotate", id, v.waiting, v.next)
		}
	}
	return nil
}

// makeRoom revokes at the target, when a rotation begins, what the one before
// it superseded. The store keeps it until finish, in case set needs it.
func (r *Runner) makeRoom(ctx context.Context, c Change, currentID string) error {
	if _, ok := r.rotator.(Retirer); !ok || r.opts.KeepPrevious || c.Previous.IsZero() {
		return nil
	}
	_, err := r.takeOut(ctx, c, currentID, "", taking{})
	if !fault.Is(err, fault.Invalid) {
		return err
	}
	// Where the database has moved since, nothing of ours can revoke what is
	// left on the old one; that must not keep every rotation to come from
	// beginning. A revocation that fails for another reason must: each
	// rotation would leave one more credential alive.
	if v, ok := r.rotator.(Verifier); !ok || !fault.Is(v.Verify(ctx, c, c.Previous), fault.Invalid) {
		return err
	}
	r.opts.Logger.WarnContext(ctx, "the superseded credential is for another target and was not revoked", "secret", c.Ref.String(), "err", err)
	return nil
}

// disableSuperseded takes out of the store, when a rotation finishes, what
// the one before it superseded. It comes before promote, so that a retry
// finds it still.
func (r *Runner) disableSuperseded(ctx context.Context, id ref.Ref, d *secrets.Description, token string) error {
	s, ok := r.store.(secrets.Disabler)
	previous := d.Holder(secrets.Previous)
	if !ok || r.opts.KeepPrevious || previous == nil || previous.Disabled || d.Has(token, secrets.Current) {
		return nil
	}
	err := s.Disable(ctx, id, previous.ID)
	if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) {
		return fmt.Errorf("disable the superseded version %s: %w", previous.ID, err)
	}
	return nil
}

// taking says how a credential is taken out of use.
type taking struct {
	prove    bool // see that it is refused
	whatever bool // even if it cannot be revoked, or is not refused
}

// takeOut revokes at the target what c.Current superseded, and proves that it
// is dead. want, if not "", is the id that the previous version must have.
// The announcement comes before the store forgets the version, so that a
// version which is disabled was announced.
func (r *Runner) takeOut(ctx context.Context, c Change, currentID, want string, how taking) (proven bool, err error) {
	old, err := r.store.Get(ctx, c.Ref, secrets.Previous)
	if fault.Is(err, fault.NotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read previous: %w", err)
	}
	if want != "" && old.ID != want {
		return false, moved(c.Ref, "nothing was retired")
	}
	c.Previous = old.Value
	rt, revokes := r.rotator.(Retirer)
	// A value with the current credential is one that was restored, or edited:
	// revoking it would kill the current one.
	if !r.same(old.Value, c.Current) {
		if revokes {
			if err := r.announceAgain(ctx, c, currentID); err != nil {
				return false, err
			}
			c.StillPending = r.stillCurrent(c.Ref, currentID)
			if err := rt.Retire(ctx, c, old.Value); err != nil && (!how.whatever || !fault.Is(err, fault.Invalid)) {
				return false, err
			}
		}
		if v, ok := r.rotator.(Verifier); ok && how.prove {
			proven, err = r.proveDead(ctx, v, c, old.Value)
			switch {
			case err == nil:
			case how.whatever:
				r.opts.Logger.WarnContext(ctx, "the superseded credential was not seen to be refused", "secret", c.Ref.String(), "err", err)
			default:
				return false, err
			}
		}
	}
	e := r.fill(events.New(events.VersionRetired, c.Ref, time.Now(), old.ID))
	e.Data.Version = old.ID
	if r.opts.Publisher == nil {
		return proven, nil
	}
	if err := r.opts.Publisher.Publish(ctx, e); err != nil {
		return proven, fmt.Errorf("announce: %w", err)
	}
	return proven, nil
}

// stillCurrent is [Change.StillPending] of what changes the superseded
// credential: a process that stalled must not touch one that a rollback has
// made current, or that a rotation is about to set.
func (r *Runner) stillCurrent(id ref.Ref, currentID string) func(context.Context) error {
	return func(ctx context.Context) error {
		// In this order: a rotation that ends between the two looks has moved
		// current, and the second look sees that.
		p, err := r.store.Get(ctx, id, secrets.Pending)
		switch {
		case err == nil:
			return &fault.Error{
				Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: "retire",
				Msg: fmt.Sprintf("a rotation of %s (token %s) began meanwhile; nothing was changed", id, p.Token),
			}
		case !fault.Is(err, fault.NotFound):
			return fmt.Errorf("read pending of %s again: %w", id, err)
		}
		d, err := r.store.Describe(ctx, id)
		if err != nil {
			return fmt.Errorf("describe %s again: %w", id, err)
		}
		if c := d.Holder(secrets.Current); c == nil || c.ID != currentID {
			return moved(id, "nothing was changed")
		}
		return nil
	}
}

// same reports whether two values hold one credential.
func (r *Runner) same(a, b secrets.Value) bool {
	if c, ok := r.rotator.(Comparer); ok && c.SameCredential(a, b) {
		return true
	}
	return a.Equal(b)
}

// proveDead signs in with old and wants to be refused. What names another
// target is not tried, and not proven.
func (r *Runner) proveDead(ctx context.Context, v Verifier, c Change, old secrets.Value) (proven bool, err error) {
	err = v.Verify(ctx, c, old)
	switch {
	case err == nil:
		return false, fault.Newf(fault.Unavailable, "retire", "the superseded credential still signs in; look at the target, or repeat with --force to disable its version only")
	case refusesCredential(err):
		return true, nil
	case fault.Is(err, fault.Invalid):
		return false, nil
	}
	return false, fmt.Errorf("prove that the superseded credential is dead: %w", err)
}

// announceOverdue raises the alert of a gate that holds beyond its limit.
func (r *Runner) announceOverdue(ctx context.Context, id ref.Ref, version string) {
	e := r.fill(events.New(events.RotationFailed, id, time.Now(), "overdue", version))
	e.Data.Version, e.Data.Reason = version, "retire: overdue"
	r.announce(ctx, e)
}
