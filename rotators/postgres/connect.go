package postgres

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
)

// A login is who signs in where.
type login struct {
	secret   *dbsecret.Secret // user and password
	server   Server
	dbName   string
	ssl      dbsecret.SSL
	describe string // "current", "pending": for messages
}

// as signs in with s's user and password on the server that cur names, by
// cur's rules.
func as(describe string, s, cur *dbsecret.Secret) login {
	return login{secret: s, server: Server{cur.Host, cur.Port}, dbName: cur.DBName, ssl: cur.SSL, describe: describe}
}

// A session is one connection. It is not for concurrent use.
type session struct {
	b     *base
	op    string
	who   string
	pc    *pgconn.PgConn
	major int // of the server's version
}

// leastTime is what an attempt must have before the deadline to be begun.
const leastTime = 500 * time.Millisecond

// connect signs in, or says why not; see classify for the kinds.
func (b *base) connect(ctx context.Context, op string, l login) (*session, error) {
	s := &session{b: b, op: op, who: fmt.Sprintf("sign in to %s:%d as %q (%s)", l.server.Host, l.server.Port, l.secret.Username, l.describe)}
	if deadline, ok := ctx.Deadline(); ok && time.Until(deadline) < leastTime {
		return nil, &fault.Error{
			Kind: fault.Unavailable, Class: fault.ClassTimeout, Op: op,
			Msg: s.who + ": not begun, less than " + leastTime.String() + " left before the deadline", Err: context.DeadlineExceeded,
		}
	}
	modes := []bool{true}
	switch {
	case l.ssl == dbsecret.SSLDisable:
		modes = []bool{false}
	case l.ssl == dbsecret.SSLPrefer && b.o.AllowPlaintext:
		modes = []bool{true, false}
	}
	var err error
	for _, withTLS := range modes {
		var cfg *pgconn.Config
		if cfg, err = b.config(l, withTLS); err != nil {
			return nil, err
		}
		// One limit for all addresses of the host together.
		cctx, cancel := context.WithTimeout(ctx, b.o.ConnectTimeout)
		err = b.o.Hook("connect "+l.describe, func() error {
			pc, err := pgconn.ConnectConfig(cctx, cfg)
			s.pc = pc
			return err
		})
		cancel()
		if err == nil {
			break
		}
		if s.pc != nil {
			s.close() // signed in, but the hook says otherwise
			s.pc = nil
		}
		// Only a server that says it has no TLS is spoken to without. A bad
		// certificate is not a reason to do without any.
		if !refusedTLS(err) {
			break
		}
	}
	if err != nil {
		return nil, classify(op, s.who, err)
	}
	if err := s.check(); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// config makes a configuration from l and nothing else.
func (b *base) config(l login, withTLS bool) (*pgconn.Config, error) {
	// pgconn insists on parsing, and reads PG* variables and files of the
	// environment while it does. Everything that they can set is set below.
	cfg, err := pgconn.ParseConfig("host=localhost port=5432 user=none password=none dbname=none sslmode=disable connect_timeout=0 target_session_attrs=any")
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "postgres", "the environment has a PG* variable, such as PGSERVICE, that cannot be read; unset it")
	}
	cfg.Host, cfg.Port = l.server.Host, uint16(l.server.Port) //nolint:gosec // 1 to 65535, checked when parsed
	cfg.User, cfg.Password = l.secret.Username, string(l.secret.Password.Reveal())
	if cfg.Database = l.dbName; cfg.Database == "" {
		cfg.Database = "postgres"
	}
	cfg.RuntimeParams = map[string]string{"application_name": "keyturn", "client_encoding": "UTF8"}
	cfg.Fallbacks, cfg.ValidateConnect, cfg.AfterConnect = nil, nil, nil
	cfg.ConnectTimeout, cfg.ChannelBinding = 0, "prefer"
	cfg.SSLNegotiation, cfg.SSLCertMode, cfg.KerberosSrvName, cfg.KerberosSpn = "", "", "", ""
	cfg.MinProtocolVersion, cfg.MaxProtocolVersion = "3.0", "3.0"
	cfg.TLSConfig = nil
	// A list, so that a server which asks for no proof at all is refused too:
	// there a sign-in proves nothing.
	cfg.RequireAuth = "scram-sha-256"
	if withTLS {
		cfg.TLSConfig = &tls.Config{ServerName: l.server.Host, RootCAs: b.o.RootCAs, MinVersion: tls.VersionTLS12}
		cfg.RequireAuth = "scram-sha-256,md5,password"
	}
	// The dialer resolves names itself, several addresses at once; and a
	// tunnel's dialer gets the name.
	cfg.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	cfg.DialFunc = (&net.Dialer{}).DialContext
	if b.o.Dial != nil {
		cfg.DialFunc = b.o.Dial
	}
	return cfg, nil
}

