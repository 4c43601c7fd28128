package rotators

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// DryRun looks, without changing anything, whether a rotation of a secret
// would work: the store first, then what the rotator can tell of its target.
// Every check is told, those that hold too; where one fails that the others
// need, they are left out.
func (r *Runner) DryRun(ctx context.Context, id ref.Ref) []Check {
	var checks []Check
	add := func(err error, format string, args ...any) bool {
		checks = append(checks, Check{What: fmt.Sprintf(format, args...), Err: err})
		return err == nil
	}
	d, err := r.store.Describe(ctx, id)
	if !add(err, "describe %s", id) {
		return checks
	}
	current, err := r.store.Get(ctx, id, secrets.Current)
	if !add(err, "read its current version") {
		return checks
	}
	c := Change{Ref: id, Token: NewToken(), Current: current.Value}
	c.Previous, err = r.previous(ctx, id)
	add(err, "read its previous version, if any")
	if s, ok := r.store.(secrets.Checker); ok {
		add(s.Check(ctx, id), "permissions in the store")
	}
	if d.RotationDisabled {
		add(fault.Newf(fault.Invalid, "rotate", "rotation of this secret is switched off at its provider; switch it on"), "rotation is enabled")
	}
	pending, err := r.store.Get(ctx, id, secrets.Pending)
	switch {
	case err == nil:
		c.Pending = pending.Value
		add(nil, "unfinished rotation %s would be rolled forward", pending.Token)
	case !fault.Is(err, fault.NotFound):
		add(err, "read its pending version, if any")
	default:
		err := r.mayBegin(ctx, id, d)
		if n, ok := IsNotYet(err); ok {
			err = errors.New("not yet: " + n.Error())
		}
		add(err, "gate and minimum age let a rotation begin now")
	}
	if t, ok := r.rotator.(DryRunner); ok {
		checks = append(checks, t.DryRun(ctx, c)...)
	}
	return checks
}
