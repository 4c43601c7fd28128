package postgres_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
)

// TestC27Quoting has every dangerous character in user, password and database
// name. The server must end with exactly these bytes.
func TestC27Quoting(t *testing.T) {
	for _, evil := range []string{
		`a"b'c`, `back\slash`, `semi;DROP ROLE x;--`, `%s%d %`, `$1$tag$`, `ünï☃𝄞`, ` spaces `, "tab\tline\n", `postgres://u:p@h/?sslmode=disable`, `'||pg_sleep(9)||'`, `UPPER`, `SCRAM-SHA-256$4096:x`,
	} {
		f := newFixture(t, evil, "before"+evil)
		for name, r := range map[string]rotators.Rotator{"single": postgres.NewSingle(options()), "alternating": f.alternating(options())} {
			c := f.pending(r)
			p := *parse(t, c.Pending)
			p.Password = secrets.NewString(evil + "after")
			c.Pending = f.value(p)
			must(t, r.Set(t.Context(), c))
			must(t, r.Test(t.Context(), c))
			got, err := query(f.dsn(c.Pending), "SELECT session_user || current_database()")
			if err != nil || got != p.Username+f.db {
				t.Errorf("%s %q: got %q, %v", name, evil, got, err)
			}
			if p.Username == f.user {
				f.secret.Password = p.Password
			}
		}
	}
}

// TestVerifierIsTheServers lets the server hash passwords and compares, for
// strings of the whole of Unicode.
func TestVerifierIsTheServers(t *testing.T) {
	f := newFixture(t, "app", "x")
	do, err := connectRaw(t, server.DSN(server.SuperUser, server.SuperPassword, "postgres"))
	must(t, err)
	must(t, do("SET log_statement = none"))
	rapid.Check(t, func(rt *rapid.T) {
		pw := rapid.StringOf(rapid.OneOf(rapid.Rune(), rapid.RuneFrom([]rune("aé\u00ad\u00a0\u200b\u00aa\u2168\u0627\u05d0\u0221\ufb01\u1680\u2060")))).
			Filter(func(s string) bool { return s != "" && !strings.ContainsRune(s, 0) }).Draw(rt, "password")
		must(t, do("ALTER ROLE "+quote(f.user)+" PASSWORD "+literal(pw)))
		stored := f.verifier(f.user)
		rest, ok := strings.CutPrefix(stored, "SCRAM-SHA-256$4096:")
		salt64, _, ok2 := strings.Cut(rest, "$")
		salt, err := base64.StdEncoding.DecodeString(salt64)
		if !ok || !ok2 || err != nil {
			rt.Fatalf("the server stored %q", stored)
		}
		if got := postgres.Verifier(t, secrets.NewString(pw), salt); got != stored {
			rt.Fatalf("%q: ours is not the server's verifier", pw)
		}
	})
}

// TestEngines takes both names of the engine.
func TestEngines(t *testing.T) {
	f := newFixture(t, "app", "x")
	f.secret.Engine = "aurora-postgresql"
	f.secret.SSL = dbsecret.SSLRequire
	r := postgres.NewSingle(options())
	c := f.pending(r)
	must(t, r.Set(t.Context(), c))
	must(t, r.Test(t.Context(), c))
}
