package apikey

import (
	"context"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// Retire implements [rotators.Retirer]. The key of current or pending is never
// taken out of use, even if old is another value that names it too.
func (r *rotator) Retire(ctx context.Context, c rotators.Change, old secrets.Value) error {
	cur, gone, err := r.unused(ctx, "retire", c, old)
	if gone == nil {
		return err
	}
	admin, err := r.admin(ctx, cur)
	if err != nil {
		return err
	}
	if err := stillPending(ctx, c); err != nil {
		return err
	}
	// Before old, from whose age the orphans are known.
	if err := r.sweepBetween(ctx, admin, c, gone, cur); err != nil {
		return err
	}
	if err := stillPending(ctx, c); err != nil {
		return err
	}
	if r.disable == nil {
		return r.revokeID(ctx, admin, gone.id)
	}
	_, err = r.do(ctx, r.disable, data{adminField: admin, "ID": gone.id})
	return err
}

// stillPending asks whether what is about to be changed still is superseded.
// An issuer has no lock, so this is as late as it can be asked.
func stillPending(ctx context.Context, c rotators.Change) error {
	if c.StillPending == nil {
		return nil
	}
	return c.StillPending(ctx)
}

// SameCredential implements [rotators.Comparer].
func (r *rotator) SameCredential(a, b secrets.Value) bool {
	x, errX := parse("compare", "a value", a)
	y, errY := parse("compare", "a value", b)
	return errX == nil && errY == nil && x.is(y)
}

// unused reads current and old. The second is nil if its key is in use, or if
// old names none.
func (r *rotator) unused(ctx context.Context, op string, c rotators.Change, old secrets.Value) (cur, gone *secret, err error) {
	if cur, err = parse(op, "current", c.Current); err != nil {
		return nil, nil, err
	}
	if gone, err = parse(op, "the superseded value", old); err != nil {
		// There is nothing to revoke it by, now or later.
		r.opts.Logger.WarnContext(ctx, "the superseded value names no key; revoke it by hand", "secret", c.Ref.String(), "err", err)
		return cur, nil, nil
	}
	if gone.is(cur) {
		return cur, nil, nil
	}
	if !c.Pending.IsZero() {
		pend, err := parse(op, "pending", c.Pending)
		if err != nil {
			return nil, nil, err
		}
		if gone.is(pend) {
			return cur, nil, nil
		}
	}
	return cur, gone, nil
}

// revokeID revokes a key; one that is gone is success.
func (r *rotator) revokeID(ctx context.Context, admin, id string) error {
	_, err := r.do(ctx, r.revoke, data{adminField: admin, "ID": id})
	return err
}

// switcher is what a rotator can do whose issuer disables and enables keys.
type switcher struct{ r *rotator }

var (
	_ rotators.Restorer  = switcher{}
	_ rotators.Destroyer = switcher{}
)

// Restore implements [rotators.Restorer]: the key of old is enabled, and used
// to prove it. A key that was revoked is Invalid.
func (s switcher) Restore(ctx context.Context, c rotators.Change, old secrets.Value) error {
	const op = "restore"
	cur, err := parse(op, "current", c.Current)
	if err != nil {
		return err
	}
	was, err := parse(op, "the superseded value", old)
	if err != nil {
		return err
	}
	admin, err := s.r.admin(ctx, cur)
	if err != nil {
		return err
	}
	if err := stillPending(ctx, c); err != nil {
		return err
	}
	a, err := s.r.do(ctx, s.r.enable, data{adminField: admin, "ID": was.id})
	if err != nil {
		return err
	}
	if a.gone {
		return fault.Newf(fault.Invalid, "apikey: "+op, "%s has no key with the id of the superseded value any more; rotate to get another", s.r.enable.host)
	}
	return s.r.try(ctx, was)
}

// Destroy implements [rotators.Destroyer]. Unlike Retire it looks for no orphans: old
// may be of long ago, and what was made since is no attempt to succeed it.
func (s switcher) Destroy(ctx context.Context, c rotators.Change, old secrets.Value) error {
	cur, gone, err := s.r.unused(ctx, "destroy", c, old)
	if gone == nil {
		return err
	}
	admin, err := s.r.admin(ctx, cur)
	if err != nil {
		return err
	}
	return s.r.revokeID(ctx, admin, gone.id)
}
