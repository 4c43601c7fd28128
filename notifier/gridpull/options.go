// Package gridpull takes events from a subscription of an Event Grid namespace
// topic by pull, so that no public endpoint is needed.
//
// An event is acknowledged only after its handler returned nil or Invalid.
// While a handler runs its lock is renewed; if it fails the event is released
// with a delay. While the bus is away events wait in place, since Event Grid
// drops an event, or dead-letters it, after at most ten deliveries. Events are
// never rejected: what can never be understood is parked by the notifier.
//
// Key Vault is a system topic and cannot be pulled from. Its event
// subscription delivers to a namespace topic, from which a second subscription
// is pulled:
//
//	az eventgrid system-topic event-subscription create -g GROUP --system-topic-name VAULT -n keyturn \
//	  --endpoint-type namespacetopic --endpoint NAMESPACE_TOPIC_ID \
//	  --event-delivery-schema cloudeventschemav1_0 --delivery-identity systemassigned
//	az eventgrid namespace topic event-subscription create -g GROUP --namespace-name NAMESPACE \
//	  --topic-name secrets -n keyturn --delivery-configuration \
//	  '{deliveryMode:Queue,queue:{receiveLockDurationInSeconds:60,maxDeliveryCount:10,eventTimeToLive:P7D}}'
//
// The source needs the role EventGrid Data Receiver on the topic.
// https://learn.microsoft.com/azure/event-grid/pull-delivery-overview
package gridpull

import (
	"log/slog"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/aznamespaces"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/pull"
)

const (
	op = "gridpull"
	// maxBatch is the service's, for each operation; its default is 1.
	maxBatch = 100
	// maxMessage is the largest event, in bytes.
	// https://learn.microsoft.com/azure/event-grid/quotas-limits
	maxMessage = 1 << 20
	// wait is how long a poll lasts, in seconds: 10 to 120.
	wait = 60
	// maxLocked is for how long an event can be kept by renewing its lock.
	maxLocked = time.Hour
)

// Options of [New]. Endpoint, Topic, Subscription and Credential are required;
// the zero value of each other field means its default.
type Options struct {
	// Endpoint is the namespace's, as
	// https://NAMESPACE.REGION-1.eventgrid.azure.net; read its host from the
	// resource. It must be https, since a token is sent.
	Endpoint string
	// Topic and Subscription are what to pull from.
	Topic, Subscription string
	// Credential gives tokens for https://eventgrid.azure.net.
	Credential azcore.TokenCredential
	// Client is for the transport and the cloud. It does not retry: the source
	// does.
	Client azcore.ClientOptions
	// Name is the source name of deliveries. "gridpull" by default.
	Name string
	// Receivers is how many polls are made at a time; all but the first rest
	// while there is little to receive. 2 by default.
	Receivers int
	// MaxInFlight bounds how many events are handled at a time. 512 by default.
	MaxInFlight int
	// MaxBytes bounds the events in flight in bytes, and is at least 1 MiB, the
	// largest event. A poll asks for no more events than there is room for if
	// all are of that size. 128 MiB by default.
	MaxBytes int
	// Lock is the subscription's receiveLockDurationInSeconds, 60 to 300
	// seconds. A shorter one than the subscription's only renews more often. 1
	// minute by default.
	Lock time.Duration
	// Timeout bounds one call of the handler. 1 minute by default.
	Timeout time.Duration
	// Hold bounds how long an event waits in place while the bus is away,
	// before it is released. 10 minutes by default; with Timeout it has to stay
	// below the hour for which a lock can be renewed.
	Hold time.Duration
	// Drain bounds how long handlers go on after the end of the context of
	// Run. 10 s by default.
	Drain time.Duration
	// Logger gets a line for each outage and refusal, without an event. The
	// default discards.
	Logger *slog.Logger

	// retry is the pause between failed requests, for tests.
	retry pull.Backoff
}

// nameForm is of topics and subscriptions.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9-]{3,64}$`)

func (o Options) withDefaults() (Options, *aznamespaces.ReceiverClient, error) {
	bad := func(format string, args ...any) (Options, *aznamespaces.ReceiverClient, error) {
		return Options{}, nil, fault.Newf(fault.Invalid, op, format, args...)
	}
	u, err := url.Parse(o.Endpoint)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return bad("the endpoint is not one; expected the form https://NAMESPACE.REGION-1.eventgrid.azure.net")
	}
	if !nameForm.MatchString(o.Topic) || !nameForm.MatchString(o.Subscription) {
		return bad("topic %q, subscription %q; expected 3 to 64 letters, digits and hyphens each", o.Topic, o.Subscription)
	}
	if o.Credential == nil {
		return bad("no credential; expected one that gives tokens of Entra ID")
	}
	if min(o.Receivers, o.MaxInFlight, o.MaxBytes) < 0 || min(o.Lock, o.Timeout, o.Hold, o.Drain) < 0 {
		return bad("a bound is negative; expected positive ones, or 0 for the default")
	}
	setDefault(&o.Name, "gridpull")
	setDefault(&o.Receivers, 2)
	setDefault(&o.MaxInFlight, 512)
	setDefault(&o.MaxBytes, 128<<20)
	setDefault(&o.Lock, time.Minute)
	setDefault(&o.Timeout, time.Minute)
	setDefault(&o.Hold, 10*time.Minute)
	setDefault(&o.Drain, 10*time.Second)
	setDefault(&o.retry, pull.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second})
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxBytes < maxMessage {
		return bad("MaxBytes is %d; expected at least %d, the largest event", o.MaxBytes, maxMessage)
	}
	if o.Lock > 5*time.Minute {
		return bad("the lock is %s; expected at most 5 minutes, the service's most", o.Lock)
	}
	if held := o.Hold + 2*o.Timeout + o.Lock; held > maxLocked {
		return bad("lock, timeout and hold can keep an event for %s; expected at most %s, for which the service renews a lock", held, maxLocked)
	}
	o.Client.Retry.MaxRetries = -1 // the source backs off itself
	c, err := aznamespaces.NewReceiverClient(strings.TrimSuffix(o.Endpoint, "/"), o.Topic, o.Subscription, credential{o.Credential}, &aznamespaces.ReceiverClientOptions{ClientOptions: o.Client})
	if err != nil {
		return bad("the client cannot be made: %T", err)
	}
	return o, c, nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
