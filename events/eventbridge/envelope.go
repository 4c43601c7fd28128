package eventbridge

import (
	"strings"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
)

const expectedAny = "an EventBridge event, a CloudTrail record, or SQS, SNS or Lambda envelopes of them"

// DecodeAny is [Decode] for every way in which such notices travel, told apart
// by content:
//
//   - the event itself, as a rule's target, a function or a dead-letter queue
//     gets it;
//   - what SQS gives: the answer of ReceiveMessage ({"Messages":[{"Body"}]}),
//     one of its messages, or the records of a function's call
//     ({"Records":[{"eventSource":"aws:sqs","body"}]});
//   - what SNS sends: a notification ({"Type":"Notification","Message"}), also
//     in the body of an SQS message, or a function's records of them
//     ({"Records":[{"Sns"}]});
//   - a CloudTrail record, as it is the detail of an event, and a log file of
//     them ({"Records":[{"eventVersion"}]});
//   - an array of any of these.
//
// They may lie in one another, [notice.MaxDepth] deep. A record is the same
// change by whatever way it comes, and its events have the same ids.
//
// SNS's question whether a subscription is wanted is no event. To answer it,
// and to check SNS's signature, is for who received it: nothing here opens an
// address. Errors are those of [Decode]; of several notices the good ones are
// returned beside the error about the others.
//
// https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html, with-sns.html,
// https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html,
// https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-record-contents.html
func DecodeAny(body []byte, received time.Time) ([]events.Event, error) {
	w := walker{Walker: notice.Walker{Op: opDecode, Expected: expectedAny}, received: received}
	w.Open = w.open
	w.Walk(body, 0)
	return w.Result(opDecode)
}

// A walker goes into the envelopes of one delivery.
type walker struct {
	notice.Walker
	received time.Time
}

// open looks for what only one kind of envelope has. The event comes first: a
// detail may hold anything.
func (w *walker) open(env notice.Object, depth int) {
	switch {
	case isEvent(env):
		w.Add(decodeEvent(env, w.received))
	case env.Has("Records"):
		w.List(env, "Records", depth)
	case env.Has("Messages"):
		w.List(env, "Messages", depth)
	case env.Has("Sns"):
		w.notification(env.Object("Sns"), depth)
	case env.Has("Type") && (env.Has("Message") || env.Has("TopicArn")):
		w.notification(env, depth)
	case env.Has("body") && (env.Has("MessageId") || env.Has("ReceiptHandle") || env.Text("eventSource") == "aws:sqs"):
		w.Walk([]byte(env.Text("body")), depth+1)
	case env.Has("eventName") && env.Has("eventSource") && !strings.HasPrefix(env.Text("eventSource"), "aws:"):
		w.Add(decodeRecord(env, w.received))
	default:
		w.Unknown()
	}
}

// notification opens what SNS sends, by HTTP, to a queue or to a function.
func (w *walker) notification(sns notice.Object, depth int) {
	switch sns.Text("Type") {
	case "Notification":
		w.Walk([]byte(sns.Text("Message")), depth+1)
	case "SubscriptionConfirmation", "UnsubscribeConfirmation":
		w.Add(nil, nil)
	default:
		w.Add(nil, fault.Newf(fault.Invalid, opDecode, "the message of SNS is of a type that is not known; expected Notification"))
	}
}

// decodeRecord reads a CloudTrail record that did not come over EventBridge.
// The log files of a trail have every service's records.
func decodeRecord(record notice.Object, received time.Time) ([]events.Event, error) {
	switch record.Text("eventSource") {
	case "secretsmanager.amazonaws.com", "secretsmanager.amazonaws.com.cn":
	default:
		return nil, nil
	}
	m := &message{envelope: record, detail: record, received: received}
	switch record.Text("eventType") {
	case "AwsApiCall":
		return m.apiCall()
	case "AwsServiceEvent":
		return m.serviceEvent()
	}
	return nil, nil
}
