package webhook

import (
	"context"
	"encoding/json"
	"time"

	"github.com/keyturn/keyturn/internal/notice"
)

// PubSub is a push subscription of Google Cloud Pub/Sub: wrapped, unwrapped with
// its metadata as headers, or as the CloudEvent that Eventarc makes of it. What
// the attributes of a message are when it is unwrapped are attributes of the
// delivery, with names in lower case.
//
// Pub/Sub repeats whatever is not acknowledged, for as long as the topic keeps
// it: so a notice that can never be handled is acknowledged, no media type is
// refused, and MaxBody has room for the largest message. It waits for the ack
// deadline of the subscription, 10 s by default.
// https://cloud.google.com/pubsub/docs/push
//
// Authentication is by the OIDC token of the subscription's service account.
type PubSub struct{}

func (PubSub) profile() (profile, error) {
	// A message has at most 10 MB, and a third more in base64.
	// https://cloud.google.com/pubsub/quotas#resource_limits
	return profile{name: "pubsub", maxBody: 14 << 20, timeout: 9 * time.Second, loops: true}, nil
}

// pushed are the attributes that Secret Manager publishes, as headers.
// https://cloud.google.com/secret-manager/docs/event-notifications
var pushed = []string{"content-type", "eventtype", "secretid", "versionid", "timestamp", "dataformat", "deletetype"}

func (PubSub) receive(_ context.Context, q *request) (outcome, *refusal) {
	out := q.deliver(notice.Token(q.get("X-Goog-Pubsub-Message-Id")), pushed...)
	d := &out.delivery
	q.prefixed(d, "X-Goog-Pubsub-")
	q.prefixed(d, "Ce-")
	if d.Attributes["eventtype"] != "" {
		return out, nil // unwrapped: the body is the message's own
	}
	// The wrapper counts the attempts, so that a body differs at each: only the
	// message's id names it. What is wrong with it is the decoder's to say.
	var push struct {
		DeliveryAttempt int `json:"deliveryAttempt"`
		Message         struct {
			ID string `json:"messageId"`
		} `json:"message"`
	}
	if json.Unmarshal(q.body, &push) == nil {
		if d.ID == "" {
			d.ID = notice.Token(push.Message.ID)
		}
		d.Attempt = max(0, push.DeliveryAttempt)
	}
	if d.ID == "" {
		d.ID = notice.Token(q.get("Ce-Id"))
	}
	return out, nil
}
