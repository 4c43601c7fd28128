package pgxauth_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/agent/pgxauth"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAlternatingUsersUnderLoad(t *testing.T) {
	w := newWorld(t)
	h := w.hook(&pgxauth.Options{DrainAfter: 200 * time.Millisecond})
	p := w.pool(h, w.config())
	done, stop := load(t, p)
	var id string
	for i := range 20 {
		user := []string{"app_clone", "app"}[i%2]
		id = w.promote(w.set(user))
		w.bus.publish(w.ref, id)
		more(t, done, 100)
	}
	// One more, so that app_clone is the one that all must end on.
	id = w.promote(w.set("app_clone"))
	w.bus.publish(w.ref, id)
	testenv.Eventually(t, 10*time.Second, "all connections on the new version", func() bool {
		c := h.Conns()
		return len(c) == 1 && c[id] > 0
	})
	stop()
	if app, clone := w.users(); app != 0 || clone == 0 {
		t.Errorf("the server has %d sessions of the old user and %d of the new one", app, clone)
	}
}

func TestSingleUserUnderLoad(t *testing.T) {
	w := newWorld(t)
	h := w.hook(&pgxauth.Options{DrainAfter: 100 * time.Millisecond, RetryFor: 30 * time.Second})
	cfg := w.config()
	// Connections are short-lived, so that many are made while the server
	// refuses the current password.
	cfg.MaxConnLifetime = 20 * time.Millisecond
	p := w.pool(h, cfg)
	done, stop := load(t, p)
	for range 20 {
		v := w.set("app")
		time.Sleep(60 * time.Millisecond) // the rotator tests the new password
		id := w.promote(v)
		w.bus.publish(w.ref, id)
		testenv.Eventually(t, 30*time.Second, "a connection with the new password", func() bool { return h.Conns()[id] > 0 })
		more(t, done, 20)
	}
	stop()
	if n := w.client.Status(w.ref).Failures; n != 0 {
		t.Errorf("%d reads failed", n)
	}
}

// Without events the refusal itself brings the new version.
func TestRefusalBringsTheNewVersion(t *testing.T) {
	w := newWorld(t)
	p := w.pool(w.hook(nil), w.config())
	if err := p.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.Reset()
	w.promote(w.set("app"))
	if _, err := p.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Fatal(err)
	}
}

// When no newer version comes, the refusal is returned within the bound.
func TestRefusedForGood(t *testing.T) {
	w := newWorld(t)
	p := w.pool(w.hook(&pgxauth.Options{RetryFor: 300 * time.Millisecond}), w.config())
	w.set("app")
	start := time.Now()
	_, err := p.Exec(t.Context(), "SELECT 1")
	var pe *pgconn.PgError
	if !errors.As(err, &pe) || pe.Code != "28P01" {
		t.Fatalf("got %v; want 28P01", err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %s", d)
	}
	w.log.Record(err, p, w.client)
}

func TestIdleConnectionsAreDrained(t *testing.T) {
	w := newWorld(t)
	h := w.hook(&pgxauth.Options{DrainAfter: 300 * time.Millisecond})
	cfg := w.config()
	cfg.MinConns = 4
	p := w.pool(h, cfg)
	testenv.Eventually(t, 10*time.Second, "4 connections", func() bool { return p.Stat().IdleConns() == 4 })
	busy, err := p.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	id := w.promote(w.set("app_clone"))
	w.bus.publish(w.ref, id)
	testenv.Eventually(t, 30*time.Second, "only the busy connection on the old version", func() bool {
		app, _ := w.users()
		return app == 1
	})
	// What is in use goes on.
	if _, err := busy.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Error(err)
	}
	busy.Release()
	testenv.Eventually(t, 30*time.Second, "all on the new version, and as many as before", func() bool {
		c := h.Conns()
		return len(c) == 1 && c[id] == 4
	})
}

// Where nothing is in use and nothing is acquired, the pool is drained and
// filled again too.
func TestIdlePoolIsDrained(t *testing.T) {
	w := newWorld(t)
	h := w.hook(&pgxauth.Options{DrainAfter: 300 * time.Millisecond})
	cfg := w.config()
	cfg.MinConns = 4
	w.pool(h, cfg)
	testenv.Eventually(t, 30*time.Second, "4 connections", func() bool { return h.Conns()[w.client.Status(w.ref).Version] == 4 })
	id := w.promote(w.set("app_clone"))
	w.bus.publish(w.ref, id)
	testenv.Eventually(t, 30*time.Second, "4 connections of the new version alone", func() bool {
		c := h.Conns()
		return len(c) == 1 && c[id] == 4
	})
}

