package rotators

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// cleanUp removes what a finished rotation left behind: a pending stage, or
// bookkeeping that a description does not show. A service that opens rotations
// clears its own label.
func (r *Runner) cleanUp(ctx context.Context, id ref.Ref, d *secrets.Description, token string) error {
	if d.Opened && !d.Has(token, secrets.Pending) {
		return nil
	}
	if err := r.store.Discard(ctx, id, token); err != nil {
		return fmt.Errorf("clean up after rotation of %s: %w", id, err)
	}
	return nil
}

// phase runs one phase with its deadline, log line and observer. d is the
// secret as it was when the rotation was decided on. The caller holds the
// secret's lock.
func (r *Runner) phase(ctx context.Context, id ref.Ref, d *secrets.Description, token string, p Phase) error {
	start := time.Now()
	err := r.checkBudget(ctx, p)
	if err == nil {
		pctx, cancel := context.WithTimeout(ctx, r.opts.PhaseTimeout)
		switch p {
		case Create:
			err = r.create(pctx, id, token, d.HolderID(secrets.Current))
		case Set:
			err = r.withChange(pctx, id, token, r.set)
		case Test:
			err = r.withChange(pctx, id, token, func(ctx context.Context, c Change, _ string) error {
				return r.rotator.Test(ctx, c)
			})
		case Finish:
			err = r.finish(pctx, id, token)
		}
		cancel()
	}
	took := time.Since(start)
	log := r.opts.Logger.With("secret", id.String(), "token", token, "step", string(p), "took", took)
	if err != nil {
		err = fmt.Errorf("%s %s: %w", p, id, err)
		log.ErrorContext(ctx, "phase failed", "kind", fault.KindOf(err).String(), "class", string(fault.ClassOf(err)), "err", err)
	} else {
		log.InfoContext(ctx, "phase done")
	}
	r.opts.Observe(Progress{Ref: id, Token: token, Phase: p, Took: took, Err: err})
	return err
}

func (r *Runner) checkBudget(ctx context.Context, p Phase) error {
	if err := ctx.Err(); err != nil {
		return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassTimeout, Op: string(p), Err: err}
	}
	deadline, ok := ctx.Deadline()
	if left := time.Until(deadline); ok && left < r.opts.Budget {
		return &fault.Error{
			Kind: fault.Unavailable, Class: fault.ClassTimeout, Op: string(p),
			Msg: fmt.Sprintf("%s left before the deadline, not begun; expected at least %s; raise the function's time-out", left.Round(time.Millisecond), r.opts.Budget),
		}
	}
	return nil
}

// create makes and stores pending, if the version with the id seen is still
// current: a rotation that ended meanwhile was the one wanted, and what it
// superseded a moment ago is not to be retired yet.
func (r *Runner) create(ctx context.Context, id ref.Ref, token, seen string) error {
	current, err := r.store.Get(ctx, id, secrets.Current)
	switch {
	case err != nil:
		return fmt.Errorf("read current: %w", err)
	case finished(current, token):
		return nil
	case current.ID != seen:
		return moved(id, "nothing was made")
	}
	pending, err := r.store.Get(ctx, id, secrets.Pending)
	switch {
	case err == nil && pending.Token == token:
		return nil // stored by an earlier attempt: never overwritten
	case err == nil:
		return fault.Newf(fault.Conflict, "create", "another rotation (token %s) of %s is unfinished; let it finish, or discard it", pending.Token, id)
	case !fault.Is(err, fault.NotFound):
		// Only "there is none" means make one: a refused or throttled read
		// must not lead to a second credential.
		return fmt.Errorf("read pending: %w", err)
	}
	c := Change{Ref: id, Token: token, Current: current.Value}
	if c.Previous, err = r.previous(ctx, id); err != nil {
		return err
	}
	if err := r.makeRoom(ctx, c, current.ID); err != nil {
		return fmt.Errorf("retire the superseded credential: %w", err)
	}
	v, err := r.rotator.Create(ctx, c)
	if err != nil {
		return err
	}
	stored, bound, err := r.putPending(ctx, id, token, current.ID, v)
	switch {
	case fault.Is(err, fault.Conflict):
		// Another rotation was faster; for any other error v may be stored.
		return errors.Join(fmt.Errorf("store pending: %w", err), r.drop(ctx, c, v))
	case err != nil:
		return fmt.Errorf("store pending: %w", err)
	case !stored.Value.Equal(v):
		return r.drop(ctx, c, v) // a twin was faster, and what it stored is the truth
	}
	if bound {
		return nil
	}
	return r.checkCurrent(ctx, c, current.ID, v)
}

// putPending stores v as the pending version that is to succeed current. bound
// reports that the store made sure of the latter.
func (r *Runner) putPending(ctx context.Context, id ref.Ref, token, current string, v secrets.Value) (stored *secrets.Version, bound bool, err error) {
	if s, ok := r.store.(secrets.Succeeder); ok {
		stored, err = s.PutPendingAfter(ctx, id, token, current, v)
		return stored, true, err
	}
	stored, err = r.store.PutPending(ctx, id, token, v)
	return stored, false, err
}

