package sqs

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/pull/pulltest"
	"github.com/keyturn/keyturn/internal/sqsfake"
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

func TestDelivery(t *testing.T) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	r := newRig(t)
	id := r.q.SendTraced(`{"a":1}`, trace, "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1")
	got := make(chan notifier.Delivery, 8)
	s := r.source(func(o *Options) { o.Name = "prod" })
	pulltest.Start(t, s, func(_ context.Context, d notifier.Delivery) error {
		got <- d
		if d.Attempt < 3 {
			return errors.New("again")
		}
		return nil
	})
	for attempt := 1; attempt <= 3; attempt++ {
		d := <-got
		if d.Source != "prod" || d.ID != id || string(d.Body) != `{"a":1}` || d.Attempt != attempt || time.Since(d.Received) > time.Minute {
			t.Errorf("delivery %d is %+v", attempt, d)
		}
		sent, err := time.Parse(time.RFC3339Nano, d.Attributes["senttimestamp"])
		if err != nil || time.Since(sent) > time.Minute {
			t.Errorf("sent %q, expected the time of sending", d.Attributes["senttimestamp"])
		}
		if len(d.Attributes) != 2 || d.Attributes["traceparent"] != trace {
			t.Errorf("attributes %v; expected the sender's trace parent, and nothing of X-Ray's", d.Attributes)
		}
	}
	testenv.Eventually(t, limit, "it to be deleted", r.empty)
}

// TestFIFO: within a group in order, each after the one before is deleted,
// whatever fails; groups do not wait for one another.
func TestFIFO(t *testing.T) {
	r := newRig(t)
	r.q = r.s.Queue("ordered.fifo", sqsfake.Spec{})
	const groups, each = 8, 20
	for i := range each {
		for g := range groups {
			r.q.Send(fmt.Sprintf("%d/%02d", g, i), fmt.Sprint(g))
		}
	}
	r.s.FailEntries("DeleteMessageBatch", 10, "InternalError", false)
	var mu sync.Mutex
	done, inside, peak, calls := map[string][]string{}, map[string]bool{}, 0, map[string]int{}
	// Two instances, as in a fleet.
	for range 2 {
		pulltest.Start(t, r.source(nil), func(_ context.Context, d notifier.Delivery) error {
			group, n, _ := strings.Cut(string(d.Body), "/")
			mu.Lock()
			if inside[group] {
				t.Errorf("two messages of group %s are handled at a time", group)
			}
			inside[group] = true
			peak = max(peak, len(inside))
			calls[string(d.Body)]++
			bad := calls[string(d.Body)] == 1 && (n == "05" || n == "11")
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			defer mu.Unlock()
			delete(inside, group)
			if bad {
				return errors.New("no")
			}
			done[group] = append(done[group], n)
			return nil
		})
	}
	testenv.Eventually(t, limit, "all to be deleted", r.empty)
	mu.Lock()
	defer mu.Unlock()
	for g, ns := range done {
		if ns = slices.Compact(ns); len(ns) != each || !slices.IsSorted(ns) {
			t.Errorf("group %s was handled as %v, expected in order", g, ns)
		}
	}
	if len(done) != groups || peak < 2 {
		t.Errorf("%d groups were handled, at most %d at a time; expected %d, concurrently", len(done), peak, groups)
	}
}

// TestPartialFailures: a 200 with failed entries.
func TestPartialFailures(t *testing.T) {
	for _, c := range []struct {
		name, op, code string
		sender         bool
	}{
		{"a deletion that may be repeated", "DeleteMessageBatch", "InternalError", false},
		{"a deletion with a stale handle", "DeleteMessageBatch", "ReceiptHandleIsInvalid", true},
		{"a visibility that may be repeated", "ChangeMessageVisibilityBatch", "InternalError", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			pulltest.SendAll(r, 100, 50)
			r.s.FailEntries(c.op, 25, c.code, c.sender)
			l := pulltest.NewLedger()
			s := r.source(nil)
			pulltest.Start(t, s, func(_ context.Context, d notifier.Delivery) error {
				name := r.Name(d.Body)
				call := l.Begin(name, 0)
				l.End(name, 0, true)
				if call == 1 && c.op != "DeleteMessageBatch" {
					return errors.New("again")
				}
				return nil
			})
			testenv.Eventually(t, limit, "all to be deleted", r.empty)
			st := s.Stats()
			if st.Refused < 25 {
				t.Errorf("counted %+v; expected the refused entries", st)
			}
			if c.sender && (l.Calls() < 125 || st.Lost < 25) {
				t.Errorf("%d calls, counted %+v; expected the lost ones to come again", l.Calls(), st)
			}
			if !c.sender && c.op == "DeleteMessageBatch" && l.Calls() != 100 {
				t.Errorf("%d calls; expected the deletions to be repeated, not the handler", l.Calls())
			}
		})
	}
}

