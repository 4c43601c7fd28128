package natsbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
)

// wishes are the events that start rotations.
var wishes = events.Filter{Types: []events.Type{events.RotationRequested, events.SecretNearExpiry}}

func wish(name, key string) events.Event {
	e := events.New(events.RotationRequested, secret(name), time.Now(), key)
	e.Data.Tenant = "acme"
	return e
}

// A worker is a running Work that keeps what it is given, by id.
type worker struct {
	mu   sync.Mutex
	got  map[string]int
	stop func()
}

func work(t testing.TB, b *Bus, name string, f events.Filter, h func(e events.Event, n int) error) *worker {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	w := &worker{got: map[string]int{}}
	done := make(chan error, 1)
	go func() {
		done <- b.Work(ctx, name, f, func(_ context.Context, e events.Event) error {
			w.mu.Lock()
			w.got[e.ID]++
			n := w.got[e.ID]
			w.mu.Unlock()
			if h == nil {
				return nil
			}
			return h(e, n)
		})
	}()
	var once sync.Once
	w.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("Work returned %v after its context ended; expected nil", err)
				}
			case <-time.After(limit):
				t.Error("Work did not return after its context ended")
			}
		})
	}
	t.Cleanup(w.stop)
	return w
}

func (w *worker) count(e events.Event) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.got[e.ID]
}

func (w *worker) total() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.got)
}

// idleWorkers waits until nothing is unacknowledged or waiting.
func idleWorkers(t testing.TB, b *Bus, name string) {
	t.Helper()
	testenv.Eventually(t, limit, "every event acknowledged", func() bool {
		c, err := b.js.Consumer(t.Context(), EventStream, name)
		return err == nil && c.CachedInfo().NumAckPending == 0 && c.CachedInfo().NumPending == 0
	})
}

// TestWorkOnOneReplica: of two replicas one gets each event that the filter
// selects; another deployment gets all of them too.
func TestWorkOnOneReplica(t *testing.T) {
	srv := testenv.NATS(t)
	b1, b2, b3 := open(t, srv.Conn(t), nil), open(t, srv.Conn(t), nil), open(t, srv.Conn(t), nil)
	w1, w2, other := work(t, b1, "prod", wishes, nil), work(t, b2, "prod", wishes, nil), work(t, b3, "stage", wishes, nil)
	var es []events.Event
	for i := range 60 {
		e := wish("a/b.c", fmt.Sprint(i)) // all of one secret
		if i%2 == 0 {
			e = wish(fmt.Sprint("s", i), "")
		}
		if i%3 == 0 {
			e.Type = events.SecretNearExpiry
		}
		es = append(es, e)
	}
	publish(t, b1, activated("a", "1"))
	publish(t, b1, es...)
	publish(t, b1, es...)
	testenv.Eventually(t, 2*limit, "every event handled", func() bool {
		for _, e := range es {
			if w1.count(e)+w2.count(e) == 0 || other.count(e) == 0 {
				return false
			}
		}
		return true
	})
	idleWorkers(t, b1, "prod")
	for _, e := range es {
		if n, m := w1.count(e)+w2.count(e), other.count(e); n != 1 || m != 1 {
			t.Errorf("an event was handled %d times by one deployment, %d by the other; expected once each", n, m)
		}
	}
	if w1.total()+w2.total() != len(es) {
		t.Errorf("handled %d events; expected %d", w1.total()+w2.total(), len(es))
	}
}

// TestWorkWaits: what is published while no replica runs, and the server is
// restarted, is handled by the next; what was handled before is not. A new
// name begins with what was published shortly before.
func TestWorkWaits(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	publish(t, b, wish("a", "first"))
	w := work(t, b, "prod", wishes, nil)
	testenv.Eventually(t, limit, "the event from before", func() bool { return w.count(wish("a", "first")) == 1 })
	idleWorkers(t, b, "prod")
	w.stop()
	publish(t, b, wish("a", "away"))
	srv.Stop()
	srv.Start()
	testenv.Eventually(t, limit, "published after the restart", func() bool { return b.Publish(t.Context(), wish("a", "restarted")) == nil })
	w = work(t, open(t, srv.Conn(t), nil), "prod", wishes, nil)
	testenv.Eventually(t, limit, "both events", func() bool { return w.count(wish("a", "away")) == 1 && w.count(wish("a", "restarted")) == 1 })
	idleWorkers(t, b, "prod")
	// And while it runs.
	srv.Stop()
	srv.Start()
	testenv.Eventually(t, limit, "published after another restart", func() bool { return b.Publish(t.Context(), wish("a", "running")) == nil })
	testenv.Eventually(t, limit, "the event after the restart", func() bool { return w.count(wish("a", "running")) == 1 })
	if n := w.total(); n != 3 {
		t.Errorf("handled %d events; expected 3", n)
	}
}

