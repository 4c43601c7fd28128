package integration_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/agent/pgxauth"
	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/eventbridge"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
	"github.com/keyturn/keyturn/notifier/webhook"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/natskv"
)

const tenant = "acme"

func tenantOf(ref.Ref) string { return tenant }

// openBus keeps every event of one secret, which a test counts.
func openBus(t *testing.T, b *broker, log *leaktest.Recorder) *natsbus.Bus {
	t.Helper()
	bus, err := natsbus.Open(t.Context(), b.Conn(t), &natsbus.Options{MaxPerSubject: 10_000, Logger: log.Logger()})
	must(t, err)
	return bus
}

// storedEvents reads the stream of events back, oldest first.
func storedEvents(t *testing.T, js jetstream.JetStream) (out []*jetstream.RawStreamMsg) {
	t.Helper()
	s, err := js.Stream(t.Context(), natsbus.EventStream)
	must(t, err)
	st := s.CachedInfo().State
	for seq := max(st.FirstSeq, 1); seq <= st.LastSeq; seq++ { // 0 and 0 while it is empty
		m, err := s.GetMsg(t.Context(), seq)
		must(t, err)
		out = append(out, m)
	}
	return out
}

func dataOf(t *testing.T, m *jetstream.RawStreamMsg) (d events.Data) {
	t.Helper()
	must(t, json.Unmarshal(m.Data, &d))
	return d
}

// A hook is a running notifier behind its webhook.
type hook struct{ url, key string }

func startNotifier(t *testing.T, bus *natsbus.Bus, log *leaktest.Recorder) *hook {
	t.Helper()
	return startNotifierFor(t, bus, log, func(d notifier.Delivery) ([]events.Event, error) {
		return eventbridge.Decode(d.Body, d.Received)
	})
}

func startNotifierFor(t *testing.T, bus *natsbus.Bus, log *leaktest.Recorder, decode notifier.Decoder) *hook {
	t.Helper()
	h := &hook{key: leaktest.Canary()}
	auth, err := webhook.APIKey("", h.key)
	must(t, err)
	route := webhook.Route{Path: "/v1/eventbridge", Kind: webhook.EventBridge{}, Timeout: time.Second, Auth: []webhook.Authenticator{auth}}
	src, err := webhook.Listen(t.Context(), webhook.Options{Addr: "127.0.0.1:0", Routes: []webhook.Route{route}, Logger: log.Logger()})
	must(t, err)
	h.url = src.URL(route.Path)
	n := notifier.New(bus, bus, &notifier.Options{Tenant: func(_ context.Context, e events.Event) (string, error) { return tenantOf(e.Data.Ref), nil }, Logger: log.Logger()})
	run(t, "the notifier", func(ctx context.Context) error {
		return src.Run(ctx, n.Handler(decode))
	})
	return h
}

// post sends a notice and returns the status.
func (h *hook) post(t testing.TB, body string) int {
	t.Helper()
	return h.postAs(t, h.key, body)
}

func (h *hook) postAs(t testing.TB, key, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, h.url, strings.NewReader(body))
	must(t, err)
	req.Header.Set("X-Api-Key", key)
	req.Header.Set("Content-Type", "application/json")
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	_, _ = io.Copy(io.Discard, resp.Body)
	must(t, resp.Body.Close())
	return resp.StatusCode
}

// labelUpdated is what EventBridge sends when AWSCURRENT moves to version.
func labelUpdated(id, version string) string {
	return fmt.Sprintf(`{"version":"0","id":%q,"detail-type":"Secret Label Updated","source":"aws.secretsmanager","account":"111122223333","time":"2026-06-01T10:00:00Z","region":"eu-west-1","resources":["arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/agents/payments-Ab12Cd"],"detail":{"name":"prod/agents/payments","labelUpdated":"AWSCURRENT","versionId":%q}}`, id, version)
}

