package rotators

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// rollbackToken names the rotation that takes a secret back from the version
// with the id from. Whoever finds it later can tell that it was a rollback,
// and from which version.
func rollbackToken(id ref.Ref, from string) string {
	return TokenOf("rollback\x00" + id.String() + "\x00" + from)
}

// undoToken is rollbackToken for a rollback that is rolled back itself.
func undoToken(id ref.Ref, from string) string {
	return TokenOf("undo rollback\x00" + id.String() + "\x00" + from)
}

// isRollback reports whether token names a rotation that takes the secret back
// from the version with the id from.
func isRollback(id ref.Ref, token, from string) bool {
	return token == rollbackToken(id, from) || token == undoToken(id, from)
}

// Rollback makes the previous credential current again. It is a rotation
// whose pending is that credential: it is journaled, set at the target,
// tested and finished like any other, and a crash in it is rolled forward by
// Rotate or by repeating Rollback. What was current is previous then.
//
// A secret that is rolled back already is success and announced once more.
// With undo it is the rollback that is rolled back: Invalid if the current
// version is none, and success if that was done already. If the credential turns
// out to be dead at a target that still honours the current one, as an issuer
// that revoked it for good, nothing changes and the error is Invalid.
func (r *Runner) Rollback(ctx context.Context, id ref.Ref, undo bool) (Result, error) {
	res := Result{Ref: id}
	unlock, err := r.lock(ctx, id)
	if err != nil {
		return res, err
	}
	defer unlock()
	d, err := r.store.Describe(ctx, id)
	if err != nil {
		return res, fmt.Errorf("describe %s: %w", id, err)
	}
	current, previous := d.Holder(secrets.Current), d.Holder(secrets.Previous)
	if current == nil {
		return res, fault.Newf(fault.NotFound, "rollback", "%s has no current version", id)
	}
	name := rollbackToken
	if undo {
		name = undoToken
	}
	res.Token = name(id, current.ID)
	pending, err := r.store.Get(ctx, id, secrets.Pending)
	switch {
	case err == nil && pending.Token != res.Token:
		return res, fault.Newf(fault.Conflict, "rollback", "a rotation of %s (token %s) is unfinished; finish it with keyturn rotate or give it up with keyturn discard, then roll back", id, pending.Token)
	case err == nil:
		res.Resumed = true
	case !fault.Is(err, fault.NotFound):
		return res, fmt.Errorf("read pending of %s: %w", id, err)
	case previous == nil:
		return res, fault.Newf(fault.NotFound, "rollback", "%s has no previous version to go back to; rotate it instead", id)
	case undo && !isRollback(id, current.Token, previous.ID):
		return res, fault.Newf(fault.Invalid, "rollback", "the current version of %s is no rollback, so there is none to undo", id)
	case current.Token == name(id, previous.ID):
		res.Token, res.Version, res.Previous = current.Token, current.ID, previous.ID
		res.Already = true
		return res, r.announceFinish(ctx, id, res.Token, res.Version, res.Previous)
	default:
		if err := r.stagePrevious(ctx, id, res.Token, current.ID, previous); err != nil {
			return res, err
		}
	}

	started := r.event(events.RotationStarted, id, res.Token)
	started.Data.Reason = "rollback"
	r.announce(ctx, started)
	return r.runPhases(ctx, d, res, Set, Test, Finish)
}

// stagePrevious journals the previous credential as pending.
func (r *Runner) stagePrevious(ctx context.Context, id ref.Ref, token, currentID string, previous *secrets.VersionInfo) error {
	c, old, err := r.reopen(ctx, id, previous)
	if err != nil {
		return err
	}
	if r.same(old.Value, c.Current) {
		err := fault.Newf(fault.Invalid, "rollback", "the previous version of %s holds the same credential as the current one; rotate it instead", id)
		if previous.Disabled {
			err = errors.Join(err, r.disableAgain(ctx, id))
		}
		return err
	}
	if _, _, err := r.putPending(ctx, id, token, currentID, old.Value); err != nil {
		return fmt.Errorf("store pending: %w", err)
	}
	return nil
}

// set makes the target honour pending. The pending credential of a rollback
// may have been retired, and is revived first.
func (r *Runner) set(ctx context.Context, c Change, currentID string) error {
	if rs, ok := r.rotator.(Restorer); ok && isRollback(c.Ref, c.Token, currentID) {
		// Invalid is "gone for good, or cannot live beside current": Set may
		// still make it the one that lives, and Test tells.
		if err := rs.Restore(ctx, Change{Ref: c.Ref, Token: c.Token, Current: c.Current, StillPending: c.StillPending}, c.Pending); err != nil && !fault.Is(err, fault.Invalid) {
			return err
		}
	}
	return r.rotator.Set(ctx, c)
}

// disableAgain takes out of use what a rollback that came to nothing had
// enabled: left held, it would keep every rotation from beginning.
func (r *Runner) disableAgain(ctx context.Context, id ref.Ref) error {
	s, ok := r.store.(secrets.Disabler)
	if !ok {
		return nil
	}
	d, err := r.store.Describe(ctx, id)
	if err != nil {
		return fmt.Errorf("describe %s: %w", id, err)
	}
	if h := d.Holder(secrets.Previous); h != nil && h.Held {
		if err := s.Disable(ctx, id, h.ID); err != nil {
			return fmt.Errorf("disable version %s of %s: %w", h.ID, id, err)
		}
	}
	return nil
}

// giveUpRollback discards the pending credential of a rollback that the
// target refuses for good while it honours the current one: kept, it would
// block every rotation to come.
func (r *Runner) giveUpRollback(ctx context.Context, id ref.Ref, token string, p Phase, cause error) error {
	if p == Finish || !fault.Is(cause, fault.Denied) && !fault.Is(cause, fault.Invalid) || !r.onlyCurrentWorks(ctx, id, token) {
		return cause
	}
	if err := r.store.Discard(ctx, id, token); err != nil {
		return errors.Join(cause, fmt.Errorf("discard pending: %w", err))
	}
	if err := r.disableAgain(ctx, id); err != nil {
		return errors.Join(cause, err)
	}
	return &fault.Error{
		Kind: fault.Invalid, Class: fault.ClassOf(cause), Op: "rollback",
		Msg: "the previous credential is dead at the target, and the current one works and was kept; the dead one's version is disabled. Rotate instead", Err: cause,
	}
}
