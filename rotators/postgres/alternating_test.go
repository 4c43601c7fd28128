package postgres_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
)

// rotate runs one whole rotation and makes pending current.
func (f *fixture) rotate(r rotators.Rotator) secrets.Value {
	f.t.Helper()
	c := f.pending(r)
	must(f.t, r.Set(f.t.Context(), c))
	must(f.t, r.Test(f.t.Context(), c))
	if !f.signsIn(c.Current) {
		f.t.Fatal("set revoked current")
	}
	f.secret = *parse(f.t, c.Pending)
	return c.Pending
}

func TestAlternating(t *testing.T) {
	f := newFixture(t, "app", "first")
	admin(t, f.db, "ALTER ROLE "+quote(f.user)+" CONNECTION LIMIT 7 VALID UNTIL '2999-01-02'")
	r := f.alternating(options())
	first := f.value(f.secret)
	second := f.rotate(r)
	if got := parse(t, second).Username; got != f.user+"_clone" {
		t.Errorf("the alternate is %q", got)
	}
	if got := admin(t, f.db, "SELECT rolconnlimit || ' ' || date(rolvaliduntil) FROM pg_roles WHERE rolname = "+literal(f.user+"_clone")); got != "7 2999-01-02" {
		t.Errorf("limits of the alternate: %s", got)
	}
	third := f.rotate(r)
	if parse(t, third).Username != f.user || f.signsIn(first) || !f.signsIn(second) {
		t.Error("after two rotations expected the first password dead and the second alive")
	}
	f.rotate(r)

	// Going back is a rotation whose pending is the previous value.
	c := f.change()
	c.Pending = third
	must(t, r.Set(t.Context(), c))
	must(t, r.Test(t.Context(), c))
}

// TestOwnership has each of the two use, alter and drop what the other made.
func TestOwnership(t *testing.T) {
	f := newFixture(t, "app", "first")
	admin(t, f.db, "CREATE SCHEMA s AUTHORIZATION "+quote(f.user))
	r := f.alternating(options())
	orig := f.value(f.secret)
	clone := f.rotate(r)
	dsns := map[string]string{"original": f.dsn(orig), "clone": f.dsn(clone)}
	for maker, other := range map[string]string{"original": "clone", "clone": "original"} {
		if _, err := query(dsns[maker], "CREATE TABLE s."+maker+" (x int); CREATE FUNCTION s.f_"+maker+"() RETURNS int LANGUAGE sql AS 'SELECT 1'"); err != nil {
			t.Fatal(err)
		}
		if got := admin(t, f.db, "SELECT tableowner FROM pg_tables WHERE tablename = "+literal(maker)); got != f.user {
			t.Errorf("what the %s made belongs to %s", maker, got)
		}
		for _, sql := range []string{"INSERT INTO s." + maker + " VALUES (1)", "ALTER TABLE s." + maker + " ADD y int", "TRUNCATE s." + maker, "DROP TABLE s." + maker, "DROP FUNCTION s.f_" + maker + "()"} {
			if _, err := query(dsns[other], sql); err != nil {
				t.Errorf("%s by the %s: %v", sql, other, err)
			}
		}
	}
	if got, err := query(dsns["clone"], "SELECT session_user || ' ' || current_user"); err != nil || got != f.user+"_clone "+f.user {
		t.Errorf("the clone's session: %q, %v", got, err)
	}
	do, err := connectRaw(t, dsns["clone"])
	must(t, err)
	must(t, do("DISCARD ALL")) // as poolers do
	must(t, do("CREATE TABLE s.after_discard ()"))
	if got := admin(t, f.db, "SELECT tableowner FROM pg_tables WHERE tablename = 'after_discard'"); got != f.user {
		t.Errorf("after DISCARD ALL a table belongs to %s", got)
	}
}

