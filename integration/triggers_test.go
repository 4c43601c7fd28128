package integration_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/eventbridge"
	"github.com/keyturn/keyturn/events/eventgrid"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/events/pubsub"
	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/internal/gcpfake"
	"github.com/keyturn/keyturn/internal/lambdarotate"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/notifier"
	"github.com/keyturn/keyturn/ref"
)

// A trigger is how a platform asks for a rotation.
type trigger struct {
	// ask makes the platform ask, as it does when the time has come.
	ask func(t *testing.T, r ref.Ref)
	// notices are what the platform has said since the last call, as it would
	// post them.
	notices func(t *testing.T) []string
	decode  notifier.Decoder
}

// triggerOf returns the trigger of p. Where the platform has none it is the
// daemon's own schedule on the bus, which fires once: one that recurs would
// rotate again in the middle of the story.
func triggerOf(t *testing.T, p platform, db *database, bus *natsbus.Bus, log *leaktest.Recorder) trigger {
	t.Helper()
	switch p := p.(type) {
	case *awsPlatform:
		return p.trigger(t, db, log)
	case *gcpPlatform:
		return p.trigger()
	case *azurePlatform:
		return p.trigger()
	}
	return trigger{
		ask: func(t *testing.T, r ref.Ref) {
			must(t, bus.Schedule(t.Context(), r.String(), natsbus.Spec{At: time.Now().Add(time.Second)}, nil))
		},
		notices: func(*testing.T) []string { return nil },
		decode:  func(d notifier.Delivery) ([]events.Event, error) { return eventbridge.Decode(d.Body, d.Received) },
	}
}

const rotateARN = "arn:aws:lambda:us-east-1:111122223333:function:keyturn-rotate"

// On AWS the service calls the function for each of the four steps, and both
// it and the function tell EventBridge, whose rules post to us.
func (p *awsPlatform) trigger(t *testing.T, db *database, log *leaktest.Recorder) trigger {
	t.Helper()
	const bus = "fleet"
	env, err := lambdarotate.ParseEnv([]string{"KEYTURN_CA_FILE=" + db.CAFile, "KEYTURN_EVENT_BUS=" + bus, "KEYTURN_TENANT=" + tenant})
	must(t, err)
	cfg := p.fake.Config()
	h, err := lambdarotate.New(t.Context(), env, &lambdarotate.Options{Logger: log.Logger(), AWS: &cfg})
	must(t, err)
	p.fake.RegisterLambda(rotateARN, func(ctx context.Context, payload []byte) error {
		_, err := h.Invoke(ctx, payload)
		log.Record(err)
		return err
	})
	seen := map[string]int{}
	return trigger{
		ask: func(t *testing.T, r ref.Ref) {
			_, err := p.sm.RotateSecret(t.Context(), &secretsmanager.RotateSecretInput{SecretId: aws.String(r.Name), RotationLambdaARN: aws.String(rotateARN), ClientRequestToken: aws.String(awsfake.Token())})
			must(t, err)
			for _, done := range p.fake.Wait() {
				if done.Err != nil {
					t.Fatalf("the rotation %s of %s ended with: %v", done.Token, done.Secret, done.Err)
				}
			}
		},
		notices: func(t *testing.T) (out []string) {
			for _, name := range []string{"default", bus} {
				all := p.fake.Events(name)
				for _, e := range all[seen[name]:] {
					b, err := json.Marshal(map[string]any{
						"version": "0", "id": e.ID, "detail-type": e.DetailType, "source": e.Source, "account": awsfake.Account, "region": awsfake.Region,
						"time": time.Now().UTC().Format(time.RFC3339), "resources": append([]string{}, e.Resources...), "detail": e.Detail,
					})
					must(t, err)
					out = append(out, string(b))
				}
				seen[name] = len(all)
			}
			return out
		},
		decode: func(d notifier.Delivery) ([]events.Event, error) { return eventbridge.Decode(d.Body, d.Received) },
	}
}

// On GCP SECRET_ROTATE is a message, as is whatever happens to the secret, and
// a push subscription posts them.
func (p *gcpPlatform) trigger() trigger {
	seen := 0
	decoder := pubsub.Decoder{Project: func(number string) string {
		if number == gcpfake.ProjectNumber {
			return gcpfake.Project
		}
		return ""
	}}
	return trigger{
		ask: func(_ *testing.T, r ref.Ref) { p.fake.Rotate(gcpName(r)) },
		notices: func(t *testing.T) (out []string) {
			all := p.fake.Notices()
			for _, n := range all[seen:] {
				b, err := json.Marshal(map[string]any{"subscription": fmt.Sprintf("projects/%s/subscriptions/keyturn", gcpfake.Project), "message": map[string]any{
					"attributes": n.Attributes, "data": base64.StdEncoding.EncodeToString(n.Data),
					"messageId": n.MessageID, "publishTime": n.PublishTime.Format(time.RFC3339Nano),
				}})
				must(t, err)
				out = append(out, string(b))
			}
			seen = len(all)
			return out
		},
		decode: func(d notifier.Delivery) ([]events.Event, error) { return decoder.DecodePush(d.Body, d.Received) },
	}
}

// On Azure Event Grid posts that a version is near its expiry, and that there
// is a new one.
func (p *azurePlatform) trigger() trigger {
	var mu sync.Mutex
	var heard []azurefake.Event
	p.fake.OnEvent(func(e azurefake.Event) {
		mu.Lock()
		defer mu.Unlock()
		heard = append(heard, e)
	})
	return trigger{
		ask: func(_ *testing.T, r ref.Ref) { p.fake.NearExpiry(azureVault, r.Name) },
		notices: func(*testing.T) (out []string) {
			mu.Lock()
			defer mu.Unlock()
			for _, e := range heard {
				out = append(out, string(e.CloudEvent()), string(e.EventGrid())) // by two subscriptions
			}
			heard = nil
			return out
		},
		decode: func(d notifier.Delivery) ([]events.Event, error) { return eventgrid.Decode(d.Body, d.Received) },
	}
}