// check refuses servers that would not understand what we send.
func (s *session) check() error {
	version := s.pc.ParameterStatus("server_version")
	digits := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if digits < 0 {
		digits = len(version)
	}
	var err error
	if s.major, err = strconv.Atoi(version[:digits]); err != nil || s.major < 10 {
		// An older server would hash the verifier as if it were a password.
		return fault.Newf(fault.Invalid, s.op, "%s: server version %q; expected PostgreSQL 10 or later, which knows SCRAM-SHA-256", s.who, version)
	}
	return nil
}

// encrypted reports whether the session has TLS.
func (s *session) encrypted() bool {
	_, ok := s.pc.Conn().(*tls.Conn)
	return ok
}

// close ends the session; a transaction that is open is rolled back.
func (s *session) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.pc.Close(ctx) // gone either way
}

// exec runs statements that return nothing. Errors name what, never sql.
func (s *session) exec(ctx context.Context, what, sql string) error {
	err := s.b.o.Hook(what, func() error {
		return s.pc.Exec(ctx, sql).Close()
	})
	return s.fail(what, err)
}

// rows runs one query. NULL is "".
func (s *session) rows(ctx context.Context, what, sql string, args ...string) ([][]string, error) {
	var out [][]string
	err := s.b.o.Hook(what, func() error {
		params := make([][]byte, len(args))
		for i, a := range args {
			params[i] = []byte(a)
		}
		res := s.pc.ExecParams(ctx, sql, params, nil, nil, nil).Read()
		for _, r := range res.Rows {
			row := make([]string, len(r))
			for i, col := range r {
				row[i] = string(col)
			}
			out = append(out, row)
		}
		return res.Err
	})
	if err != nil {
		return nil, s.fail(what, err)
	}
	return out, nil
}

// run runs one statement and throws its rows away as they come.
func (s *session) run(ctx context.Context, what, sql string) error {
	err := s.b.o.Hook(what, func() error {
		r := s.pc.ExecParams(ctx, sql, nil, nil, nil, nil)
		for r.NextRow() {
		}
		_, err := r.Close()
		return err
	})
	return s.fail(what, err)
}

func (s *session) fail(what string, err error) error {
	if err == nil {
		return nil
	}
	return classify(s.op, what, err)
}

// literal quotes text for SQL where no parameter may stand.
func (s *session) literal(text string) (string, error) {
	q, err := s.pc.EscapeString(text)
	if err != nil {
		return "", fault.Newf(fault.Invalid, s.op, "the server's standard_conforming_strings or client_encoding is not the usual one; expected on and UTF8")
	}
	return "'" + q + "'", nil
}

// refusedTLS reports whether the server said that it has no TLS. pgconn has
// no type for it.
func refusedTLS(err error) bool {
	return strings.Contains(err.Error(), "server refused TLS connection")
}

// refused reports whether err says that the credential was refused, and not
// that nobody could tell.
func refused(err error) bool { return errors.Is(err, errRefused) }