// TestC20Converge starts from clones as others leave them.
func TestC20Converge(t *testing.T) {
	for name, before := range map[string]string{
		"bare":                  "CREATE ROLE %c",
		"as the samples do":     "CREATE ROLE %c LOGIN PASSWORD 'x'; GRANT %u TO %c",
		"own settings":          "CREATE ROLE %c LOGIN; GRANT %u TO %c; ALTER ROLE %c SET work_mem = '1MB'; ALTER ROLE %c SET role = none",
		"limits":                "CREATE ROLE %c LOGIN CONNECTION LIMIT 1 VALID UNTIL '2001-01-01'",
		"grant missing at last": "CREATE ROLE %c LOGIN; ALTER ROLE %c SET role = %u",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, "app", "first")
			f.admin(before)
			clone := f.rotate(f.alternating(options()))
			got, err := query(f.dsn(clone), "SELECT current_user || ' ' || current_setting('work_mem')")
			if want := f.user + " " + admin(t, f.db, "SHOW work_mem"); err != nil || got != want {
				t.Errorf("got %q, %v; expected %q", got, err, want)
			}
			// Put right on every rotation, not only on the first.
			f.rotate(f.alternating(options()))
			f.admin("REVOKE %u FROM %c")
			f.rotate(f.alternating(options()))
			if got, err := query(f.dsn(f.value(f.secret)), "SELECT current_user"); err != nil || got != f.user {
				t.Errorf("after a revoke: got %q, %v", got, err)
			}
		})
	}
}

func (f *fixture) admin(sql string) {
	f.t.Helper()
	admin(f.t, f.db, strings.NewReplacer("%u", quote(f.user), "%c", quote(f.user+"_clone"), "%d", quote(f.db)).Replace(sql))
}

func TestSettings(t *testing.T) {
	f := newFixture(t, "app", "first")
	f.admin(`ALTER ROLE %u SET search_path = "$user", "we""ird, one", public; ALTER ROLE %u SET statement_timeout = '7s';
		ALTER ROLE %u IN DATABASE %d SET my.own = 'it''s a \ b'; ALTER ROLE %u IN DATABASE %d SET temp_tablespaces = ''; ALTER ROLE %u SET log_statement = 'none'`)
	same := func(names ...string) {
		t.Helper()
		f.setPassword(f.user, "known")
		for _, name := range names {
			a, err1 := query(server.DSN(f.user, "known", f.db), "SHOW "+name)
			b, err2 := query(f.dsn(f.value(f.secret)), "SHOW "+name)
			if err := errors.Join(err1, err2); err != nil || a != b {
				t.Errorf("%s: original %q, clone %q, %v", name, a, b, err)
			}
		}
	}
	var rec leaktest.Recorder
	o := options()
	o.Logger = rec.Logger()
	f.rotate(f.alternating(o))
	same("search_path", "statement_timeout", "temp_tablespaces")
	// What a master may not set is left out, and said.
	for _, name := range []string{"my.own", "log_statement"} {
		if !strings.Contains(rec.String(), name) {
			t.Errorf("nothing was logged of %s", name)
		}
	}
	f.secret.Username, f.secret.Password = f.user, secrets.NewString("known")
	f.masterSecret.Username, f.masterSecret.Password = server.SuperUser, secrets.NewString(server.SuperPassword)
	r := f.alternating(options())
	f.rotate(r)
	same("search_path", "statement_timeout", "temp_tablespaces", "my.own", "log_statement")
	f.rotate(r) // to the original
	f.admin(`ALTER ROLE %u RESET ALL; ALTER ROLE %u IN DATABASE %d RESET ALL`)
	f.rotate(r)
	if got := admin(t, f.db, "SELECT string_agg(array_to_string(setconfig, ','), ';') FROM pg_db_role_setting WHERE setrole = "+literal(quote(f.user+"_clone"))+"::regrole"); got != "role="+quote(f.user) && got != "role="+f.user {
		t.Errorf("settings that the original has no more are left: %s", got)
	}
}

