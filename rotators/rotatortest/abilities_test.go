package rotatortest_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/rotatortest"
	"github.com/keyturn/keyturn/secrets"
)

// What the three rotators of this test can do besides rotating.
var (
	_ rotators.Verifier     = (*rotator)(nil)
	_ rotators.DryRunner    = (*rotator)(nil)
	_ rotators.Restorer     = (*alternating)(nil)
	_ rotators.Retirer      = (*alternating)(nil)
	_ rotators.OrphanFinder = (*issuing)(nil)
	_ rotators.Retirer      = (*issuing)(nil)
)

func (s *server) Fingerprint(*testing.T) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint(s.users, s.tags, s.n)
}

func (s *server) Breaks() []rotatortest.Break {
	return []rotatortest.Break{
		{"AnotherPassword", func(t *testing.T, v secrets.Value) secrets.Value {
			d, err := read(v)
			if err != nil {
				t.Fatal(err)
			}
			s.users[d.User] = "changed-behind-our-back"
			return v
		}, fault.Denied, fault.ClassAuth},
		{"Down", func(_ *testing.T, v secrets.Value) secrets.Value {
			s.down = true
			return v
		}, fault.Unavailable, fault.ClassNetwork},
		{"NoSecret", func(*testing.T, secrets.Value) secrets.Value { return secrets.NewString(`{"password":"x"}`) }, fault.Invalid, ""},
	}
}

func (r *rotator) Verify(ctx context.Context, c rotators.Change, v secrets.Value) error {
	cur, err := read(c.Current)
	if err != nil {
		return err
	}
	d, err := read(v)
	if err != nil {
		return err
	}
	if d.Host != cur.Host {
		return fault.Newf(fault.Invalid, "verify", "the value names another target")
	}
	right := false
	if err := r.call(ctx, "sign in", func() { right = r.s.users[d.User] == d.Password }); err != nil && r.s.wrong != "verifies by guess" {
		return err
	}
	if !right && r.s.wrong != "verifies anything" {
		return &fault.Error{Kind: fault.Denied, Class: fault.ClassAuth, Op: "verify"}
	}
	return nil
}

func (r *rotator) DryRun(ctx context.Context, c rotators.Change) []rotators.Check {
	out := []rotators.Check{{What: "read current"}}
	if _, out[0].Err = read(c.Current); out[0].Err != nil {
		return out
	}
	if r.s.wrong == "is always well" {
		return out
	}
	out = append(out, rotators.Check{What: "reach the server"})
	if r.s.down {
		out[1].Err = &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: "dry run"}
		return out
	}
	out = append(out, rotators.Check{What: "sign in", Err: r.Verify(ctx, c, c.Current)})
	if r.s.wrong == "tries for real" {
		d, _ := read(c.Current)
		r.s.users["tried-"+d.User] = d.Password
	}
	return out
}

// alternating can revoke a password without the other: it gives the user
// another.
type alternating struct{ *rotator }

func (r *alternating) Retire(ctx context.Context, c rotators.Change, old secrets.Value) error {
	d, err := read(old)
	if err != nil {
		return err
	}
	if used(c, d) && r.s.wrong != "retires the user" {
		return nil
	}
	if err := r.still(ctx, c); err != nil {
		return err
	}
	return r.call(ctx, "scramble", func() {
		if r.s.users[d.User] == d.Password {
			r.s.n++
			r.s.users[d.User] = fmt.Sprintf("nobody-knows-%d", r.s.n)
		}
	})
}

func (r *alternating) Restore(ctx context.Context, c rotators.Change, old secrets.Value) error {
	d, err := read(old)
	if err != nil {
		return err
	}
	cur, err := read(c.Current)
	if err != nil {
		return err
	}
	if d.User == cur.User && d.Password != cur.Password && r.s.wrong != "restores over current" {
		return fault.Newf(fault.Invalid, "restore", "the user is in use")
	}
	if r.s.wrong == "restores nothing" {
		return nil
	}
	if err := r.still(ctx, c); err != nil {
		return err
	}
	return r.call(ctx, "alter user", func() { r.s.users[d.User] = d.Password })
}

func (r *rotator) still(ctx context.Context, c rotators.Change) error {
	if c.StillPending == nil || r.s.wrong == "does not look again" {
		return nil
	}
	return c.StillPending(ctx)
}

// used reports whether current or pending is the credential d.
func used(c rotators.Change, d doc) bool {
	for _, v := range []secrets.Value{c.Current, c.Pending} {
		if u, err := read(v); err == nil && u.User == d.User {
			return true
		}
	}
	return false
}

func (r *issuing) Retire(ctx context.Context, c rotators.Change, old secrets.Value) error {
	d, err := read(old)
	if err != nil {
		return err
	}
	if r.s.wrong == "retires nothing" || used(c, d) && r.s.wrong != "retires anything" {
		return nil
	}
	if err := r.still(ctx, c); err != nil {
		return err
	}
	return r.call(ctx, "revoke", func() { delete(r.s.users, d.User) })
}

func (r *issuing) Orphans(ctx context.Context, c rotators.Change) (ids []string, err error) {
	if _, err := read(c.Current); err != nil {
		return nil, err
	}
	prev, _ := read(c.Previous)
	err = r.call(ctx, "list", func() {
		for _, id := range slices.Sorted(maps.Keys(r.s.users)) {
			if !used(c, doc{User: id}) && (id != prev.User || r.s.wrong == "takes versions for orphans") {
				ids = append(ids, id)
			}
		}
	})
	if r.s.wrong == "forgets an orphan" && len(ids) > 0 {
		ids = ids[1:]
	}
	return ids, err
}

func (r *issuing) RemoveOrphans(ctx context.Context, c rotators.Change) error {
	ids, err := r.Orphans(ctx, c)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if err := r.call(ctx, "revoke", func() { delete(r.s.users, id) }); err != nil {
			return err
		}
	}
	return nil
}