// TestRefused: what only a person can repair is said loudly, and never ends Run.
func TestRefused(t *testing.T) {
	for _, c := range []struct {
		name       string
		off, on    func(*rig)
		says, kind string
	}{
		{"the role is gone", func(r *rig) { r.s.Refuse("", "AccessDeniedException") }, func(r *rig) { r.s.Refuse("", "") }, "sqs:ReceiveMessage", "denied"},
		{"the token expired", func(r *rig) { r.s.Refuse("", "ExpiredTokenException") }, func(r *rig) { r.s.Refuse("", "") }, "renew the credentials", "denied"},
		{"the queue is not there", func(r *rig) { r.q.Remove(true) }, func(r *rig) { r.q.Remove(false) }, "there is no such queue", "not_found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			var rec leaktest.Recorder
			r.Send("a;")
			c.off(r)
			s := r.source(func(o *Options) { o.Logger = rec.Logger() })
			pulltest.Start(t, s, func(context.Context, notifier.Delivery) error { return nil })
			testenv.Eventually(t, limit, "the refusal to be logged", func() bool {
				out := rec.String()
				return strings.Contains(out, c.says) && strings.Contains(out, "level=ERROR") && strings.Contains(out, c.kind)
			})
			if !s.Stats().Down {
				t.Error("the source says that all is well")
			}
			c.on(r)
			testenv.Eventually(t, limit, "the source to go on", r.empty)
		})
	}
}

// TestBusOutageUsesUpNoReceives: messages wait in place, and the dead-letter
// queue of a common redrive policy stays empty.
func TestBusOutageUsesUpNoReceives(t *testing.T) {
	r := newRig(t)
	dead := r.s.Queue("dead", sqsfake.Spec{})
	r.q = r.s.Queue("strict", sqsfake.Spec{DeadLetters: dead, MaxReceiveCount: 2})
	s := r.source(nil)
	pulltest.Outage(t, r, s)
	if n := len(dead.Bodies()); n != 0 || s.Stats().Received != 50 {
		t.Errorf("%d messages are in the dead-letter queue, counted %+v; expected each to be received once", n, s.Stats())
	}
}

// TestLostLease: a lease that could not be extended; the message comes again,
// and the late deletion does no harm.
func TestLostLease(t *testing.T) {
	r := newRig(t)
	r.Send("a;")
	r.s.Refuse("ChangeMessageVisibilityBatch", "ServiceUnavailable")
	var calls atomic.Int64
	s := r.source(nil)
	pulltest.Start(t, s, func(context.Context, notifier.Delivery) error {
		if calls.Add(1) == 1 {
			time.Sleep(2 * r.Lease())
		}
		return nil
	})
	testenv.Eventually(t, limit, "it to be deleted", r.empty)
	if calls.Load() < 2 {
		t.Errorf("the handler was called %d times; expected again after the lease", calls.Load())
	}
}

func TestOptions(t *testing.T) {
	c := aws.Config{Region: "us-east-1"}
	const queueURL = "https://sqs.us-east-1.amazonaws.com/111122223333/keyturn"
	for name, o := range map[string]Options{
		"no queue":           {Config: &c},
		"an ARN":             {Config: &c, QueueURL: "arn:aws:sqs:us-east-1:111122223333:keyturn"},
		"a password":         {Config: &c, QueueURL: "https://u:p@sqs.us-east-1.amazonaws.com/111122223333/keyturn"},
		"no client":          {QueueURL: queueURL},
		"no region":          {Config: &aws.Config{}, QueueURL: queueURL},
		"negative":           {Config: &c, QueueURL: queueURL, MaxInFlight: -1},
		"too few bytes":      {Config: &c, QueueURL: queueURL, MaxBytes: 1000},
		"half a second":      {Config: &c, QueueURL: queueURL, Lease: 10500 * time.Millisecond},
		"longer than 12 h":   {Config: &c, QueueURL: queueURL, Hold: 12 * time.Hour},
		"a lease too short":  {Config: &c, QueueURL: queueURL, Lease: time.Second},
		"a negative timeout": {Config: &c, QueueURL: queueURL, Timeout: -1},
	} {
		if _, err := New(o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: New returned %v, expected Invalid", name, err)
		}
	}
	if _, err := New(Options{Config: &c, QueueURL: queueURL + ".fifo"}); err != nil {
		t.Error(err)
	}
}
