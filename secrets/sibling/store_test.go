package sibling_test

import (
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
	"github.com/keyturn/keyturn/secrets/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend is one service in memory, and the lock that all its processes share
// where the service does not compare and swap.
type backend struct {
	*service
	lock secrets.Locker
	n    atomic.Int64
	logs leaktest.Recorder
}

func newBackend(k kind) *backend {
	b := &backend{service: newService(k)}
	if !k.swaps {
		b.lock = newLocker()
	}
	return b
}

func (b *backend) Open(_ *testing.T, in *crashtest.Injector) secrets.Store {
	return sibling.New(&driver{b: b.service, in: in}, &sibling.Options{Locker: b.lock, Logger: b.logs.Logger()})
}

func (b *backend) ref() ref.Ref {
	return ref.Ref{Provider: ref.NATS, Scope: "mem", Name: fmt.Sprintf("app/db-%d", b.n.Add(1))}
}

func (b *backend) Create(t *testing.T, v secrets.Value) ref.Ref {
	t.Helper()
	r := b.ref()
	if _, err := b.Open(t, nil).(secrets.Creator).CreateSecret(t.Context(), r, v); err != nil {
		t.Fatal(err)
	}
	return r
}

func (b *backend) Begin(*testing.T, ref.Ref, string) {}

func (b *backend) Logs() string { return b.logs.String() }

func (b *backend) Advance(d time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ahead += d
}

func (b *backend) Kept(_ *testing.T, r ref.Ref) (own, pending []secrets.Value) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.main[r].kept(), b.side[r].kept()
}

// kept returns the values that were not destroyed.
func (it *item) kept() (out []secrets.Value) {
	if it == nil {
		return nil
	}
	for _, v := range it.versions {
		if v.value != nil {
			out = append(out, secrets.NewValue(v.value))
		}
	}
	return out
}

// kinds are the ways in which the providers work.
var kinds = map[string]kind{
	"compare-and-swap":           {swaps: true},
	"compare-and-swap and notes": {swaps: true, notes: true},
	"neither, with a lock":       {},
	"compare-and-swap, forgets":  {swaps: true, forgets: true},
	"notes, with a lock":         {notes: true},
}

func TestStore(t *testing.T) {
	for name, k := range kinds {
		t.Run(name, func(t *testing.T) {
			storetest.Run(t, func(*testing.T) storetest.Backend { return newBackend(k) })
		})
	}
}
