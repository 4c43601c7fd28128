package integration_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/internal/keyissuer"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/apikey"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/natskv"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// get returns the version that holds stage, or nil if none does.
func get(t testing.TB, s secrets.Reader, r ref.Ref, stage secrets.Stage) *secrets.Version {
	t.Helper()
	v, err := s.Get(context.Background(), r, stage)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		t.Fatalf("read %s of %s: %v", stage, r, err)
	}
	return v
}

func natsRef(t testing.TB, name string) ref.Ref {
	t.Helper()
	r, err := ref.New(ref.NATS, name, bucket)
	must(t, err)
	return r
}

const bucket = "keyturn"

// masterOf reads the secrets that others name as their authority.
func masterOf(s secrets.Reader) func(context.Context, string) (secrets.Value, error) {
	return func(ctx context.Context, name string) (secrets.Value, error) {
		r, err := ref.Parse(name)
		if err != nil {
			return secrets.Value{}, err
		}
		v, err := s.Get(ctx, r, secrets.Current)
		if err != nil {
			return secrets.Value{}, err
		}
		return v.Value, nil
	}
}

// A database is a PostgreSQL server with a session of its superuser, whose
// statements the server does not log: some hold passwords.
type database struct {
	*pgserver.Server
	roots *x509.CertPool
	log   *leaktest.Recorder

	mu    sync.Mutex
	admin *pgx.Conn
	n     int
}

func newDatabase(t *testing.T) *database {
	t.Helper()
	if pgserver.FindBinaries() == "" {
		testenv.Missing(t, "the PostgreSQL server", pgserver.InstallHint)
	}
	d := &database{log: &leaktest.Recorder{}, roots: x509.NewCertPool()}
	var err error
	d.Server, err = pgserver.Start(t.Context(), pgserver.Options{
		Dir: t.TempDir(), NoSync: true, Log: d.log, MaxConnections: 200,
		Settings: map[string]string{"log_statement": "all", "log_connections": "on", "log_min_error_statement": "debug1"},
	})
	must(t, err)
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Errorf("stop PostgreSQL: %v", err)
		}
	})
	if !d.roots.AppendCertsFromPEM(d.CAPEM) {
		t.Fatal("the server's authority is no certificate")
	}
	d.admin, err = pgx.Connect(t.Context(), d.DSN(d.SuperUser, d.SuperPassword, "postgres"))
	must(t, err)
	t.Cleanup(func() { _ = d.admin.Close(context.Background()) })
	d.sql(t, "SET log_statement = none; SET log_min_error_statement = panic")
	return d
}

// sql runs statements as the superuser and returns the first column of the
// last row, as text.
func (d *database) sql(t testing.TB, text string) (out string) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	res, err := d.admin.PgConn().Exec(context.Background(), text).ReadAll()
	must(t, err)
	for _, r := range res {
		for _, row := range r.Rows {
			out = string(row[0])
		}
	}
	return out
}

// master makes a user that may change others, and returns its secret.
func (d *database) master(t testing.TB, name, password string) secrets.Value {
	t.Helper()
	d.sql(t, "CREATE ROLE "+name+" LOGIN CREATEROLE PASSWORD '"+password+"'")
	return d.secret(t, name, password, "")
}

// user makes a user, as master makes it on RDS, and returns its secret.
func (d *database) user(t testing.TB, name, password, master, masterRef string) secrets.Value {
	t.Helper()
	d.sql(t, "SET ROLE "+master+"; CREATE ROLE "+name+" LOGIN PASSWORD '"+password+"'; RESET ROLE")
	return d.secret(t, name, password, masterRef)
}

func (d *database) secret(t testing.TB, name, password, masterRef string) secrets.Value {
	t.Helper()
	v, err := dbsecret.Encode(dbsecret.Secret{
		Engine: "postgres", Host: d.Host, Port: d.Port, Username: name, Password: secrets.NewString(password),
		DBName: "postgres", MasterARN: masterRef, SSL: dbsecret.SSLRequire,
	})
	must(t, err)
	return v
}

// signIn opens a session with v and knows nothing of how a rotator does it.
func (d *database) signIn(ctx context.Context, v secrets.Value) error {
	s, err := dbsecret.Parse(v)
	if err != nil {
		return err
	}
	c, err := pgconn.Connect(ctx, d.DSN(s.Username, string(s.Password.Reveal()), s.DBName))
	var pe *pgconn.PgError
	if errors.As(err, &pe) && pe.Code == "28P01" {
		return fault.New(fault.Denied, "sign in", nil)
	}
	if err != nil {
		return err
	}
	return c.Close(ctx)
}

// accepts reports whether v signs in.
func (d *database) accepts(t testing.TB, v secrets.Value) bool {
	t.Helper()
	err := d.signIn(context.Background(), v)
	if err != nil && !fault.Is(err, fault.Denied) {
		t.Fatalf("sign in: %v", err)
	}
	return err == nil
}

// A dbTarget is one user, or a pair, with its rotator.
type dbTarget struct {
	*database
	user        string
	initial     secrets.Value
	alternating bool
	authority   func(context.Context, string) (secrets.Value, error)
}

const crashMaster = "nats://keyturn/platform/master"

// newTarget makes a user of its own and a master that is no superuser.
func (d *database) newTarget(t *testing.T, alternating bool) *dbTarget {
	t.Helper()
	d.mu.Lock()
	d.n++
	name := fmt.Sprintf("app%d", d.n)
	d.mu.Unlock()
	master := d.master(t, name+"_master", leaktest.Canary())
	x := &dbTarget{database: d, user: name, alternating: alternating}
	x.authority = func(_ context.Context, arn string) (secrets.Value, error) {
		if arn != crashMaster {
			return secrets.Value{}, fault.Newf(fault.NotFound, "read", "no secret %s", arn)
		}
		return master, nil
	}
	x.initial = d.user(t, name, leaktest.Canary(), name+"_master", crashMaster)
	return x
}

