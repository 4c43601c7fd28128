package pgxauth_test

import (
	"context"
	"crypto/rand"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/agent/pgxauth"
	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
)

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
