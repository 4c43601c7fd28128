package apikey

import (
	"context"
	"fmt"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// try makes the verify request with a key.
func (r *rotator) try(ctx context.Context, s *secret) error {
	_, err := r.do(ctx, r.verify, data{keyField: s.key, "ID": s.id})
	return err
}

// Verify implements [rotators.Verifier] by the verify request: a key that is
// answered with 401 is refused.
func (r *rotator) Verify(ctx context.Context, c rotators.Change, v secrets.Value) error {
	const op = "verify"
	cur, err := parse(op, "current", c.Current)
	if err != nil {
		return err
	}
	s, err := parse(op, "the value", v)
	if err != nil {
		return err
	}
	if s.admin != cur.admin {
		return fault.Newf(fault.Invalid, "apikey: "+op, "the value names another adminarn than current, so another issuer")
	}
	return r.try(ctx, s)
}

// DryRun implements [rotators.DryRunner]. That the administrator may make and
// revoke keys, and that there is room for another, no issuer tells without
// doing it; a list shows at least that the administrator's credential works.
func (r *rotator) DryRun(ctx context.Context, c rotators.Change) (out []rotators.Check) {
	add := func(what string, err error) bool {
		out = append(out, rotators.Check{What: what, Err: err})
		return err == nil
	}
	cur, err := parse("dry run", "current", c.Current)
	if !add("read current as a key with its id", err) {
		return out
	}
	if !add(fmt.Sprintf("use the current key at %s", r.verify.host), r.try(ctx, cur)) {
		return out
	}
	admin, err := r.admin(ctx, cur)
	if !add("read the administrator's secret", err) {
		return out
	}
	if !add("fill in the requests", r.fill(c, cur, admin)) || r.list == nil {
		return out
	}
	keys, _, err := r.keys(ctx, admin)
	if _, there := keys[cur.id]; err == nil && !there {
		err = fault.Newf(fault.Invalid, r.list.name(), "the current key is not in the list of %s, which has %d keys; the administrator's credential may be of another project, or the list leaves keys out", r.list.host, len(keys))
	}
	add(fmt.Sprintf("list the keys at %s as administrator", r.list.host), err)
	return out
}

// fill fills in the requests that a rotation makes as administrator, as far as
// what they need is known, and sends none.
func (r *rotator) fill(c rotators.Change, cur *secret, admin string) error {
	for _, q := range []*call{r.create, r.revoke, r.disable, r.enable} {
		if q == nil {
			continue
		}
		d := data{"Vars": r.cfg.Vars, adminField: admin, "Name": tag(c.Ref) + rotation(c.Token), "ID": cur.id}
		if _, _, _, err := q.render(d, false); err != nil {
			return err
		}
	}
	return nil
}
