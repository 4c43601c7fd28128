package webhook

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
)

// stream persists in a real JetStream, and says so only after its PubAck.
type stream struct{ js jetstream.JetStream }

func (s stream) Publish(ctx context.Context, es ...events.Event) error {
	for _, e := range es {
		b, err := json.Marshal(e.Data)
		if err != nil {
			return err
		}
		if _, err := s.js.PublishMsg(ctx, &nats.Msg{Subject: e.Subject(), Data: b}, jetstream.WithMsgID(e.ID), jetstream.WithRetryAttempts(0)); err != nil {
			return err
		}
	}
	return nil
}

func (s stream) Park(ctx context.Context, l notifier.DeadLetter) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	_, err = s.js.PublishMsg(ctx, &nats.Msg{Subject: "keyturn.dead." + l.Source, Data: b}, jetstream.WithMsgID(l.Key()), jetstream.WithRetryAttempts(0))
	return err
}

// TestJetStreamOutage posts as EventBridge does, again after every 503 and
// never after anything else, while the NATS server is shut down and started
// again. What was answered 200 is in the stream, once.
func TestJetStreamOutage(t *testing.T) {
	const changes = 24
	srv := testenv.NATS(t)
	nc := srv.Conn(t)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for name, subject := range map[string]string{"EVENTS": "keyturn.v1.>", "DEAD": "keyturn.dead.>"} {
		if _, err := js.CreateStream(t.Context(), jetstream.StreamConfig{Name: name, Subjects: []string{subject}, Storage: jetstream.FileStorage}); err != nil {
			t.Fatal(err)
		}
	}
	r := serve(t, Options{Routes: within(400 * time.Millisecond)}, notifier.New(stream{js}, stream{js}, nil).Handler(decode))

	if code, _, _ := r.post(moved(0), nil); code != 200 {
		t.Fatalf("status %d before the outage; expected 200", code)
	}
	srv.Stop()
	if code, header, _ := r.post(moved(0), nil); code != 503 || header.Get("Retry-After") == "" {
		t.Fatalf("status %d during the outage; expected 503", code)
	}
	var wg sync.WaitGroup
	var refused atomic.Int64
	for v := range changes {
		wg.Go(func() {
			body := moved(v)
			if v%4 == 3 {
				body = fmt.Sprint("poison ", v)
			}
			for deadline := time.Now().Add(time.Minute); ; {
				switch code, _, _, err := r.try(body, nil); {
				case err != nil:
					t.Error(err)
					return
				case code == 200:
					return
				case code != 503 || time.Now().After(deadline):
					t.Errorf("status %d; expected 503 until it is 200", code)
					return
				}
				refused.Add(1)
			}
		})
	}
	testenv.Eventually(t, 30*time.Second, "every post refused once", func() bool { return refused.Load() >= changes })
	srv.Start()
	wg.Wait()
	for name, want := range map[string]uint64{"EVENTS": changes * 3 / 4, "DEAD": changes / 4} {
		s, err := js.Stream(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.CachedInfo().State.Msgs; got != want {
			t.Errorf("%s holds %d messages; expected %d", name, got, want)
		}
	}
	t.Logf("%d posts were answered 503 and repeated", refused.Load())
}
