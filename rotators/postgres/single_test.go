package postgres_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
)

func TestC07CreateKeepsTheRest(t *testing.T) {
	cur := secrets.NewString(`{"engine":"postgres","host":"h","port":"5432","username":"app","password":"old","masterarn":"m","n":1.50,"x":{"y":[1]}}`)
	for name, r := range map[string]rotators.Rotator{"single": postgres.NewSingle(nil), "alternating": postgres.NewAlternating(nil, nil)} {
		v, err := r.Create(t.Context(), rotators.Change{Current: cur})
		must(t, err)
		s := parse(t, v)
		want := strings.Replace(string(cur.Reveal()), `"old"`, `"`+string(s.Password.Reveal())+`"`, 1)
		if name == "alternating" {
			want = strings.Replace(want, `"app"`, `"app_clone"`, 1)
		}
		if got := string(v.Reveal()); got != want {
			t.Errorf("%s: got %s, expected %s", name, got, want)
		}
		if s.Password.Len() != 32 || strings.ContainsAny(string(s.Password.Reveal()), `:/@"'\`) {
			t.Errorf("%s: the default policy is not that of the samples", name)
		}
	}
}

func TestSingle(t *testing.T) {
	f := newFixture(t, "app", "first")
	r := postgres.NewSingle(options())
	c := f.pending(r)
	if err := r.Test(t.Context(), c); !fault.Is(err, fault.Denied) {
		t.Errorf("test before set: got %v; expected Denied", err)
	}
	open, err := connectRaw(t, f.dsn(c.Current))
	must(t, err)
	must(t, r.Set(t.Context(), c))
	if err := open("SELECT 1"); err != nil {
		t.Errorf("a session that was open was cut: %v", err)
	}
	must(t, r.Test(t.Context(), c))
	if f.signsIn(c.Current) || !f.signsIn(c.Pending) {
		t.Error("expected pending to sign in and current not to")
	}

	// C12: repeated, nothing changes, not even the salt.
	before := f.verifier(f.user)
	must(t, r.Set(t.Context(), c))
	if f.verifier(f.user) != before {
		t.Error("a repeated set changed the password's verifier")
	}
}

func TestSingleTestWantsCurrentDead(t *testing.T) {
	f := newFixture(t, "app", "first")
	r := postgres.NewSingle(options())
	c := f.change()
	// Pending is the same password, differently encoded: nothing to prove.
	c.Pending = f.value(f.secret)
	must(t, r.Test(t.Context(), c))
	// A server that takes any password stands for one that does not forget.
	f.setPassword(f.user, "second")
	other := f.secret
	other.Password = secrets.NewString("second")
	c.Current, c.Pending = f.value(other), f.value(f.secret)
	if err := r.Test(t.Context(), c); !fault.Is(err, fault.Denied) {
		t.Errorf("pending dead: got %v; expected Denied", err)
	}
	// U+00AA is "a" after SASLprep, so these are one password.
	f.setPassword(f.user, "pass\u00aa")
	one, two := f.secret, f.secret
	one.Password, two.Password = secrets.NewString("pass\u00aa"), secrets.NewString("passa")
	c.Current, c.Pending = f.value(one), f.value(two)
	must(t, r.Test(t.Context(), c))
}

func TestC13PendingForAnother(t *testing.T) {
	f := newFixture(t, "app", "first")
	var d dials
	o := options()
	o.Dial = d.dial
	for name, change := range map[string]func(*dbsecret.Secret){
		"user": func(s *dbsecret.Secret) { s.Username = "postgres" },
		"host": func(s *dbsecret.Secret) { s.Host = "localhost" },
		"port": func(s *dbsecret.Secret) { s.Port++ },
	} {
		for kind, r := range map[string]rotators.Rotator{"single": postgres.NewSingle(o), "alternating": f.alternating(o)} {
			c := f.pending(r)
			p := *parse(t, c.Pending)
			change(&p)
			c.Pending = f.value(p)
			for step, do := range map[string]func() error{"set": func() error { return r.Set(t.Context(), c) }, "test": func() error { return r.Test(t.Context(), c) }} {
				if err := do(); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "pending names") {
					t.Errorf("%s %s, other %s: got %v; expected Invalid", kind, step, name, err)
				}
			}
		}
	}
	if d.count() != 0 {
		t.Errorf("%d connections were made; expected none", d.count())
	}
}

func TestC14Previous(t *testing.T) {
	f := newFixture(t, "app", "behind")
	r := postgres.NewSingle(options())
	prev := f.secret
	f.secret.Password = secrets.NewString("never set")
	c := f.pending(r)
	if err := r.Set(t.Context(), c); !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassAuth || !strings.Contains(err.Error(), "nor previous") {
		t.Errorf("no previous: got %v; expected Denied of class auth", err)
	}
	other := prev
	other.Host = "localhost"
	c.Previous = f.value(other)
	if err := r.Set(t.Context(), c); !fault.Is(err, fault.Denied) {
		t.Errorf("previous for another host: got %v; expected Denied", err)
	}
	c.Previous = secrets.NewString("not even JSON")
	if err := r.Set(t.Context(), c); !fault.Is(err, fault.Denied) {
		t.Errorf("previous unreadable: got %v; expected Denied", err)
	}
	// The previous value's own ssl does not count.
	prev.SSL = dbsecret.SSLDisable
	c.Previous = f.value(prev)
	must(t, r.Set(t.Context(), c))
	must(t, r.Test(t.Context(), c))
}

func TestC21Probe(t *testing.T) {
	f := newFixture(t, "app", "first")
	admin(t, f.db, "CREATE TABLE theirs (x int); INSERT INTO theirs VALUES (1); CREATE TABLE ours (x int); ALTER TABLE ours OWNER TO "+quote(f.user))
	for probe, want := range map[string]struct {
		kind  fault.Kind
		class fault.Class
	}{
		"SELECT x FROM theirs":             {fault.Denied, fault.ClassPermission},
		"INSERT INTO ours VALUES (1)":      {fault.Invalid, ""}, // read-only
		"SELECT 1; COMMIT":                 {fault.Invalid, ""}, // one statement
		"SELECT * FROM missing":            {fault.Invalid, ""},
		"SELECT count(*) FROM ours":        {},
		"SELECT generate_series(1, 30000)": {},
	} {
		f.secret.Probe = probe
		for _, r := range []rotators.Rotator{postgres.NewSingle(options()), f.alternating(options())} {
			c := f.pending(r)
			must(t, r.Set(t.Context(), c))
			err := r.Test(t.Context(), c)
			if (err == nil) != (want.kind == fault.Unknown) || fault.KindOf(err) != want.kind || fault.ClassOf(err) != want.class {
				t.Errorf("%s: got %v (%v, %v); expected %v", probe, err, fault.KindOf(err), fault.ClassOf(err), want)
			}
			if parse(t, c.Pending).Username == f.user {
				f.secret.Password = parse(t, c.Pending).Password
			}
		}
	}
	if n := admin(t, f.db, "SELECT count(*) FROM ours"); n != "0" {
		t.Errorf("a probe wrote %s rows", n)
	}
}

// A process that stalled before the lock while others rotated on changes
// nothing: what it was about to set has been superseded.
func TestStalledSetChangesNothing(t *testing.T) {
	for name, rotator := range map[string]func(*fixture) rotators.Rotator{
		"single":      func(*fixture) rotators.Rotator { return postgres.NewSingle(options()) },
		"alternating": func(f *fixture) rotators.Rotator { return f.alternating(options()) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, "app", "first")
			r := rotator(f)
			c := f.pending(r)
			superseded := fault.Newf(fault.Conflict, "test", "superseded")
			c.StillPending = func(context.Context) error { return superseded }
			if err := r.Set(t.Context(), c); !errors.Is(err, superseded) {
				t.Errorf("got %v; expected that it was superseded", err)
			}
			c.StillPending = nil
			if err := r.Test(t.Context(), c); !fault.Is(err, fault.Denied) {
				t.Errorf("test after the refused set gave %v; expected that pending does not sign in", err)
			}
			must(t, r.Set(t.Context(), c))
			must(t, r.Test(t.Context(), c))
		})
	}
}

// TestC32Twins runs set many times at once: one makes the change.
func TestC32Twins(t *testing.T) {
	for name, rotator := range map[string]func(*fixture) rotators.Rotator{
		"single":      func(*fixture) rotators.Rotator { return postgres.NewSingle(options()) },
		"alternating": func(f *fixture) rotators.Rotator { return f.alternating(options()) },
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, "app", "first")
			c := f.pending(rotator(f))
			var wg sync.WaitGroup
			for range 8 {
				wg.Go(func() {
					if err := rotator(f).Set(t.Context(), c); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			user := parse(t, c.Pending).Username
			if n := strings.Count(serverLog.String(), "ALTER ROLE "+quote(user)+" PASSWORD") + strings.Count(serverLog.String(), "ALTER ROLE "+quote(user)+" LOGIN PASSWORD"); n != 1 {
				t.Errorf("%d changes; expected 1", n)
			}
			must(t, rotator(f).Test(t.Context(), c))
		})
	}
}
