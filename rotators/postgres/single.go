package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

var _ rotators.Rotator = (*single)(nil)

// single changes the password of the secret's own user, who may do that
// without help.
type single struct{ base }

// NewSingle returns the rotator for one user, whose password is changed in
// place. opts may be nil. It has no Retire: what it superseded is dead. It is a
// [rotators.Verifier] and a [rotators.DryRunner].
func NewSingle(opts *Options) rotators.Rotator { return &single{newBase(opts)} }

func same(name string) string { return name }

// Create generates a password.
func (r *single) Create(_ context.Context, c rotators.Change) (secrets.Value, error) {
	cur, err := parse("postgres: create", "current", c.Current)
	if err != nil {
		return secrets.Value{}, err
	}
	return r.newPassword(cur, "")
}

// Set makes Pending the user's password. It signs in as Current, or as
// Previous where the target is behind the store, and changes nothing if
// Pending signs in already.
func (r *single) Set(ctx context.Context, c rotators.Change) error {
	const op = "postgres: set"
	cur, pend, err := pair(op, c, same)
	if err != nil {
		return err
	}
	ctx, cancel := r.bound(ctx)
	defer cancel()
	s, err := r.connect(ctx, op, as("current", cur, cur))
	if refused(err) {
		// What fails here for another reason than the password fails for
		// every password: only a refusal leads on.
		var done bool
		if done, err = r.signsIn(ctx, op, as("pending", pend, cur)); done || err != nil {
			return err
		}
		s, err = r.previous(ctx, op, c, cur)
	}
	if err != nil {
		return err
	}
	defer s.close()
	return s.change(ctx, cur.Username, func() error {
		// Under the lock, so that of several at once one makes the change.
		if done, err := r.signsIn(ctx, op, as("pending", pend, cur)); done || err != nil {
			return errors.Join(err, errDone(done))
		}
		if err := stillPending(ctx, c); err != nil {
			return err
		}
		return s.setPassword(ctx, pend.Username, pend.Password, "")
	})
}

// previous signs in with the previous value, if it is for the same user and
// server.
func (r *single) previous(ctx context.Context, op string, c rotators.Change, cur *dbsecret.Secret) (*session, error) {
	none := &fault.Error{
		Kind: fault.Denied, Class: fault.ClassAuth, Op: op,
		Msg: fmt.Sprintf("neither current nor pending nor previous signs in to %s as %q; set the password of current by hand and rotate again", cur.Addr(), cur.Username),
	}
	if c.Previous.IsZero() {
		return nil, none
	}
	prev, err := dbsecret.Parse(c.Previous)
	if err != nil || prev.Username != cur.Username || !sameServer(prev, cur) {
		return nil, none // for somebody or somewhere else: not tried
	}
	s, err := r.connect(ctx, op, as("previous", prev, cur))
	if refused(err) {
		return nil, none
	}
	return s, err
}

// Test signs in with Pending, and proves that Current does not any more.
func (r *single) Test(ctx context.Context, c rotators.Change) error {
	const op = "postgres: test"
	cur, pend, err := pair(op, c, same)
	if err != nil {
		return err
	}
	ctx, cancel := r.bound(ctx)
	defer cancel()
	if _, err := r.prove(ctx, op, pend, cur); err != nil {
		return err
	}
	if samePassword(cur, pend) {
		return nil // one password, as when a version was restored
	}
	alive, err := r.signsIn(ctx, op, as("current", cur, cur))
	if alive {
		return fault.Newf(fault.Unavailable, op, "%s still accepts the superseded password of %q; if a pooler that remembers passwords stands before the server, let it expire or point the secret at the server", cur.Addr(), cur.Username)
	}
	return err
}
