package pubsubpull

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"

	"github.com/keyturn/keyturn/fault"
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

func TestDelivery(t *testing.T) {
	const trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	r := newRig(t)
	attributes := map[string]string{
		"eventType": "SECRET_VERSION_ADD", "secretId": "projects/123456789012/secrets/s", "dataFormat": "JSON_API_V1",
		"googclient_traceparent": trace, "googclient_schemaencoding": "JSON", "publishtime": "forged",
	}
	id := r.srv.Publish(topicName, []byte(`{"name":"x"}`), attributes)
	bare := r.srv.Publish(topicName, nil, map[string]string{"eventType": "TOPIC_CONFIGURED"})
	got := make(chan notifier.Delivery, 8)
	pulltest.Start(t, r.source(func(o *Options) { o.Name = "gcp" }), func(_ context.Context, d notifier.Delivery) error {
		got <- d
		return nil
	})
	by := map[string]notifier.Delivery{}
	for range 2 {
		d := <-got
		by[d.ID] = d
	}
	d := by[id]
	t.Run("trap 29: data is bytes, not base64", func(t *testing.T) {
		if string(d.Body) != `{"name":"x"}` {
			t.Errorf("the body is %q", d.Body)
		}
	})
	published, err := time.Parse(time.RFC3339Nano, d.Attributes["publishtime"])
	if err != nil || time.Since(published) > time.Minute {
		t.Errorf("publishtime %q", d.Attributes["publishtime"])
	}
	want := map[string]string{
		"eventType": attributes["eventType"], "secretId": attributes["secretId"], "dataFormat": attributes["dataFormat"],
		"traceparent": trace, "publishtime": d.Attributes["publishtime"],
	}
	if fmt.Sprint(d.Attributes) != fmt.Sprint(want) || d.Source != "gcp" || d.Attempt != 0 {
		t.Errorf("delivery %+v, expected attributes %v", d, want)
	}
	t.Run("trap 28: a message without data is delivered and acknowledged", func(t *testing.T) {
		if d := by[bare]; len(d.Body) != 0 || d.Attributes["eventType"] != "TOPIC_CONFIGURED" {
			t.Errorf("delivery %+v", d)
		}
		testenv.Eventually(t, limit, "both to be acknowledged", r.empty)
	})
}

// TestAttempt: with a dead-letter policy the service counts deliveries.
func TestAttempt(t *testing.T) {
	r := newRig(t, func(s *pubsubpb.Subscription) {
		s.DeadLetterPolicy = &pubsubpb.DeadLetterPolicy{DeadLetterTopic: topicName, MaxDeliveryAttempts: 20}
	})
	r.Send("a;")
	got := make(chan int, 8)
	pulltest.Start(t, r.source(nil), func(_ context.Context, d notifier.Delivery) error {
		got <- d.Attempt
		if d.Attempt < 3 {
			return errors.New("again")
		}
		return nil
	})
	for want := 1; want <= 3; want++ {
		if attempt := <-got; attempt != want {
			t.Errorf("attempt %d, expected %d", attempt, want)
		}
	}
	testenv.Eventually(t, limit, "it to be acknowledged", r.empty)
}

// TestExactlyOnce: where the subscription has it, each acknowledgement is
// waited for.
func TestExactlyOnce(t *testing.T) {
	r := newRig(t, func(s *pubsubpb.Subscription) { s.EnableExactlyOnceDelivery = true })
	pulltest.SendAll(r, 100, 50)
	s := r.source(nil)
	pulltest.Start(t, s, func(context.Context, notifier.Delivery) error { return nil })
	testenv.Eventually(t, limit, "all to be acknowledged", func() bool { return r.empty() && s.Stats().Acknowledged == 100 })
	if st := s.Stats(); st.Lost != 0 || st.InFlight != 0 || st.Bytes != 0 {
		t.Errorf("counted %+v; expected nothing lost, and nothing in flight", st)
	}
}

// TestTrap33: without a dead-letter policy a bad message loops for seven days,
// so what can never be understood is acknowledged.
func TestTrap33(t *testing.T) {
	r := newRig(t)
	r.Send("bad;")
	s := r.source(nil)
	pulltest.Start(t, s, func(context.Context, notifier.Delivery) error { return fault.New(fault.Invalid, "decode", nil) })
	testenv.Eventually(t, limit, "it to be acknowledged", func() bool { return r.empty() && s.Stats().Invalid == 1 })
}

// TestHeldBeforeRefused: without a retry policy a refused message comes at
// once, so it is held for a moment.
func TestHeldBeforeRefused(t *testing.T) {
	r := newRig(t, func(s *pubsubpb.Subscription) { s.RetryPolicy = nil })
	r.Send("a;")
	times := make(chan time.Time, 8)
	pulltest.Start(t, r.source(func(o *Options) { o.again.Min, o.again.Max = 200*time.Millisecond, 200*time.Millisecond }), func(context.Context, notifier.Delivery) error {
		times <- time.Now()
		if len(times) < 2 {
			return errors.New("again")
		}
		return nil
	})
	testenv.Eventually(t, limit, "it to be acknowledged", r.empty)
	if d := -(<-times).Sub(<-times); d < 100*time.Millisecond {
		t.Errorf("it came again after %s, expected 100 ms at least", d)
	}
}

// TestRefused: a subscription that is not there, until it is.
func TestRefused(t *testing.T) {
	r := newRig(t)
	var rec leaktest.Recorder
	s := r.source(func(o *Options) { o.Subscription, o.Logger = "later", rec.Logger() })
	pulltest.Start(t, s, func(context.Context, notifier.Delivery) error { return nil })
	testenv.Eventually(t, limit, "the refusal to be logged", func() bool {
		return strings.Contains(rec.String(), "there is no such subscription") && strings.Contains(rec.String(), "level=ERROR")
	})
	if !s.Stats().Down {
		t.Error("the source says that all is well")
	}
	if _, err := r.srv.GServer.CreateSubscription(t.Context(), &pubsubpb.Subscription{
		Name: "projects/" + project + "/subscriptions/later", Topic: topicName, AckDeadlineSeconds: 10,
	}); err != nil {
		t.Fatal(err)
	}
	r.Send("a;")
	testenv.Eventually(t, limit, "the source to go on", func() bool { return s.Stats().Acknowledged == 1 })
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"no project":         {Subscription: subscription},
		"no subscription":    {Project: project},
		"a full name":        {Project: project, Subscription: subName},
		"insecure alone":     {Project: project, Subscription: subscription, Insecure: true},
		"negative":           {Project: project, Subscription: subscription, MaxBytes: -1},
		"a negative timeout": {Project: project, Subscription: subscription, AckTimeout: -1},
	} {
		if _, err := New(o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: New returned %v, expected Invalid", name, err)
		}
	}
	if _, err := New(Options{Project: "example.com:some-project", Subscription: subscription}); err != nil {
		t.Error(err)
	}
}