// checkCurrent is for stores that are no [secrets.Succeeder]. It takes back v,
// which was stored as pending, if current has moved since it was read: v succeeds a version that is not current any more (of
// two users that alternate it would be the one in use), and nothing could
// ever set it.
func (r *Runner) checkCurrent(ctx context.Context, c Change, readID string, v secrets.Value) error {
	now, err := r.store.Get(ctx, c.Ref, secrets.Current)
	if err != nil {
		return fmt.Errorf("read current again: %w", err)
	}
	if now.ID == readID || finished(now, c.Token) {
		return nil
	}
	err = moved(c.Ref, "pending was discarded")
	if derr := r.store.Discard(ctx, c.Ref, c.Token); derr != nil {
		return errors.Join(err, fmt.Errorf("discard pending: %w", derr))
	}
	return errors.Join(err, r.drop(ctx, c, v))
}

// finished reports whether a twin has ended the rotation named token.
func finished(current *secrets.Version, token string) bool {
	return token != "" && current.Token == token
}

func moved(id ref.Ref, what string) error {
	return &fault.Error{
		Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: "create",
		Msg: fmt.Sprintf("another rotation of %s ended meanwhile; %s, rotate again if it is still wanted", id, what),
	}
}

// drop revokes v, which was made and is no version: an issued key would stay
// alive unseen. It looks at the store once more, since a store's client that
// repeated a call by itself may have been told of its own success as a
// conflict.
func (r *Runner) drop(ctx context.Context, c Change, v secrets.Value) error {
	rt, ok := r.rotator.(Retirer)
	if !ok {
		return nil
	}
	for stage, held := range map[secrets.Stage]*secrets.Value{
		secrets.Current: &c.Current, secrets.Pending: &c.Pending, secrets.Previous: &c.Previous,
	} {
		now, err := r.store.Get(ctx, c.Ref, stage)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s to revoke a credential that is not stored: %w", stage, err)
		}
		if now.Value.Equal(v) {
			return nil
		}
		*held = now.Value
	}
	if err := rt.Retire(ctx, c, v); err != nil {
		return fmt.Errorf("revoke a credential that is not stored: %w", err)
	}
	return nil
}

// previous returns the previous value, zero if there is none.
func (r *Runner) previous(ctx context.Context, id ref.Ref) (secrets.Value, error) {
	v, err := r.store.Get(ctx, id, secrets.Previous)
	if fault.Is(err, fault.NotFound) {
		return secrets.Value{}, nil
	}
	if err != nil {
		return secrets.Value{}, fmt.Errorf("read previous: %w", err)
	}
	return v.Value, nil
}

// withChange loads what a rotation knows and calls f with it and with the id of
// the current version.
func (r *Runner) withChange(ctx context.Context, id ref.Ref, token string, f func(ctx context.Context, c Change, currentID string) error) error {
	current, err := r.store.Get(ctx, id, secrets.Current)
	if err != nil {
		return fmt.Errorf("read current: %w", err)
	}
	if finished(current, token) {
		return nil
	}
	pending, err := r.store.Get(ctx, id, secrets.Pending)
	if err != nil {
		return fmt.Errorf("read pending: %w", err)
	}
	if pending.Token != token {
		return fault.Newf(fault.Conflict, "rotate", "pending of %s belongs to rotation %s, not %s; let that one finish, or discard it", id, pending.Token, token)
	}
	c := Change{Ref: id, Token: token, Current: current.Value, Pending: pending.Value}
	if c.Previous, err = r.previous(ctx, id); err != nil {
		return err
	}
	c.StillPending = func(ctx context.Context) error {
		now, err := r.store.Get(ctx, id, secrets.Pending)
		if err == nil && now.Token == token {
			return nil
		}
		if err != nil && !fault.Is(err, fault.NotFound) {
			return fmt.Errorf("read pending again: %w", err)
		}
		return &fault.Error{
			Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: "rotate",
			Msg: fmt.Sprintf("rotation %s of %s was ended by another process meanwhile; nothing was changed", token, id),
		}
	}
	return f(ctx, c, current.ID)
}

// promoteTries bounds how often finish looks again after somebody moved
// current between its look and its move.
const promoteTries = 3

func (r *Runner) finish(ctx context.Context, id ref.Ref, token string) error {
	var before *secrets.Description
	var v *secrets.Version
	err := error(nil)
	for range promoteTries {
		if before, err = r.store.Describe(ctx, id); err != nil {
			return fmt.Errorf("describe: %w", err)
		}
		if err = r.disableSuperseded(ctx, id, before, token); err != nil {
			return err
		}
		if v, err = r.store.Promote(ctx, id, token); !fault.Is(err, fault.Conflict) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	previous := before.HolderID(secrets.Current)
	if before.Has(token, secrets.Current) {
		previous = before.HolderID(secrets.Previous)
	}
	return r.announceFinish(ctx, id, token, v.ID, previous)
}
