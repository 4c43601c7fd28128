package natskv

import (
	"context"
	"fmt"
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
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// injectedKV passes each call to the bucket through an injector.
type injectedKV struct {
	kv keyValue
	in *crashtest.Injector
}

func (k *injectedKV) Get(ctx context.Context, key string) (e jetstream.KeyValueEntry, err error) {
	err = k.in.Call("kv.Get", func() (err error) { e, err = k.kv.Get(ctx, key); return err })
	return e, err
}

func (k *injectedKV) Create(ctx context.Context, key string, v []byte, opts ...jetstream.KVCreateOpt) (rev uint64, err error) {
	err = k.in.Call("kv.Create", func() (err error) { rev, err = k.kv.Create(ctx, key, v, opts...); return err })
	return rev, err
}

func (k *injectedKV) Update(ctx context.Context, key string, v []byte, revision uint64) (rev uint64, err error) {
	err = k.in.Call("kv.Update", func() (err error) { rev, err = k.kv.Update(ctx, key, v, revision); return err })
	return rev, err
}

func (k *injectedKV) WatchAll(ctx context.Context, opts ...jetstream.WatchOpt) (w jetstream.KeyWatcher, err error) {
	err = k.in.Call("kv.WatchAll", func() (err error) { w, err = k.kv.WatchAll(ctx, opts...); return err })
	return w, err
}

func (k *injectedKV) Status(ctx context.Context) (s jetstream.KeyValueStatus, err error) {
	err = k.in.Call("kv.Status", func() (err error) { s, err = k.kv.Status(ctx); return err })
	return s, err
}

// backend is one real server and one bucket.
type backend struct {
	srv    *testenv.NATSServer
	bucket string
	keys   Keys
	seeds  *Store
	n      atomic.Int64
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{srv: testenv.NATS(t), bucket: "secrets-1", keys: testKeys(t)}
	b.seeds = b.open(t, b.keys, nil)
	return b
}

// jetStream connects anew: a process has a connection of its own.
func (b *backend) jetStream(t *testing.T) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(b.srv.Conn(t))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func (b *backend) open(t *testing.T, keys Keys, opts *Options) *Store {
	t.Helper()
	o := Options{Bucket: b.bucket}
	if opts != nil {
		o = *opts
		o.Bucket = b.bucket
	}
	s, err := Open(t.Context(), b.jetStream(t), keys, &o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (b *backend) Open(t *testing.T, in *crashtest.Injector) secrets.Store {
	s := b.open(t, b.keys, nil)
	if in != nil {
		s.kv = &injectedKV{s.kv, in}
	}
	return s
}

func (b *backend) Create(t *testing.T, v secrets.Value) ref.Ref {
	t.Helper()
	r := ref.Ref{Provider: ref.NATS, Scope: b.bucket, Name: fmt.Sprintf("acme/db %d.main", b.n.Add(1))}
	if _, err := b.seeds.CreateSecret(t.Context(), r, v); err != nil {
		t.Fatal(err)
	}
	return r
}

func (b *backend) Begin(*testing.T, ref.Ref, string) {}

func testKeys(t *testing.T) Keys {
	t.Helper()
	path := t.TempDir() + "/seal.key"
	if err := GenerateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	k, err := LoadKeys(path, "")
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Backend { return newBackend(t) })
}

// putRotation brings a secret to three full stages.
func putRotation(t *testing.T, s *Store, r ref.Ref, promoted, pending string, v1, v2 secrets.Value) {
	t.Helper()
	if _, err := s.PutPending(t.Context(), r, promoted, v1); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Promote(t.Context(), r, promoted); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutPending(t.Context(), r, pending, v2); err != nil {
		t.Fatal(err)
	}
}

func wantValue(t *testing.T, s *Store, r ref.Ref, stage secrets.Stage, want secrets.Value) {
	t.Helper()
	v, err := s.Get(t.Context(), r, stage)
	if err != nil {
		t.Errorf("get %s: %v", stage, err)
	} else if !v.Value.Equal(want) {
		t.Errorf("%s holds another value", stage)
	}
}

// TestFilesHoldNoValue searches what JetStream wrote to disk, and then that a
// restart of the server loses nothing.
func TestFilesHoldNoValue(t *testing.T) {
	b := newBackend(t)
	canaries := []string{leaktest.Canary(), leaktest.Canary(), leaktest.Canary()}
	v0, v1, v2 := secrets.NewString(canaries[0]), secrets.NewString(canaries[1]), secrets.NewString(canaries[2])
	r := b.Create(t, v0)
	putRotation(t, b.seeds, r, "rotation-1", "rotation-2", v1, v2)
	check := func(s *Store) {
		t.Helper()
		wantValue(t, s, r, secrets.Previous, v0)
		wantValue(t, s, r, secrets.Current, v1)
		wantValue(t, s, r, secrets.Pending, v2)
	}
	check(b.seeds)
	leaktest.CheckDir(t, b.srv.Dir(), canaries...)
	b.srv.Stop()
	leaktest.CheckDir(t, b.srv.Dir(), canaries...)
	b.srv.Start()
	check(b.open(t, b.keys, nil))
	// The store that was open all the while finds the server again.
	testenv.Eventually(t, 20*time.Second, "the open store to reach the server again", func() bool {
		_, err := b.seeds.Get(t.Context(), r, secrets.Current)
		return err == nil
	})
	check(b.seeds)
	if _, err := b.seeds.Promote(t.Context(), r, "rotation-2"); err != nil {
		t.Fatal(err)
	}
	wantValue(t, b.seeds, r, secrets.Current, v2)
}

// TestSupersededVersionsLeaveTheServer: with history 1 the bucket keeps one
// message a secret, however often it is rotated.
func TestSupersededVersionsLeaveTheServer(t *testing.T) {
	b := newBackend(t)
	r := b.Create(t, secrets.NewString("v0"))
	for i := range 5 {
		token := fmt.Sprintf("rotation-%d", i)
		if _, err := b.seeds.PutPending(t.Context(), r, token, secrets.NewString(token)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.seeds.Promote(t.Context(), r, token); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := b.jetStream(t).Stream(t.Context(), "KV_"+b.bucket)
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("the bucket holds %d messages, expected 1", n)
	}
}

func TestOutage(t *testing.T) {
	b := newBackend(t)
	canary := leaktest.Canary()
	r := b.Create(t, secrets.NewString(canary))
	s := b.open(t, b.keys, &Options{Timeout: 300 * time.Millisecond})
	b.srv.Stop()
	rec := &leaktest.Recorder{}
	calls := func() (errs []error) {
		_, err := s.Get(t.Context(), r, secrets.Current)
		errs = append(errs, err)
		_, err = s.Describe(t.Context(), r)
		errs = append(errs, err)
		_, err = s.PutPending(t.Context(), r, "rotation-1", secrets.NewString(canary))
		errs = append(errs, err)
		_, err = s.Promote(t.Context(), r, "rotation-1")
		errs = append(errs, err)
		_, err = s.CreateSecret(t.Context(), ref.Ref{Provider: ref.NATS, Scope: b.bucket, Name: "new"}, secrets.NewString(canary))
		errs = append(errs, err)
		_, err = s.List(t.Context())
		errs = append(errs, err, s.Discard(t.Context(), r, "rotation-1"))
		return errs
	}
	for i, err := range calls() {
		rec.Record(err)
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("call %d during an outage: %v of kind %s, expected unavailable", i, err, fault.KindOf(err))
		}
	}
	rec.Check(t, canary)
	// Whoever waits for longer than the outage gets an answer.
	b.srv.Start()
	testenv.Eventually(t, 20*time.Second, "the store to work again", func() bool {
		_, err := s.Get(t.Context(), r, secrets.Current)
		return err == nil
	})
}

// TestLostAnswers: a write that took effect, whose answer was lost, is found
// to be done by the store itself.
func TestLostAnswers(t *testing.T) {
	b := newBackend(t)
	s := b.open(t, b.keys, nil)
	s.kv = &lossyKV{s.kv}
	r := ref.Ref{Provider: ref.NATS, Scope: b.bucket, Name: "lossy"}
	v0, v1 := secrets.NewString("v0"), secrets.NewString("v1")
	if _, err := s.CreateSecret(t.Context(), r, v0); err != nil {
		t.Errorf("create: %v", err)
	}
	if _, err := s.CreateSecret(t.Context(), r, v0); !fault.Is(err, fault.Conflict) {
		t.Errorf("create again: %v, expected a conflict", err)
	}
	if got, err := s.PutPending(t.Context(), r, "rotation-1", v1); err != nil || !got.Value.Equal(v1) {
		t.Errorf("put pending: %v", err)
	}
	if got, err := s.Promote(t.Context(), r, "rotation-1"); err != nil || !got.Value.Equal(v1) {
		t.Errorf("promote: %v", err)
	}
	if _, err := s.PutPending(t.Context(), r, "rotation-2", v0); err != nil {
		t.Errorf("put pending: %v", err)
	}
	if err := s.Discard(t.Context(), r, "rotation-2"); err != nil {
		t.Errorf("discard: %v", err)
	}
	wantValue(t, b.seeds, r, secrets.Current, v1)
	wantValue(t, b.seeds, r, secrets.Previous, v0)
}

// lossyKV loses the answer to every write.
type lossyKV struct{ keyValue }

func (k *lossyKV) Create(ctx context.Context, key string, v []byte, opts ...jetstream.KVCreateOpt) (uint64, error) {
	if _, err := k.keyValue.Create(ctx, key, v, opts...); err != nil {
		return 0, err
	}
	return 0, nats.ErrTimeout
}

func (k *lossyKV) Update(ctx context.Context, key string, v []byte, rev uint64) (uint64, error) {
	if _, err := k.keyValue.Update(ctx, key, v, rev); err != nil {
		return 0, err
	}
	return 0, nats.ErrTimeout
}

// TestListAndContention: writers of one secret under contention all get
// through, and List tells each secret once meanwhile.
func TestListAndContention(t *testing.T) {
	b := newBackend(t)
	names := map[string]bool{}
	for _, name := range []string{"a", "A", "acme/db", "a.b", "_kv_x", "with space", "ünïcode/🔑", "=41", "*", ">", "\x00\xff", "a//b", "/", "."} {
		r := ref.Ref{Provider: ref.NATS, Scope: b.bucket, Name: name}
		v := secrets.NewString("value of " + name)
		if _, err := b.seeds.CreateSecret(t.Context(), r, v); err != nil {
			t.Errorf("create %q: %v", name, err)
			continue
		}
		wantValue(t, b.seeds, r, secrets.Current, v)
		names[name] = true
	}
	if _, err := b.seeds.kv.Create(t.Context(), "not.ours", []byte("x")); err != nil {
		t.Fatal(err)
	}
	r := ref.Ref{Provider: ref.NATS, Scope: b.bucket, Name: "a"}
	var wg sync.WaitGroup
	for i := range 6 {
		s := b.open(t, b.keys, nil)
		wg.Go(func() {
			for n := range 10 {
				token := fmt.Sprintf("rotation-%d-%d", i, n)
				_, err := s.PutPending(t.Context(), r, token, secrets.NewString(token))
				if err == nil {
					_, err = s.Promote(t.Context(), r, token)
				}
				if err != nil && !fault.Is(err, fault.Conflict) {
					t.Errorf("writer %d: %v", i, err)
				}
			}
		})
	}
	for range 5 {
		refs, err := b.seeds.List(t.Context())
		if err != nil {
			t.Error(err)
		}
		seen := map[string]bool{}
		for _, r := range refs {
			if seen[r.Name] || !names[r.Name] || r.Scope != b.bucket {
				t.Errorf("listed %s, which is not there or was listed before", r)
			}
			seen[r.Name] = true
		}
		if len(seen) != len(names) {
			t.Errorf("listed %d secrets, expected %d", len(seen), len(names))
		}
	}
	wg.Wait()
	kv, err := b.jetStream(t).KeyValue(t.Context(), b.bucket)
	if err != nil {
		t.Fatal(err)
	}
	if err := kv.Delete(t.Context(), EntryKey("A")); err != nil {
		t.Fatal(err)
	}
	if refs, err := b.seeds.List(t.Context()); err != nil || len(refs) != len(names)-1 {
		t.Errorf("listed %d secrets after one was deleted, %v; expected %d", len(refs), err, len(names)-1)
	}
	long := ref.Ref{Provider: ref.NATS, Scope: b.bucket, Name: string(make([]byte, maxKey))}
	if _, err := b.seeds.CreateSecret(t.Context(), long, secrets.NewString("x")); !fault.Is(err, fault.Invalid) {
		t.Errorf("create with a name that is too long: %v, expected invalid", err)
	}
}

// TestOtherWriters: a write that somebody else's came before is begun again,
// but not for ever.
func TestOtherWriters(t *testing.T) {
	b := newBackend(t)
	v0, v1 := secrets.NewString("v0"), secrets.NewString("v1")
	r := b.Create(t, v0)
	s := b.open(t, b.keys, nil)
	busy := &busyKV{keyValue: s.kv, left: 3}
	s.kv = busy
	if _, err := s.PutPending(t.Context(), r, "rotation-1", v1); err != nil {
		t.Errorf("put pending: %v", err)
	}
	busy.left = 3
	if _, err := s.Promote(t.Context(), r, "rotation-1"); err != nil {
		t.Errorf("promote: %v", err)
	}
	wantValue(t, b.seeds, r, secrets.Current, v1)
	busy.left = 1 << 30
	_, err := s.PutPending(t.Context(), r, "rotation-2", v0)
	if !fault.Is(err, fault.Conflict) || fault.ClassOf(err) != fault.ClassConcurrency {
		t.Errorf("put pending that never gets through: %v of kind %s, expected a conflict", err, fault.KindOf(err))
	}
	ctx, cancel := context.WithCancel(t.Context())
	busy.before = cancel
	if _, err := s.PutPending(ctx, r, "rotation-2", v0); !fault.Is(err, fault.Unavailable) {
		t.Errorf("put pending whose context ends meanwhile: %v of kind %s, expected unavailable", err, fault.KindOf(err))
	}
	wantValue(t, b.seeds, r, secrets.Previous, v0)
}

// busyKV writes the entry as it is before each of the next updates.
type busyKV struct {
	keyValue
	left   int
	before func()
}

func (k *busyKV) Update(ctx context.Context, key string, v []byte, rev uint64) (uint64, error) {
	if k.left > 0 {
		k.left--
		e, err := k.Get(ctx, key)
		if err != nil {
			return 0, err
		}
		if _, err := k.keyValue.Update(ctx, key, e.Value(), e.Revision()); err != nil {
			return 0, err
		}
	}
	if k.before != nil {
		k.before()
	}
	return k.keyValue.Update(ctx, key, v, rev)
}

// TestLimits: three values of the longest length fit into one entry, with the
// longest tokens in their longest spelling.
func TestLimits(t *testing.T) {
	b := newBackend(t)
	s, v := b.seeds, secrets.NewValue(make([]byte, MaxValue))
	r := b.Create(t, v)
	token := func(c string) string { return c + strings.Repeat("\x01", maxToken-1) }
	putRotation(t, s, r, token("a"), token("b"), v, v)
	if _, err := s.Promote(t.Context(), r, token("b")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PutPending(t.Context(), r, token("c"), v); err != nil {
		t.Fatal(err)
	}
	wantValue(t, s, r, secrets.Previous, v)
	long := secrets.NewValue(make([]byte, MaxValue+1))
	if _, err := s.PutPending(t.Context(), r, "d", long); !fault.Is(err, fault.Invalid) {
		t.Errorf("put a value that is too long: %v, expected invalid", err)
	}
	for _, tok := range []string{token("dd"), "\xff"} {
		if _, err := s.PutPending(t.Context(), r, tok, v); !fault.Is(err, fault.Invalid) {
			t.Errorf("put pending under a bad token: %v, expected invalid", err)
		}
	}
}
