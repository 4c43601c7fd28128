package postgres

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

var (
	_ rotators.Rotator  = (*alternating)(nil)
	_ rotators.Restorer = (*alternating)(nil)
)

// alternating changes the user that is not in use, with a master's authority.
type alternating struct {
	base
	master func(ctx context.Context, masterARN string) (secrets.Value, error)
}

// NewAlternating returns the rotator for two users who take turns. master
// reads the current value of the secret that a secret's masterarn names; its
// user needs CREATEROLE, and from PostgreSQL 16 on ADMIN OPTION on both users
// (which whoever created them has). opts may be nil.
//
// It is a [rotators.Retirer], [rotators.Restorer], [rotators.Verifier] and
// [rotators.DryRunner]. Retiring gives the superseded user a password that
// nobody knows, and the next rotation gives that user one again.
func NewAlternating(master func(ctx context.Context, masterARN string) (secrets.Value, error), opts *Options) rotators.Rotator {
	return &alternating{newBase(opts), master}
}

// Create names the other user and generates its password.
func (r *alternating) Create(_ context.Context, c rotators.Change) (secrets.Value, error) {
	const op = "postgres: create"
	cur, err := parse(op, "current", c.Current)
	if err != nil {
		return secrets.Value{}, err
	}
	if err := cur.RequireMaster(); err != nil {
		return secrets.Value{}, err
	}
	name := r.o.AlternateName(cur.Username)
	if name == "" || name == cur.Username || strings.ContainsRune(name, 0) {
		return secrets.Value{}, fault.Newf(fault.Invalid, op, "the alternate of user %q is %q; expected another name", cur.Username, name)
	}
	if err := checkName(op, name); err != nil {
		return secrets.Value{}, err
	}
	return r.newPassword(cur, name)
}

// Set makes the other user like the current one, with the password of
// Pending. It changes nothing if Pending signs in already.
func (r *alternating) Set(ctx context.Context, c rotators.Change) error {
	const op = "postgres: set"
	cur, pend, err := pair(op, c, r.o.AlternateName)
	if err != nil {
		return err
	}
	if err := cur.RequireMaster(); err != nil {
		return err
	}
	ctx, cancel := r.bound(ctx)
	defer cancel()
	done, err := r.signsIn(ctx, op, as("pending", pend, cur))
	if err != nil || done && !c.Pending.Equal(c.Previous) {
		return err
	}
	s, at, err := r.asMaster(ctx, op, cur, as("pending", pend, cur))
	if err != nil {
		if done {
			return nil
		}
		return err
	}
	// What a rollback sets signs in already, as a rule, and a retirement that
	// began before may be about to end that: only the lock tells. Without a
	// master there is none, and a rollback does not wait for one.
	defer s.close()
	return s.change(ctx, lockName(cur, pend), func() error {
		if done, err := r.signsIn(ctx, op, at); done || err != nil {
			return errors.Join(err, errDone(done))
		}
		if err := stillPending(ctx, c); err != nil {
			return err
		}
		return s.setAlternate(ctx, cur.Username, pend)
	})
}

// asMaster signs in with the master's authority over other's user, and says
// where other signs in beside it.
func (r *alternating) asMaster(ctx context.Context, op string, cur *dbsecret.Secret, other login) (*session, login, error) {
	// Whoever can write the secret must not be able to have the master set a
	// password for them: they must know one of the pair's already.
	if ok, err := r.signsIn(ctx, op, as("current", cur, cur)); err != nil {
		return nil, login{}, err
	} else if !ok {
		return nil, login{}, &fault.Error{
			Kind: fault.Denied, Class: fault.ClassAuth, Op: op,
			Msg: fmt.Sprintf("current does not sign in to %s as %q, so the master is not used; set that password by hand and try again", cur.Addr(), cur.Username),
		}
	}
	m, err := r.authority(ctx, op, cur, other.secret)
	if err != nil {
		return nil, login{}, err
	}
	s, err := r.connect(ctx, op, m)
	if err != nil {
		return nil, login{}, err
	}
	// The server that is changed, by whichever name it is known.
	m.secret, m.describe = other.secret, other.describe
	return s, m, nil
}

// lockName is the same whichever of the two is in use.
func lockName(cur, pend *dbsecret.Secret) string {
	return min(cur.Username, pend.Username) + "\x00" + max(cur.Username, pend.Username)
}

// authority finds the master's login: in the secret that current names, since
// pending could name another, and on current's server.
func (r *alternating) authority(ctx context.Context, op string, cur, pend *dbsecret.Secret) (login, error) {
	v, err := r.master(ctx, cur.MasterARN)
	if err != nil {
		return login{}, &fault.Error{Kind: fault.KindOf(err), Op: op, Msg: "read the master secret", Err: err}
	}
	l := login{dbName: cur.DBName, ssl: cur.SSL, describe: "master"}
	if user, password, ok := dbsecret.Managed(v); ok {
		if r.o.ResolveMaster == nil {
			return login{}, fault.Newf(fault.Invalid, op, "the master secret has only username and password, as those that RDS manages; expected engine and host too, or a resolver that finds its server")
		}
		if l.server, err = r.o.ResolveMaster(ctx, cur.MasterARN); err != nil {
			return login{}, &fault.Error{Kind: fault.KindOf(err), Op: op, Msg: "find the server of the master secret", Err: err}
		}
		l.secret = &dbsecret.Secret{Username: user, Password: password}
	} else {
		if l.secret, err = parse(op, "master", v); err != nil {
			return login{}, err
		}
		l.server = Server{l.secret.Host, l.secret.Port}
		// The stricter of both.
		if l.ssl == dbsecret.SSLPrefer || l.secret.SSL == dbsecret.SSLRequire {
			l.ssl = l.secret.SSL
		}
	}
	if l.secret.Username == cur.Username || l.secret.Username == pend.Username {
		return login{}, fault.Newf(fault.Invalid, op, "the master secret is of user %q, who is one of the alternating users; expected another", l.secret.Username)
	}
	child := Server{cur.Host, cur.Port}
	if strings.EqualFold(child.Host, l.server.Host) && child.Port == l.server.Port {
		return l, nil
	}
	if r.o.SameServer != nil {
		ok, err := r.o.SameServer(ctx, child, l.server)
		if err != nil {
			return login{}, &fault.Error{Kind: fault.KindOf(err), Op: op, Msg: "compare the servers of secret and master", Err: err}
		}
		if ok {
			return l, nil
		}
	}
	return login{}, fault.Newf(fault.Invalid, op, "the master secret is for server %s:%d; expected %s, that of the secret; correct masterarn", l.server.Host, l.server.Port, cur.Addr())
}

// Test signs in with Pending.
func (r *alternating) Test(ctx context.Context, c rotators.Change) error {
	const op = "postgres: test"
	cur, pend, err := pair(op, c, r.o.AlternateName)
	if err != nil {
		return err
	}
	ctx, cancel := r.bound(ctx)
	defer cancel()
	who, err := r.prove(ctx, op, pend, cur)
	if err != nil {
		return err
	}
	if who != pend.Username && who != cur.Username {
		r.o.Logger.WarnContext(ctx, "sessions of the alternate user act as somebody else; what they create belongs to that role", "user", pend.Username, "role", who)
	}
	return nil
}
