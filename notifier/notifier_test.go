package notifier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
)

// bus is a publisher and a keeper of dead letters that remembers, drops
// repetitions by id as a stream does, and can be away.
type bus struct {
	mu     sync.Mutex
	events map[string]events.Event
	order  []string
	dead   map[string]DeadLetter
	calls  int
	away   error // what every call returns
	parks  error // what Park returns
}

func newBus() *bus { return &bus{events: map[string]events.Event{}, dead: map[string]DeadLetter{}} }

func (b *bus) Publish(ctx context.Context, es ...events.Event) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	if err := cmpErr(ctx.Err(), b.away); err != nil {
		return err
	}
	for _, e := range es {
		if _, seen := b.events[e.ID]; !seen {
			b.events[e.ID] = e
			b.order = append(b.order, e.ID)
		}
	}
	return nil
}

func (b *bus) Park(ctx context.Context, l DeadLetter) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	if err := cmpErr(ctx.Err(), cmpErr(b.away, b.parks)); err != nil {
		return err
	}
	b.dead[l.Key()] = l
	return nil
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

func (b *bus) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = err
}

func (b *bus) only(t *testing.T) DeadLetter {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.dead) != 1 {
		t.Fatalf("%d dead letters; expected one", len(b.dead))
	}
	for _, l := range b.dead {
		return l
	}
	panic("unreachable")
}

var (
	r1  = ref.Ref{Provider: ref.AWS, Scope: "1/eu-west-1", Name: "one"}
	now = time.Date(2026, 6, 1, 10, 0, 0, 0, time.UTC)
)

func activated(r ref.Ref, version string) events.Event {
	e := events.New(events.VersionActivated, r, now, version)
	e.Data.Version = version
	return e
}

func gives(err error, es ...events.Event) Decoder {
	return func(Delivery) ([]events.Event, error) { return slices.Clone(es), err }
}

func invalid(format string, args ...any) error {
	return fault.Newf(fault.Invalid, "test: decode", format, args...)
}

