package gcpsm_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/gcpfake"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/gcpsm"
	"github.com/keyturn/keyturn/secrets/sibling"
	"github.com/keyturn/keyturn/secrets/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// through makes each call of a client one outward call of the injector.
func through(in *crashtest.Injector) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		return in.Call(method, func() error { return invoke(ctx, method, req, reply, cc, opts...) })
	}
}

// backend is one fake service; its stores are processes of their own.
type backend struct {
	fake     *gcpfake.Server
	location string
	opts     gcpsm.Options
	n        atomic.Int64
	logs     leaktest.Recorder
	// direct are the connections of all stores that need no injector.
	direct gcpsm.Clients
}

func newBackend(t *testing.T, location string, opts gcpsm.Options) *backend {
	t.Helper()
	fake := gcpfake.New(t)
	return &backend{fake: fake, location: location, opts: opts, direct: fake.Clients(t)}
}

func (b *backend) Open(t *testing.T, in *crashtest.Injector) secrets.Store {
	t.Helper()
	o := b.opts
	o.Logger = b.logs.Logger()
	if in == nil {
		return gcpsm.New(b.direct, &o)
	}
	return gcpsm.New(b.fake.Clients(t, through(in)), &o)
}

func (b *backend) ref(name string) ref.Ref {
	scope := gcpfake.Project
	if b.location != "" {
		scope += "/" + b.location
	}
	return ref.Ref{Provider: ref.GCP, Scope: scope, Name: name}
}

func (b *backend) Create(t *testing.T, v secrets.Value) ref.Ref {
	t.Helper()
	r := b.ref(fmt.Sprintf("app-db-%d", b.n.Add(1)))
	if _, err := b.Open(t, nil).(secrets.Creator).CreateSecret(t.Context(), r, v); err != nil {
		t.Fatal(err)
	}
	return r
}

func (b *backend) Begin(*testing.T, ref.Ref, string) {}

func (b *backend) Logs() string { return b.logs.String() }

func (b *backend) Advance(d time.Duration) { b.fake.Advance(d) }

// Kept tells what is not destroyed, enabled or not.
func (b *backend) Kept(_ *testing.T, r ref.Ref) (own, pending []secrets.Value) {
	parent := "projects/" + gcpfake.Project
	if b.location != "" {
		parent += "/locations/" + b.location
	}
	kept := func(name string) (out []secrets.Value) {
		for _, v := range b.fake.Versions(parent + "/secrets/" + name) {
			if len(v.Value) > 0 {
				out = append(out, secrets.NewValue(v.Value))
			}
		}
		return out
	}
	return kept(r.Name), kept(r.Name + sibling.Suffix)
}

// Tag implements [storetest.Tagged].
func (b *backend) Tag(t *testing.T, r ref.Ref, tags map[string]string) {
	t.Helper()
	parent := "projects/" + gcpfake.Project
	if b.location != "" {
		parent += "/locations/" + b.location
	}
	b.fake.SetLabels(parent+"/secrets/"+r.Name, tags)
}

// locker is one that processes share.
type locker struct {
	mu   sync.Mutex
	held map[string]chan struct{}
}

func (l *locker) Lock(ctx context.Context, name string) (context.Context, func(), error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = map[string]chan struct{}{}
	}
	c := l.held[name]
	if c == nil {
		c = make(chan struct{}, 1)
		l.held[name] = c
	}
	l.mu.Unlock()
	select {
	case c <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, fault.New(fault.Unavailable, "lock", ctx.Err())
	}
	held, cancel := context.WithCancel(ctx)
	return held, sync.OnceFunc(func() { cancel(); <-c }), nil
}

// TestStore runs the suite for the global service with a lock, and for a
// regional one without. There, who finds the claim of one that died waits it
// out, which the short timeout keeps short.
func TestStore(t *testing.T) {
	t.Run("global, with a lock", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) storetest.Backend {
			return newBackend(t, "", gcpsm.Options{Locker: &locker{}})
		})
	})
	t.Run("regional, without a lock", func(t *testing.T) {
		storetest.Run(t, func(t *testing.T) storetest.Backend {
			return newBackend(t, "europe-west3", gcpsm.Options{Timeout: time.Second})
		})
	})
}
