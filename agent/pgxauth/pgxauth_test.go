package pgxauth_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/agent/pgxauth"
	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A bus is a subscriber in memory for one secret and one type.
type bus struct {
	mu   sync.Mutex
	subs []chan events.Event
	last *events.Event // what a new subscription is told first
}

func (b *bus) Subscribe(ctx context.Context, _ events.Filter, h events.Handler, ready func()) error {
	ch := make(chan events.Event, 1024)
	b.mu.Lock()
	b.subs = append(b.subs, ch)
	if b.last != nil {
		ch <- *b.last
	}
	b.mu.Unlock()
	ready()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e := <-ch:
			h(ctx, e)
		}
	}
}

func (b *bus) publish(r ref.Ref, version string) {
	e := events.New(events.VersionActivated, r, time.Now(), version)
	e.Data.Version, e.Data.Published = version, time.Now()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = &e
	for _, ch := range b.subs {
		ch <- e
	}
}

// A world is a database, a store with its credential, and an agent's client.
type world struct {
	t      *testing.T
	pg     *pgserver.Server
	admin  *pgx.Conn
	store  *memstore.Store
	bus    *bus
	ref    ref.Ref
	client *agent.Client
	log    *leaktest.Recorder
	mu     sync.Mutex
	stop   func()
	secret []string // every password ever used
	n      int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, pg: testenv.Postgres(t), store: memstore.New(), bus: &bus{}, log: &leaktest.Recorder{}}
	var err error
	w.admin, err = pgx.Connect(t.Context(), w.pg.DSN(w.pg.SuperUser, w.pg.SuperPassword, "postgres"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.admin.Close(context.Background()) })
	w.sql("CREATE ROLE app LOGIN")
	w.sql("CREATE ROLE app_clone LOGIN")
	if w.ref, err = ref.Parse("nats://kv/app/db"); err != nil {
		t.Fatal(err)
	}
	if _, err = w.store.CreateSecret(t.Context(), w.ref, w.set("app")); err != nil {
		t.Fatal(err)
	}
	w.client = agent.New(w.store, w.bus, &agent.Options{
		Refs: []ref.Ref{w.ref}, Logger: w.log.Logger(), Jitter: 20 * time.Millisecond,
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.client.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(func() {
		w.stop()
		w.log.Check(t, w.secret...)
		if t.Failed() {
			t.Log(w.log.String())
		}
	})
	return w
}

func (w *world) sql(q string) {
	w.t.Helper()
	if _, err := w.admin.Exec(context.Background(), q); err != nil {
		w.t.Fatalf("%v", err)
	}
}

// set gives user a new password at the server and returns the secret for it.
func (w *world) set(user string) secrets.Value {
	w.t.Helper()
	pw := rand.Text()
	w.secret = append(w.secret, pw)
	w.sql("ALTER ROLE " + user + " PASSWORD '" + pw + "'")
	return w.value(user, pw)
}

func (w *world) value(user, pw string) secrets.Value {
	return secrets.NewString(fmt.Sprintf(`{"engine":"postgres","host":"127.0.0.1","port":%d,"username":%q,"password":%q,"dbname":"postgres","ssl":true}`,
		w.pg.Port, user, pw))
}

// promote makes v current and returns the version's id.
func (w *world) promote(v secrets.Value) string {
	w.t.Helper()
	w.n++
	token := fmt.Sprintf("rotation-%d", w.n)
	if _, err := w.store.PutPending(context.Background(), w.ref, token, v); err != nil {
		w.t.Fatal(err)
	}
	ver, err := w.store.Promote(context.Background(), w.ref, token)
	if err != nil {
		w.t.Fatal(err)
	}
	return ver.ID
}

// config names another host, user and password than the secret does.
func (w *world) config() *pgxpool.Config {
	w.t.Helper()
	cfg, err := pgxpool.ParseConfig("postgres://nobody:wrong@localhost:1/nowhere?sslmode=verify-full&sslrootcert=" + w.pg.CAFile)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg.MaxConns = 6
	return cfg
}

func (w *world) hook(o *pgxauth.Options) *pgxauth.Hook {
	w.t.Helper()
	h, err := pgxauth.New(w.client, w.ref, o)
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

func (w *world) pool(h *pgxauth.Hook, cfg *pgxpool.Config) *pgxauth.Pool {
	w.t.Helper()
	p, err := h.NewPool(w.t.Context(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(p.Close)
	return p
}

// load runs queries until stop is called, and reports the failed ones. done
// is how many have succeeded.
func load(t *testing.T, p *pgxauth.Pool) (done *atomic.Int64, stop func()) {
	var wg sync.WaitGroup
	var failed atomic.Int64
	done = &atomic.Int64{}
	end := make(chan struct{})
	work := []func(ctx context.Context) error{
		func(ctx context.Context) error {
			return p.Do(ctx, func(c *pgxpool.Conn) error { return c.Ping(ctx) })
		},
		func(ctx context.Context) error {
			var n int
			return p.QueryRow(ctx, "SELECT 1 FROM pg_sleep(0.002)").Scan(&n)
		},
		func(ctx context.Context) error {
			tx, err := p.Begin(ctx)
			if err != nil {
				return err
			}
			if _, err = tx.Exec(ctx, "SELECT pg_sleep(0.003)"); err != nil {
				return err
			}
			return tx.Commit(ctx)
		},
		func(ctx context.Context) error { _, err := p.Exec(ctx, "SELECT 1"); return err },
		func(ctx context.Context) error {
			b := &pgx.Batch{}
			b.Queue("SELECT 1")
			b.Queue("SELECT 2")
			return p.SendBatch(ctx, b).Close()
		},
	}
	for i := range 8 {
		wg.Go(func() {
			for j := i; ; j++ {
				select {
				case <-end:
					return
				case <-time.After(time.Millisecond):
				}
				if err := work[j%len(work)](context.Background()); err != nil {
					failed.Add(1)
					t.Errorf("query %d: %v", j%len(work), err)
				} else {
					done.Add(1)
				}
			}
		})
	}
	return done, func() {
		close(end)
		wg.Wait()
		t.Logf("%d queries succeeded, %d failed", done.Load(), failed.Load())
	}
}

// more waits for n more queries.
func more(t *testing.T, done *atomic.Int64, n int64) {
	t.Helper()
	until := done.Load() + n
	testenv.Eventually(t, 60*time.Second, fmt.Sprintf("%d more queries", n), func() bool { return done.Load() >= until })
}

// users counts the sessions of the two users at the server.
func (w *world) users() (app, clone int) {
	w.t.Helper()
	err := w.admin.QueryRow(context.Background(), `SELECT count(*) FILTER (WHERE usename = 'app'), count(*) FILTER (WHERE usename = 'app_clone') FROM pg_stat_activity`).Scan(&app, &clone)
	if err != nil {
		w.t.Fatal(err)
	}
	return app, clone
}

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
	testenv.Eventually(t, 15*time.Second, "only the busy connection on the old version", func() bool {
		app, _ := w.users()
		return app == 1
	})
	// What is in use goes on.
	if _, err := busy.Exec(t.Context(), "SELECT 1"); err != nil {
		t.Error(err)
	}
	busy.Release()
	testenv.Eventually(t, 15*time.Second, "all on the new version", func() bool {
		c := h.Conns()
		return len(c) == 1 && c[id] > 0
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
	cfg.BeforeAcquire = func(context.Context, *pgx.Conn) bool { note("before acquire"); return true }
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
