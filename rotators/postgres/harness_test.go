package postgres_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
)

// One server for all tests of the package, with users of its own for each.
var (
	server    *pgserver.Server
	serverLog syncBuffer
	errServer error
)

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	if pgserver.FindBinaries() != "" {
		dir, err := os.MkdirTemp("", "postgres-test")
		if err == nil {
			defer func() { _ = os.RemoveAll(dir) }()
			server, errServer = pgserver.Start(context.Background(), pgserver.Options{
				Dir: dir, NoSync: true, Log: &serverLog,
				Settings: map[string]string{"log_statement": "all", "log_connections": "on", "log_min_error_statement": "debug1", "max_connections": "200"},
			})
		}
		if errServer == nil && err == nil {
			defer func() { _ = server.Stop() }()
		}
	}
	code := m.Run()
	if root != nil {
		_ = root.Close(context.Background())
	}
	if server != nil {
		if err := server.Stop(); err != nil {
			fmt.Println(err)
			code = 1
		}
	}
	if err := goleak.Find(); err != nil {
		fmt.Println(err)
		code = 1
	}
	return code
}

func needServer(t testing.TB) {
	t.Helper()
	if errServer != nil {
		t.Fatal(errServer)
	}
	if server == nil {
		testenv.Missing(t, "the PostgreSQL server", pgserver.InstallHint)
	}
}

func roots() *x509.CertPool {
	p := x509.NewCertPool()
	p.AppendCertsFromPEM(server.CAPEM)
	return p
}

func options() *postgres.Options { return &postgres.Options{RootCAs: roots()} }

// root is one session of the superuser in the database postgres, whose
// statements are not logged: some hold passwords.
var (
	rootMu sync.Mutex
	root   *pgconn.PgConn
)

// admin runs sql as the superuser in db and returns the first column of the
// first row.
func admin(t testing.TB, db, sql string) string {
	t.Helper()
	if db == "postgres" {
		out, err := asRoot(sql)
		if err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
		return out
	}
	out, err := query(server.DSN(server.SuperUser, server.SuperPassword, db), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return out
}

func asRoot(sql string) (string, error) {
	rootMu.Lock()
	defer rootMu.Unlock()
	if root == nil {
		c, err := pgconn.Connect(context.Background(), server.DSN(server.SuperUser, server.SuperPassword, "postgres"))
		if err != nil {
			return "", err
		}
		// A message of its own: it is logged before it counts.
		if err := c.Exec(context.Background(), "SET log_statement = none; SET log_min_error_statement = panic; SET password_encryption = 'scram-sha-256'").Close(); err != nil {
			return "", err
		}
		root = c
	}
	return first(root, sql)
}

func query(dsn, sql string) (string, error) {
	ctx := context.Background()
	c, err := pgconn.Connect(ctx, dsn)
	if err != nil {
		return "", err
	}
	defer func() { _ = c.Close(ctx) }()
	return first(c, sql)
}

func first(c *pgconn.PgConn, sql string) (string, error) {
	res, err := c.Exec(context.Background(), sql).ReadAll()
	for _, r := range res {
		if len(r.Rows) > 0 {
			return string(r.Rows[0][0]), err
		}
	}
	return "", err
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }

func literal(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// A fixture is a user with a database and a master.
type fixture struct {
	t                testing.TB
	user, master, db string
	secret           dbsecret.Secret // current
	masterSecret     dbsecret.Secret
}

var (
	serialMu sync.Mutex
	serial   int
)

func unique(prefix string) string {
	serialMu.Lock()
	defer serialMu.Unlock()
	serial++
	return fmt.Sprintf("%s%d", prefix, serial)
}

// newFixture is newUser with a database that the user owns.
func newFixture(t testing.TB, prefix, password string) *fixture {
	t.Helper()
	f := newUser(t, prefix, password)
	f.db = f.user + "_db"
	f.secret.DBName = f.db
	admin(t, "postgres", "CREATE DATABASE "+quote(f.db)+" OWNER "+quote(f.user))
	return f
}

// newUser makes a user whose name begins as given, and a master that is no
// superuser.
func newUser(t testing.TB, prefix, password string) *fixture {
	t.Helper()
	needServer(t)
	f := &fixture{t: t, user: unique(prefix), master: unique("master"), db: "postgres"}
	f.secret = dbsecret.Secret{
		Engine: "postgres", Host: server.Host, Port: server.Port, Username: f.user, Password: secrets.NewString(password),
		DBName: f.db, MasterARN: "arn:master",
	}
	f.masterSecret = dbsecret.Secret{
		Engine: "postgres", Host: server.Host, Port: server.Port, Username: f.master, Password: secrets.NewString("masterpw"),
	}
	// The master makes the user, as it does on RDS.
	admin(t, "postgres", "CREATE ROLE "+quote(f.master)+" LOGIN CREATEROLE PASSWORD 'masterpw'; SET ROLE "+quote(f.master)+"; CREATE ROLE "+quote(f.user)+" LOGIN; RESET ROLE")
	f.setPassword(f.user, password)
	return f
}

// setPassword sets a password without the rotator.
func (f *fixture) setPassword(user, password string) {
	f.t.Helper()
	admin(f.t, "postgres", "ALTER ROLE "+quote(user)+" PASSWORD "+literal(password))
}

func (f *fixture) value(s dbsecret.Secret) secrets.Value {
	f.t.Helper()
	v, err := dbsecret.Encode(s)
	if err != nil {
		f.t.Fatal(err)
	}
	return v
}

func (f *fixture) change() rotators.Change {
	return rotators.Change{Token: "token", Current: f.value(f.secret)}
}

// pending is change with what r creates as pending.
func (f *fixture) pending(r rotators.Rotator) rotators.Change {
	f.t.Helper()
	c := f.change()
	var err error
	if c.Pending, err = r.Create(f.t.Context(), c); err != nil {
		f.t.Fatal(err)
	}
	return c
}

func (f *fixture) masterOf(arns *[]string) func(context.Context, string) (secrets.Value, error) {
	v := f.value(f.masterSecret)
	return func(_ context.Context, arn string) (secrets.Value, error) {
		if arns != nil {
			*arns = append(*arns, arn)
		}
		return v, nil
	}
}

func (f *fixture) alternating(o *postgres.Options) rotators.Rotator {
	return postgres.NewAlternating(f.masterOf(nil), o)
}

// dsn signs in with v.
func (f *fixture) dsn(v secrets.Value) string {
	f.t.Helper()
	s := parse(f.t, v)
	return server.DSN(s.Username, string(s.Password.Reveal()), s.DBName)
}

func (f *fixture) signsIn(v secrets.Value) bool {
	_, err := query(f.dsn(v), "SELECT 1")
	return err == nil
}

func (f *fixture) verifier(user string) string {
	return admin(f.t, "postgres", "SELECT coalesce(rolpassword, '') FROM pg_authid WHERE rolname = "+literal(user))
}

func parse(t testing.TB, v secrets.Value) *dbsecret.Secret {
	t.Helper()
	s, err := dbsecret.Parse(v)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// dials counts connections.
type dials struct {
	mu sync.Mutex
	n  int
}

func (d *dials) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	d.mu.Lock()
	d.n++
	d.mu.Unlock()
	return (&net.Dialer{}).DialContext(ctx, network, addr)
}

func (d *dials) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// connectRaw opens a session that stays until t ends.
func connectRaw(t testing.TB, dsn string) (func(sql string) error, error) {
	c, err := pgconn.Connect(context.Background(), dsn)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return func(sql string) error { return c.Exec(context.Background(), sql).Close() }, nil
}
