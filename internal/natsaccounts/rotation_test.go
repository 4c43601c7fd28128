package natsaccounts_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/natsaccounts"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 20 * time.Second

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A platform is a store and a real server with a full resolver.
type platform struct {
	st  *natsaccounts.Store
	url string
	bus *natsbus.Bus
}

func start(t *testing.T) *platform {
	t.Helper()
	st, err := natsaccounts.Init(filepath.Join(t.TempDir(), "a"), "test", natsaccounts.Operator)
	must(t, err)
	daemon, err := st.Creds(natsaccounts.Platform, "notifier", natsaccounts.CredsOptions{})
	must(t, err)
	b := bundle(t, st)
	conf := filepath.Join(t.TempDir(), "nats-server.conf")
	must(t, os.WriteFile(conf, []byte(fmt.Sprintf("listen: \"127.0.0.1:-1\"\nserver_name: s\njetstream: {store_dir: %q}\n%s", t.TempDir(), b.ServerConfig(t.TempDir()))), 0o600))
	opts, err := server.ProcessConfigFile(conf)
	must(t, err)
	opts.NoSigs, opts.NoLog = true, true
	srv, err := server.NewServer(opts)
	must(t, err)
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(limit) {
		t.Fatal("the server did not start")
	}
	p := &platform{st: st, url: srv.ClientURL()}
	p.bus, err = natsbus.Open(t.Context(), p.connect(t, daemon), nil)
	must(t, err)
	return p
}

func bundle(t *testing.T, st *natsaccounts.Store) natsaccounts.Bundle {
	t.Helper()
	s, err := st.State()
	must(t, err)
	b, err := s.Bundle(st.Key)
	must(t, err)
	return b
}

func (p *platform) connect(t *testing.T, creds string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(p.url, append([]nats.Option{nats.UserCredentials(creds), nats.MaxReconnects(-1), nats.ReconnectWait(20 * time.Millisecond)}, opts...)...)
	must(t, err)
	t.Cleanup(nc.Close)
	return nc
}

// push tells the server all accounts, as the user of the system account.
func (p *platform) push(t *testing.T) {
	t.Helper()
	nc := p.connect(t, p.st.SystemCreds(), nats.CustomInboxPrefix(natsaccounts.InboxPrefix("push")))
	defer nc.Close()
	b := bundle(t, p.st)
	must(t, b.Push(t.Context(), request(nc)))
}

func request(nc *nats.Conn) natsaccounts.Request {
	return func(ctx context.Context, subject string, body []byte) ([]byte, error) {
		ctx, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		m, err := nc.RequestWithContext(ctx, subject, body)
		if err != nil {
			return nil, err
		}
		return m.Data, nil
	}
}

// An agent subscribes to secrets s0 to s99 and keeps which it heard of.
type listener struct {
	nc   *nats.Conn
	mu   sync.Mutex
	got  map[string]bool
	errs []string
}

func (l *listener) heard() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.got)
}

func secret(i int) ref.Ref {
	return ref.Ref{Provider: ref.AWS, Scope: "1/eu", Name: fmt.Sprint("s", i)}
}

