package gridpull

import (
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events/eventgrid"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/gridfake"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/pull/pulltest"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
)

const limit = 15 * time.Second

func (r *rig) source(change func(*Options)) *Source {
	r.t.Helper()
	o, _ := r.options()
	if change != nil {
		change(&o)
	}
	return pulltest.Make(r.t, New, o)
}

func (r *rig) empty() bool { return r.Left() == 0 }

// TestDelivery: the body is the CloudEvent as it came, to the byte, and the
// decoder of Event Grid reads it.
func TestDelivery(t *testing.T) {
	raw, err := os.ReadFile("../../events/eventgrid/testdata/notices/SecretNewVersionCreated.cloudevents.json")
	if err != nil {
		t.Fatal(err)
	}
	// An extension that a client which decodes would round.
	event := strings.Replace(strings.TrimSpace(string(raw)), "{", `{"sequence":12345678901234567890,`, 1)
	r := newRig(t)
	r.Send(event)
	got := make(chan notifier.Delivery, 8)
	s := r.source(func(o *Options) { o.Name = "grid" })
	pulltest.Start(t, s, func(_ context.Context, d notifier.Delivery) error {
		got <- d
		if d.Attempt < 2 {
			return errors.New("again")
		}
		return nil
	})
	for attempt := 1; attempt <= 2; attempt++ {
		d := <-got
		if d.Source != "grid" || !sameJSON(string(d.Body), event) || d.Attempt != attempt || time.Since(d.Received) > time.Minute || !strings.Contains(d.ID, "#") {
			t.Errorf("delivery %d is %+v with body %s", attempt, d, d.Body)
		}
		es, err := eventgrid.Decode(d.Body, d.Received)
		if err != nil || len(es) != 1 {
			t.Errorf("decoded as %v, %v; expected one event", es, err)
		}
	}
	testenv.Eventually(t, limit, "it to be acknowledged", r.empty)
	if n := r.s.Calls("reject"); n != 0 {
		t.Errorf("%d rejects; expected none ever", n)
	}
}

// sameJSON compares up to white space, which the fake's encoder removes.
func sameJSON(a, b string) bool {
	squeeze := func(s string) string { return strings.Join(strings.Fields(s), "") }
	return squeeze(a) == squeeze(b)
}

func TestFailedLockTokens(t *testing.T) {
	for _, c := range []struct {
		name, op, code string
		lost           bool
	}{
		{"trap 23: a 200 in which acknowledgements failed: lost locks", "acknowledge", "TokenLost", true},
		{"trap 23: a 200 in which acknowledgements failed: to be repeated", "acknowledge", "InternalServerError", false},
		{"trap 23: a 200 in which acknowledgements failed: without a code", "acknowledge", "-", false},
		{"trap 23: a 200 in which releases failed", "release", "InternalServerError", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var rec leaktest.Recorder
			r := newRig(t)
			if !c.lost { // no lock is to end here
				r.s = gridfake.New(t, &gridfake.Options{Second: 100 * time.Millisecond})
			}
			pulltest.SendAll(r, 200, 120)
			r.s.FailTokens(c.op, 30, c.code)
			l := pulltest.NewLedger()
			s := r.source(func(o *Options) { o.Logger = rec.Logger() })
			pulltest.Start(t, s, func(_ context.Context, d notifier.Delivery) error {
				name := r.Name(d.Body)
				call := l.Begin(name, 0)
				l.End(name, 0, true)
				if c.op == "release" && call == 1 {
					return errors.New("again")
				}
				return nil
			})
			testenv.Eventually(t, limit, "all to be acknowledged", r.empty)
			st := s.Stats()
			if st.Refused < 30 || !strings.Contains(rec.String(), "did not settle every message") {
				t.Errorf("counted %+v; expected at least 30 refused, and a warning", st)
			}
			if c.lost && (l.Calls() < 230 || st.Lost < 30) {
				t.Errorf("%d calls, counted %+v; expected what was not acknowledged to come again", l.Calls(), st)
			}
			if !c.lost && c.op == "acknowledge" && l.Calls() != 200 {
				t.Errorf("%d calls; expected acknowledgements to be repeated, not the handler", l.Calls())
			}
		})
	}
}

func TestTrap23Batches(t *testing.T) {
	r := newRig(t)
	pulltest.SendAll(r, 500, 120)
	pulltest.Start(t, r.source(func(o *Options) { o.MaxBytes = 256 << 20 }), func(context.Context, notifier.Delivery) error { return nil })
	testenv.Eventually(t, limit, "all to be acknowledged", r.empty)
	if n := r.s.Calls("receive"); n > 50 {
		t.Errorf("trap 23: %d requests for 500 events; expected up to 100 a request, where the service's default is 1", n)
	}
}

