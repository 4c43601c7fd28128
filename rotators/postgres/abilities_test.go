package postgres_test

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/rotators/rotatortest"
	"github.com/keyturn/keyturn/secrets"
)

// Fingerprint is all that the server knows of the pair and its master.
func (x *target) Fingerprint(t *testing.T) string {
	t.Helper()
	return x.fingerprint()
}

func (f *fixture) fingerprint() string {
	f.t.Helper()
	names := "(" + literal(f.user) + ", " + literal(f.user+"_clone") + ", " + literal(f.master) + ")"
	return admin(f.t, "postgres", `SELECT concat(
		(SELECT string_agg(a::text, E'\n' ORDER BY rolname) FROM pg_authid a WHERE rolname IN `+names+`), E'\n',
		(SELECT string_agg(m::text, E'\n' ORDER BY m::text) FROM pg_auth_members m WHERE member IN (SELECT oid FROM pg_authid WHERE rolname IN `+names+`)), E'\n',
		(SELECT string_agg(s::text, E'\n' ORDER BY s::text) FROM pg_db_role_setting s WHERE setrole IN (SELECT oid FROM pg_authid WHERE rolname IN `+names+`)), E'\n',
		(SELECT count(*) FROM pg_authid))`)
}

// Breaks are what a dry run finds before a rotation does.
func (x *target) Breaks() []rotatortest.Break {
	with := func(change func(*dbsecret.Secret)) func(*testing.T, secrets.Value) secrets.Value {
		return func(t *testing.T, v secrets.Value) secrets.Value {
			s := *parse(t, v)
			change(&s)
			return x.value(s)
		}
	}
	sql := func(text string) func(*testing.T, secrets.Value) secrets.Value {
		return func(t *testing.T, v secrets.Value) secrets.Value {
			t.Helper()
			admin(t, "postgres", strings.NewReplacer("%u", quote(x.user), "%c", quote(x.user+"_clone"), "%m", quote(x.master)).Replace(text))
			return v
		}
	}
	one := func(name string, do func(*testing.T, secrets.Value) secrets.Value, kind fault.Kind, class fault.Class) rotatortest.Break {
		return rotatortest.Break{Name: name, Do: do, Kind: kind, Class: class}
	}
	out := []rotatortest.Break{
		one("Password", with(func(s *dbsecret.Secret) { s.Password = secrets.NewString("another") }), fault.Denied, fault.ClassAuth),
		one("Port", with(func(s *dbsecret.Secret) { s.Port = testenv.FreePort(x.t) }), fault.Unavailable, fault.ClassNetwork),
		one("Name", with(func(s *dbsecret.Secret) { s.Host = "no-such-host.invalid" }), fault.Unavailable, fault.ClassNetwork),
		one("Database", with(func(s *dbsecret.Secret) { s.DBName = "none" }), fault.NotFound, ""),
		one("Probe", with(func(s *dbsecret.Secret) { s.Probe = "SELECT no_such_column" }), fault.Invalid, ""),
		one("ProbeWrites", with(func(s *dbsecret.Secret) { s.Probe = "CREATE TABLE probed ()" }), fault.Invalid, ""),
		one("NoSecret", func(*testing.T, secrets.Value) secrets.Value { return secrets.NewString(`{"password":"x"}`) }, fault.Invalid, ""),
		one("Locked", sql("ALTER ROLE %u NOLOGIN"), fault.Denied, fault.ClassAuth),
		one("Certificate", func(_ *testing.T, v secrets.Value) secrets.Value { x.distrust = true; return v }, fault.Denied, fault.ClassTLS),
		one("Policy", func(_ *testing.T, v secrets.Value) secrets.Value {
			x.policy = rotators.PasswordPolicy{Length: 2}
			return v
		}, fault.Invalid, ""),
	}
	if !x.alternate {
		return append(out, one("ActsAsAnother", sql("GRANT pg_monitor TO %u; ALTER ROLE %u SET role = pg_monitor"), fault.Denied, fault.ClassPermission))
	}
	return append(out, []rotatortest.Break{
		one("NoMaster", with(func(s *dbsecret.Secret) { s.MasterARN = "" }), fault.Invalid, ""),
		one("LongName", func(t *testing.T, v secrets.Value) secrets.Value {
			s := *parse(t, v)
			s.Username = strings.Repeat("n", 60)
			return x.value(s)
		}, fault.Invalid, ""),
		one("MasterUnreadable", func(_ *testing.T, v secrets.Value) secrets.Value { x.noMaster = true; return v }, fault.Denied, ""),
		one("MasterElsewhere", func(_ *testing.T, v secrets.Value) secrets.Value { x.masterSecret.Host = "localhost"; return v }, fault.Invalid, ""),
		one("MasterPassword", sql("ALTER ROLE %m PASSWORD 'another'"), fault.Denied, fault.ClassAuth),
		one("MasterRights", sql("ALTER ROLE %m NOCREATEROLE"), fault.Denied, fault.ClassPermission),
		one("BeyondMaster", sql("ALTER ROLE %u SUPERUSER"), fault.Denied, fault.ClassPermission),
		one("NotItsAlternate", sql("CREATE ROLE %c CREATEDB; GRANT pg_monitor TO %c"), fault.Denied, fault.ClassPermission),
		one("AlternateWithPowers", sql("CREATE ROLE %c CREATEDB; GRANT %u TO %c"), fault.Denied, fault.ClassPermission),
	}...)
}

