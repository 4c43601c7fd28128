package natsbus

import (
	"context"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
)

// TestMain runs the tests, or a server for the one that kills it.
func TestMain(m *testing.M) {
	if dir := os.Getenv(serverDir); dir != "" {
		serve(dir, os.Getenv(serverPort))
	}
	goleak.VerifyTestMain(m)
}

const limit = 20 * time.Second

func secret(name string) ref.Ref {
	return ref.Ref{Provider: ref.AWS, Scope: "111122223333/eu-west-1", Name: name}
}

// activated is an event of tenant acme: version v of secret name is current.
func activated(name, v string) events.Event {
	e := events.New(events.VersionActivated, secret(name), time.Now(), v)
	e.Data.Tenant, e.Data.Version = "acme", v
	return e
}

func open(t testing.TB, nc *nats.Conn, o *Options) *Bus {
	t.Helper()
	b, err := Open(t.Context(), nc, o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func publish(t testing.TB, b *Bus, es ...events.Event) {
	t.Helper()
	if err := b.Publish(t.Context(), es...); err != nil {
		t.Fatal(err)
	}
}

// A hearer is a running subscription that keeps what it hears.
type hearer struct {
	mu    sync.Mutex
	got   []events.Event
	ready chan struct{}
	stop  func() error
}

func hear(t testing.TB, s events.Subscriber, f events.Filter, hook func(events.Event)) *hearer {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	h := &hearer{ready: make(chan struct{})}
	done := make(chan error, 1)
	go func() {
		done <- s.Subscribe(ctx, f, func(_ context.Context, e events.Event) {
			if hook != nil {
				hook(e)
			}
			h.mu.Lock()
			h.got = append(h.got, e)
			h.mu.Unlock()
		}, func() { close(h.ready) })
	}()
	var once sync.Once
	var result error
	h.stop = func() error {
		once.Do(func() {
			cancel()
			select {
			case result = <-done:
			case <-time.After(limit):
				t.Error("Subscribe did not return after its context ended")
			}
		})
		return result
	}
	t.Cleanup(func() { _ = h.stop() })
	return h
}

// wait waits until the first replay is through.
func (h *hearer) wait(t testing.TB) *hearer {
	t.Helper()
	select {
	case <-h.ready:
	case <-time.After(limit):
		t.Fatal("ready was not called")
	}
	return h
}

// count says how often the version of the secret was heard.
func (h *hearer) count(name, v string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, e := range h.got {
		if e.Data.Ref == secret(name) && (v == "" || e.Data.Version == v) {
			n++
		}
	}
	return n
}

func (h *hearer) total() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.got)
}

func (h *hearer) eventually(t testing.TB, name, v string) {
	t.Helper()
	testenv.Eventually(t, limit, name+" "+v+" heard", func() bool { return h.count(name, v) > 0 })
}

func refs(names ...string) []ref.Ref {
	out := make([]ref.Ref, len(names))
	for i, n := range names {
		out[i] = secret(n)
	}
	return out
}