func (x *dbTarget) Rotator(_ *testing.T, in *crashtest.Injector) rotators.Rotator {
	o := &postgres.Options{RootCAs: x.roots, Hook: in.Call}
	if x.alternating {
		return postgres.NewAlternating(x.authority, o)
	}
	return postgres.NewSingle(o)
}

func (x *dbTarget) Initial() secrets.Value { return x.initial }

func (x *dbTarget) SignIn(ctx context.Context, v secrets.Value) error { return x.signIn(ctx, v) }

// Live counts the two users that have a password.
func (x *dbTarget) Live(t *testing.T) int {
	t.Helper()
	n := x.sql(t, "SELECT count(rolpassword) FROM pg_authid WHERE rolcanlogin AND rolname IN ('"+x.user+"', '"+x.user+"_clone')")
	return int(n[0] - '0')
}

// An issuer is a real HTTP issuer of API keys with one project.
type issuer struct {
	*keyissuer.Server
	rt    *http.Transport
	admin string
	first secrets.Value
}

const issuerAdmin = "nats://keyturn/platform/issuer-admin"

// newIssuer starts one with room for maxKeys keys, one of which exists.
func newIssuer(t *testing.T, maxKeys int) *issuer {
	t.Helper()
	i := &issuer{admin: leaktest.Canary(), rt: &http.Transport{}}
	var err error
	i.Server, err = keyissuer.Start(t.Context(), "127.0.0.1:0", keyissuer.Options{AdminKey: i.admin, MaxKeys: maxKeys})
	must(t, err)
	t.Cleanup(func() {
		i.rt.CloseIdleConnections()
		if err := i.Stop(context.Background()); err != nil {
			t.Errorf("stop the issuer: %v", err)
		}
	})
	k, key, err := i.Issuer.Create("acme", "made by hand")
	must(t, err)
	b, err := json.Marshal(map[string]string{"id": k.ID, "key": key, "adminarn": issuerAdmin})
	must(t, err)
	i.first = secrets.NewValue(b)
	return i
}

func (i *issuer) Rotator(t *testing.T, in *crashtest.Injector) rotators.Rotator {
	t.Helper()
	var rt http.RoundTripper = i.rt
	if in != nil {
		rt = in.Transport(rt)
	}
	r, err := apikey.New(i.config(), i.options(rt))
	must(t, err)
	return r
}

// options are those of a rotator that takes every orphan for an old one.
func (i *issuer) options(rt http.RoundTripper) *apikey.Options {
	admin := func(_ context.Context, name string) (secrets.Value, error) {
		if name != issuerAdmin {
			return secrets.Value{}, fault.Newf(fault.NotFound, "read", "no secret %s", name)
		}
		return secrets.NewString(`{"key":"` + i.admin + `"}`), nil
	}
	return &apikey.Options{Admin: admin, Transport: rt, OrphanAge: 1}
}

// config is how the issuer is spoken to.
func (i *issuer) config() apikey.Config {
	auth := map[string]string{"Authorization": "Bearer {{.Admin}}"}
	keys := i.URL + "/v1/projects/acme/keys"
	return apikey.Config{
		Create: apikey.CreateRequest{Request: apikey.Request{URL: keys, Headers: auth, Body: `{"name": {{.Name}}}`}},
		Verify: apikey.Request{URL: i.URL + "/v1/verify", Headers: map[string]string{"Authorization": "Bearer {{.Key}}"}},
		Revoke: apikey.Request{URL: keys + "/{{.ID}}", Headers: auth},
		List: &apikey.ListRequest{
			Request: apikey.Request{URL: keys + "?limit=2{{if .Cursor}}&after={{.Cursor}}{{end}}", Headers: auth},
			Next:    "/last_id", More: "/has_more",
		},
	}
}

func (i *issuer) Initial() secrets.Value { return i.first }

// keyOf is the key in an issuer's secret.
func keyOf(v secrets.Value) string {
	var d struct{ Key string }
	_ = json.Unmarshal(v.Reveal(), &d)
	return d.Key
}

// SignIn calls the model.
func (i *issuer) SignIn(ctx context.Context, v secrets.Value) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, i.URL+"/v1/chat/completions", strings.NewReader(`{"messages":[{"content":"hi"}]}`))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+keyOf(v))
	resp, err := (&http.Client{Transport: i.rt}).Do(req)
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusUnauthorized:
		return fault.Newf(fault.Denied, "sign in", "refused")
	}
	return fault.Newf(fault.Unknown, "sign in", "answered %d", resp.StatusCode)
}

func (i *issuer) Live(*testing.T) int { return len(i.Issuer.Keys("acme", "")) }

// A broker is a real NATS server with the keys of its store.
type broker struct {
	*testenv.NATSServer
	keys natskv.Keys
	file string // holds them
}

func newBroker(t *testing.T) *broker {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seal.key")
	must(t, natskv.GenerateKeyFile(path))
	keys, err := natskv.LoadKeys(path, "")
	must(t, err)
	return &broker{testenv.NATS(t), keys, path}
}

// store opens the store as a process of its own has it.
func (b *broker) store(t testing.TB, js jetstream.JetStream) *natskv.Store {
	t.Helper()
	s, err := natskv.Open(context.Background(), js, b.keys, &natskv.Options{Bucket: bucket})
	must(t, err)
	return s
}

func (b *broker) jetStream(t testing.TB) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(b.Conn(t))
	must(t, err)
	return js
}