// superseded makes a pair of which both sign in, and returns what a retirer
// is given.
func superseded(t *testing.T, o *postgres.Options) (*fixture, rotators.Restorer, rotators.Change, secrets.Value) {
	t.Helper()
	f := newFixture(t, "app", "first")
	old := f.value(f.secret)
	r := f.alternating(o)
	f.rotate(r)
	return f, r.(rotators.Restorer), f.change(), old
}

func retireWith(ctx context.Context, r rotators.Restorer, c rotators.Change, old secrets.Value) error {
	return r.(rotators.Retirer).Retire(ctx, c, old)
}

// TestRetireRefuses has values that are no affair of the pair: nothing is
// connected to.
func TestRetireRefuses(t *testing.T) {
	var d dials
	o := options()
	o.Dial = d.dial
	f, r, c, old := superseded(t, o)
	before, calls := f.fingerprint(), d.count()
	for name, change := range map[string]func(*dbsecret.Secret){
		"host": func(s *dbsecret.Secret) { s.Host = "localhost" },
		"port": func(s *dbsecret.Secret) { s.Port++ },
		"user": func(s *dbsecret.Secret) { s.Username = f.master },
	} {
		s := *parse(t, old)
		change(&s)
		for what, do := range map[string]func(context.Context, rotators.Change, secrets.Value) error{
			"retire":  func(ctx context.Context, c rotators.Change, v secrets.Value) error { return retireWith(ctx, r, c, v) },
			"restore": r.Restore,
		} {
			if err := do(t.Context(), c, f.value(s)); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s, another %s: got %v; expected Invalid", what, name, err)
			}
		}
	}
	if d.count() != calls || f.fingerprint() != before {
		t.Error("a value that was refused was connected with, or changed something")
	}
	if !f.signsIn(old) {
		t.Error("the superseded value does not sign in any more")
	}
}

// TestRetireKeepsTheLastThatWorks: while current is broken, old is not
// retired.
func TestRetireKeepsTheLastThatWorks(t *testing.T) {
	f, r, c, old := superseded(t, options())
	f.setPassword(f.user+"_clone", "changed-behind-our-back")
	if err := retireWith(t.Context(), r, c, old); !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassAuth {
		t.Errorf("got %v; expected Denied of class auth", err)
	}
	if !f.signsIn(old) {
		t.Error("the only credential that worked was retired")
	}
	// What is dead already needs no master and no current.
	f.setPassword(f.user, "another")
	must(t, retireWith(t.Context(), r, c, old))
}

// TestRetireUser is a user whose connections are all taken: its password
// counts, though nobody can sign in to see.
func TestRetireUser(t *testing.T) {
	f, r, c, old := superseded(t, options())
	do, err := connectRaw(t, f.dsn(old))
	must(t, err)
	f.admin("ALTER ROLE %u CONNECTION LIMIT 1")
	must(t, retireWith(t.Context(), r, c, old))
	must(t, do("SELECT 1")) // an open session stays
	f.admin("ALTER ROLE %u CONNECTION LIMIT -1")
	if f.signsIn(old) {
		t.Error("a user without connections left was not retired")
	}
	must(t, r.Restore(t.Context(), c, old))
	if !f.signsIn(old) || !f.signsIn(c.Current) {
		t.Error("after restore expected both to sign in")
	}
}