// TestOwnedByClone is a clone that made objects before it acted as the
// original, as those of the samples do.
func TestOwnedByClone(t *testing.T) {
	f := newFixture(t, "app", "first")
	f.admin("CREATE SCHEMA s AUTHORIZATION %u; CREATE ROLE %c LOGIN; GRANT %u TO %c; CREATE TABLE s.made (x int); ALTER TABLE s.made OWNER TO %c")
	r := f.alternating(options())
	f.rotate(r)
	owner := func() string { return admin(t, f.db, "SELECT tableowner FROM pg_tables WHERE tablename = 'made'") }
	// A master that is a member of both may hand over; on PostgreSQL 15 one
	// with CREATEROLE alone may not, and then the clone goes on as before.
	got, err := query(f.dsn(f.value(f.secret)), "INSERT INTO s.made VALUES (1) RETURNING current_user")
	if err != nil || (owner() == f.user) != (got == f.user) {
		t.Errorf("owner %s, acts as %q, %v; expected both to be the original or neither", owner(), got, err)
	}
	admin(t, f.db, "GRANT "+quote(f.user)+", "+quote(f.user+"_clone")+" TO "+quote(f.master))
	f.rotate(r)
	f.rotate(r)
	got, err = query(f.dsn(f.value(f.secret)), "INSERT INTO s.made VALUES (1) RETURNING current_user")
	if err != nil || owner() != f.user || got != f.user {
		t.Errorf("with a master that is a member of both: owner %s, acts as %q, %v", owner(), got, err)
	}
}

// TestNotItsAlternate has a role that only happens to have the name.
func TestNotItsAlternate(t *testing.T) {
	for name, before := range map[string]string{
		"superuser":      "CREATE ROLE %c SUPERUSER; GRANT %u TO %c",
		"other powers":   "CREATE ROLE %c LOGIN CREATEDB; GRANT %u TO %c",
		"owns something": "CREATE ROLE %c; CREATE TABLE t (); ALTER TABLE t OWNER TO %c",
		"has grants":     "CREATE ROLE %c; CREATE TABLE t (); GRANT SELECT ON t TO %c",
		"is a member":    "CREATE ROLE %c; GRANT pg_monitor TO %c",
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t, "app", "first")
			f.masterSecret.Username, f.masterSecret.Password = server.SuperUser, secrets.NewString(server.SuperPassword)
			f.admin(before)
			r := f.alternating(options())
			c := f.pending(r)
			if err := r.Set(t.Context(), c); !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassPermission {
				t.Errorf("got %v; expected Denied of class permission", err)
			}
			if f.verifier(f.user+"_clone") != "" {
				t.Error("the role was given a password")
			}
		})
	}
}

func TestC17CurrentMustSignIn(t *testing.T) {
	f := newFixture(t, "app", "first")
	var arns []string
	r := postgres.NewAlternating(f.masterOf(&arns), options())
	f.secret.Password = secrets.NewString("forged")
	c := f.pending(r)
	if err := r.Set(t.Context(), c); !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassAuth {
		t.Errorf("got %v; expected Denied of class auth", err)
	}
	if len(arns) != 0 {
		t.Error("the master secret was read for somebody who does not know the password")
	}
}

func TestC18MasterFromCurrent(t *testing.T) {
	f := newFixture(t, "app", "first")
	var arns []string
	r := postgres.NewAlternating(f.masterOf(&arns), options())
	c := f.pending(r)
	p := *parse(t, c.Pending)
	p.MasterARN = "arn:forged"
	c.Pending = f.value(p)
	must(t, r.Set(t.Context(), c))
	if len(arns) != 1 || arns[0] != "arn:master" {
		t.Errorf("masters read: %v; expected current's", arns)
	}
	f.secret.MasterARN = ""
	c.Current = f.value(f.secret)
	if err := r.Set(t.Context(), c); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "masterarn") {
		t.Errorf("no masterarn: got %v; expected Invalid", err)
	}
}