// A late refusal of a version that was replaced, and an event of an old one,
// close no connection and read nothing twice.
func TestStaleNoticesDoNothing(t *testing.T) {
	w := newWorld(t)
	h := w.hook(&pgxauth.Options{DrainAfter: -1})
	p := w.pool(h, w.config())
	old := w.client.Status(w.ref).Version
	id := w.promote(w.set("app_clone"))
	w.bus.publish(w.ref, id)
	testenv.Eventually(t, 10*time.Second, "the new version", func() bool { return w.client.Status(w.ref).Version == id })
	var before, after uint32
	pid := func() (n uint32) {
		if err := p.Do(t.Context(), func(c *pgxpool.Conn) error { n = c.Conn().PgConn().PID(); return nil }); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before = pid()
	read := w.client.Status(w.ref).ReadAt
	w.client.Invalidate(w.ref, old)
	w.bus.publish(w.ref, id)
	time.Sleep(200 * time.Millisecond)
	if after = pid(); after != before {
		t.Error("the connection was replaced")
	}
	if !w.client.Status(w.ref).ReadAt.Equal(read) {
		t.Error("the store was read for a late refusal or an event of the version held")
	}
}

func TestHooksAreChained(t *testing.T) {
	w := newWorld(t)
	var mu sync.Mutex
	var calls []string
	note := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(calls, s) {
			calls = append(calls, s)
		}
	}
	cfg := w.config()
	cfg.BeforeConnect = func(_ context.Context, cc *pgx.ConnConfig) error {
		note("before connect")
		cc.RuntimeParams["application_name"] = "mine"
		return nil
	}
	cfg.AfterConnect = func(context.Context, *pgx.Conn) error { note("after connect"); return nil }
	cfg.BeforeAcquire = func(context.Context, *pgx.Conn) bool { note("before acquire"); return true } //nolint:staticcheck // callers have it
	cfg.AfterRelease = func(*pgx.Conn) bool { note("after release"); return true }
	cfg.BeforeClose = func(*pgx.Conn) { note("before close") }
	cfg.ConnConfig.AfterConnect = func(context.Context, *pgconn.PgConn) error { note("connected"); return nil }
	p, err := w.hook(nil).NewPool(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	var name string
	if err := p.QueryRow(t.Context(), "SHOW application_name").Scan(&name); err != nil || name != "mine" {
		t.Errorf("application_name %q, %v", name, err)
	}
	p.Close()
	mu.Lock()
	defer mu.Unlock()
	slices.Sort(calls)
	want := "after connect,after release,before acquire,before close,before connect,connected"
	if got := strings.Join(calls, ","); got != want {
		t.Errorf("called %s; want %s", got, want)
	}
}

// The pool's own address serves for a secret without one, and where it is
// asked for.
func TestKeepAddress(t *testing.T) {
	w := newWorld(t)
	cfg, err := pgxpool.ParseConfig(w.pg.DSN("nobody", "wrong", "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.pool(w.hook(&pgxauth.Options{KeepAddress: true}), cfg).Ping(t.Context()); err != nil {
		t.Error(err)
	}
	pw := rand.Text()
	w.secret = append(w.secret, pw)
	w.sql("ALTER ROLE app PASSWORD '" + pw + "'")
	w.promote(secrets.NewString(fmt.Sprintf(`{"username":"app","password":%q}`, pw)))
	if _, err := w.client.Refresh(t.Context(), w.ref); err != nil {
		t.Fatal(err)
	}
	if err := w.pool(w.hook(nil), cfg).Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestBadSecrets(t *testing.T) {
	w := newWorld(t)
	plain, err := pgxpool.ParseConfig("postgres://localhost/postgres?sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	p := w.pool(w.hook(nil), plain)
	if err := p.Ping(t.Context()); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "TLS") {
		t.Errorf("plaintext for a secret that demands TLS: got %v", err)
	}
	id := w.promote(secrets.NewString(`{"key": "no database"}`))
	w.bus.publish(w.ref, id)
	testenv.Eventually(t, 10*time.Second, "the new version", func() bool { return w.client.Status(w.ref).Version == id })
	if _, err := w.hook(nil).NewPool(t.Context(), w.config()); !fault.Is(err, fault.Invalid) {
		t.Errorf("a secret without user: got %v", err)
	}
	if _, err := pgxauth.New(nil, w.ref, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("no client: got %v", err)
	}
	if _, err := pgxauth.New(w.client, ref.Ref{}, nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("no ref: got %v", err)
	}
}
