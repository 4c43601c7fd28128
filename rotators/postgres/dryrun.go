package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/rotators"
)

var (
	_ rotators.DryRunner = (*single)(nil)
	_ rotators.DryRunner = (*alternating)(nil)
)

// checks are those of one dry run, until one fails.
type checks []rotators.Check

// add notes one and reports whether it holds.
func (c *checks) add(what string, err error) bool {
	*c = append(*c, rotators.Check{What: what, Err: err})
	return err == nil
}

// signIn signs in as l and notes what holds of the way there. Nobody but the
// caller closes the session, which is nil if a check failed.
func (c *checks) signIn(ctx context.Context, b *base, op string, l login) *session {
	s, err := b.connect(ctx, op, l)
	addr := fmt.Sprintf("%s:%d", l.server.Host, l.server.Port)
	reach, withTLS := "reach "+addr, "TLS of "+addr+", verified"
	switch fault.ClassOf(err) {
	case fault.ClassNetwork, fault.ClassTimeout:
		c.add(reach, err)
		return nil
	case fault.ClassTLS:
		c.add(reach, nil)
		c.add(withTLS, err)
		return nil
	}
	c.add(reach, nil)
	if l.ssl != dbsecret.SSLDisable && (s == nil || s.encrypted()) {
		c.add(withTLS, nil)
	}
	if !c.add(fmt.Sprintf("sign in to %s as %q (%s)", addr, l.secret.Username, l.describe), err) {
		return nil
	}
	return s
}

// next notes whether the next credential can be made.
func (c *checks) next(ctx context.Context, r rotators.Rotator, ch rotators.Change) (cur, next *dbsecret.Secret) {
	const op = "postgres: dry run"
	cur, err := parse(op, "current", ch.Current)
	if !c.add("read current as the secret of a database", err) {
		return nil, nil
	}
	v, err := r.Create(ctx, ch)
	if err == nil {
		defer v.Wipe()
		next, err = parse(op, "the next value", v)
	}
	if !c.add("make the next credential: user name, password policy, masterarn where it is needed", err) {
		return nil, nil
	}
	return cur, next
}

// DryRun implements [rotators.DryRunner].
func (r *single) DryRun(ctx context.Context, c rotators.Change) []rotators.Check {
	const op = "postgres: dry run"
	var out checks
	cur, _ := out.next(ctx, r, c)
	if cur == nil {
		return out
	}
	ctx, cancel := r.bound(ctx)
	defer cancel()
	s := out.signIn(ctx, &r.base, op, as("current", cur, cur))
	if s == nil {
		return out
	}
	defer s.close()
	if !out.add("the server takes changes", s.writable(ctx)) {
		return out
	}
	if !out.add(fmt.Sprintf("%q may change its own password", cur.Username), s.maySetOwn(ctx)) {
		return out
	}
	out.probe(ctx, s, cur)
	return out
}

// DryRun implements [rotators.DryRunner].
func (r *alternating) DryRun(ctx context.Context, c rotators.Change) []rotators.Check {
	const op = "postgres: dry run"
	var out checks
	cur, next := out.next(ctx, r, c)
	if cur == nil {
		return out
	}
	ctx, cancel := r.bound(ctx)
	defer cancel()
	s := out.signIn(ctx, &r.base, op, as("current", cur, cur))
	if s == nil {
		return out
	}
	defer s.close()
	l, err := r.authority(ctx, op, cur, next)
	if !out.add("read the master secret, of another user on the same server", err) {
		return out
	}
	m := out.signIn(ctx, &r.base, op, l)
	if m == nil {
		return out
	}
	defer m.close()
	if !out.add("the server takes changes", m.writable(ctx)) {
		return out
	}
	may := fmt.Sprintf("master %q may make and change %q and %q", l.secret.Username, cur.Username, next.Username)
	if !out.add(may, m.mayAlternate(ctx, cur.Username, next.Username)) {
		return out
	}
	if !out.add(fmt.Sprintf("the server takes a password from %q", next.Username), r.takesPassword(ctx, op, as("the next credential", next, cur))) {
		return out
	}
	out.probe(ctx, s, cur)
	return out
}

// takesPassword says why the server would not take a password from a user, by
// offering one that cannot be right: to be refused for it is what is hoped
// for. pg_hba.conf may list users by name, and an alternate that is not in it
// would be found when everything is changed already.
func (b *base) takesPassword(ctx context.Context, op string, l login) error {
	s, err := b.connect(ctx, op, l)
	if err == nil {
		s.close()
		return fault.Newf(fault.Invalid, op, "%q signs in with any password; expected scram-sha-256 in pg_hba.conf", l.secret.Username)
	}
	if refused(err) {
		return nil
	}
	return err
}

