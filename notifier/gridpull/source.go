package gridpull

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/aznamespaces"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/pull"
	"github.com/keyturn/keyturn/notifier"
)

var _ notifier.Source = (*Source)(nil)

// Stats counts what a [Source] did. Refused counts lock tokens that failed in
// answers with status 200.
type Stats = pull.Stats

// again is how long a released event waits, rounded up to one of the delays
// that the service knows. It grows to an hour, since the service gives up an
// event after at most ten deliveries.
var again = pull.Backoff{Min: 10 * time.Second, Max: time.Hour}

// A Source is one subscription.
type Source struct {
	o      Options
	client *aznamespaces.ReceiverClient
	p      *pull.Puller
}

// New returns a Source. It makes no request. The error is Invalid, for options
// that cannot work.
func New(o Options) (*Source, error) {
	o, c, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Source{o: o, client: c}
	s.p = pull.New(pull.Config{
		Log: o.Logger.With("source", o.Name), Batch: maxBatch, Receivers: o.Receivers,
		MaxInFlight: o.MaxInFlight, MaxBytes: o.MaxBytes, MaxMessage: maxMessage,
		Lease: o.Lock, Timeout: o.Timeout, Hold: o.Hold, Drain: o.Drain,
		Again: again, Retry: o.retry,
	}, (*queue)(s))
	return s, nil
}

// Run receives until ctx is done, then lets handlers in flight finish within
// Drain, releases what is not done, and returns nil. It returns nothing else:
// an outage, a role that is missing and a topic that is not there are tried
// until they are repaired, and logged. Run is called once.
//
// A poll that ctx cuts off may have been answered already; such events come
// again when their locks end.
func (s *Source) Run(ctx context.Context, h notifier.Handler) error { return s.p.Run(ctx, h) }

// Stats returns the counts so far. It may be called at any time.
func (s *Source) Stats() Stats { return s.p.Stats() }

// A queue is the Source as [pull.Queue].
type queue Source

// requestTime bounds a request that does not wait.
const requestTime = 10 * time.Second

// received is an answer to receive. The client's own type is not used: it
// decodes each event, so that one that is not a CloudEvent to the letter would
// hide all the others, again and again. The event is handed on as it came.
type received struct {
	Value []struct {
		BrokerProperties struct {
			LockToken     string `json:"lockToken"`
			DeliveryCount int    `json:"deliveryCount"`
		} `json:"brokerProperties"`
		Event json.RawMessage `json:"event"`
	} `json:"value"`
}

func (q *queue) Receive(ctx context.Context, n int) ([]pull.Message, error) {
	// A connection that died without a word must not hold a poll for ever.
	bounded, cancel := context.WithTimeout(ctx, wait*time.Second+requestTime)
	defer cancel()
	var resp *http.Response
	_, err := q.client.ReceiveEvents(policy.WithCaptureResponse(bounded, &resp), &aznamespaces.ReceiveEventsOptions{
		MaxEvents: to.Ptr(int32(n)), MaxWaitTime: to.Ptr(int32(wait)),
	})
	if resp == nil || resp.StatusCode != http.StatusOK {
		return nil, classify(ctx, "receive", err)
	}
	body, err := runtime.Payload(resp)
	if err != nil {
		return nil, classify(ctx, "receive", err)
	}
	var in received
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fault.Newf(fault.Unavailable, op+": receive", "the answer of %d bytes is not what the API says; is the endpoint an Event Grid namespace?", len(body))
	}
	now := time.Now()
	ms := make([]pull.Message, 0, len(in.Value))
	for _, v := range in.Value {
		if v.BrokerProperties.LockToken == "" {
			continue // nothing can be done with it; it comes again
		}
		ms = append(ms, pull.Message{Token: v.BrokerProperties.LockToken, Delivery: notifier.Delivery{
			Source: q.o.Name, ID: identity(v.Event), Body: v.Event, Attempt: v.BrokerProperties.DeliveryCount, Received: now,
		}})
	}
	return ms, nil
}

// identity is source and id of a CloudEvent, which together are unique, or "".
// https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md#id
func identity(event []byte) string {
	var e struct {
		ID     string `json:"id"`
		Source string `json:"source"`
	}
	if json.Unmarshal(event, &e) != nil || e.ID == "" {
		return ""
	}
	return e.Source + "#" + e.ID
}

func (q *queue) Acknowledge(ctx context.Context, tokens []string) ([]pull.Refusal, error) {
	bounded, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	out, err := q.client.AcknowledgeEvents(bounded, tokens, nil)
	if err != nil {
		return nil, classify(ctx, "acknowledge", err)
	}
	return refusals(tokens, out.SucceededLockTokens, out.FailedLockTokens), nil
}

func (q *queue) Extend(ctx context.Context, tokens []string) ([]pull.Refusal, error) {
	bounded, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	out, err := q.client.RenewEventLocks(bounded, tokens, nil)
	if err != nil {
		return nil, classify(ctx, "renew locks", err)
	}
	return refusals(tokens, out.SucceededLockTokens, out.FailedLockTokens), nil
}

// Release makes one request for each of the delays that the service knows.
func (q *queue) Release(ctx context.Context, rs []pull.Return) ([]pull.Refusal, error) {
	bounded, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	by := map[aznamespaces.ReleaseDelay][]string{}
	for _, r := range rs {
		d := releaseDelay(r.Delay)
		by[d] = append(by[d], r.Token)
	}
	var all []pull.Refusal
	for d, tokens := range by {
		out, err := q.client.ReleaseEvents(bounded, tokens, &aznamespaces.ReleaseEventsOptions{ReleaseDelayInSeconds: &d})
		if err != nil {
			// Some may be released. To release them again is refused, and does
			// no harm.
			return nil, classify(ctx, "release", err)
		}
		all = append(all, refusals(tokens, out.SucceededLockTokens, out.FailedLockTokens)...)
	}
	return all, nil
}

// releaseDelay rounds d up to a delay that the service knows.
func releaseDelay(d time.Duration) aznamespaces.ReleaseDelay {
	switch {
	case d <= 0:
		return aznamespaces.ReleaseDelayNoDelay
	case d <= 10*time.Second:
		return aznamespaces.ReleaseDelayTenSeconds
	case d <= time.Minute:
		return aznamespaces.ReleaseDelayOneMinute
	case d <= 10*time.Minute:
		return aznamespaces.ReleaseDelayTenMinutes
	}
	return aznamespaces.ReleaseDelayOneHour
}

// refusals reads what became of tokens: only one that the answer names a
// success is settled, whatever the status of the whole answer is.
func refusals(tokens, succeeded []string, failed []aznamespaces.FailedLockToken) []pull.Refusal {
	if len(succeeded) == len(tokens) && len(failed) == 0 {
		return nil
	}
	done := make(map[string]bool, len(tokens))
	for _, t := range succeeded {
		done[t] = true
	}
	codes := map[string]string{}
	for _, f := range failed {
		if f.LockToken == nil {
			continue
		}
		codes[*f.LockToken], done[*f.LockToken] = "", false
		if f.Error != nil && f.Error.Code != nil {
			codes[*f.LockToken] = clean(*f.Error.Code)
		}
	}
	var out []pull.Refusal
	for _, t := range tokens {
		if done[t] {
			continue
		}
		code, ok := codes[t]
		if !ok {
			code = "missing in the answer"
		}
		out = append(out, pull.Refusal{Token: t, Lost: over(code), Code: code})
	}
	return out
}
