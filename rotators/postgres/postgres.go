// Package postgres rotates the passwords of PostgreSQL users, in the secrets
// that the rotation functions of AWS use (package internal/dbsecret), in two
// strategies.
//
// [NewSingle] changes the password of the one user of the secret. From set to
// finish the secret's current value is refused for new connections; those
// that are open stay open. A phase that is repeated closes that window, and
// an application that cannot bear it wants alternating users.
//
// [NewAlternating] changes the password of the user that is not in use, app
// or app_clone, with the authority of a master secret; both sign in until the
// superseded one is retired, when the next rotation begins at the latest. The clone is a member of the original user and every session
// of it acts as the original, so whatever either creates belongs to the
// original and the other can use, alter and drop it.
//
// A password reaches the server only as a SCRAM-SHA-256 verifier, and signs
// in by SCRAM; md5 or a clear password are given to a server only over
// verified TLS. Servers older than PostgreSQL 10 are refused.
//
// Nothing but username and password is taken from a pending value: host,
// port, ssl, probe and masterarn are those of the current one, and a pending
// value for another server or user is refused before any connection.
package postgres

import (
	"context"
	"crypto/x509"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// A Server is where a PostgreSQL is.
type Server struct {
	Host string
	Port int
}

// Options of the rotators. The zero value of each field means its default.
type Options struct {
	// RootCAs verify servers; those of the system by default.
	RootCAs *x509.CertPool
	// AllowPlaintext lets a secret without the key ssl connect to a server
	// that has no TLS. A secret that says ssl true never does; one that says
	// false always does.
	AllowPlaintext bool
	// Policy of new passwords. By default 32 characters without :/@"'\ which
	// is what the AWS samples make.
	Policy rotators.PasswordPolicy
	// AlternateName returns the other user's name, for each of the two. By
	// default the suffix _clone is added or removed.
	AlternateName func(string) string
	// SameServer says whether a master secret's server, named differently
	// from the secret's, may change its users: the secret names a replica, a
	// reader endpoint or an alias. By default the names must be equal.
	SameServer func(ctx context.Context, child, master Server) (bool, error)
	// ResolveMaster finds the server of a master secret that has no host, as
	// those that RDS manages. By default such a secret is refused.
	ResolveMaster func(ctx context.Context, masterARN string) (Server, error)
	// ConnectTimeout bounds one attempt to sign in. 5 s by default. A phase
	// makes at most four, Restore five, and only goes on after those that were
	// answered.
	ConnectTimeout time.Duration
	// Timeout bounds a phase whose context has no deadline. 30 s by default.
	Timeout time.Duration
	// Dial replaces the network, for tunnels.
	Dial pgconn.DialFunc
	// Logger gets a line about what could not be carried over to an
	// alternate user. The default discards.
	Logger *slog.Logger
	// Hook, for tests, makes each outward call and may fail it before or
	// after. It must call do at most once.
	Hook func(name string, do func() error) error
}

const (
	// maxName is NAMEDATALEN-1: the server cuts longer names without a word,
	// which makes them other names.
	// https://www.postgresql.org/docs/current/sql-syntax-lexical.html#SQL-SYNTAX-IDENTIFIERS
	maxName = 63
	// defaultExclude is the default of the samples for PostgreSQL.
	defaultExclude = ":/@\"'\\"
	cloneSuffix    = "_clone"
)

// base is what both strategies share.
type base struct {
	o Options
}

func newBase(opts *Options) base {
	b := base{}
	if opts != nil {
		b.o = *opts
	}
	if b.o.Policy == (rotators.PasswordPolicy{}) {
		b.o.Policy.Exclude = defaultExclude
	}
	if b.o.AlternateName == nil {
		b.o.AlternateName = alternateName
	}
	if b.o.ConnectTimeout == 0 {
		b.o.ConnectTimeout = 5 * time.Second
	}
	if b.o.Timeout == 0 {
		b.o.Timeout = 30 * time.Second
	}
	if b.o.Logger == nil {
		b.o.Logger = slog.New(slog.DiscardHandler)
	}
	if b.o.Hook == nil {
		b.o.Hook = func(_ string, do func() error) error { return do() }
	}
	return b
}

func alternateName(name string) string {
	if orig, ok := strings.CutSuffix(name, cloneSuffix); ok && orig != "" {
		return orig
	}
	return name + cloneSuffix
}

// bound gives ctx a deadline if it has none.
func (b *base) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, b.o.Timeout)
}

// newPassword returns current with a generated password and, if it is not "",
// another user.
func (b *base) newPassword(current *dbsecret.Secret, username string) (secrets.Value, error) {
	p, err := b.o.Policy.Generate()
	if err != nil {
		return secrets.Value{}, err
	}
	return current.With(dbsecret.Changes{Username: username, Password: secrets.NewString(p)})
}

// pair reads the current and pending values of c and checks, without
// connecting anywhere, that pending is for wantUser on the same server.
func pair(op string, c rotators.Change, wantUser func(string) string) (cur, pend *dbsecret.Secret, err error) {
	if cur, err = parse(op, "current", c.Current); err != nil {
		return nil, nil, err
	}
	if pend, err = parse(op, "pending", c.Pending); err != nil {
		return nil, nil, err
	}
	if want := wantUser(cur.Username); pend.Username != want {
		return nil, nil, fault.Newf(fault.Invalid, op, "pending names user %q; expected %q, from current; discard pending and rotate again", pend.Username, want)
	}
	if !sameServer(pend, cur) {
		return nil, nil, fault.Newf(fault.Invalid, op, "pending names server %s; expected %s, from current; discard pending and rotate again", pend.Addr(), cur.Addr())
	}
	return cur, pend, nil
}

func parse(op, what string, v secrets.Value) (*dbsecret.Secret, error) {
	s, err := dbsecret.Parse(v)
	if err != nil {
		return nil, &fault.Error{Kind: fault.KindOf(err), Op: op, Msg: what, Err: err}
	}
	return s, checkName(op, s.Username)
}

func checkName(op, name string) error {
	if len(name) > maxName {
		return fault.Newf(fault.Invalid, op, "user name of %d bytes; expected at most %d, which is what PostgreSQL keeps", len(name), maxName)
	}
	return nil
}

// samePassword reports whether the server takes both for one.
func samePassword(a, b *dbsecret.Secret) bool {
	return saslprep(string(a.Password.Reveal())) == saslprep(string(b.Password.Reveal()))
}

func sameServer(a, b *dbsecret.Secret) bool {
	return strings.EqualFold(a.Host, b.Host) && a.Port == b.Port
}