func TestStampsAndPublishes(t *testing.T) {
	b := newBus()
	clock := now
	n := New(b, b, &Options{
		Tenant: func(_ context.Context, e events.Event) (string, error) { return "tenant-of-" + e.Data.Ref.Name, nil },
		Now:    func() time.Time { return clock },
	})
	forged := activated(r1, "v1")
	forged.Data.Tenant = "victim"
	forged.Data.Received, forged.Data.Published = now.AddDate(1, 0, 0), now.AddDate(1, 0, 0)
	trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	d := Delivery{Source: "s", Body: []byte("x"), Received: now.Add(-time.Second), Attributes: map[string]string{"traceparent": trace}}
	if err := n.Handler(gives(nil, forged))(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	e := b.events[forged.ID]
	if e.Data.Tenant != "tenant-of-one" || !e.Data.Received.Equal(now.Add(-time.Second)) || !e.Data.Published.Equal(now) || e.Data.TraceParent != trace {
		t.Errorf("stamped %+v", e.Data)
	}
	// Without a time of receipt the notifier's clock is it; a broken trace
	// parent is none; the default tenant is "default".
	n = New(b, b, &Options{Now: func() time.Time { return clock }})
	d = Delivery{Source: "s", Attributes: map[string]string{"traceparent": "x\ny"}}
	e2 := activated(r1, "v2")
	if err := n.Handler(gives(nil, e2))(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if e := b.events[e2.ID]; e.Data.Tenant != "default" || !e.Data.Received.Equal(now) || e.Data.TraceParent != "" {
		t.Errorf("stamped %+v", e.Data)
	}
}

func TestNobodysNoticeIsAcknowledged(t *testing.T) {
	b := newBus()
	var o Outcome
	n := New(b, b, &Options{Tenant: func(context.Context, events.Event) (string, error) { return "", nil }, Observe: func(x Outcome) { o = x }})
	pending := events.New(events.VersionActivated, ref.Ref{Provider: ref.GCP, Scope: "p", Name: "db--pending"}, now, "1")
	ours := events.New(events.VersionActivated, ref.Ref{Provider: ref.AWS, Scope: "1/r", Name: "events!connection/keyturn/1-2/auth"}, now, "1")
	for _, dec := range []Decoder{gives(nil), gives(nil, activated(r1, "v")), gives(nil, pending), gives(nil, ours)} {
		if err := n.Handler(dec)(t.Context(), Delivery{Source: "s"}); err != nil {
			t.Fatal(err)
		}
	}
	if b.calls != 0 || o.Dropped != 1 || len(o.Events) != 0 {
		t.Errorf("%d calls of the bus, outcome %+v; expected nothing published", b.calls, o)
	}
	// A name of somebody's own on a store that has labels.
	n = New(b, b, nil)
	if err := n.Handler(gives(nil, activated(ref.Ref{Provider: ref.AWS, Scope: "1/r", Name: "db--pending"}, "v")))(t.Context(), Delivery{}); err != nil || len(b.events) != 1 {
		t.Errorf("%d events, %v; expected one", len(b.events), err)
	}
}

func TestPoisonIsParked(t *testing.T) {
	bad := activated(r1, "v")
	bad.ID = ""
	for name, c := range map[string]struct {
		dec  Decoder
		d    Delivery
		want string
	}{
		"invalid":       {gives(invalid("detail.x is missing")), Delivery{}, "detail.x is missing"},
		"wrapped":       {gives(fmt.Errorf("outer: %w", invalid("inner"))), Delivery{}, "inner"},
		"panic":         {func(Delivery) ([]events.Event, error) { panic("boom") }, Delivery{}, "panicked: a string at"},
		"runtime panic": {func(d Delivery) ([]events.Event, error) { _ = d.Body[len(d.Body)+1]; return nil, nil }, Delivery{}, "index out of range"},
		"no id":         {gives(nil, bad), Delivery{}, "without an id"},
		"no ref":        {gives(nil, events.New(events.VersionActivated, ref.Ref{}, now)), Delivery{}, "valid ref"},
		"unclassified":  {gives(errors.New("quoting the notice")), Delivery{Attempt: 20}, "unclassified error of type *errors.errorString"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBus()
			var o Outcome
			h := New(b, b, &Options{Observe: func(x Outcome) { o = x }}).Handler(c.dec)
			c.d.Source, c.d.Body = "s", []byte("the notice")
			if err := h(t.Context(), c.d); err != nil {
				t.Fatalf("%v; expected the notice to be parked and acknowledged", err)
			}
			l := b.only(t)
			if !strings.Contains(l.Reason, c.want) || !bytes.Equal(l.Body, c.d.Body) || l.Size != len(c.d.Body) || l.Parked.IsZero() || !o.Parked {
				t.Errorf("parked %+v; expected a reason with %q", l, c.want)
			}
			if len(b.events) != 0 {
				t.Errorf("%d events were published", len(b.events))
			}
		})
	}
}

// TestBatchSurvivesItsPoison: the good members of a batch are heard of, and the
// notice is kept for the others.
func TestBatchSurvivesItsPoison(t *testing.T) {
	b := newBus()
	h := New(b, b, nil).Handler(gives(invalid("2 of 3"), activated(r1, "v")))
	if err := h(t.Context(), Delivery{Body: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if b.only(t); len(b.events) != 1 {
		t.Errorf("%d events; expected one", len(b.events))
	}
}

// TestOwnOutageIsUnavailable: whatever the bus says, the sender did nothing
// wrong, and the same delivery works when the bus is back.
func TestOwnOutageIsUnavailable(t *testing.T) {
	for name, dec := range map[string]Decoder{"publish": gives(nil, activated(r1, "v")), "park": gives(invalid("poison"))} {
		for _, away := range []error{
			errors.New("nats: no responders"), fault.New(fault.Denied, "bus", nil), fault.New(fault.NotFound, "bus", nil),
			fault.New(fault.Conflict, "bus", nil), context.DeadlineExceeded, fault.New(fault.Unavailable, "bus", nil),
		} {
			b := newBus()
			h := New(b, b, nil).Handler(dec)
			b.set(away)
			for attempt := range 100 { // however often: an outage never parks or drops
				if err := h(t.Context(), Delivery{Attempt: attempt}); !fault.Is(err, fault.Unavailable) || !errors.Is(err, away) {
					t.Fatalf("%s with %v: got %v of kind %s; expected unavailable", name, away, err, fault.KindOf(err))
				}
			}
			b.set(nil)
			if err := h(t.Context(), Delivery{Attempt: 101}); err != nil || len(b.events)+len(b.dead) != 1 {
				t.Errorf("%s after the outage: %v, %d events, %d dead", name, err, len(b.events), len(b.dead))
			}
		}
	}
}

func TestEventTheBusCanNeverTakeIsParked(t *testing.T) {
	b := newBus()
	refusing := publisherFunc(func(context.Context, ...events.Event) error { return invalid("longer than the bus takes") })
	if err := New(refusing, b, nil).Handler(gives(nil, activated(r1, "v")))(t.Context(), Delivery{}); err != nil {
		t.Fatal(err)
	}
	if l := b.only(t); !strings.Contains(l.Reason, "longer than") {
		t.Errorf("reason %q", l.Reason)
	}
	// And if it cannot be kept either, even for good, it is not acknowledged.
	b = newBus()
	b.parks = invalid("no")
	if err := New(refusing, b, nil).Handler(gives(nil, activated(r1, "v")))(t.Context(), Delivery{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v; expected unavailable", err)
	}
}

type publisherFunc func(context.Context, ...events.Event) error

func (f publisherFunc) Publish(ctx context.Context, es ...events.Event) error { return f(ctx, es...) }

func TestTransientDecodeErrorIsRetried(t *testing.T) {
	b := newBus()
	h := New(b, b, &Options{MaxAttempts: 3}).Handler(gives(errors.New("who knows")))
	for attempt := range 3 {
		if err := h(t.Context(), Delivery{Attempt: attempt}); !fault.Is(err, fault.Unavailable) {
			t.Fatalf("attempt %d: %v; expected unavailable", attempt, err)
		}
	}
	if err := h(t.Context(), Delivery{Attempt: 3}); err != nil {
		t.Fatal(err)
	}
	b.only(t)
	// One that is away for certain is waited for.
	h = New(b, b, &Options{MaxAttempts: 3}).Handler(gives(fault.New(fault.Unavailable, "lookup", nil)))
	if err := h(t.Context(), Delivery{Attempt: 99}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v; expected unavailable", err)
	}
}

func TestReasonIsBounded(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		s := reason(invalid("%s", rapid.StringOfN(rapid.Rune(), 0, 900, -1).Draw(rt, "text")))
		if len(s) > maxReason || !utf8.ValidString(s) || strings.ContainsAny(s, "\n\r\t\x00\x1b") {
			rt.Fatalf("reason of %d bytes: %q", len(s), s)
		}
	})
}

func TestParkedBodyIsCut(t *testing.T) {
	b := newBus()
	body := bytes.Repeat([]byte("x"), maxParkedBody+1)
	if err := New(b, b, nil).Handler(gives(invalid("no")))(t.Context(), Delivery{Body: body}); err != nil {
		t.Fatal(err)
	}
	if l := b.only(t); len(l.Body) != maxParkedBody || l.Size != len(body) {
		t.Errorf("kept %d of %d bytes", len(l.Body), l.Size)
	}
}

func TestKey(t *testing.T) {
	a := Delivery{Source: "s", ID: "1", Body: []byte("x"), Attempt: 1}
	again := Delivery{Source: "s", ID: "1", Body: []byte("y"), Attempt: 2, Received: now}
	if a.Key() != again.Key() {
		t.Error("a redelivery has another key")
	}
	for _, d := range []Delivery{{Source: "t", ID: "1"}, {Source: "s", ID: "2"}, {Source: "s", Body: []byte("x")}, {Source: "s", Body: []byte("y")}} {
		if d.Key() == a.Key() {
			t.Errorf("%+v has the key of another", d)
		}
	}
}

// TestConcurrentDeliveries: many deliveries of few changes, with outages in
// between. Every change is an event once, and every poison a letter once.
func TestConcurrentDeliveries(t *testing.T) {
	b := newBus()
	n := New(b, b, nil)
	h := n.Handler(func(d Delivery) ([]events.Event, error) {
		switch i := d.Body[0]; i % 3 {
		case 0:
			return nil, invalid("poison")
		case 1:
			panic("poison")
		default:
			return []events.Event{activated(r1, d.ID)}, nil
		}
	})
	var wg sync.WaitGroup
	for worker := range 8 {
		wg.Go(func() {
			for i := range 30 {
				d := Delivery{Source: "s", ID: fmt.Sprint(i), Body: []byte{byte(i)}}
				for try := 0; ; try++ {
					if worker == 0 && try == 0 {
						b.set(errors.New("away"))
					}
					err := h(t.Context(), d)
					if err == nil {
						break
					}
					if !fault.Is(err, fault.Unavailable) {
						t.Errorf("%v; expected unavailable", err)
						return
					}
					b.set(nil)
				}
			}
		})
	}
	wg.Wait()
	if len(b.events) != 10 || len(b.order) != 10 || len(b.dead) != 20 {
		t.Errorf("%d events in %d and %d dead letters; expected 10, 10 and 20", len(b.events), len(b.order), len(b.dead))
	}
}

// TestNoticeIsNeverLogged: neither the body nor the attributes, on any path.
func TestNoticeIsNeverLogged(t *testing.T) {
	canary := leaktest.Canary()
	var rec leaktest.Recorder
	log := rec.Logger()
	quoting := errors.New("unexpected " + canary)
	d := Delivery{Source: "s", ID: canary, Body: []byte(canary), Attributes: map[string]string{"a": canary, "traceparent": canary}}
	for _, away := range []error{nil, errors.New("away")} {
		for _, attempt := range []int{0, 1000} {
			for _, dec := range []Decoder{
				gives(nil), gives(quoting), gives(invalid("fine")), gives(nil, activated(r1, "v")),
				func(Delivery) ([]events.Event, error) { panic(canary) },
				func(Delivery) ([]events.Event, error) { panic(quoting) },
				func(Delivery) ([]events.Event, error) {
					var m any = canary
					return nil, m.(error)
				},
			} {
				b := newBus()
				b.away = away
				d.Attempt = attempt
				n := New(b, b, &Options{Logger: log, Observe: func(o Outcome) { rec.Record(o, o.Err) }})
				rec.Record(n.Handler(dec)(t.Context(), d))
				for _, l := range b.dead {
					rec.Record(l.Reason)
				}
				for _, e := range b.events {
					rec.Record(e)
				}
			}
		}
	}
	rec.Check(t, canary)
}

// TestTenantUnknownAtPresent: that a tenant cannot be told for a while is our
// outage, never a reason to hand the event to somebody else or to drop it.
func TestTenantUnknownAtPresent(t *testing.T) {
	for _, kind := range []fault.Kind{fault.Unavailable, fault.Denied, fault.Invalid, fault.NotFound} {
		b := newBus()
		h := New(b, b, &Options{Tenant: func(context.Context, events.Event) (string, error) {
			return "", fault.Newf(kind, "tags", "cannot be read")
		}}).Handler(gives(nil, activated(r1, "v")))
		if err := h(t.Context(), Delivery{Source: "s"}); !fault.Is(err, fault.Unavailable) || b.calls != 0 {
			t.Errorf("%s: %v and %d calls of the bus; expected unavailable and none", kind, err, b.calls)
		}
	}
}

// receipts is a bus that tells what it did.
type receipts struct{ *bus }

func (r receipts) PublishReceipt(ctx context.Context, es ...events.Event) (events.Receipt, error) {
	if err := r.Publish(ctx, es...); err != nil {
		return events.Receipt{}, err
	}
	return events.Receipt{Stored: 1, Duplicates: len(es) - 1}, nil
}

func TestOutcomeTellsWhatTheBusDid(t *testing.T) {
	b := newBus()
	var o Outcome
	observe := &Options{Observe: func(x Outcome) { o = x }}
	dec := gives(nil, activated(r1, "v"), activated(r1, "v"))
	if err := New(receipts{b}, b, observe).Handler(dec)(t.Context(), Delivery{Received: now}); err != nil {
		t.Fatal(err)
	}
	if len(o.Events) != 2 || o.Receipt != (events.Receipt{Stored: 1, Duplicates: 1}) || !o.Received.Equal(now) {
		t.Errorf("outcome %+v", o)
	}
	if err := New(b, b, observe).Handler(dec)(t.Context(), Delivery{}); err != nil || o.Receipt != (events.Receipt{Stored: 2}) {
		t.Errorf("without receipts: %v, %+v", err, o.Receipt)
	}
}
