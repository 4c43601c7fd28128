package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// signsIn reports whether l is accepted; an error says that nobody can tell.
func (b *base) signsIn(ctx context.Context, op string, l login) (bool, error) {
	s, err := b.connect(ctx, op, l)
	if refused(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s.close()
	return true, nil
}

// honours is signsIn for those who ask whether the password counts: a user
// with no connection left was let in as far as that goes.
func (b *base) honours(ctx context.Context, op string, l login) (bool, error) {
	ok, err := b.signsIn(ctx, op, l)
	if errors.Is(err, errFull) {
		return true, nil
	}
	return ok, err
}

// probe names the call that runs one.
const probe = "probe"

// prove signs in with pend and runs the probe that cur names. It returns whom
// the session acts as.
func (b *base) prove(ctx context.Context, op string, pend, cur *dbsecret.Secret) (string, error) {
	s, err := b.connect(ctx, op, as("pending", pend, cur))
	if err != nil {
		return "", err
	}
	defer s.close()
	who, err := s.rows(ctx, "select", "SELECT current_user")
	if err != nil {
		return "", err
	}
	if len(who) != 1 {
		return "", fault.Newf(fault.Unavailable, op, "SELECT current_user returned %d rows; expected one", len(who))
	}
	return who[0][0], s.runProbe(ctx, cur.Probe)
}

// runProbe runs a probe, if there is one, in a transaction that is never
// committed.
func (s *session) runProbe(ctx context.Context, sql string) error {
	if sql == "" {
		return nil
	}
	if err := s.exec(ctx, "begin probe", "BEGIN READ ONLY"); err != nil {
		return err
	}
	// By the extended protocol, which takes one statement: a probe cannot end
	// the transaction and go on.
	return s.run(ctx, probe, sql)
}

// errNothing ends a change that turned out to be made already.
var errNothing = errors.New("nothing to do")

func errDone(done bool) error {
	if done {
		return errNothing
	}
	return nil
}

// change runs f in one transaction while holding the lock of user in this
// database, and commits.
func (s *session) change(ctx context.Context, user string, f func() error) error {
	sum := sha256.Sum256([]byte("keyturn\x00" + user))
	key := int64(binary.BigEndian.Uint64(sum[:8])) //nolint:gosec // any 64 bits do
	// Whoever owns the database or the role may have set a search_path, so
	// nothing is looked up before it is ours. A commit that the server may
	// forget in a crash would lose the only password.
	begin := "BEGIN READ WRITE; SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL lock_timeout = '10s'; SET LOCAL statement_timeout = '20s';" +
		"SELECT pg_catalog.set_config('synchronous_commit', 'on', true) WHERE pg_catalog.current_setting('synchronous_commit') IN ('off', 'local');" +
		fmt.Sprintf("SELECT pg_catalog.pg_advisory_xact_lock(%d)", key)
	if err := s.exec(ctx, "begin and lock", begin); err != nil {
		return err
	}
	if err := f(); errors.Is(err, errNothing) {
		return nil
	} else if err != nil {
		return err
	}
	return s.exec(ctx, "commit", "COMMIT")
}

// stillPending is asked under the lock; see [rotators.Change.StillPending].
func stillPending(ctx context.Context, c rotators.Change) error {
	if c.StillPending == nil {
		return nil
	}
	return c.StillPending(ctx)
}

// setPassword gives user a password. with is put before it.
func (s *session) setPassword(ctx context.Context, user string, password secrets.Value, with string) error {
	v, err := newVerifier(password)
	if err != nil {
		return err
	}
	return s.exec(ctx, "alter role", "ALTER ROLE "+ident(user)+with+" PASSWORD '"+v+"'")
}

func ident(name string) string { return pgx.Identifier{name}.Sanitize() }
