// Package pubsubpull takes messages from a subscription of Google Cloud
// Pub/Sub by streaming pull, so that no public endpoint is needed.
//
// A message is acknowledged only after its handler returned nil or Invalid.
// While a handler runs its acknowledgement deadline is extended; if it fails
// the message is held for a moment and then refused. While the bus is away
// messages wait in place, and the source stops receiving by itself when its
// bounds are reached.
//
// How soon Pub/Sub delivers a refused message again is the subscription's retry
// policy; without one it does so at once, which is why the source holds such a
// message before it refuses it. Make the subscription with one:
//
//	gcloud pubsub subscriptions create keyturn --topic secrets \
//	  --ack-deadline 60 --min-retry-delay 10s --max-retry-delay 600s
//
// The source needs roles/pubsub.subscriber on it. Where the subscription has
// exactly-once delivery the source waits until each acknowledgement is
// confirmed. Where it has a dead-letter policy its max-delivery-attempts should
// be 20 or more: what can never be understood is parked by the notifier. A
// subscription for pull has its messages as bytes, not in base64, and with
// their attributes.
// https://cloud.google.com/pubsub/docs/pull
package pubsubpull

import (
	"log/slog"
	"regexp"
	"time"

	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/pull"
)

const op = "pubsubpull"

// Options of [New]. Project and Subscription are required; the zero value of
// each other field means its default.
type Options struct {
	// Project is the id of the subscription's project.
	Project string
	// Subscription is the id of the subscription, without the project.
	Subscription string
	// Endpoint replaces Google's, as "us-central1-pubsub.googleapis.com:443".
	Endpoint string
	// Insecure speaks without TLS and without credentials, for an emulator at
	// Endpoint.
	Insecure bool
	// Client is for credentials and the like. By default they are the
	// application's own (ADC).
	Client []option.ClientOption
	// Name is the source name of deliveries. "pubsubpull" by default.
	Name string
	// Streams is how many streams are open at a time. 1 by default, which is
	// good for some thousand messages a second.
	Streams int
	// MaxInFlight bounds how many messages are handled at a time. 1000 by
	// default.
	MaxInFlight int
	// MaxBytes bounds the data of the messages in flight in bytes. A larger
	// message is handled alone. 64 MiB by default.
	MaxBytes int
	// Timeout bounds one call of the handler. 1 minute by default.
	Timeout time.Duration
	// Hold bounds how long a message waits in place while the bus is away,
	// before it is refused. 5 minutes by default.
	Hold time.Duration
	// Drain bounds how long handlers go on after the end of the context of
	// Run. 10 s by default.
	Drain time.Duration
	// AckTimeout bounds how long the source waits for an acknowledgement to be
	// confirmed, where the subscription has exactly-once delivery. 1 minute by
	// default.
	AckTimeout time.Duration
	// Logger gets a line for each outage and refusal, without a message. The
	// default discards.
	Logger *slog.Logger

	// retry is the pause between streams that fail, for tests.
	retry pull.Backoff
	// again is how long a message whose handler failed is held, for tests.
	again pull.Backoff
}

var (
	// https://cloud.google.com/resource-manager/docs/creating-managing-projects
	projectForm = regexp.MustCompile(`^([a-z0-9.-]{1,64}:)?[a-z0-9][a-z0-9-]{4,62}$`)
	// https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names
	subscriptionForm = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9._~+%-]{2,254}$`)
)

func (o Options) withDefaults() (Options, error) {
	bad := func(format string, args ...any) (Options, error) {
		return Options{}, fault.Newf(fault.Invalid, op, format, args...)
	}
	if !projectForm.MatchString(o.Project) || !subscriptionForm.MatchString(o.Subscription) {
		return bad("project %q, subscription %q; expected the id of each, without projects/ and subscriptions/", o.Project, o.Subscription)
	}
	if o.Insecure && o.Endpoint == "" {
		return bad("insecure without an endpoint; expected that of an emulator, as localhost:8085")
	}
	if min(o.Streams, o.MaxInFlight, o.MaxBytes) < 0 || min(o.Timeout, o.Hold, o.Drain, o.AckTimeout) < 0 {
		return bad("a bound is negative; expected positive ones, or 0 for the default")
	}
	setDefault(&o.Name, "pubsubpull")
	setDefault(&o.Streams, 1)
	setDefault(&o.MaxInFlight, 1000)
	setDefault(&o.MaxBytes, 64<<20)
	setDefault(&o.Timeout, time.Minute)
	setDefault(&o.Hold, 5*time.Minute)
	setDefault(&o.Drain, 10*time.Second)
	setDefault(&o.AckTimeout, time.Minute)
	setDefault(&o.retry, pull.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second})
	setDefault(&o.again, pull.Backoff{Min: 2 * time.Second, Max: 20 * time.Second})
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, nil
}

// client are the options of the Pub/Sub client.
func (o *Options) client(watch grpc.StreamClientInterceptor) []option.ClientOption {
	out := []option.ClientOption{option.WithTelemetryDisabled(), option.WithGRPCDialOption(grpc.WithChainStreamInterceptor(watch))}
	if o.Endpoint != "" {
		out = append(out, option.WithEndpoint(o.Endpoint))
	}
	if o.Insecure {
		out = append(out, option.WithoutAuthentication(), option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))
	}
	return append(out, o.Client...)
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
