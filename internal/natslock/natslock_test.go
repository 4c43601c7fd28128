package natslock

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/testenv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen. It is no claim.
const patience = time.Minute

// A process has a connection of its own.
type process struct {
	*Locks
	nc *nats.Conn
	js jetstream.JetStream
}

func start(t *testing.T, srv *testenv.NATSServer, ttl time.Duration) *process {
	t.Helper()
	p := &process{nc: srv.Conn(t)}
	js, err := jetstream.New(p.nc)
	if err != nil {
		t.Fatal(err)
	}
	p.js = js
	if p.Locks, err = Open(t.Context(), js, &Options{TTL: ttl}); err != nil {
		t.Fatal(err)
	}
	return p
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func mustLock(t *testing.T, f func(context.Context, string) (context.Context, func(), error), name string) (context.Context, func()) {
	t.Helper()
	held, unlock, err := f(bounded(t), name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(unlock)
	return held, unlock
}

// stored reads the entry as it is on the server.
func stored(t *testing.T, p *process, name string) (*entry, uint64) {
	t.Helper()
	s := seat{locks: p.Locks, key: entryKey(name), name: name}
	// A server that has just come back may not answer yet.
	testenv.Eventually(t, patience, "the entry to be read", func() bool { return s.read(bounded(t), "test") == nil })
	return s.entry, s.revision
}

// TestExclusionOnAServer: processes that lock as fast as they can. A writer is
// alone, and readers are with readers.
func TestExclusionOnAServer(t *testing.T) {
	srv := testenv.NATS(t)
	const name = "secret aws://111122223333/us-east-1/orders/db"
	var writers, readers, together, entered atomic.Int64
	var wg sync.WaitGroup
	for range 3 {
		p := start(t, srv, 30*time.Second)
		for i := range 3 {
			wg.Go(func() {
				for range 8 {
					lock, mine, other := p.Lock, &writers, &readers
					if i == 2 {
						lock, mine, other = p.RLock, &readers, &writers
					}
					held, unlock, err := lock(bounded(t), name)
					if err != nil {
						t.Error(err)
						return
					}
					if n := mine.Add(1); n > 1 && i != 2 {
						t.Errorf("%d writers at once", n)
					} else if n > 1 {
						together.Add(1)
					}
					if n := other.Load(); n > 0 {
						t.Errorf("%d of the other kind are in", n)
					}
					if held.Err() != nil {
						t.Errorf("lost: %v", context.Cause(held))
					}
					entered.Add(1)
					mine.Add(-1)
					unlock()
					if held.Err() == nil {
						t.Error("the context did not end with the lock")
					}
				}
			})
		}
	}
	wg.Wait()
	if n := entered.Load(); n != 72 {
		t.Errorf("entered %d times, expected 72", n)
	}
}

// TestNames: what is not the same name is not in each other's way, and readers
// of one are together.
func TestNames(t *testing.T) {
	srv := testenv.NATS(t)
	a, b := start(t, srv, 0), start(t, srv, 0)
	for _, name := range []string{"x", "x y", "x=20y", "ünïcode", strings.Repeat("long", 500)} {
		mustLock(t, a.Lock, name)
	}
	var unlocks []func()
	for _, p := range []*process{a, b, a, b} {
		_, unlock := mustLock(t, p.RLock, "shared")
		unlocks = append(unlocks, unlock)
	}
	if e, _ := stored(t, a, "shared"); len(e.Readers) != 4 {
		t.Errorf("%d readers are in, expected 4", len(e.Readers))
	}
	for _, unlock := range unlocks {
		unlock()
		unlock() // once more
	}
	if e, _ := stored(t, a, "shared"); len(e.members()) != 0 {
		t.Errorf("left behind: %+v", e)
	}
}

// TestNoReaderPassesAWriter: a writer that waits for a reader comes before a
// reader that is later, and that one comes after it.
func TestNoReaderPassesAWriter(t *testing.T) {
	srv := testenv.NATS(t)
	a, b, c := start(t, srv, 0), start(t, srv, 0), start(t, srv, 0)
	_, leave := mustLock(t, a.RLock, "n")
	var order []string
	var mu sync.Mutex
	note := func(s string) { mu.Lock(); defer mu.Unlock(); order = append(order, s) }
	var wg sync.WaitGroup
	wg.Go(func() {
		_, unlock, err := b.Lock(bounded(t), "n")
		if err != nil {
			t.Error(err)
			return
		}
		note("writer in")
		note("writer out")
		unlock()
	})
	testenv.Eventually(t, patience, "the writer to be noted", func() bool { e, _ := stored(t, a, "n"); return e.Next != nil })
	wg.Go(func() {
		_, unlock, err := c.RLock(bounded(t), "n")
		if err != nil {
			t.Error(err)
			return
		}
		note("reader in")
		unlock()
	})
	// A reader that gives up says why, and does not enter on its way out.
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := a.RLock(short, "n"); !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassTimeout {
		t.Errorf("a reader behind a writer: %v of kind %s, expected unavailable", err, fault.KindOf(err))
	}
	note("reader out")
	leave()
	wg.Wait()
	if got := strings.Join(order, ", "); got != "reader out, writer in, writer out, reader in" {
		t.Errorf("order: %s", got)
	}
}

// TestNeitherSideStarves: beside readers that overlap all the time writers get
// in, and beside writers that queue all the time readers do.
func TestNeitherSideStarves(t *testing.T) {
	srv := testenv.NATS(t)
	ctx, cancel := context.WithCancel(bounded(t))
	defer cancel()
	var wg sync.WaitGroup
	var reads, writes atomic.Int64
	for i := range 6 {
		p := start(t, srv, 0)
		lock, n := p.RLock, &reads
		if i%2 == 1 {
			lock, n = p.Lock, &writes
		}
		wg.Go(func() {
			for ctx.Err() == nil {
				_, unlock, err := lock(ctx, "n")
				if err != nil {
					if !fault.Is(err, fault.Unavailable) {
						t.Error(err)
					}
					return
				}
				n.Add(1)
				_ = sleep(ctx, time.Millisecond)
				unlock()
			}
		})
	}
	testenv.Eventually(t, patience, "both kinds to get in", func() bool { return reads.Load() > 10 && writes.Load() > 10 })
	cancel()
	wg.Wait()
}

// TestDeadHolder: a holder whose connection is gone knows that it lost before
// anybody else is in.
func TestDeadHolder(t *testing.T) {
	for _, c := range []string{"writer", "reader", "next"} {
		t.Run(c, func(t *testing.T) {
			srv := testenv.NATS(t)
			a, b := start(t, srv, 500*time.Millisecond), start(t, srv, 500*time.Millisecond)
			var held context.Context
			switch c {
			case "writer":
				held, _ = mustLock(t, a.Lock, "n")
				a.nc.Close()
				mustLock(t, b.Lock, "n")
			case "reader":
				held, _ = mustLock(t, a.RLock, "n")
				a.nc.Close()
				mustLock(t, b.Lock, "n")
			case "next":
				// A reader stays, the writer behind it dies, a reader gets in.
				mustLock(t, b.RLock, "n")
				done := make(chan error, 1)
				go func() { _, _, err := a.Lock(bounded(t), "n"); done <- err }()
				testenv.Eventually(t, patience, "the writer to be noted", func() bool { e, _ := stored(t, b, "n"); return e.Next != nil })
				a.nc.Close()
				mustLock(t, b.RLock, "n")
				if err := <-done; !fault.Is(err, fault.Unavailable) {
					t.Errorf("a lock on a closed connection: %v, expected unavailable", err)
				}
				return
			}
			if held.Err() == nil {
				t.Error("somebody is in and the holder's context has not ended")
			}
			if err := context.Cause(held); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "lost") {
				t.Errorf("the cause is %v", err)
			}
		})
	}
}

// TestEvictedHolder: a holder that was taken for dead learns it with its next
// beat, and does not harm who came after it.
func TestEvictedHolder(t *testing.T) {
	srv := testenv.NATS(t)
	a, b := start(t, srv, time.Second), start(t, srv, time.Hour)
	held, unlock := mustLock(t, a.Lock, "n")
	// As if b had seen nothing of a for long.
	e, rev := stored(t, b, "n")
	s := seat{locks: b.Locks, key: entryKey("n"), name: "n", entry: e, revision: rev}
	next := e.clone()
	next.Writer = &member{ID: "other", TTL: 60000}
	for s.store(bounded(t), "test", next, callTimeout) != nil {
		if err := s.read(bounded(t), "test"); err != nil { // a beat came between
			t.Fatal(err)
		}
	}
	select {
	case <-held.Done():
	case <-time.After(patience):
		t.Fatal("an evicted holder goes on")
	}
	unlock()
	if e, _ := stored(t, b, "n"); e.Writer == nil || e.Writer.ID != "other" {
		t.Errorf("the evicted holder unlocked another's lock: %+v", e)
	}
}

// TestRestartOfTheServer: a short one is survived, and nobody else gets in.
func TestRestartOfTheServer(t *testing.T) {
	srv := testenv.NATS(t)
	a, b := start(t, srv, time.Minute), start(t, srv, time.Minute)
	a.ttl = 3 * time.Second // beats often, and is patient below
	held, unlock, err := a.Lock(bounded(t), "n")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, unlock, err := b.Lock(bounded(t), "n")
		if err == nil {
			if held.Err() == nil {
				err = errors.New("two are in")
			}
			unlock()
		}
		got <- err
	}()
	srv.Stop()
	srv.Start()
	_, before := stored(t, b, "n")
	testenv.Eventually(t, patience, "a beat after the restart, or the loss of the lock", func() bool {
		_, now := stored(t, b, "n")
		return now > before || held.Err() != nil
	})
	unlock()
	if err := <-got; err != nil {
		t.Error(err)
	}
}

