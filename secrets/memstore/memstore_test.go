package memstore_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
	"github.com/keyturn/keyturn/secrets/storetest"
)

type backend struct {
	s *memstore.Store
	n atomic.Int64
}

// Open returns the one store behind an injector: its outward calls are its
// methods.
func (b *backend) Open(_ *testing.T, in *crashtest.Injector) secrets.Store {
	if in == nil {
		return b.s
	}
	return in.Store(b.s)
}

func (b *backend) Create(t *testing.T, v secrets.Value) ref.Ref {
	t.Helper()
	r := ref.Ref{Provider: ref.NATS, Scope: "mem", Name: fmt.Sprintf("app/db-%d", b.n.Add(1))}
	if _, err := b.s.CreateSecret(t.Context(), r, v); err != nil {
		t.Fatal(err)
	}
	return r
}

func (b *backend) Begin(*testing.T, ref.Ref, string) {}

func TestStore(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Backend { return &backend{s: memstore.New()} })
}
