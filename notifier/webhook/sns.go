package webhook

import (
	"context"
	"net/http"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/snssig"
)

// An SNSVerifier tells which messages come from an allowed topic of Amazon SNS.
// It is safe for concurrent use. [snssig.Verifier] is one.
type SNSVerifier interface {
	// Verify reads a message and checks its signature, topic and age. Errors are
	// of kind Invalid for what is no message, Denied for one that is not to be
	// trusted, and Unavailable while the certificate cannot be fetched.
	Verify(ctx context.Context, body []byte) (*snssig.Message, error)
	// Confirm opens the SubscribeURL of a message that Verify returned, if it is
	// of an allowed topic and host. The kinds of its errors are those of Verify.
	Confirm(ctx context.Context, m *snssig.Message) error
}

// SNS is an HTTPS subscription of Amazon SNS. A message proves by its own
// signature who sent it, so Route.Auth may be empty; [Basic] works beside it,
// with the name and password in the URL of the subscription. The delivery is
// what was published, without the envelope, under the message's id: deliver raw
// must be off, since a raw message has no signature.
//
// A new subscription is confirmed only if the message is signed and the topic
// allowed. One that was cancelled is only told of in the log: to subscribe anew
// by ourselves could undo what an operator did.
// https://docs.aws.amazon.com/sns/latest/dg/sns-http-https-endpoint-as-subscriber.html
type SNS struct{ Verifier SNSVerifier }

var _ SNSVerifier = (*snssig.Verifier)(nil)

const headerSNSType = "X-Amz-Sns-Message-Type"

func (s SNS) profile() (profile, error) {
	if s.Verifier == nil {
		return profile{}, fault.Newf(fault.Invalid, op, "a route of kind SNS without a verifier; expected one, since anybody could post otherwise")
	}
	media := func(mt string) bool { return mt == "text/plain" || isJSON(mt) } // JSON comes as text
	// A message has at most 256 KiB, and quotes double within the envelope. SNS
	// waits 15 s.
	return profile{name: "sns", maxBody: 1 << 20, timeout: 12 * time.Second, media: media, signed: true}, nil
}

func (s SNS) receive(ctx context.Context, q *request) (outcome, *refusal) {
	told := q.get(headerSNSType)
	switch told {
	case snssig.TypeNotification, snssig.TypeSubscription, snssig.TypeUnsubscribed:
	default:
		return outcome{}, refuse(http.StatusBadRequest, Invalid, "expected x-amz-sns-message-type of Amazon SNS, without raw delivery")
	}
	m, err := s.Verifier.Verify(ctx, q.body)
	if err != nil {
		return outcome{}, distrust(err, Forbidden, "the message is not one that can be trusted")
	}
	if m.Type != told { // only the body is signed
		return outcome{}, refuse(http.StatusBadRequest, Invalid, "x-amz-sns-message-type is another than the message's")
	}
	log := q.route.log.With("topic", m.TopicARN)
	switch m.Type {
	case snssig.TypeSubscription:
		if err := s.Verifier.Confirm(ctx, m); err != nil {
			return outcome{}, distrust(err, Handshake, "the subscription is not confirmed")
		}
		log.InfoContext(ctx, "SNS subscription confirmed")
		return outcome{done: true}, nil
	case snssig.TypeUnsubscribed:
		log.WarnContext(ctx, "the SNS subscription was cancelled; its notices come no more, until somebody subscribes again")
		return outcome{done: true}, nil
	}
	out := q.deliver(m.MessageID)
	out.delivery.Body = []byte(m.Message)
	if out.delivery.Attributes == nil {
		out.delivery.Attributes = map[string]string{}
	}
	out.delivery.Attributes["x-amz-sns-topic-arn"] = m.TopicARN
	return out, nil
}

// distrust maps an error of a verifier. What it could not find out is an outage.
func distrust(err error, reason Reason, why string) *refusal {
	switch fault.KindOf(err) {
	case fault.Denied:
		return &refusal{status: http.StatusForbidden, reason: reason, why: why, err: err}
	case fault.Invalid:
		return &refusal{status: http.StatusBadRequest, reason: Invalid, why: why, err: err}
	}
	return awayFor(why+" at present", err)
}
