package memstore_test

import (
	"context"
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
	return &injected{in.Store(b.s), b.s, in}
}

// injected adds what the injector's own wrapper leaves out.
type injected struct {
	secrets.Store
	c  secrets.Creator
	in *crashtest.Injector
}

func (s *injected) CreateSecret(ctx context.Context, r ref.Ref, v secrets.Value) (out *secrets.Version, err error) {
	err = s.in.Call("store.CreateSecret", func() (err error) {
		out, err = s.c.CreateSecret(ctx, r, v)
		return err
	})
	return out, err
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
