package postgres

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// superseded is how messages call what is retired and restored.
const superseded = "the superseded value"

// Retire implements [rotators.Retirer]: the user of old gets a random password
// that nobody keeps, if old still signs in. It does nothing for the user of
// current or pending, whose earlier passwords died when the present one was
// set. Sessions that are open stay open: the server asks for a password only
// at the start of one.
//
// Where current does not sign in nothing is retired, which is Denied of class
// auth: old may be the last credential that works. An old value for another
// user or server is Invalid.
func (r *alternating) Retire(ctx context.Context, c rotators.Change, old secrets.Value) error {
	const op = "postgres: retire"
	cur, was, err := r.readSuperseded(op, c, old)
	if err != nil || was.Username == cur.Username {
		return err
	}
	if pend, err := pendingOf(op, c, was); pend != nil || err != nil {
		return err
	}
	ctx, cancel := r.bound(ctx)
	defer cancel()
	l := as(superseded, was, cur)
	if alive, err := r.honours(ctx, op, l); !alive || err != nil {
		return err
	}
	if err := cur.RequireMaster(); err != nil {
		return err
	}
	s, at, err := r.asMaster(ctx, op, cur, l)
	if err != nil {
		return err
	}
	defer s.close()
	return s.change(ctx, lockName(cur, was), func() error {
		// Under the lock, since a rotation may have given the user another
		// password meanwhile, or the secret that very one back.
		if alive, err := r.honours(ctx, op, at); !alive || err != nil {
			return errors.Join(err, errDone(!alive && err == nil))
		}
		if err := stillPending(ctx, c); err != nil {
			return err
		}
		p := nobodyKnows()
		defer p.Wipe()
		return s.setPassword(ctx, was.Username, p, "")
	})
}

// Restore implements [rotators.Restorer]: the user of old gets its password
// back, with all that set puts right about an alternate user, and old signs
// in. A value for the user of current is Invalid unless it is current's
// password, since a user has one; so is one for another server, or for a user
// that is not of the pair. While a rotation is setting another password for
// the same user it is a Conflict.
func (r *alternating) Restore(ctx context.Context, c rotators.Change, old secrets.Value) error {
	const op = "postgres: restore"
	cur, was, err := r.readSuperseded(op, c, old)
	if err != nil {
		return err
	}
	if was.Username == cur.Username {
		if samePassword(was, cur) {
			return nil
		}
		return fault.Newf(fault.Invalid, op, "%s is of user %q, who is in use with a later password and has only one; roll back to it instead", superseded, was.Username)
	}
	if pend, err := pendingOf(op, c, was); err != nil {
		return err
	} else if pend != nil && !samePassword(pend, was) {
		return fault.Newf(fault.Conflict, op, "a rotation is giving user %q another password; let it finish, or discard it", was.Username)
	}
	if err := cur.RequireMaster(); err != nil {
		return err
	}
	ctx, cancel := r.bound(ctx)
	defer cancel()
	l := as(superseded, was, cur)
	if alive, err := r.honours(ctx, op, l); alive || err != nil {
		return err
	}
	s, at, err := r.asMaster(ctx, op, cur, l)
	if err != nil {
		return err
	}
	defer s.close()
	err = s.change(ctx, lockName(cur, was), func() error {
		if alive, err := r.honours(ctx, op, at); alive || err != nil {
			return errors.Join(err, errDone(alive))
		}
		if err := stillPending(ctx, c); err != nil {
			return err
		}
		return s.setAlternate(ctx, cur.Username, was)
	})
	if err != nil {
		return err
	}
	if alive, err := r.honours(ctx, op, at); err != nil {
		return err
	} else if !alive {
		return &fault.Error{
			Kind: fault.Denied, Class: fault.ClassPolicy, Op: op,
			Msg: "user " + ident(was.Username) + " has its password back and is refused; look at VALID UNTIL of the role and at pg_hba.conf",
		}
	}
	return nil
}

// readSuperseded reads current and a value that it superseded, or that
// superseded it. Any other user is refused before any connection.
func (r *alternating) readSuperseded(op string, c rotators.Change, old secrets.Value) (cur, was *dbsecret.Secret, err error) {
	if cur, err = parse(op, "current", c.Current); err != nil {
		return nil, nil, err
	}
	if was, err = other(op, superseded, cur, old); err != nil {
		return nil, nil, err
	}
	if alt := r.o.AlternateName(cur.Username); was.Username != cur.Username && was.Username != alt {
		return nil, nil, fault.Newf(fault.Invalid, op, "%s names user %q; expected %q or %q, who take turns", superseded, was.Username, cur.Username, alt)
	}
	return cur, was, nil
}

// pendingOf returns pending if it is for the user of s, or nil.
func pendingOf(op string, c rotators.Change, s *dbsecret.Secret) (*dbsecret.Secret, error) {
	if c.Pending.IsZero() {
		return nil, nil
	}
	pend, err := parse(op, "pending", c.Pending)
	if err != nil || pend.Username != s.Username {
		return nil, err
	}
	return pend, nil
}

// nobodyKnows returns a password of 256 random bits. Only its verifier leaves
// this process. A password and not NULL: to whoever tries, a retired user
// looks like any other whose password is wrong.
func nobodyKnows() secrets.Value {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand since Go 1.24
	defer clear(b[:])
	return secrets.NewString(base64.StdEncoding.EncodeToString(b[:]))
}