// TestWorkTakesOver: a replica that dies in a handler has its event done by
// another; a replica that ends gives it back.
func TestWorkTakesOver(t *testing.T) {
	srv := testenv.NATS(t)
	o := &Options{AckWait: time.Second, Workers: 1}
	nc := srv.Conn(t)
	b := open(t, nc, o)
	block := make(chan struct{})
	w := work(t, b, "prod", wishes, func(events.Event, int) error { <-block; return errors.New("ended") })
	publish(t, b, wish("a", "1"))
	testenv.Eventually(t, limit, "begun", func() bool { return w.count(wish("a", "1")) == 1 })
	nc.Close() // it can neither keep its event nor give it back
	other := work(t, open(t, srv.Conn(t), o), "prod", wishes, nil)
	testenv.Eventually(t, limit, "taken over", func() bool { return other.count(wish("a", "1")) == 1 })
	close(block)
}

// TestWorkFails: other errors come again, Invalid ends as a dead letter, and
// so does what nobody classified.
func TestWorkFails(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	b.tries = 3
	w := work(t, b, "prod", wishes, func(e events.Event, n int) error {
		switch e.Data.Ref.Name {
		case "poison":
			return fault.Newf(fault.Invalid, "test", "no such policy %s", strings.Repeat("x", 2*maxReason))
		case "flaky":
			if n == 1 {
				return fault.Newf(fault.Unavailable, "test", "away")
			}
		case "unknown":
			if n < 3 {
				return After(0, io.EOF)
			}
			return io.EOF
		}
		return nil
	})
	flaky, poison, unknown := wish("flaky", "1"), wish("poison", "1"), wish("unknown", "1")
	publish(t, b, flaky, poison, unknown)
	testenv.Eventually(t, limit, "all done", func() bool {
		return w.count(flaky) == 2 && w.count(poison) == 1 && w.count(unknown) == 3
	})
	idleWorkers(t, b, "prod")
	letters := map[string]StoredLetter{}
	for l, err := range b.DeadLetters(t.Context(), 0, 10) {
		if err != nil {
			t.Fatal(err)
		}
		letters[l.ID] = l
	}
	if len(letters) != 2 {
		t.Fatalf("dead letters %+v; expected two", letters)
	}
	l := letters[poison.ID]
	if l.Source != "prod" || l.Kind != fault.Invalid || l.Attempt != 1 || !strings.Contains(l.Reason, "no such policy") || len(l.Reason) > maxReason || l.Received.IsZero() {
		t.Errorf("%+v; expected why and whence", l)
	}
	h := nats.Header{}
	for k, v := range l.Attributes {
		h[k] = []string{v}
	}
	back, err := decode(l.Attributes["subject"], h, l.Body)
	if err != nil || back.ID != poison.ID || back.Data.Ref != poison.Data.Ref {
		t.Errorf("the letter reads as %+v, %v; expected the event", back, err)
	}
	if u := letters[unknown.ID]; u.Kind != fault.Unknown || u.Attempt != 3 {
		t.Errorf("%+v; expected unknown after 3 attempts", u)
	}
}

// TestWorkParksBeforeItDrops: an event whose letter cannot be stored comes
// again.
func TestWorkParksBeforeItDrops(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), &Options{PublishTimeout: time.Second})
	if err := b.js.DeleteStream(t.Context(), DeadLetterStream); err != nil {
		t.Fatal(err)
	}
	w := work(t, b, "prod", wishes, func(events.Event, int) error { return fault.Newf(fault.Invalid, "test", "never") })
	poison := wish("poison", "1")
	publish(t, b, poison)
	testenv.Eventually(t, limit, "a second attempt", func() bool { return w.count(poison) == 2 })
	open(t, srv.Conn(t), nil)
	testenv.Eventually(t, limit, "the letter", func() bool { return storedIn(t, b, DeadLetterStream) == 1 })
	idleWorkers(t, b, "prod")
}

