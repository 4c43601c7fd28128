package sqs

import (
	"context"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	"github.com/aws/aws-sdk-go-v2/service/sqs/types"

	"github.com/keyturn/keyturn/internal/pull"
	"github.com/keyturn/keyturn/notifier"
)

var _ notifier.Source = (*Source)(nil)

// Stats counts what a [Source] did.
type Stats = pull.Stats

// A Source is one queue.
type Source struct {
	o Options
	p *pull.Puller
}

// New returns a Source. It makes no request. The error is Invalid, for options
// that cannot work.
func New(o Options) (*Source, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Source{o: o}
	s.p = pull.New(pull.Config{
		Log: o.Logger.With("source", o.Name), Batch: maxBatch, Receivers: o.Receivers,
		MaxInFlight: o.MaxInFlight, MaxBytes: o.MaxBytes, MaxMessage: maxMessage,
		Lease: o.Lease, Timeout: o.Timeout, Hold: o.Hold, Drain: o.Drain,
		Again: o.again, Retry: o.retry,
	}, (*queue)(s))
	return s, nil
}

// Run receives until ctx is done, then lets handlers in flight finish within
// Drain, gives back what is not done, and returns nil. It returns nothing else:
// an outage, a role that expired and a queue that is not there are tried until
// they are repaired, and logged. Run is called once.
//
// A poll that ctx cuts off may have been answered already; such messages are
// visible again after Lease.
func (s *Source) Run(ctx context.Context, h notifier.Handler) error { return s.p.Run(ctx, h) }

// Stats returns the counts so far. It may be called at any time.
func (s *Source) Stats() Stats { return s.p.Stats() }

// A queue is the Source as [pull.Queue].
type queue Source

func (q *queue) seconds(d time.Duration) int32 { return int32(d / q.o.second) }

// requestTime bounds a request that does not wait.
const requestTime = 10 * time.Second

func (q *queue) Receive(ctx context.Context, n int) ([]pull.Message, error) {
	// A connection that died without a word must not hold a poll for ever.
	bounded, cancel := context.WithTimeout(ctx, wait*q.o.second+requestTime)
	defer cancel()
	out, err := q.o.Client.ReceiveMessage(bounded, &sqs.ReceiveMessageInput{
		QueueUrl: &q.o.QueueURL, MaxNumberOfMessages: int32(n), WaitTimeSeconds: wait, VisibilityTimeout: q.seconds(q.o.Lease),
		MessageSystemAttributeNames: []types.MessageSystemAttributeName{
			types.MessageSystemAttributeNameApproximateReceiveCount, types.MessageSystemAttributeNameSentTimestamp,
			types.MessageSystemAttributeNameMessageGroupId,
		},
		// AWSTraceHeader is X-Ray's, and no trace parent.
		MessageAttributeNames: []string{"traceparent"},
	})
	if err != nil {
		return nil, q.classify(ctx, "receive", err)
	}
	now := time.Now()
	ms := make([]pull.Message, 0, len(out.Messages))
	for _, m := range out.Messages {
		ms = append(ms, q.message(m, now))
	}
	return ms, nil
}

// message turns one of the service's into one of ours.
func (q *queue) message(m types.Message, now time.Time) pull.Message {
	d := notifier.Delivery{
		Source: q.o.Name, ID: aws.ToString(m.MessageId), Body: []byte(aws.ToString(m.Body)), Received: now,
		Attributes: map[string]string{},
	}
	if n, err := strconv.Atoi(m.Attributes["ApproximateReceiveCount"]); err == nil && n > 0 {
		d.Attempt = n
	}
	if ms, err := strconv.ParseInt(m.Attributes["SentTimestamp"], 10, 64); err == nil {
		d.Attributes["senttimestamp"] = time.UnixMilli(ms).UTC().Format(time.RFC3339Nano)
	}
	if t := m.MessageAttributes["traceparent"]; t.StringValue != nil {
		d.Attributes["traceparent"] = *t.StringValue
	}
	out := pull.Message{Token: aws.ToString(m.ReceiptHandle), Delivery: d}
	// A group id of a standard queue is for fairness, not for order.
	if q.o.fifo() {
		out.Group = m.Attributes["MessageGroupId"]
	}
	return out
}

func (q *queue) Acknowledge(ctx context.Context, tokens []string) ([]pull.Refusal, error) {
	bounded, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	entries := make([]types.DeleteMessageBatchRequestEntry, len(tokens))
	for i := range tokens {
		entries[i] = types.DeleteMessageBatchRequestEntry{Id: id(i), ReceiptHandle: &tokens[i]}
	}
	out, err := q.o.Client.DeleteMessageBatch(bounded, &sqs.DeleteMessageBatchInput{QueueUrl: &q.o.QueueURL, Entries: entries})
	if err != nil {
		return nil, q.classify(ctx, "delete", err)
	}
	done := make([]string, len(out.Successful))
	for i, s := range out.Successful {
		done[i] = aws.ToString(s.Id)
	}
	return refusals(len(tokens), func(i int) string { return tokens[i] }, done, out.Failed), nil
}

func (q *queue) Release(ctx context.Context, rs []pull.Return) ([]pull.Refusal, error) {
	return q.change(ctx, rs)
}

func (q *queue) Extend(ctx context.Context, tokens []string) ([]pull.Refusal, error) {
	rs := make([]pull.Return, len(tokens))
	for i, t := range tokens {
		rs[i] = pull.Return{Token: t, Delay: q.o.Lease}
	}
	return q.change(ctx, rs)
}

// change sets when messages become visible: to give them back is to say soon,
// to extend a lease is to say later.
func (q *queue) change(ctx context.Context, rs []pull.Return) ([]pull.Refusal, error) {
	bounded, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	entries := make([]types.ChangeMessageVisibilityBatchRequestEntry, len(rs))
	for i := range rs {
		entries[i] = types.ChangeMessageVisibilityBatchRequestEntry{Id: id(i), ReceiptHandle: &rs[i].Token, VisibilityTimeout: q.seconds(rs[i].Delay)}
	}
	out, err := q.o.Client.ChangeMessageVisibilityBatch(bounded, &sqs.ChangeMessageVisibilityBatchInput{QueueUrl: &q.o.QueueURL, Entries: entries})
	if err != nil {
		return nil, q.classify(ctx, "change visibility", err)
	}
	done := make([]string, len(out.Successful))
	for i, s := range out.Successful {
		done[i] = aws.ToString(s.Id)
	}
	return refusals(len(rs), func(i int) string { return rs[i].Token }, done, out.Failed), nil
}

func id(i int) *string { return aws.String(strconv.Itoa(i)) }

// refusals reads what a batch of n entries answered. An entry of which the
// answer says nothing is refused too: only a success counts.
func refusals(n int, token func(int) string, done []string, failed []types.BatchResultErrorEntry) []pull.Refusal {
	if len(done) == n {
		return nil
	}
	settled := make([]bool, n)
	for _, d := range done {
		if i, err := strconv.Atoi(d); err == nil && i >= 0 && i < n {
			settled[i] = true
		}
	}
	var out []pull.Refusal
	for _, f := range failed {
		i, err := strconv.Atoi(aws.ToString(f.Id))
		if err != nil || i < 0 || i >= n || settled[i] {
			continue
		}
		settled[i] = true
		code := aws.ToString(f.Code)
		out = append(out, pull.Refusal{Token: token(i), Lost: over(code), Code: code})
	}
	for i := range settled {
		if !settled[i] {
			out = append(out, pull.Refusal{Token: token(i), Code: "missing in the answer"})
		}
	}
	return out
}
