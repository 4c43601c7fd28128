package natsbus

import (
	"fmt"
	"sync"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
)

// grouped commits msgs through c as one batch, whatever gathers when.
func grouped(t *testing.T, c *committer, msgs ...*nats.Msg) []outcome {
	t.Helper()
	its := make([]*commitment, len(msgs))
	for i, m := range msgs {
		its[i] = &commitment{ctx: t.Context(), msg: m, done: make(chan outcome, 1)}
	}
	c.batch(t.Context(), its)
	out := make([]outcome, len(its))
	for i, it := range its {
		out[i] = <-it.done
	}
	return out
}

func message(t *testing.T, e events.Event, expected string) *nats.Msg {
	t.Helper()
	m, err := encode(e)
	if err != nil {
		t.Fatal(err)
	}
	(&outgoing{msg: m, id: e.ID, subject: m.Subject}).identify()
	m.Header[nats.ExpectedLastSubjSeqHdr] = []string{expected}
	return m
}

// TestRefusedBatches: a batch that the server refuses as a whole is nobody's
// loss: each of its messages is decided by itself.
func TestRefusedBatches(t *testing.T) {
	var seen []Commit
	o := &Options{GroupCommit: true, Observe: func(c Commit) { seen = append(seen, c) }}
	for name, c := range map[string]struct {
		server  func(*server.Options)
		prepare func(t *testing.T, b *Bus)
		msgs    func(t *testing.T) []*nats.Msg
		check   func(t *testing.T, got []outcome)
		stored  uint64
		refused bool
		off     bool
	}{
		"taken": {
			msgs: func(t *testing.T) []*nats.Msg {
				return []*nats.Msg{message(t, activated("a", "x"), "0"), message(t, activated("b", "x"), "0"), message(t, activated("c", "x"), "0")}
			},
			check: func(t *testing.T, got []outcome) {
				if got[0].seq != 1 || got[1].seq != 2 || got[2].seq != 3 {
					t.Errorf("%+v; expected the sequences 1 to 3", got)
				}
			},
			stored: 3,
		},
		"a duplicate inside": {
			prepare: func(t *testing.T, b *Bus) { publish(t, b, activated("a", "x"), activated("a", "y")) },
			msgs: func(t *testing.T) []*nats.Msg {
				return []*nats.Msg{message(t, activated("b", "x"), "0"), message(t, activated("a", "x"), "2")}
			},
			check: func(t *testing.T, got []outcome) {
				if got[0].err != nil || got[0].duplicate || !got[1].duplicate {
					t.Errorf("%+v; expected one stored and one duplicate", got)
				}
			},
			stored: 3, refused: true,
		},
		"another process was faster": {
			prepare: func(t *testing.T, b *Bus) { publish(t, b, activated("a", "x")) },
			msgs: func(t *testing.T) []*nats.Msg {
				return []*nats.Msg{message(t, activated("b", "x"), "0"), message(t, activated("a", "y"), "0")}
			},
			check: func(t *testing.T, got []outcome) {
				if got[0].err != nil || !undecided(got[1].err) {
					t.Errorf("%+v; expected one stored and one to decide anew", got)
				}
			},
			stored: 2, refused: true,
		},
		"too many batches": {
			server: func(o *server.Options) { o.JetStreamLimits.MaxBatchInflightPerStream = 1 },
			prepare: func(t *testing.T, b *Bus) { // one that is never committed
				m := message(t, activated("z", "x"), "0")
				m.Header[headerBatchID], m.Header[headerBatchSequence] = []string{"open"}, []string{"1"}
				if _, err := b.nc.RequestMsgWithContext(t.Context(), m); err != nil {
					t.Fatal(err)
				}
			},
			msgs: func(t *testing.T) []*nats.Msg {
				return []*nats.Msg{message(t, activated("a", "x"), "0"), message(t, activated("b", "x"), "0")}
			},
			check: func(t *testing.T, got []outcome) {
				if got[0].err != nil || got[1].err != nil {
					t.Errorf("%+v; expected both stored", got)
				}
			},
			stored: 2, refused: true,
		},
		"a batch that is too large": {
			server: func(o *server.Options) { o.JetStreamLimits.MaxBatchSize = 1 },
			msgs: func(t *testing.T) []*nats.Msg {
				return []*nats.Msg{message(t, activated("a", "x"), "0"), message(t, activated("b", "x"), "0")}
			},
			stored: 2, refused: true,
		},
		"somebody switched batches off": {
			prepare: func(t *testing.T, b *Bus) {
				cfg := config(t, b.js, EventStream)
				cfg.AllowAtomicPublish = false
				if _, err := b.js.UpdateStream(t.Context(), cfg); err != nil {
					t.Fatal(err)
				}
			},
			msgs: func(t *testing.T) []*nats.Msg {
				return []*nats.Msg{message(t, activated("a", "x"), "0"), message(t, activated("b", "x"), "0")}
			},
			stored: 2, refused: true, off: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := startServer(t, c.server)
			b := open(t, connectTo(t, srv.ClientURL()), o)
			if !b.news.atomic.Load() {
				t.Fatal("batches are off; expected Open to switch them on")
			}
			if c.prepare != nil {
				c.prepare(t, b)
			}
			seen = nil
			got := grouped(t, b.news, c.msgs(t)...)
			if c.check != nil {
				c.check(t, got)
			}
			if n := storedIn(t, b, EventStream); n != c.stored {
				t.Errorf("%d stored; expected %d", n, c.stored)
			}
			if seen[0].Refused != c.refused || seen[0].Events < 2 {
				t.Errorf("observed %+v; expected refused %t", seen, c.refused)
			}
			if b.news.atomic.Load() == c.off {
				t.Errorf("batches on: %t; expected %t", !c.off, c.off)
			}
		})
	}
}

