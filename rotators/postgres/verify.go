package postgres

import (
	"context"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

var (
	_ rotators.Verifier = (*single)(nil)
	_ rotators.Verifier = (*alternating)(nil)
	_ rotators.Comparer = (*single)(nil)
	_ rotators.Comparer = (*alternating)(nil)
)

// SameCredential implements [rotators.Comparer]: one user with one password.
// Where is not compared, since a secret that was edited may name its server
// otherwise.
func (b *base) SameCredential(x, y secrets.Value) bool {
	s, err := parse("postgres: compare", "a value", x)
	if err != nil {
		return false
	}
	o, err := parse("postgres: compare", "a value", y)
	return err == nil && s.Username == o.Username && samePassword(s, o)
}

// Verify implements [rotators.Verifier], for any user of current's server.
func (b *base) Verify(ctx context.Context, c rotators.Change, v secrets.Value) error {
	const op = "postgres: verify"
	cur, err := parse(op, "current", c.Current)
	if err != nil {
		return err
	}
	s, err := other(op, "the value", cur, v)
	if err != nil {
		return err
	}
	ctx, cancel := b.bound(ctx)
	defer cancel()
	in, err := b.connect(ctx, op, as("the value", s, cur))
	if err != nil {
		return err // refused is Denied of class auth already
	}
	in.close()
	return nil
}

// other reads a value beside current's and refuses, without connecting
// anywhere, one for another server.
func other(op, what string, cur *dbsecret.Secret, v secrets.Value) (*dbsecret.Secret, error) {
	s, err := parse(op, what, v)
	if err != nil {
		return nil, err
	}
	if !sameServer(s, cur) {
		return nil, fault.Newf(fault.Invalid, op, "%s names server %s; expected %s, from current", what, s.Addr(), cur.Addr())
	}
	return s, nil
}
