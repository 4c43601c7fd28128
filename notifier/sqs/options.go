// Package sqs takes notices from an Amazon SQS queue, which is the target of
// an EventBridge rule or the subscriber of an SNS topic.
//
// A message is deleted only after its handler returned nil or Invalid. While a
// handler runs its visibility timeout is extended; if it fails the message
// becomes visible again after a back-off. While the bus is away messages wait
// in place, and the source stops receiving by itself when its bounds are
// reached, so that an outage does not use up the receives that a redrive
// policy counts. A FIFO queue's messages are handled in the order of their
// group, each after the one before is deleted.
//
// What the queue needs:
//
//	aws sqs create-queue --queue-name keyturn
//	aws events put-targets --rule secrets --targets Id=keyturn,Arn=QUEUE_ARN
//
// and a policy of the queue that lets events.amazonaws.com send to it. The
// source needs sqs:ReceiveMessage, sqs:DeleteMessage and
// sqs:ChangeMessageVisibility. What can never be understood is parked by the
// notifier, so a redrive policy is of no use here; where there is one its
// maxReceiveCount should be 20 or more.
package sqs

import (
	"log/slog"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/pull"
)

const (
	op = "sqs"
	// maxBatch is the service's, for each operation.
	maxBatch = 10
	// maxMessage is the largest message, in bytes, with what it carries.
	// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
	maxMessage = 1 << 20
	// wait is how long a poll lasts, the service's longest, in seconds.
	wait = 20
	// maxLease is how long a message can be in flight at most, since it was
	// received, in seconds.
	maxLease = 12 * 60 * 60
)

// Options of [New]. QueueURL is required, and Config or Client; the zero value
// of each other field means its default.
type Options struct {
	// Config is what a client is made of: region and credentials.
	Config *aws.Config
	// Client is used instead of one made of Config. It should not retry by
	// itself, since the source does.
	Client *sqs.Client
	// QueueURL is where the queue is, as
	// https://sqs.us-east-1.amazonaws.com/111122223333/keyturn.
	QueueURL string
	// Name is the source name of deliveries. "sqs" by default.
	Name string
	// Receivers is how many polls are made at a time; all but the first rest
	// while there is little to receive. 4 by default.
	Receivers int
	// MaxInFlight bounds how many messages are handled at a time. 512 by
	// default.
	MaxInFlight int
	// MaxBytes bounds the messages in flight in bytes, and is at least 1 MiB,
	// the largest message. 64 MiB by default.
	MaxBytes int
	// Lease is the visibility timeout that messages are received with, and
	// extended by, in whole seconds. If the process dies others get its
	// messages after this time. 1 minute by default.
	Lease time.Duration
	// Timeout bounds one call of the handler. 1 minute by default.
	Timeout time.Duration
	// Hold bounds how long a message waits in place while the bus is away,
	// before it is given back. 5 minutes by default.
	Hold time.Duration
	// Drain bounds how long handlers go on after the end of the context of
	// Run. 10 s by default.
	Drain time.Duration
	// Logger gets a line for each outage and refusal, without a message's
	// body. The default discards.
	Logger *slog.Logger

	// second is how long a second of the service lasts, for tests.
	second time.Duration
	// retry is the pause between failed requests, for tests.
	retry pull.Backoff
	// again is when a message whose handler failed is visible again, for tests.
	again pull.Backoff
}

var nameForm = regexp.MustCompile(`^/[0-9]{12}/[A-Za-z0-9_-]{1,80}(\.fifo)?$`)

func (o Options) withDefaults() (Options, error) {
	bad := func(format string, args ...any) (Options, error) {
		return Options{}, fault.Newf(fault.Invalid, op, format, args...)
	}
	u, err := url.Parse(o.QueueURL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || !nameForm.MatchString(u.Path) {
		return bad("the queue URL is not one; expected the form https://sqs.REGION.amazonaws.com/ACCOUNT/NAME")
	}
	if o.Client == nil {
		if o.Config == nil {
			return bad("neither a client nor a configuration; expected one of them")
		}
		if o.Config.Region == "" {
			return bad("the AWS configuration has no region; set AWS_REGION or the profile's region")
		}
		o.Client = sqs.NewFromConfig(*o.Config, func(s *sqs.Options) {
			s.RetryMaxAttempts = 1 // the source backs off itself
		})
	}
	if min(o.Receivers, o.MaxInFlight, o.MaxBytes) < 0 || min(o.Lease, o.Timeout, o.Hold, o.Drain) < 0 {
		return bad("a bound is negative; expected positive ones, or 0 for the default")
	}
	setDefault(&o.second, time.Second)
	setDefault(&o.Name, "sqs")
	setDefault(&o.Receivers, 4)
	setDefault(&o.MaxInFlight, 512)
	setDefault(&o.MaxBytes, 64<<20)
	setDefault(&o.Lease, 60*o.second)
	setDefault(&o.Timeout, time.Minute)
	setDefault(&o.Hold, 5*time.Minute)
	setDefault(&o.Drain, 10*time.Second)
	setDefault(&o.again, pull.Backoff{Min: 10 * time.Second, Max: 15 * time.Minute})
	setDefault(&o.retry, pull.Backoff{Min: 500 * time.Millisecond, Max: 30 * time.Second})
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.MaxBytes < maxMessage {
		return bad("MaxBytes is %d; expected at least %d, the largest message", o.MaxBytes, maxMessage)
	}
	if o.Lease%o.second != 0 || o.Lease < 3*o.second {
		return bad("the lease is %s; expected whole seconds, at least 3", o.Lease)
	}
	if held := o.Hold + 2*o.Timeout + o.Lease; held > maxLease*o.second {
		return bad("lease, timeout and hold can keep a message for %s; expected at most 12 h, which is the service's limit", held)
	}
	return o, nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// fifo reports whether the queue keeps an order.
func (o *Options) fifo() bool { return strings.HasSuffix(o.QueueURL, ".fifo") }