// probe notes whether the probe of the secret runs, as the user in use.
func (c *checks) probe(ctx context.Context, s *session, cur *dbsecret.Secret) {
	if cur.Probe != "" {
		c.add("run the probe", s.runProbe(ctx, cur.Probe))
	}
}

// writable says why the server changes no roles, which a replica does not.
func (s *session) writable(ctx context.Context) error {
	rows, err := s.rows(ctx, "read recovery", "SELECT pg_catalog.pg_is_in_recovery()")
	if err != nil {
		return err
	}
	if len(rows) != 1 || rows[0][0] != "f" {
		return fault.Newf(fault.Unavailable, s.op, "the host is a replica, or the server is still recovering; expected the primary")
	}
	return nil
}

// maySetOwn says why the session's user may not change its own password: it
// may unless its sessions act as somebody else.
// https://www.postgresql.org/docs/current/sql-alterrole.html
func (s *session) maySetOwn(ctx context.Context) error {
	rows, err := s.rows(ctx, "read user", "SELECT session_user = current_user OR rolsuper OR rolcreaterole, current_user FROM pg_catalog.pg_roles WHERE rolname = current_user")
	if err != nil {
		return err
	}
	if len(rows) != 1 || rows[0][0] != "t" {
		return &fault.Error{
			Kind: fault.Denied, Class: fault.ClassPermission, Op: s.op,
			Msg: "the sessions of the user act as another role, by its setting role, and so may not change its password; ALTER ROLE ... RESET role, or rotate it as an alternating user",
		}
	}
	return nil
}

// mayAlternate says why the session's user may not do what set does with the
// pair.
func (s *session) mayAlternate(ctx context.Context, current, alternate string) error {
	cur, err := s.role(ctx, current, alternate)
	if err != nil {
		return err
	}
	if cur == nil {
		return fault.Newf(fault.NotFound, s.op, "role %q does not exist, although it signed in; is the secret's host a pooler that renames users?", current)
	}
	alt, err := s.role(ctx, alternate, current)
	if err != nil {
		return err
	}
	if alt != nil {
		if err := s.mayAdopt(cur, alt); err != nil {
			return err
		}
	}
	return s.mayManage(ctx, cur, alt)
}

// mayManage compares the rights of the session's user with what CREATE ROLE,
// ALTER ROLE and GRANT ask for. alt may be nil.
// https://www.postgresql.org/docs/current/role-attributes.html
// https://www.postgresql.org/docs/15/sql-alterrole.html
func (s *session) mayManage(ctx context.Context, cur, alt *role) error {
	denied := func(format string, args ...any) error {
		return &fault.Error{Kind: fault.Denied, Class: fault.ClassPermission, Op: s.op, Msg: fmt.Sprintf(format, args...)}
	}
	mine, err := s.rows(ctx, "read rights", "SELECT rolsuper, rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user")
	if err != nil {
		return err
	}
	if len(mine) == 1 && mine[0][0] == "t" {
		return nil
	}
	if len(mine) != 1 || mine[0][1] != "t" {
		return denied("the master is no superuser and has no CREATEROLE; expected one of them")
	}
	beyond := []string{"SUPERUSER"}
	if s.major < 16 {
		beyond = append(beyond, "REPLICATION")
	}
	for _, r := range []*role{cur, alt} {
		for _, p := range beyond {
			if r != nil && slices.Contains(r.powers, p) {
				return denied("role %q is %s, which only a superuser may change; the master is none", r.name, p)
			}
		}
	}
	if s.major < 16 {
		return nil // CREATEROLE reaches all others
	}
	names := []string{cur.name, cur.name}
	if alt != nil {
		names[1] = alt.name
	}
	rows, err := s.rows(ctx, "read admin option", "SELECT quote_ident(rolname) FROM pg_catalog.pg_roles WHERE rolname IN ($1, $2) AND NOT pg_catalog.pg_has_role(oid, 'MEMBER WITH ADMIN OPTION')", names...)
	if err != nil {
		return err
	}
	var missing []string
	for _, r := range rows {
		missing = append(missing, r[0])
	}
	if len(missing) > 0 {
		return denied("the master has no ADMIN OPTION on %s; GRANT that to it WITH ADMIN OPTION", strings.Join(missing, ", "))
	}
	return nil
}
