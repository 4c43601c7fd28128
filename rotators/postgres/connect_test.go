package postgres_test

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
)

// TestC26TLS is the table of ssl, for servers with and without TLS.
func TestC26TLS(t *testing.T) {
	withTLS := newFixture(t, "app", "pw")
	plain, err := pgserver.Start(t.Context(), pgserver.Options{Dir: t.TempDir(), NoSync: true, Settings: map[string]string{"ssl": "off"}})
	must(t, err)
	t.Cleanup(func() { must(t, plain.Stop()) })
	plainSecret := dbsecret.Secret{Engine: "postgres", Host: plain.Host, Port: plain.Port, Username: plain.SuperUser, Password: secrets.NewString(plain.SuperPassword)}

	type outcome struct {
		tls   bool
		class fault.Class
	}
	for _, c := range []struct {
		ssl           dbsecret.SSL
		allow         bool
		onTLS, onNone outcome
	}{
		{dbsecret.SSLPrefer, false, outcome{tls: true}, outcome{class: fault.ClassTLS}},
		{dbsecret.SSLPrefer, true, outcome{tls: true}, outcome{}},
		{dbsecret.SSLRequire, false, outcome{tls: true}, outcome{class: fault.ClassTLS}},
		{dbsecret.SSLRequire, true, outcome{tls: true}, outcome{class: fault.ClassTLS}},
		{dbsecret.SSLDisable, false, outcome{}, outcome{}},
		{dbsecret.SSLDisable, true, outcome{}, outcome{}},
	} {
		o := options()
		o.AllowPlaintext = c.allow
		r := postgres.NewSingle(o)
		for i, s := range []dbsecret.Secret{withTLS.secret, plainSecret} {
			want := []outcome{c.onTLS, c.onNone}[i]
			s.SSL = c.ssl
			v := withTLS.value(s)
			s.Probe = "SELECT 1 / count(*) FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl = " + map[bool]string{true: "true", false: "false"}[want.tls]
			err := r.Test(t.Context(), rotators.Change{Current: withTLS.value(s), Pending: v})
			if fault.ClassOf(err) != want.class || (err == nil) != (want.class == "") {
				t.Errorf("ssl %v, plaintext allowed %v, server %d: got %v; expected %+v", c.ssl, c.allow, i, err, want)
			}
		}
	}

	// An untrusted certificate is no reason to go on without any.
	o := &postgres.Options{RootCAs: x509.NewCertPool(), AllowPlaintext: true}
	s := withTLS.value(withTLS.secret)
	err = postgres.NewSingle(o).Test(t.Context(), rotators.Change{Current: s, Pending: s})
	if !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassTLS {
		t.Errorf("wrong authority: got %v; expected Denied of class tls", err)
	}
	// Nor is a name that is not in it.
	other := withTLS.secret
	other.Host = "db.example.com"
	o = options()
	o.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort(server.Host, portOf(server.Port)))
	}
	s = withTLS.value(other)
	err = postgres.NewSingle(o).Test(t.Context(), rotators.Change{Current: s, Pending: s})
	if fault.ClassOf(err) != fault.ClassTLS {
		t.Errorf("wrong name: got %v; expected class tls", err)
	}
}

// TestC15Classes tells apart what the samples call "unable to log in".
func TestC15Classes(t *testing.T) {
	f := newFixture(t, "app", "pw")
	closed := testenv.FreePort(t)
	hole := listen(t, func(net.Conn) {}) // accepts and says nothing
	shut := listen(t, func(c net.Conn) { _ = c.Close() })
	odd := listen(t, func(c net.Conn) { _, _ = c.Write([]byte("SSH-2.0-x\r\n")); _ = c.Close() })
	admin(t, f.db, "CREATE ROLE full_app LOGIN CONNECTION LIMIT 0")
	f.setPassword("full_app", "pw")
	for name, c := range map[string]struct {
		change func(*dbsecret.Secret)
		kind   fault.Kind
		class  fault.Class
	}{
		"password":    {func(s *dbsecret.Secret) { s.Password = secrets.NewString("no") }, fault.Denied, fault.ClassAuth},
		"user":        {func(s *dbsecret.Secret) { s.Username = "nobody_here" }, fault.Denied, fault.ClassAuth},
		"database":    {func(s *dbsecret.Secret) { s.DBName = "none" }, fault.NotFound, ""},
		"port":        {func(s *dbsecret.Secret) { s.Port = closed }, fault.Unavailable, fault.ClassNetwork},
		"name":        {func(s *dbsecret.Secret) { s.Host = "no-such-host.invalid" }, fault.Unavailable, fault.ClassNetwork},
		"black hole":  {func(s *dbsecret.Secret) { s.Port = hole }, fault.Unavailable, fault.ClassTimeout},
		"hangs up":    {func(s *dbsecret.Secret) { s.Port = shut }, fault.Unavailable, fault.ClassNetwork},
		"another one": {func(s *dbsecret.Secret) { s.Port, s.SSL = odd, dbsecret.SSLDisable }, fault.Unavailable, fault.ClassNetwork},
		"full":        {func(s *dbsecret.Secret) { s.Username = "full_app" }, fault.Unavailable, fault.ClassQuota},
	} {
		for kind, r := range map[string]func(*postgres.Options) rotators.Rotator{
			"single": postgres.NewSingle, "alternating": f.alternating,
		} {
			o := options()
			o.ConnectTimeout = 700 * time.Millisecond
			keep := f.secret
			c.change(&f.secret)
			ch := f.pending(r(o))
			start := time.Now()
			err := r(o).Set(t.Context(), ch)
			if fault.KindOf(err) != c.kind && !(kind == "alternating" && name == "full") || fault.ClassOf(err) != c.class {
				t.Errorf("%s, wrong %s: got %v (%v, %v); expected %v, %v", kind, name, err, fault.KindOf(err), fault.ClassOf(err), c.kind, c.class)
			}
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("%s, wrong %s: took %s", kind, name, took)
			}
			f.secret = keep
		}
	}
}

