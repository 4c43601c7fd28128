package postgres

import (
	"context"
	"fmt"
	"slices"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
)

// A role is what pg_roles says of one.
type role struct {
	name       string
	powers     []string // SUPERUSER and the like, if it has them
	connLimit  string
	validUntil string
	// memberOfOther and bare describe the role beside the other of the pair.
	memberOfOther bool // is a member of the other
	complete      bool // ... and may act as it
	bare          bool // owns nothing, was granted nothing, is a member of nothing else
}

// setAlternate makes the user of pend the alternate of the user current, and
// gives it pend's password. It runs in a transaction, as the master, and may
// be repeated: whatever is missing or was changed by hand is put right.
func (s *session) setAlternate(ctx context.Context, current string, pend *dbsecret.Secret) error {
	cur, err := s.role(ctx, current, pend.Username)
	if err != nil {
		return err
	}
	alt, err := s.role(ctx, pend.Username, current)
	if err != nil {
		return err
	}
	if cur == nil {
		return fault.Newf(fault.NotFound, s.op, "role %q does not exist, although it signed in; is the secret's host a pooler that renames users?", current)
	}
	if alt != nil {
		if err := s.mayAdopt(cur, alt); err != nil {
			return err
		}
	}
	// The original is whoever the other is a member of.
	orig, clone := cur, alt
	if alt != nil && cur.memberOfOther {
		orig, clone = alt, cur
	}
	if clone == nil {
		if err := s.exec(ctx, "create role", "CREATE ROLE "+ident(pend.Username)+" LOGIN"); err != nil {
			return err
		}
		clone = &role{name: pend.Username, connLimit: "-1", validUntil: "infinity"}
	}
	if err := s.converge(ctx, orig, clone, clone == cur); err != nil {
		return err
	}
	return s.setPassword(ctx, pend.Username, pend.Password, " LOGIN")
}

// mayAdopt refuses to hand out the password of a role that only happens to
// have the alternate's name: whoever knows the current password would get a
// role with more rights.
func (s *session) mayAdopt(cur, alt *role) error {
	switch {
	case cur.memberOfOther:
		return nil // may act as alt anyway
	case !alt.memberOfOther && !alt.bare:
		return &fault.Error{
			Kind: fault.Denied, Class: fault.ClassPermission, Op: s.op,
			Msg: fmt.Sprintf("role %q exists, has rights or objects, and is not a member of %q; if it is meant to be its alternate: GRANT %s TO %s", alt.name, cur.name, ident(cur.name), ident(alt.name)),
		}
	}
	for _, p := range alt.powers {
		if !slices.Contains(cur.powers, p) {
			return &fault.Error{
				Kind: fault.Denied, Class: fault.ClassPermission, Op: s.op,
				Msg: fmt.Sprintf("role %q is %s and %q is not; take that from the alternate first", alt.name, p, cur.name),
			}
		}
	}
	return nil
}

// role reads name beside other, or nil.
func (s *session) role(ctx context.Context, name, other string) (*role, error) {
	complete := "true"
	if s.major >= 16 {
		complete = "m.inherit_option AND m.set_option"
	}
	rows, err := s.rows(ctx, "read role", `
SELECT r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolreplication, r.rolbypassrls, r.rolconnlimit, coalesce(r.rolvaliduntil, 'infinity'),
  EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles o ON o.oid = m.roleid WHERE m.member = r.oid AND o.rolname = $2),
  EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles o ON o.oid = m.roleid WHERE m.member = r.oid AND o.rolname = $2 AND `+complete+`),
  NOT EXISTS (SELECT FROM pg_auth_members m WHERE m.member = r.oid)
  AND NOT EXISTS (SELECT FROM pg_shdepend d WHERE d.refclassid = 'pg_authid'::regclass AND d.refobjid = r.oid)
FROM pg_roles r WHERE r.rolname = $1`, name, other)
	if err != nil || len(rows) == 0 {
		return nil, err
	}
	f := rows[0]
	r := &role{name: name, connLimit: f[5], validUntil: f[6], memberOfOther: f[7] == "t", complete: f[8] == "t", bare: f[9] == "t"}
	for i, p := range []string{"SUPERUSER", "CREATEROLE", "CREATEDB", "REPLICATION", "BYPASSRLS"} {
		if f[i] == "t" {
			r.powers = append(r.powers, p)
		}
	}
	return r, nil
}

// converge makes every session of clone act as orig: with its rights, its
// settings, and what it creates belonging to orig. Two roles cannot be
// members of each other, so this is the one way in which either can alter and
// drop what the other made.
func (s *session) converge(ctx context.Context, orig, clone *role, inUse bool) error {
	if !clone.memberOfOther || !clone.complete {
		grant := "GRANT " + ident(orig.name) + " TO " + ident(clone.name)
		if s.major >= 16 {
			grant += " WITH INHERIT TRUE, SET TRUE"
		}
		if err := s.exec(ctx, "grant", grant); err != nil {
			return err
		}
	}
	// These count for the role that signs in. While the clone is the one in
	// use they are left: an expired original must not expire it.
	var alter string
	if clone.connLimit != orig.connLimit {
		alter += " CONNECTION LIMIT " + orig.connLimit
	}
	if clone.validUntil != orig.validUntil {
		until, err := s.literal(orig.validUntil)
		if err != nil {
			return err
		}
		alter += " VALID UNTIL " + until
	}
	if alter != "" && !inUse {
		if err := s.exec(ctx, "alter role limits", "ALTER ROLE "+ident(clone.name)+alter); err != nil {
			return err
		}
	}
	return s.copySettings(ctx, orig.name, clone.name)
}