// TestWorkIgnoresForgeries: what is no event is passed over.
func TestWorkIgnoresForgeries(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	w := work(t, b, "prod", wishes, nil)
	good := wish("a", "1")
	m, err := encode(good)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []*nats.Msg{
		{Subject: m.Subject, Data: []byte("{}")},
		{Subject: strings.Replace(m.Subject, "acme", "victim", 1), Header: m.Header, Data: m.Data},
	} {
		if _, err := b.js.PublishMsg(t.Context(), bad); err != nil {
			t.Fatal(err)
		}
	}
	publish(t, b, good)
	testenv.Eventually(t, limit, "the event", func() bool { return w.count(good) == 1 })
	idleWorkers(t, b, "prod")
	if w.total() != 1 || b.Ignored() != 2 || storedIn(t, b, DeadLetterStream) != 0 {
		t.Errorf("handled %d and ignored %d; expected 1 and 2", w.total(), b.Ignored())
	}
}

// TestWorkConsumer: it survives its deletion, takes another filter, and
// replicas may make it at once.
func TestWorkConsumer(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	var wg sync.WaitGroup
	for range 6 {
		bus := open(t, srv.Conn(t), nil)
		wg.Go(func() {
			if _, err := bus.worker(context.Background(), "prod", wishes.Subjects()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	w := work(t, b, "prod", wishes, nil)
	publish(t, b, wish("a", "1"))
	testenv.Eventually(t, limit, "an event", func() bool { return w.count(wish("a", "1")) == 1 })
	if err := b.js.DeleteConsumer(t.Context(), EventStream, "prod"); err != nil {
		t.Fatal(err)
	}
	publish(t, b, wish("a", "2"))
	testenv.Eventually(t, limit, "an event after the consumer was deleted", func() bool { return w.count(wish("a", "2")) >= 1 })
	idleWorkers(t, b, "prod")
	w.stop()
	w = work(t, b, "prod", events.Filter{Tenant: "acme", Refs: refs("a"), Types: []events.Type{events.VersionActivated}}, nil)
	testenv.Eventually(t, limit, "the other filter", func() bool {
		c, err := b.js.Consumer(t.Context(), EventStream, "prod")
		return err == nil && len(c.CachedInfo().Config.FilterSubjects) == 1
	})
	publish(t, b, wish("a", "3"), activated("b", "1"), activated("a", "1"))
	testenv.Eventually(t, limit, "an event of the other filter", func() bool { return w.count(activated("a", "1")) == 1 })
	idleWorkers(t, b, "prod")
	if w.total() != 1 {
		t.Errorf("handled %d events; expected one", w.total())
	}
}

func TestWorkRefuses(t *testing.T) {
	connect := secured(t)
	b := open(t, connect("operator"), nil)
	var many []ref.Ref
	for i := range maxWorkSubjects {
		many = append(many, secret(fmt.Sprint("s", i)))
	}
	for what, c := range map[string]struct {
		name string
		f    events.Filter
	}{
		"no name":    {"", wishes},
		"bad name":   {"a.b", wishes},
		"long name":  {strings.Repeat("x", maxDurable+1), wishes},
		"bad type":   {"prod", events.Filter{Types: []events.Type{"x"}}},
		"bad ref":    {"prod", events.Filter{Refs: refs("")}},
		"many wants": {"prod", events.Filter{Refs: many, Types: wishes.Types}},
	} {
		if err := b.Work(t.Context(), c.name, c.f, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; expected an error of kind invalid", what, err)
		}
	}
	o := (&Options{PublishTimeout: 2 * time.Second}).withDefaults()
	nc := connect("acme")
	js, err := newJetStream(nc, o)
	if err != nil {
		t.Fatal(err)
	}
	agent := &Bus{Subscriber: newSubscriber(nc, o), nc: nc, js: js, opts: o}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := agent.Work(ctx, "prod", wishes, nil); !fault.Is(err, fault.Denied) {
		t.Errorf("without rights: %v; expected an error of kind denied", err)
	}
	cancel()
	if err := b.Work(ctx, "prod", wishes, nil); err != nil {
		t.Errorf("after its context ended: %v; expected nil", err)
	}
	if _, err := b.js.Consumer(t.Context(), EventStream, "prod"); !errors.Is(err, jetstream.ErrConsumerNotFound) {
		t.Errorf("%v; expected that no consumer was made", err)
	}
}
