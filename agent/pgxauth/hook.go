// Package pgxauth makes a pgxpool follow a database secret that an
// [agent.Client] holds: new connections sign in with what is current, the old
// ones are replaced one by one, and nothing is restarted.
//
// The value is the JSON that AWS defines for database secrets, with username
// and password, host, port and dbname; or the one with username and password
// only that RDS makes, for which the pool's configuration has the address.
package pgxauth

import (
	"context"
	"crypto/tls"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// Options of [New]. The zero value of each field is its default.
type Options struct {
	// KeepAddress leaves host, port and database name as the pool's
	// configuration has them, as for a proxy or several hosts; only user and
	// password come from the secret.
	KeepAddress bool
	// DrainAfter is the window in which the connections of a superseded
	// version are closed, each at its own random moment, so that a pool is
	// not emptied at once and a fleet does not reconnect at once: 5 s by
	// default, no wait if negative or if the version was revoked. A
	// connection in use is never closed; it goes when it is released.
	DrainAfter time.Duration
	// RetryFor bounds how long a [Pool] waits for a newer version when the
	// server refuses the current one: 2 s by default, never if negative. It
	// should be longer than a rotation needs from changing the password to
	// promoting the new version.
	RetryFor time.Duration
}

const (
	defaultDrain = 5 * time.Second
	defaultRetry = 2 * time.Second
)

// A Hook gives a pool's connections the current credential. It is safe for
// concurrent use and may serve several pools.
type Hook struct {
	client *agent.Client
	secret *agent.Secret
	opts   Options

	cred    atomic.Pointer[credential]
	refused atomic.Pointer[secrets.Version] // what the server refused last

	mu    sync.Mutex
	conns map[*tag]struct{} // of open connections
}

// A credential is a version as it was parsed.
type credential struct {
	version *secrets.Version
	db      *dbsecret.Secret
	err     error
}

// New returns a hook for the secret r, which the client watches from now on.
// The error is of kind Invalid.
func New(client *agent.Client, r ref.Ref, o *Options) (*Hook, error) {
	if client == nil {
		return nil, fault.Newf(fault.Invalid, op, "the client is nil; expected one from agent.New")
	}
	if err := client.Watch(r); err != nil {
		return nil, err
	}
	h := &Hook{client: client, secret: client.Secret(r), conns: map[*tag]struct{}{}}
	if o != nil {
		h.opts = *o
	}
	if h.opts.DrainAfter == 0 {
		h.opts.DrainAfter = defaultDrain
	}
	if h.opts.RetryFor == 0 {
		h.opts.RetryFor = defaultRetry
	}
	return h, nil
}

const op = "pgxauth"

// current returns the parsed current version. Each version is parsed once.
func (h *Hook) current(ctx context.Context) (*credential, error) {
	v, err := h.secret.Get(ctx)
	if err != nil {
		return nil, err
	}
	c := h.cred.Load()
	if c == nil || c.version != v {
		c = &credential{version: v}
		if user, password, ok := dbsecret.Managed(v.Value); ok {
			c.db = &dbsecret.Secret{Username: user, Password: password}
		} else {
			c.db, c.err = dbsecret.Parse(v.Value)
		}
		h.cred.Store(c)
	}
	return c, c.err
}

// Configure makes the pools that are made from cfg follow the secret. Hooks
// that cfg has already are kept: they run before ours when a connection is
// made, and after ours when one is looked at. TLS settings stay as they are,
// but for the server's name where it was the old host's; a secret that
// demands TLS does not connect without.
//
// A pool from [pgxpool.NewWithConfig] drops superseded connections as they
// are acquired and released. [Hook.NewPool] also closes the idle ones and
// retries where the server refuses a credential that was just replaced.
func (h *Hook) Configure(cfg *pgxpool.Config) {
	beforeConnect, afterConnect := cfg.BeforeConnect, cfg.AfterConnect
	prepare, beforeAcquire := cfg.PrepareConn, cfg.BeforeAcquire //nolint:staticcheck // deprecated, but callers have it
	afterRelease, beforeClose := cfg.AfterRelease, cfg.BeforeClose

	cfg.BeforeConnect = func(ctx context.Context, cc *pgx.ConnConfig) error {
		if beforeConnect != nil {
			if err := beforeConnect(ctx, cc); err != nil {
				return err
			}
		}
		return h.beforeConnect(ctx, cc)
	}
	cfg.AfterConnect = func(ctx context.Context, c *pgx.Conn) error {
		if afterConnect != nil {
			if err := afterConnect(ctx, c); err != nil {
				return err
			}
		}
		h.opened(tagOf(c))
		return nil
	}
	cfg.PrepareConn = func(ctx context.Context, c *pgx.Conn) (bool, error) {
		switch {
		case ctx.Value(sweeping{}) != nil:
			return true, nil // nobody is going to use it; see Pool.sweep
		case h.due(c):
			return false, nil
		case prepare != nil:
			return prepare(ctx, c)
		case beforeAcquire != nil:
			return beforeAcquire(ctx, c), nil
		}
		return true, nil
	}
	// The pool takes one of the two and PrepareConn has called it.
	cfg.BeforeAcquire = nil //nolint:staticcheck // as above
	cfg.AfterRelease = func(c *pgx.Conn) bool {
		return !h.due(c) && (afterRelease == nil || afterRelease(c))
	}
	cfg.BeforeClose = func(c *pgx.Conn) {
		h.closed(tagOf(c))
		if beforeClose != nil {
			beforeClose(c)
		}
	}
}

// beforeConnect puts the current credential into cc, and what the connection
// needs to know of it.
func (h *Hook) beforeConnect(ctx context.Context, cc *pgx.ConnConfig) error {
	cred, err := h.current(ctx)
	if err != nil {
		return err
	}
	db := cred.db
	if !h.opts.KeepAddress && db.Host != "" {
		move(cc, db)
	}
	if db.SSL == dbsecret.SSLRequire {
		if err := requireTLS(cc); err != nil {
			return err
		}
	}
	cc.User, cc.Password = db.Username, string(db.Password.Reveal())

	g := &tag{version: cred.version, moment: rand.Float64()} //nolint:gosec // not a secret
	connected, failed := cc.AfterConnect, cc.OnPgError
	cc.AfterConnect = func(ctx context.Context, pc *pgconn.PgConn) error {
		g.in.Store(true)
		pc.CustomData()[tagKey] = g
		if connected != nil {
			return connected(ctx, pc)
		}
		return nil
	}
	cc.OnPgError = func(pc *pgconn.PgConn, e *pgconn.PgError) bool {
		if !g.in.Load() && authCode(e.Code) {
			h.refused.Store(g.version)
			h.client.Invalidate(h.secret.Ref(), g.version.ID)
		}
		if failed != nil {
			return failed(pc, e)
		}
		return !strings.EqualFold(e.Severity, "FATAL")
	}
	return nil
}

// authCode reports whether a server that answers so has refused the user or
// the password: invalid_password, invalid_authorization_specification.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
func authCode(code string) bool { return code == "28P01" || code == "28000" }

// move points cc to the secret's server. Of several addresses those of the
// first host stay, which differ in their TLS.
func move(cc *pgx.ConnConfig, db *dbsecret.Secret) {
	host, port := cc.Host, cc.Port
	cc.Host, cc.Port = db.Host, uint16(db.Port) //nolint:gosec // Parse has checked the range
	rename := func(t *tls.Config) {
		if t != nil && (t.ServerName == host || t.ServerName == "" && !t.InsecureSkipVerify) {
			t.ServerName = db.Host
		}
	}
	rename(cc.TLSConfig) // a copy of this connection's own
	var same []*pgconn.FallbackConfig
	for _, f := range cc.Fallbacks {
		if f.Host == host && f.Port == port {
			f.Host, f.Port = cc.Host, cc.Port
			rename(f.TLSConfig)
			same = append(same, f)
		}
	}
	cc.Fallbacks = same
	if db.DBName != "" {
		cc.Database = db.DBName
	}
}

// requireTLS drops the addresses without TLS.
func requireTLS(cc *pgx.ConnConfig) error {
	if cc.TLSConfig == nil {
		return fault.Newf(fault.Invalid, op, "the secret demands TLS (ssl: true), and the pool's configuration connects without; set sslmode=verify-full")
	}
	var with []*pgconn.FallbackConfig
	for _, f := range cc.Fallbacks {
		if f.TLSConfig != nil {
			with = append(with, f)
		}
	}
	cc.Fallbacks = with
	return nil
}

// Format shows the ref only.
func (h *Hook) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "pgxauth hook for %s", h.secret.Ref())
}
