package postgres_test

import (
	"context"
	"crypto/x509"
	"errors"
	"strconv"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/rotators/rotatortest"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
)

// target is one user, or a pair, of the real server.
type target struct {
	*fixture
	alternate bool
	// What Breaks broke.
	distrust, noMaster bool
	policy             rotators.PasswordPolicy
}

func newTarget(alternate bool) func(*testing.T) rotatortest.Target {
	return func(t *testing.T) rotatortest.Target {
		return &target{fixture: newUser(t, "suite", "the-first-password"), alternate: alternate}
	}
}

func (x *target) Rotator(_ *testing.T, in *crashtest.Injector) rotators.Rotator {
	o := options()
	o.Hook, o.Policy = in.Call, x.policy
	if x.distrust {
		o.RootCAs = x509.NewCertPool()
	}
	if x.alternate && x.noMaster {
		return postgres.NewAlternating(func(context.Context, string) (secrets.Value, error) {
			return secrets.Value{}, fault.New(fault.Denied, "get secret", nil)
		}, o)
	}
	if x.alternate {
		return x.alternating(o)
	}
	return postgres.NewSingle(o)
}

func (x *target) Initial() secrets.Value { return x.value(x.secret) }

// SignIn knows nothing of the rotator's own way to connect.
func (x *target) SignIn(ctx context.Context, v secrets.Value) error {
	c, err := pgconn.Connect(ctx, x.dsn(v))
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "28P01" {
		return fault.New(fault.Denied, "sign in", nil)
	}
	if err != nil {
		return err
	}
	return c.Close(ctx)
}

func (x *target) Live(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(admin(t, "postgres", "SELECT count(rolpassword) FROM pg_authid WHERE rolcanlogin AND rolname IN ("+literal(x.user)+", "+literal(x.user+"_clone")+")"))
	must(t, err)
	return n
}

func (x *target) Foreign(t *testing.T, v secrets.Value) secrets.Value {
	t.Helper()
	s := *parse(t, v)
	s.Host = "localhost"
	return x.value(s)
}

func newStore(t *testing.T, v secrets.Value) (secrets.Store, ref.Ref) {
	t.Helper()
	s := memstore.New()
	r, err := ref.New(ref.NATS, "suite", "postgres")
	must(t, err)
	_, err = s.CreateSecret(t.Context(), r, v)
	must(t, err)
	return s, r
}

var strategies = map[string]struct {
	alternate bool
	traits    rotatortest.Traits
}{
	"single":      {false, rotatortest.Traits{KillsCurrent: true, Slow: true}},
	"alternating": {true, rotatortest.Traits{CurrentSurvivesSet: true, Slow: true}},
}

func TestSuite(t *testing.T) {
	needServer(t)
	for name, s := range strategies {
		t.Run(name, func(t *testing.T) { rotatortest.Run(t, newTarget(s.alternate), s.traits, newStore) })
	}
}

func TestCrash(t *testing.T) {
	if testing.Short() {
		t.Skip("hundreds of rotations; run without -short")
	}
	needServer(t)
	for name, s := range strategies {
		t.Run(name, func(t *testing.T) {
			if n := rotatortest.Crash(t, newTarget(s.alternate), s.traits, newStore); n < 40 {
				t.Errorf("%d crash points; expected 40 or more", n)
			}
		})
	}
}