// TestRetireOvertaken has a rotation end between retire's look and its lock.
func TestRetireOvertaken(t *testing.T) {
	f := newFixture(t, "app", "first")
	old := f.value(f.secret)
	f.rotate(f.alternating(options()))
	c := f.change()
	var next secrets.Value
	o := options()
	var once sync.Once
	o.Hook = func(name string, do func() error) error {
		if name == "begin and lock" {
			once.Do(func() { next = f.rotate(f.alternating(options())) })
		}
		return do()
	}
	must(t, f.alternating(o).(rotators.Retirer).Retire(t.Context(), c, old))
	if f.signsIn(old) || !f.signsIn(next) {
		t.Error("expected the old password dead and the new one of the same user alive")
	}
	// And a rollback, which makes the very value current again.
	f2, r, c, old := superseded(t, options())
	gone := fault.New(fault.Conflict, "still current", nil)
	c.StillPending = func(context.Context) error { return gone }
	if err := retireWith(t.Context(), r, c, old); !fault.Is(err, fault.Conflict) || !f2.signsIn(old) {
		t.Errorf("retire under a lock that says no: %v", err)
	}
	c.StillPending = nil
	must(t, retireWith(t.Context(), r, c, old))
	c.StillPending = func(context.Context) error { return gone }
	if err := r.Restore(t.Context(), c, old); !fault.Is(err, fault.Conflict) || f2.signsIn(old) {
		t.Errorf("restore under a lock that says no: %v", err)
	}
}

// TestRestoreBesidePending leaves a user to the rotation that is giving it a
// password.
func TestRestoreBesidePending(t *testing.T) {
	f, r, c, old := superseded(t, options())
	must(t, retireWith(t.Context(), r, c, old))
	pend := f.pending(f.alternating(options())).Pending
	c.Pending = pend
	if err := r.Restore(t.Context(), c, old); !fault.Is(err, fault.Conflict) {
		t.Errorf("beside another pending value: got %v; expected Conflict", err)
	}
	// A rollback is a rotation whose pending is the old value.
	c.Pending = old
	must(t, r.Restore(t.Context(), c, old))
	if !f.signsIn(old) {
		t.Error("the value was not restored")
	}
	must(t, retireWith(t.Context(), r, c, old))
	if !f.signsIn(old) {
		t.Error("what a rotation is setting was retired")
	}
}

// TestRestoreExpired says so: the password is back and does not help.
func TestRestoreExpired(t *testing.T) {
	f, r, c, old := superseded(t, options())
	must(t, retireWith(t.Context(), r, c, old))
	f.admin("ALTER ROLE %u VALID UNTIL '2001-01-01'")
	if err := r.Restore(t.Context(), c, old); !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassPolicy {
		t.Errorf("got %v; expected Denied of class policy", err)
	}
	if !f.signsIn(c.Current) {
		t.Error("current does not sign in any more")
	}
}

// TestRetireAtOnce retires, restores and rotates from several processes at
// once. Whatever comes first, current signs in.
func TestRetireAtOnce(t *testing.T) {
	f, r, c, old := superseded(t, options())
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := retireWith(t.Context(), r, c, old); err != nil && fault.ClassOf(err) != fault.ClassConcurrency {
				t.Errorf("retire: %v", err)
			}
		})
		wg.Go(func() {
			if err := r.Restore(t.Context(), c, old); err != nil && fault.ClassOf(err) != fault.ClassConcurrency {
				t.Errorf("restore: %v", err)
			}
		})
	}
	wg.Wait()
	if !f.signsIn(c.Current) {
		t.Fatal("current does not sign in any more")
	}
	must(t, r.Restore(t.Context(), c, old))
	must(t, retireWith(t.Context(), r, c, old))
	if f.signsIn(old) || !f.signsIn(c.Current) {
		t.Error("after a retirement expected the old value dead and current alive")
	}
}

// TestRetireDeadline begins nothing that cannot end in time, and says so.
func TestRetireDeadline(t *testing.T) {
	f, r, c, old := superseded(t, options())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	v := r.(rotators.Verifier)
	for what, err := range map[string]error{"retire": retireWith(ctx, r, c, old), "verify": v.Verify(ctx, c, old)} {
		if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassTimeout {
			t.Errorf("%s: got %v; expected Unavailable of class timeout", what, err)
		}
	}
	if !f.signsIn(old) {
		t.Error("the superseded value does not sign in any more")
	}
}