// TestOutage: a holder loses the lock when the server stays away, who waits
// goes on waiting, and gets it afterwards.
func TestOutage(t *testing.T) {
	srv := testenv.NATS(t)
	a, b := start(t, srv, 400*time.Millisecond), start(t, srv, 400*time.Millisecond)
	held, _ := mustLock(t, a.Lock, "n")
	got := make(chan error, 1)
	go func() {
		_, unlock, err := b.Lock(bounded(t), "n")
		if err == nil {
			unlock()
		}
		got <- err
	}()
	srv.Stop()
	select {
	case <-held.Done():
	case <-time.After(patience):
		t.Fatal("the holder goes on without the server")
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, _, err := a.RLock(short, "other"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("lock during an outage: %v, expected unavailable", err)
	}
	srv.Start()
	if err := <-got; err != nil {
		t.Errorf("who waited through the outage: %v", err)
	}
}

// TestContexts: an ended context is Unavailable, leaves nothing behind, and
// ends what was derived from it.
func TestContexts(t *testing.T) {
	srv := testenv.NATS(t)
	a := start(t, srv, 0)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := a.Lock(ended, "n"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("lock after the context ended: %v", err)
	}
	if _, _, err := a.Lock(t.Context(), ""); !fault.Is(err, fault.Invalid) {
		t.Errorf("lock of no name: %v, expected invalid", err)
	}
	_, leave := mustLock(t, a.RLock, "n")
	short, cancel := context.WithCancel(t.Context())
	got := make(chan error, 1)
	go func() { _, _, err := a.Lock(short, "n"); got <- err }()
	testenv.Eventually(t, patience, "the writer to be noted", func() bool { e, _ := stored(t, a, "n"); return e.Next != nil })
	cancel()
	if err := <-got; !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that was ended: %v", err)
	}
	if e, _ := stored(t, a, "n"); e.Next != nil {
		t.Error("a writer that went away is still next")
	}
	leave()
	parent, cancel := context.WithCancel(t.Context())
	held, unlock, err := a.Lock(parent, "n")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if held.Err() == nil {
		t.Error("the context outlived its parent")
	}
	unlock()
	if e, _ := stored(t, a, "n"); len(e.members()) != 0 {
		t.Errorf("left behind: %+v", e)
	}
}

