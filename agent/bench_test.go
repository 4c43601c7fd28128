package agent_test

import (
	"sync/atomic"
	"testing"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// filled returns a client that holds n secrets, the last of which is r.
func filled(t testing.TB, n int) (c *agent.Client, r ref.Ref) {
	t.Helper()
	s := newSource()
	c = agent.New(s, nil, options(t))
	for i := range n {
		r = mustRef(t, "aws://123456789012/eu-central-1/prod/agents/llm-key-"+string(rune('a'+i)))
		s.put(r, "value")
		if err := c.Watch(r); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Current(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	return c, r
}

func TestHitsDoNotAllocate(t *testing.T) {
	c, r := filled(t, 20)
	h, ctx := c.Secret(r), t.Context()
	for name, f := range map[string]func(){
		"Client.Current": func() {
			if v, err := c.Current(ctx, r); err != nil || v == nil {
				t.Error("no version")
			}
		},
		"Secret.Get": func() {
			if v, err := h.Get(ctx); err != nil || v == nil {
				t.Error("no version")
			}
		},
		"Secret.Current": func() {
			if h.Current() == nil {
				t.Error("no version")
			}
		},
	} {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s: %v allocations; want none", name, n)
		}
	}
}

var sink *secrets.Version

func BenchmarkBareAtomicPointer(b *testing.B) {
	var p atomic.Pointer[secrets.Version]
	p.Store(&secrets.Version{})
	b.ReportAllocs()
	for b.Loop() {
		sink = p.Load()
	}
}

func BenchmarkSecretCurrent(b *testing.B) {
	c, r := filled(b, 20)
	h := c.Secret(r)
	b.ReportAllocs()
	for b.Loop() {
		sink = h.Current()
	}
}

func BenchmarkCurrent(b *testing.B) {
	c, r := filled(b, 20)
	ctx := b.Context()
	b.ReportAllocs()
	for b.Loop() {
		v, err := c.Current(ctx, r)
		if err != nil {
			b.Fatal(err)
		}
		sink = v
	}
}

func BenchmarkBareAtomicPointerParallel(b *testing.B) {
	var p atomic.Pointer[secrets.Version]
	p.Store(&secrets.Version{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var v *secrets.Version
		for pb.Next() {
			v = p.Load()
		}
		_ = v
	})
}

func BenchmarkSecretCurrentParallel(b *testing.B) {
	c, r := filled(b, 20)
	h := c.Secret(r)
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		var v *secrets.Version
		for pb.Next() {
			v = h.Current()
		}
		_ = v
	})
}

func BenchmarkCurrentParallel(b *testing.B) {
	c, r := filled(b, 20)
	ctx := b.Context()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := c.Current(ctx, r); err != nil {
				b.Error(err)
			}
		}
	})
}