func portOf(p int) string { return (&net.TCPAddr{Port: p}).String()[1:] }

// listen accepts on loopback until t ends.
func listen(t *testing.T, serve func(net.Conn)) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			serve(c)
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
		for _, c := range conns {
			_ = c.Close()
		}
	})
	return l.Addr().(*net.TCPAddr).Port
}

// TestC29 begins nothing that cannot end before the deadline.
func TestC29Deadline(t *testing.T) {
	f := newFixture(t, "app", "pw")
	var d dials
	o := options()
	o.Dial = d.dial
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for _, r := range []rotators.Rotator{postgres.NewSingle(o), f.alternating(o)} {
		err := r.Set(ctx, f.pending(r))
		if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassTimeout || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v; expected Unavailable of class timeout", err)
		}
	}
	if d.count() != 0 {
		t.Errorf("%d connections; expected none", d.count())
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	r := postgres.NewSingle(options())
	if err := r.Set(gone, f.pending(r)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
}

// TestWeakAuth is a server that asks for the password in a form that others
// could use, or for none.
func TestWeakAuth(t *testing.T) {
	canary := leaktest.Canary()
	for name, ask := range map[string]pgproto3.BackendMessage{
		"clear": &pgproto3.AuthenticationCleartextPassword{}, "md5": &pgproto3.AuthenticationMD5Password{Salt: [4]byte{1, 2, 3, 4}}, "none": &pgproto3.AuthenticationOk{},
	} {
		var rec leaktest.Recorder
		_, _ = rec.Write([]byte("start"))
		port := listen(t, func(c net.Conn) {
			_ = c.SetDeadline(time.Now().Add(5 * time.Second))
			b := pgproto3.NewBackend(c, c)
			if _, err := b.ReceiveStartupMessage(); err != nil {
				return
			}
			b.Send(ask)
			_ = b.Flush()
			buf := make([]byte, 1024)
			for {
				n, err := c.Read(buf)
				_, _ = rec.Write(buf[:n])
				if err != nil {
					_ = c.Close()
					return
				}
			}
		})
		v, err := dbsecret.Encode(dbsecret.Secret{Engine: "postgres", Host: "127.0.0.1", Port: port, Username: "u", Password: secrets.NewString(canary), SSL: dbsecret.SSLDisable})
		must(t, err)
		err = postgres.NewSingle(nil).Test(t.Context(), rotators.Change{Current: v, Pending: v})
		if !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassAuth {
			t.Errorf("%s: got %v; expected Denied of class auth", name, err)
		}
		rec.Record(err)
		rec.Check(t, canary)
	}
}

// TestC30NoLeak rotates, and fails in every way that reaches a server, and
// searches what we print and all that the server wrote, which logs every
// statement.
func TestC30NoLeak(t *testing.T) {
	f := newFixture(t, "app", "x")
	var rec leaktest.Recorder
	canary := leaktest.Canary()
	f.setPassword(f.user, canary)
	for _, change := range []func(*dbsecret.Secret){
		func(s *dbsecret.Secret) { s.Password = secrets.NewString(canary + "x") },
		func(s *dbsecret.Secret) { s.Probe = "SELECT no_such_column" },
		func(s *dbsecret.Secret) { s.Probe = "SELECT 1/0" },
		func(s *dbsecret.Secret) { s.DBName = "none" },
		func(s *dbsecret.Secret) { s.Port = testenv.FreePort(t) },
		func(s *dbsecret.Secret) { s.Host = "no-such-host.invalid" },
	} {
		s := f.secret
		s.Password = secrets.NewString(canary)
		change(&s)
		c := rotators.Change{Current: f.value(s), Pending: f.value(s), Previous: f.value(s)}
		r := postgres.NewSingle(options())
		rec.Record(r, c, r.Set(t.Context(), c), r.Test(t.Context(), c))
	}
	canaries := []string{canary}
	f.secret.Password = secrets.NewString(canary)
	for _, rotator := range []func(*postgres.Options) rotators.Rotator{postgres.NewSingle, f.alternating} {
		o := options()
		o.Logger = rec.Logger()
		r := rotator(o)
		c := f.pending(r)
		p := *parse(t, c.Pending)
		next := leaktest.Canary()
		canaries = append(canaries, next)
		p.Password = secrets.NewString(next)
		c.Pending = f.value(p)
		must(t, r.Set(t.Context(), c))
		must(t, r.Test(t.Context(), c))
		rec.Record(r, c)
		if p.Username == f.user {
			f.secret.Password = p.Password
		}
		if want := "ALTER ROLE " + quote(p.Username); !strings.Contains(serverLog.String(), want) {
			t.Errorf("the server's log has no %q, so it shows nothing", want)
		}
	}
	_, _ = rec.Write([]byte(serverLog.String()))
	rec.Check(t, canaries...)
}