// TestForeignEntry: nobody is taken for a holder who is none.
func TestForeignEntry(t *testing.T) {
	srv := testenv.NATS(t)
	a := start(t, srv, 0)
	if _, err := a.kv.Create(t.Context(), entryKey("n"), []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.Lock(bounded(t), "n"); !fault.Is(err, fault.Denied) {
		t.Errorf("lock of a foreign entry: %v, expected denied", err)
	}
	// An operator's delete frees it.
	kv, err := a.js.KeyValue(t.Context(), "keyturn-locks")
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Delete(t.Context(), entryKey("n")); err != nil {
		t.Fatal(err)
	}
	mustLock(t, a.Lock, "n")
}

func TestOpen(t *testing.T) {
	srv := testenv.NATS(t)
	js := start(t, srv, 0).js
	for what, c := range map[string]struct {
		config *jetstream.KeyValueConfig
		opts   Options
	}{
		"in memory":      {&jetstream.KeyValueConfig{Storage: jetstream.MemoryStorage}, Options{}},
		"drops entries":  {&jetstream.KeyValueConfig{TTL: time.Minute}, Options{}},
		"other replicas": {&jetstream.KeyValueConfig{}, Options{Replicas: 3}},
		"short TTL":      {nil, Options{TTL: time.Millisecond}},
		"long TTL":       {nil, Options{TTL: 2 * time.Hour}},
		"replicas":       {nil, Options{Replicas: -1}},
		"name":           {nil, Options{Bucket: "a b"}},
	} {
		if c.config != nil {
			c.config.Bucket = strings.ReplaceAll(what, " ", "-")
			c.opts.Bucket = c.config.Bucket
			if _, err := js.CreateKeyValue(t.Context(), *c.config); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Open(t.Context(), js, &c.opts); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v of kind %s, expected invalid", what, err, fault.KindOf(err))
		}
	}
	if _, err := Open(t.Context(), js, nil); err != nil {
		t.Errorf("open with the defaults: %v", err)
	}
}

// injectedKV passes each call to the bucket through an injector.
type injectedKV struct {
	keyValue
	in *crashtest.Injector
}

func (k *injectedKV) Get(ctx context.Context, key string) (e jetstream.KeyValueEntry, err error) {
	err = k.in.Call("kv.Get", func() (err error) { e, err = k.keyValue.Get(ctx, key); return err })
	return e, err
}

func (k *injectedKV) Create(ctx context.Context, key string, v []byte, opts ...jetstream.KVCreateOpt) (rev uint64, err error) {
	err = k.in.Call("kv.Create", func() (err error) { rev, err = k.keyValue.Create(ctx, key, v, opts...); return err })
	return rev, err
}

func (k *injectedKV) Update(ctx context.Context, key string, v []byte, revision uint64) (rev uint64, err error) {
	err = k.in.Call("kv.Update", func() (err error) { rev, err = k.keyValue.Update(ctx, key, v, revision); return err })
	return rev, err
}

// TestCrashes fails each call of a process that locks and unlocks. One that
// lives on gets the lock all the same; one that died is in nobody's way for
// longer than its TTL.
func TestCrashes(t *testing.T) {
	srv := testenv.NATS(t)
	b := start(t, srv, minTTL)
	a := start(t, srv, minTTL)
	n := 0
	points := crashtest.Run(t, func(t *testing.T, in *crashtest.Injector) {
		n++
		name := "n" + strings.Repeat("x", n)
		p := *a.Locks
		p.kv = &injectedKV{p.kv, in}
		for _, lock := range []func(context.Context, string) (context.Context, func(), error){p.Lock, p.RLock} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			if strings.Contains(t.Name(), "/die/") {
				cancel()
				ctx, cancel = context.WithTimeout(t.Context(), time.Second)
			}
			_, unlock, err := lock(ctx, name)
			if err == nil {
				unlock()
			} else if strings.Contains(t.Name(), "/glitch/") {
				t.Errorf("one failed call at %q: %v", in.Fired(), err)
			}
			cancel()
		}
		in.Restart()
		_, unlock, err := b.Lock(bounded(t), name)
		if err != nil {
			t.Fatalf("after a failure at %q: %v", in.Fired(), err)
		}
		unlock()
		if e, _ := stored(t, b, name); len(e.members()) != 0 {
			t.Errorf("left behind: %+v", e)
		}
	})
	t.Logf("crash points of a lock: %d", points)
}