// listen connects an agent with credentials that are watched.
func (p *platform) listen(t *testing.T, creds, user string, n int) *listener {
	t.Helper()
	l := &listener{got: map[string]bool{}}
	l.nc = p.connect(t, creds, nats.CustomInboxPrefix(natsaccounts.InboxPrefix(user)), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.errs = append(l.errs, err.Error())
	}), nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		if err != nil { // a reconnect of our own has none
			l.errs = append(l.errs, "cut: "+err.Error())
		}
	}))
	var refs []ref.Ref
	for i := range n {
		refs = append(refs, secret(i))
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	ready := make(chan struct{})
	wg.Go(func() {
		err := natsbus.NewSubscriber(l.nc, nil).Subscribe(ctx, events.Filter{Tenant: "acme", Refs: refs, Types: []events.Type{events.VersionActivated}},
			func(_ context.Context, e events.Event) {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.got[e.Data.Ref.Name] = true
			}, func() { close(ready) })
		if err != nil {
			t.Errorf("subscribe: %v", err)
		}
	})
	wg.Go(func() {
		err := natsbus.WatchCredentials(ctx, l.nc, creds, &natsbus.CredentialsOptions{Jitter: 10 * time.Millisecond})
		if err != nil {
			t.Errorf("watch: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	select {
	case <-ready:
	case <-time.After(limit):
		t.Fatal("the agent does not begin to listen")
	}
	return l
}

func (p *platform) publish(t *testing.T, i int) {
	t.Helper()
	e := events.New(events.VersionActivated, secret(i), time.Now(), "v")
	e.Data.Tenant, e.Data.Version = "acme", "v"
	must(t, p.bus.Publish(t.Context(), e))
}

// TestAgentsHearAllWhileTheirCredentialsRotate: 100 events of 100 secrets are
// published while the tenant's keys rotate twice, to the end: the agent hears
// all, and is never refused or cut.
func TestAgentsHearAllWhileTheirCredentialsRotate(t *testing.T) {
	p := start(t)
	must(t, p.st.AddTenant("acme", "", natsaccounts.Limits{}))
	creds, err := p.st.Creds("acme", "agent-1", natsaccounts.CredsOptions{TTL: time.Hour})
	must(t, err)
	old, err := os.ReadFile(creds)
	must(t, err)
	p.push(t) // a tenant that the server did not start with
	const n = 100
	l := p.listen(t, creds, "agent-1", n)
	next := 0
	publish := func(to int) {
		for ; next < to; next++ {
			p.publish(t, next)
		}
	}
	publish(10)
	for round := 1; round <= 2; round++ {
		before := l.nc.Stats().Reconnects
		step(t, p, natsaccounts.Added)
		p.push(t)
		publish(10 + 40*round - 30)
		r := step(t, p, natsaccounts.Issued)
		if len(r.Files) != 1 || r.Files[0] != creds {
			t.Errorf("issued %v; expected %s", r.Files, creds)
		}
		// All the while that the agent comes back, and after.
		testenv.Eventually(t, limit, "the agent to come back with the new credentials", func() bool {
			if next < 10+40*round-10 {
				publish(next + 1)
			}
			return l.nc.Stats().Reconnects > before && l.nc.IsConnected()
		})
		step(t, p, natsaccounts.Waiting)
		if r, err := p.st.Rotate("acme", natsaccounts.RotateOptions{Force: true}); err != nil || r.Step != natsaccounts.Removed {
			t.Fatalf("%+v, %v; expected the old key removed", r, err)
		}
		p.push(t)
		publish(10 + 40*round)
	}
	publish(n)
	testenv.Eventually(t, limit, "all events to be heard", func() bool { return l.heard() == n })
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.errs) != 0 {
		t.Errorf("the agent was refused or cut: %v", l.errs)
	}
	// What was replaced is refused.
	stale := filepath.Join(t.TempDir(), "old.creds")
	must(t, os.WriteFile(stale, old, 0o600))
	if nc, err := nats.Connect(p.url, nats.UserCredentials(stale)); err == nil {
		nc.Close()
		t.Error("the old credentials still work")
	}
}

func step(t *testing.T, p *platform, want natsaccounts.Step) natsaccounts.Rotation {
	t.Helper()
	r, err := p.st.Rotate("acme", natsaccounts.RotateOptions{Grace: time.Hour})
	if err != nil || r.Step != want {
		t.Fatalf("%+v, %v; expected the step %s", r, err, want)
	}
	return r
}

// TestRemovedKeysCutConnections: who still uses an old key when it is removed
// is cut at once.
func TestRemovedKeysCutConnections(t *testing.T) {
	p := start(t)
	must(t, p.st.AddTenant("acme", "", natsaccounts.Limits{}))
	creds, err := p.st.Creds("acme", "agent-1", natsaccounts.CredsOptions{})
	must(t, err)
	p.push(t)
	kept := filepath.Join(t.TempDir(), "kept.creds") // nobody replaces it
	b, err := os.ReadFile(creds)
	must(t, err)
	must(t, os.WriteFile(kept, b, 0o600))
	nc := p.connect(t, kept, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	step(t, p, natsaccounts.Added)
	step(t, p, natsaccounts.Issued)
	p.push(t)
	must(t, nc.Flush())
	if _, err := p.st.Rotate("acme", natsaccounts.RotateOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	p.push(t)
	testenv.Eventually(t, limit, "the connection to be cut", func() bool { return !nc.IsConnected() })
	// The new ones work.
	p.connect(t, creds, nats.CustomInboxPrefix(natsaccounts.InboxPrefix("agent-1")))
}

// TestSystemUserOnlyPushes: the credentials that push accounts do nothing
// else, and nobody else pushes.
func TestSystemUserOnlyPushes(t *testing.T) {
	p := start(t)
	nc := p.connect(t, p.st.SystemCreds(), nats.CustomInboxPrefix(natsaccounts.InboxPrefix("push")), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	for _, s := range []string{"$SYS.REQ.SERVER.PING", "$SYS.REQ.CLAIMS.DELETE", "$SYS.REQ.CLAIMS.LIST", "$SYS.REQ.SERVER.x.RELOAD"} {
		must(t, nc.PublishRequest(s, nc.NewInbox(), nil))
		must(t, nc.Flush())
		if err := nc.LastError(); err == nil || !strings.Contains(err.Error(), s) {
			t.Errorf("%s: %v; expected it refused", s, err)
		}
	}
	b := bundle(t, p.st)
	if err := b.Push(t.Context(), func(context.Context, string, []byte) ([]byte, error) { return nil, nats.ErrTimeout }); !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v; expected an error of kind unavailable", err)
	}
	for name, answer := range map[string]string{"refused": `{"error":{"description":"no"}}`, "garbage": `no`, "neither": `{}`} {
		if err := b.Push(t.Context(), func(context.Context, string, []byte) ([]byte, error) { return []byte(answer), nil }); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