func TestC19MasterServer(t *testing.T) {
	f := newFixture(t, "app", "first")
	real := f.masterSecret
	managed := secrets.NewString(`{"username":"` + f.master + `","password":"masterpw"}`)
	away, self := real, real
	away.Host = "localhost"
	self.Username = f.user
	yes := func(_ context.Context, child, master postgres.Server) (bool, error) {
		return child.Host == "127.0.0.1" && master.Host == "localhost", nil
	}
	where := func(_ context.Context, arn string) (postgres.Server, error) {
		return postgres.Server{Host: server.Host, Port: server.Port}, nil
	}
	for name, c := range map[string]struct {
		master  secrets.Value
		same    func(context.Context, postgres.Server, postgres.Server) (bool, error)
		resolve func(context.Context, string) (postgres.Server, error)
		want    fault.Kind
		ok      bool
	}{
		"another":                {master: f.value(away), want: fault.Invalid},
		"another, declared same": {master: f.value(away), same: yes, ok: true},
		"another, lookup failed": {master: f.value(away), same: func(context.Context, postgres.Server, postgres.Server) (bool, error) {
			return false, fault.New(fault.Unavailable, "describe", nil)
		}, want: fault.Unavailable},
		"managed, no resolver":    {master: managed, want: fault.Invalid},
		"managed":                 {master: managed, resolve: where, ok: true},
		"one of the pair":         {master: f.value(self), want: fault.Invalid},
		"not a database's secret": {master: secrets.NewString(`{}`), want: fault.Invalid},
	} {
		o := options()
		o.SameServer, o.ResolveMaster = c.same, c.resolve
		r := postgres.NewAlternating(func(context.Context, string) (secrets.Value, error) { return c.master, nil }, o)
		err := r.Set(t.Context(), f.pending(r))
		if c.ok != (err == nil) || !c.ok && fault.KindOf(err) != c.want {
			t.Errorf("%s: got %v; expected ok %v, kind %v", name, err, c.ok, c.want)
		}
	}
	r := postgres.NewAlternating(func(context.Context, string) (secrets.Value, error) {
		return secrets.Value{}, fault.New(fault.Denied, "get secret", nil)
	}, options())
	if err := r.Set(t.Context(), f.pending(r)); !fault.Is(err, fault.Denied) {
		t.Errorf("master secret refused: got %v; expected Denied", err)
	}
}

func TestC28NameLimit(t *testing.T) {
	long := strings.Repeat("n", 58)
	cur := func(user string) rotators.Change {
		v, err := dbsecret.Encode(dbsecret.Secret{Engine: "postgres", Host: "h", Username: user, Password: secrets.NewString("p"), MasterARN: "m"})
		must(t, err)
		return rotators.Change{Current: v}
	}
	r := postgres.NewAlternating(nil, nil)
	if _, err := r.Create(t.Context(), cur(long)); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "63") {
		t.Errorf("a name of 64 bytes: got %v; expected Invalid", err)
	}
	if _, err := r.Create(t.Context(), cur(long[:57])); err != nil {
		t.Errorf("a name of 63 bytes: %v", err)
	}
	for name, f := range map[string]func(string) string{"same": func(s string) string { return s }, "none": func(string) string { return "" }} {
		if _, err := postgres.NewAlternating(nil, &postgres.Options{AlternateName: f}).Create(t.Context(), cur("app")); !fault.Is(err, fault.Invalid) {
			t.Errorf("alternate name %s: got %v; expected Invalid", name, err)
		}
	}
	v, err := r.Create(t.Context(), cur("_clone"))
	if err != nil || parse(t, v).Username != "_clone_clone" {
		t.Errorf("a user named only _clone: %v", err)
	}
}

// TestMasterWithoutRights is a master who may not create users.
func TestMasterWithoutRights(t *testing.T) {
	f := newFixture(t, "app", "first")
	f.admin("ALTER ROLE " + quote(f.master) + " NOCREATEROLE")
	r := f.alternating(options())
	if err := r.Set(t.Context(), f.pending(r)); !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassPermission {
		t.Errorf("got %v; expected Denied of class permission", err)
	}
	if n := admin(t, f.db, "SELECT count(*) FROM pg_roles WHERE rolname = "+literal(f.user+"_clone")); n != "0" {
		t.Error("a failed set left a role behind")
	}
}