// TestPoisonDoesNotHideOthers: the SDK refuses a whole answer for one event
// that is not a CloudEvent to the letter. It must come through to be parked,
// or it blocks the subscription until its time to live is over.
func TestPoisonDoesNotHideOthers(t *testing.T) {
	r := newRig(t)
	for _, body := range []string{`{"id":"x"}`, `{"specversion":"1.0","type":"t","source":"/s","id":"y","time":"yesterday"}`, `[1]`, `"text"`, `null`} {
		r.Send(body)
	}
	r.Send(r.Body("good", 200))
	var good, bad atomic.Int64
	s := r.source(nil)
	pulltest.Start(t, s, func(_ context.Context, d notifier.Delivery) error {
		if strings.Contains(string(d.Body), "good") {
			good.Add(1)
			return nil
		}
		bad.Add(1)
		return fault.New(fault.Invalid, "decode", nil)
	})
	testenv.Eventually(t, limit, "all to be acknowledged", r.empty)
	if good.Load() != 1 || bad.Load() != 5 || len(r.s.Dead()) != 0 {
		t.Errorf("%d good, %d bad, %d dead; expected 1, 5 and none", good.Load(), bad.Load(), len(r.s.Dead()))
	}
}

// TestBusOutageUsesUpNoDeliveries: Event Grid drops an event after ten.
func TestBusOutageUsesUpNoDeliveries(t *testing.T) {
	r := newRig(t)
	r.s = gridfake.New(t, &gridfake.Options{Second: second, MaxDeliveryCount: 2})
	s := r.source(nil)
	pulltest.Outage(t, r, s)
	if n := len(r.s.Dead()); n != 0 || s.Stats().Received != 50 {
		t.Errorf("%d events are lost, counted %+v; expected each to be received once", n, s.Stats())
	}
}

func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name    string
		off, on func(*rig)
		says    string
	}{
		{"no role", func(r *rig) { r.s.Refuse("", http.StatusForbidden) }, func(r *rig) { r.s.Refuse("", 0) }, "EventGrid Data Receiver"},
		{"no identity", func(r *rig) { r.s.RevokeTokens(true) }, func(r *rig) { r.s.RevokeTokens(false) }, "gave no token"},
		{"no topic", func(r *rig) { r.s.Refuse("", http.StatusNotFound) }, func(r *rig) { r.s.Refuse("", 0) }, "no such topic"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			var rec leaktest.Recorder
			r.Send(r.Body("a", 100))
			c.off(r)
			s := r.source(func(o *Options) { o.Logger = rec.Logger() })
			pulltest.Start(t, s, func(context.Context, notifier.Delivery) error { return nil })
			testenv.Eventually(t, limit, "the refusal to be logged", func() bool {
				return strings.Contains(rec.String(), c.says) && strings.Contains(rec.String(), "level=ERROR")
			})
			c.on(r)
			testenv.Eventually(t, limit, "the source to go on", r.empty)
		})
	}
}

func TestReleaseDelay(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", -1: "0", time.Second: "10", 10 * time.Second: "10", 11 * time.Second: "60", 2 * time.Minute: "600", 11 * time.Minute: "3600", 9 * time.Hour: "3600",
	} {
		if got := string(releaseDelay(d)); got != want {
			t.Errorf("%s is released with a delay of %s s, expected %s", d, got, want)
		}
	}
}

func TestOptions(t *testing.T) {
	r := newRig(t)
	for name, change := range map[string]func(*Options){
		"plain http":        func(o *Options) { o.Endpoint = "http://ns.westeurope-1.eventgrid.azure.net" },
		"no endpoint":       func(o *Options) { o.Endpoint = "" },
		"a path":            func(o *Options) { o.Endpoint += "/topics/x" },
		"no topic":          func(o *Options) { o.Topic = "" },
		"a path as topic":   func(o *Options) { o.Topic = "a/../b" },
		"no credential":     func(o *Options) { o.Credential = nil },
		"negative":          func(o *Options) { o.Receivers = -1 },
		"too few bytes":     func(o *Options) { o.MaxBytes = 1000 },
		"a lock of an hour": func(o *Options) { o.Lock = time.Hour },
		"held for an hour":  func(o *Options) { o.Hold = time.Hour },
	} {
		o, _ := r.options()
		change(&o)
		if _, err := New(o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: New returned %v, expected Invalid", name, err)
		}
	}
}