// TestServerWithoutBatches: a server of before atomic batches stores their
// messages one by one and answers the last. That is no answer for the others.
func TestServerWithoutBatches(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	old := srv.Conn(t)
	// What such a server does with the headers that it does not know.
	if _, err := old.Subscribe("old.>", func(m *nats.Msg) {
		if m.Reply == "" { // lost without an answer
			return
		}
		_ = m.Respond([]byte(`{"stream":"KEYTURN_EVENTS","seq":7}`))
	}); err != nil {
		t.Fatal(err)
	}
	if err := old.Flush(); err != nil {
		t.Fatal(err)
	}
	b.news.atomic.Store(true)
	one, two := message(t, activated("a", "x"), "0"), message(t, activated("b", "x"), "0")
	one.Subject, two.Subject = "old.a", "old.b"
	its := []*commitment{{ctx: t.Context(), msg: one, done: make(chan outcome, 1)}, {ctx: t.Context(), msg: two, done: make(chan outcome, 1)}}
	if _, err := b.news.atomically(t.Context(), its); err == nil {
		t.Error("taken for stored")
	}
	if b.news.atomic.Load() {
		t.Error("batches are still on")
	}
}

// TestGathers: with many callers, batches are made, and everything is stored
// once, also where subjects and ids collide.
func TestGathers(t *testing.T) {
	srv := testenv.NATS(t)
	var mu sync.Mutex
	var batched, refused int
	b := open(t, srv.Conn(t), &Options{GroupCommit: true, PublishTimeout: limit, Observe: func(c Commit) {
		mu.Lock()
		defer mu.Unlock()
		if c.Events > 1 {
			batched += c.Events
		}
		if c.Refused {
			refused++
		}
	}})
	other := open(t, srv.Conn(t), &Options{GroupCommit: true, PublishTimeout: limit})
	b.news.least, other.news.least = 2, 2
	const callers, each = 100, 4
	var sum events.Receipt
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			bus := b
			if c%10 == 0 {
				bus = other
			}
			var es []events.Event
			for i := range each {
				es = append(es, activated(fmt.Sprintf("s%d", (c/2+i)%60), fmt.Sprintf("v%d", i)))
			}
			r, err := bus.PublishReceipt(t.Context(), es...)
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			sum.Add(r)
		})
	}
	wg.Wait()
	told, late := everything(t, b)
	if n := len(told) + len(late); n != sum.Stored+sum.Late || sum.Stored+sum.Late+sum.Duplicates != callers*each {
		t.Errorf("%d stored and receipts %+v", n, sum)
	}
	seen := map[string]bool{}
	for _, e := range told {
		if seen[e.ID] {
			t.Errorf("%s is stored twice", e.ID)
		}
		seen[e.ID] = true
	}
	t.Logf("%d in batches, %d batches refused", batched, refused)
	if batched == 0 {
		t.Error("no batch; the test proves nothing")
	}
	if err := b.Publish(t.Context(), activated("", "x")); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v; expected invalid", err)
	}
}