// run starts f, which ends with the context that it gets: after the test's
// own end, or when stop is called.
func run(t testing.TB, what string, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("%s: %v", what, err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// A member is one agent of a fleet, with a connection, a store and pools of
// its own, as on a machine of its own.
type member struct {
	client *agent.Client
	stop   func()
	pools  map[ref.Ref]*pgxauth.Pool
	hooks  map[ref.Ref]*pgxauth.Hook
}

func newMember(t *testing.T, b *broker, o agent.Options, log *leaktest.Recorder) *member {
	t.Helper()
	nc := b.Conn(t)
	js, err := jetstream.New(nc)
	must(t, err)
	store, err := natskv.Open(t.Context(), js, b.keys, &natskv.Options{Bucket: bucket, Timeout: time.Second})
	must(t, err)
	o.Tenant, o.Logger = tenant, log.Logger()
	m := &member{pools: map[ref.Ref]*pgxauth.Pool{}, hooks: map[ref.Ref]*pgxauth.Hook{}}
	m.client = agent.New(store, natsbus.NewSubscriber(nc, &natsbus.Options{Logger: log.Logger()}), &o)
	m.stop = run(t, "an agent", m.client.Run)
	return m
}

// pool opens a pool that follows r.
func (m *member) pool(t *testing.T, db *database, r ref.Ref, o pgxauth.Options, edit func(*pgxpool.Config)) *pgxauth.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(db.DSN("nobody", "unknown", "postgres"))
	must(t, err)
	cfg.MaxConns = 2
	if edit != nil {
		edit(cfg)
	}
	if m.hooks[r], err = pgxauth.New(m.client, r, &o); err != nil {
		t.Fatal(err)
	}
	m.pools[r], err = m.hooks[r].NewPool(t.Context(), cfg)
	must(t, err)
	t.Cleanup(m.pools[r].Close)
	return m.pools[r]
}

// A load is queries without end.
type load struct {
	ok, failed atomic.Int64
	longest    atomic.Int64 // of one query, waiting for its connection included, in ns
	wg         sync.WaitGroup
	end        chan struct{}
	halt       func()
}

// start adds a worker that queries p, before p is closed at the latest.
func (l *load) start(t *testing.T, what string, p *pgxauth.Pool) {
	t.Cleanup(l.halt)
	l.wg.Go(func() {
		for {
			select {
			case <-l.end:
				return
			case <-time.After(3 * time.Millisecond):
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			start := time.Now()
			err := p.Do(ctx, func(c *pgxpool.Conn) error {
				var n int
				return c.QueryRow(ctx, "SELECT count(*) FROM pg_roles WHERE rolname = session_user").Scan(&n)
			})
			cancel()
			took := time.Since(start)
			for old := l.longest.Load(); int64(took) > old && !l.longest.CompareAndSwap(old, int64(took)); old = l.longest.Load() {
			}
			if err != nil {
				l.failed.Add(1)
				t.Errorf("a query of %s failed: %v", what, err)
				continue
			}
			l.ok.Add(1)
		}
	})
}

// more waits for n more queries, so that each rotation meets some.
func (l *load) more(t *testing.T, n int64) {
	t.Helper()
	until := l.ok.Load() + n
	testenv.Eventually(t, time.Minute, fmt.Sprintf("%d more queries", n), func() bool { return l.ok.Load() >= until })
}

// stop ends the workers, each of which has failed the test for each query that
// failed.
func (l *load) stop(t *testing.T, what string) {
	l.halt()
	t.Logf("%s: %d queries succeeded, %d failed, the longest took %s", what, l.ok.Load(), l.failed.Load(), time.Duration(l.longest.Load()).Round(time.Millisecond))
}

func newLoad() *load {
	l := &load{end: make(chan struct{})}
	l.halt = sync.OnceFunc(func() { close(l.end); l.wg.Wait() })
	return l
}

// allHold waits until every member holds the version id of r.
func allHold(t *testing.T, fleet []*member, r ref.Ref, id string) {
	t.Helper()
	testenv.Eventually(t, time.Minute, "every agent on version "+id+" of "+r.String(), func() bool {
		for _, m := range fleet {
			if m.client.Status(r).Version != id {
				return false
			}
		}
		return true
	})
}

// plantSecret puts v into s as the first version of r.
func plantSecret(t testing.TB, s secrets.Creator, r ref.Ref, v secrets.Value) {
	t.Helper()
	_, err := s.CreateSecret(context.Background(), r, v)
	must(t, err)
}