// TestDryRunAlternateUnlisted has a pg_hba.conf that knows users by name, and
// not the alternate.
func TestDryRunAlternateUnlisted(t *testing.T) {
	f := newFixture(t, "app", "first")
	r := f.alternating(options()).(rotators.DryRunner)
	last := func() rotators.Check {
		out := r.DryRun(t.Context(), f.change())
		return out[len(out)-1]
	}
	if c := last(); c.Err != nil {
		t.Fatalf("%s: %v", c.What, c.Err)
	}
	clone := f.user + "_clone"
	file := admin(t, "postgres", "SHOW hba_file")
	rules, err := os.ReadFile(file) //nolint:gosec // of the test's own server
	must(t, err)
	must(t, os.WriteFile(file, append([]byte("host all "+clone+" all reject\n"), rules...), 0o600)) //nolint:gosec // as above
	t.Cleanup(func() {
		must(t, os.WriteFile(file, rules, 0o600)) //nolint:gosec // as above
		admin(t, "postgres", "SELECT pg_reload_conf()")
	})
	admin(t, "postgres", "SELECT pg_reload_conf()")
	for deadline := time.Now().Add(30 * time.Second); ; {
		_, err := query(server.DSN(clone, "no", f.db), "SELECT 1")
		if err != nil && strings.Contains(err.Error(), "pg_hba.conf") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the server does not read its file again: %v", err)
		}
	}
	if c := last(); !fault.Is(c.Err, fault.Denied) || !strings.Contains(c.What, clone) || !strings.Contains(c.Err.Error(), "pg_hba.conf") {
		t.Errorf("%s: %v; expected Denied, by pg_hba.conf", c.What, c.Err)
	}
}

// TestAbilitiesLeakNothing looks for the passwords in what is printed and in
// the log of the server, which has every statement.
func TestAbilitiesLeakNothing(t *testing.T) {
	f := newFixture(t, "app", "x")
	canaries := []string{leaktest.Canary(), leaktest.Canary()}
	f.setPassword(f.user, canaries[0])
	f.secret.Password = secrets.NewString(canaries[0])
	old := f.value(f.secret)
	var rec leaktest.Recorder
	o := options()
	o.Logger = rec.Logger()
	r := f.alternating(o).(rotators.Restorer)
	c := f.pending(f.alternating(o))
	p := *parse(t, c.Pending)
	p.Password = secrets.NewString(canaries[1])
	c.Pending = f.value(p)
	must(t, f.alternating(o).Set(t.Context(), c))
	c.Current, c.Pending = c.Pending, secrets.Value{}
	for range 2 {
		must(t, retireWith(t.Context(), r, c, old))
		for _, v := range []secrets.Value{old, c.Current, f.value(f.masterSecret)} {
			rec.Record(r.(rotators.Verifier).Verify(t.Context(), c, v))
		}
		must(t, r.Restore(t.Context(), c, old))
		rec.Record(r, c, r.(rotators.DryRunner).DryRun(t.Context(), c))
	}
	_, _ = rec.Write([]byte(serverLog.String()))
	rec.Check(t, canaries...)
}

// TestDefaultPolicy is what the samples of AWS make: 32 characters without
// :/@"'\ and one of each type.
// https://github.com/aws-samples/aws-secrets-manager-rotation-lambdas
func TestDefaultPolicy(t *testing.T) {
	v, err := dbsecret.Encode(dbsecret.Secret{Engine: "postgres", Host: "h", Username: "u", Password: secrets.NewString("p"), MasterARN: "m"})
	must(t, err)
	password := func(r rotators.Rotator) string {
		t.Helper()
		next, err := r.Create(t.Context(), rotators.Change{Current: v})
		must(t, err)
		return string(parse(t, next).Password.Reveal())
	}
	for name, makeOne := range map[string]func(*postgres.Options) rotators.Rotator{
		"single":      postgres.NewSingle,
		"alternating": func(o *postgres.Options) rotators.Rotator { return postgres.NewAlternating(nil, o) },
	} {
		for range 50 {
			if p := password(makeOne(nil)); len(p) != 32 || strings.ContainsAny(p, ":/@\"'\\") {
				t.Fatalf("%s: a password of %d characters; expected 32 without those that the samples exclude", name, len(p))
			}
			// With a policy nothing of the default is left: what is excluded is
			// what the policy says.
			p := password(makeOne(&postgres.Options{Policy: rotators.PasswordPolicy{Length: 12, Exclude: "abc012", ExcludePunctuation: true, ExcludeUpper: true}}))
			if len(p) != 12 || strings.Trim(p, "defghijklmnopqrstuvwxyz3456789") != "" {
				t.Fatalf("%s: the policy is not honoured", name)
			}
		}
		_, err := makeOne(&postgres.Options{Policy: rotators.PasswordPolicy{Length: 3}}).Create(t.Context(), rotators.Change{Current: v})
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s, a policy that cannot be met: got %v; expected Invalid", name, err)
		}
	}
}
