package natsbus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
)

// storedIn counts the messages of a stream.
func storedIn(t testing.TB, b *Bus, stream string) uint64 {
	t.Helper()
	s, err := b.js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Msgs
}

func TestPublishOnce(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	e := activated("a", "1")
	h := hear(t, b, events.Filter{Tenant: "acme"}, nil).wait(t)
	before := time.Now()
	publish(t, b, e, e)
	publish(t, b, e)
	if n := storedIn(t, b, EventStream); n != 1 {
		t.Errorf("%d stored; expected 1", n)
	}
	h.eventually(t, "a", "1")
	h.mu.Lock()
	defer h.mu.Unlock()
	got := h.got[0]
	if got.Data.Published.Before(before) || got.Data.Published.After(time.Now()) {
		t.Errorf("published at %s; expected now", got.Data.Published)
	}
	if !e.Data.Published.IsZero() {
		t.Error("the caller's event was changed")
	}
	got.Data.Published = time.Time{}
	if got != e {
		t.Errorf("heard\n%+v\nexpected\n%+v", got, e)
	}
	if err := b.Publish(t.Context()); err != nil {
		t.Errorf("no events: %v", err)
	}
}

func TestPublishRefuses(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	bad := func(f func(e *events.Event)) events.Event {
		e := activated("bad", "1")
		f(&e)
		return e
	}
	for what, e := range map[string]events.Event{
		"no id":      bad(func(e *events.Event) { e.ID = "" }),
		"long id":    bad(func(e *events.Event) { e.ID = strings.Repeat("x", maxID+1) }),
		"no type":    bad(func(e *events.Event) { e.Type = "" }),
		"bad type":   bad(func(e *events.Event) { e.Type = "dev.keyturn.a.*.v1" }),
		"no ref":     bad(func(e *events.Event) { e.Data.Ref = ref.Ref{} }),
		"bad ref":    bad(func(e *events.Event) { e.Data.Ref.Scope = "x" }),
		"over 1 MiB": bad(func(e *events.Event) { e.Data.Reason = strings.Repeat("x", 1<<20) }),
	} {
		// The good one before the bad one is not sent either.
		if err := b.Publish(t.Context(), activated("good", what), e); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; expected an error of kind invalid", what, err)
		}
	}
	if n := storedIn(t, b, EventStream); n != 0 {
		t.Errorf("%d stored; expected none", n)
	}
	// Just below the limit is stored.
	publish(t, b, bad(func(e *events.Event) { e.Data.Reason = strings.Repeat("x", 1<<20-4096) }))
}

func TestPublishWithoutStream(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	if err := b.js.DeleteStream(t.Context(), EventStream); err != nil {
		t.Fatal(err)
	}
	err := b.Publish(t.Context(), activated("a", "1"))
	if !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "natsbus.Open") {
		t.Errorf("%v; expected unavailable and what to do", err)
	}
}

// TestPublishOutage: an outage is Unavailable within the timeout, and the same
// event sent again later is stored once.
func TestPublishOutage(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), &Options{PublishTimeout: time.Second})
	publish(t, b, activated("a", "1"))
	srv.Stop()
	e := activated("a", "2")
	start := time.Now()
	for range 3 {
		if err := b.Publish(t.Context(), e); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v; expected an error of kind unavailable", err)
		}
	}
	if d := time.Since(start); d > limit {
		t.Errorf("three refusals took %s with a timeout of 1s", d)
	}
	if err := b.Park(t.Context(), parked("x")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("park: %v; expected an error of kind unavailable", err)
	}
	srv.Start()
	testenv.Eventually(t, limit, "published again", func() bool { return b.Publish(t.Context(), e) == nil })
	publish(t, b, e)
	if n := storedIn(t, b, EventStream); n != 2 {
		t.Errorf("%d stored; expected 2", n)
	}
}

// TestPublishWaitsOutABlip: an outage that began before the call and is shorter
// than the timeout is not the caller's business.
func TestPublishWaitsOutABlip(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), &Options{PublishTimeout: limit})
	srv.Stop()
	testenv.Eventually(t, limit, "the outage noticed", func() bool { return !b.nc.IsConnected() })
	done := make(chan error, 1)
	go func() { done <- b.Publish(context.Background(), activated("a", "1")) }()
	srv.Start()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestPublishHonoursContext(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), &Options{PublishTimeout: time.Hour})
	srv.Stop()
	testenv.Eventually(t, limit, "the outage noticed", func() bool { return !b.nc.IsConnected() })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.Publish(ctx, activated("a", "1")); !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v; expected unavailable for the deadline", err)
	}
	b.nc.Close()
	if err := b.Publish(t.Context(), activated("a", "1")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("closed connection: %v; expected unavailable", err)
	}
}

// TestPublishConcurrently: many callers with few places in flight all get
// through.
func TestPublishConcurrently(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), &Options{MaxInFlight: 4, PublishTimeout: limit})
	var wg sync.WaitGroup
	const callers, each = 8, 25
	for c := range callers {
		wg.Go(func() {
			var es []events.Event
			for i := range each {
				es = append(es, activated(fmt.Sprintf("c%d", c), fmt.Sprint(i)))
			}
			if err := b.Publish(context.Background(), es...); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := storedIn(t, b, EventStream); n != callers*each {
		t.Errorf("%d stored; expected %d", n, callers*each)
	}
}

// TestPublishWhereAnotherStreamTakesTheSubject: an acknowledgement of a stream
// that is not ours does not count.
func TestPublishWhereAnotherStreamTakesTheSubject(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	if err := b.js.DeleteStream(t.Context(), EventStream); err != nil {
		t.Fatal(err)
	}
	if _, err := b.js.CreateStream(t.Context(), jetstream.StreamConfig{Name: "OTHER", Subjects: []string{"keyturn.v1.>"}}); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish(t.Context(), activated("a", "1")); err == nil {
		t.Error("published into another stream; expected an error")
	}
}
