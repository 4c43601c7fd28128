package webhook

import (
	"context"
	"encoding/json"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/notice"
)

// EventGrid is a webhook subscription of Azure Event Grid, in its own schema or
// in that of CloudEvents, single or batched. Event Grid waits 30 s, drops an
// event for good on 400, 401, 403 and 413, and repeats it after anything else
// that is not a success: so an outage of ours is 503, and MaxBody has room for
// the largest batch.
// https://learn.microsoft.com/azure/event-grid/delivery-and-retry
//
// Event Grid signs nothing. Authentication is by an Entra token or by [APIKey]
// in a delivery header that is marked as secret.
//
// Before a subscription works Event Grid asks whether we want it, and again at
// each change of it. In its own schema it posts a code, which is returned once
// the caller is authenticated like for any delivery; the validationUrl beside
// it is never opened, since whoever can post could have us call any address. In
// that of CloudEvents it asks by OPTIONS, which needs credentials too: with
// Entra the token is sent along, and a target that allows strangers lets any
// customer of Azure direct a flood of Event Grid at it. Refusing shows at once,
// when the subscription is made; AnonymousHandshake is for one whose secret
// header turns out not to be sent with OPTIONS. Even then the answer is a
// constant, and every delivery needs the header.
// https://learn.microsoft.com/azure/event-grid/end-point-validation-cloud-events-schema
type EventGrid struct {
	// Origins may ask by OPTIONS. eventgrid.azure.net by default; Azure clouds
	// of their own have other names.
	Origins []string
	// AnonymousHandshake answers OPTIONS of such an origin without credentials.
	AnonymousHandshake bool
}

func (e EventGrid) profile() (profile, error) {
	if e.Origins == nil {
		e.Origins = []string{"eventgrid.azure.net"}
	}
	// A batch is of at most 1 MiB, unless a single event is larger. Base64 and
	// the envelope come on top.
	return profile{name: "eventgrid", maxBody: 2 << 20, timeout: 20 * time.Second, media: isJSON, origins: e.Origins, unasked: e.AnonymousHandshake}, nil
}

func (EventGrid) receive(ctx context.Context, q *request) (outcome, *refusal) {
	subscription := notice.Token(q.get("Aeg-Subscription-Name"))
	switch strings.ToLower(q.get("Aeg-Event-Type")) {
	case "subscriptionvalidation":
		code := validationCode(q.body)
		if code == "" {
			return outcome{}, refuse(http.StatusBadRequest, Handshake, "expected an array with one SubscriptionValidationEvent and its code")
		}
		reply, err := json.Marshal(map[string]string{"validationResponse": code})
		if err != nil {
			return outcome{}, away(Unavailable, "the answer could not be written", err)
		}
		q.route.log.InfoContext(ctx, "Event Grid subscription validated", "subscription", subscription)
		// 202 and 204, which are fine for a delivery, are not for this.
		return outcome{done: true, reply: string(reply)}, nil
	case "subscriptiondeletion":
		q.route.log.WarnContext(ctx, "an Event Grid subscription was deleted; its notices come no more", "subscription", subscription)
		return outcome{done: true}, nil
	}
	out := q.deliver("", "content-type", "aeg-event-type", "aeg-subscription-name", "aeg-delivery-count", "aeg-data-version", "aeg-metadata-version", "aeg-output-event-id")
	// It counts from 0 in what was captured.
	if n, err := strconv.ParseUint(q.get("Aeg-Delivery-Count"), 10, 16); err == nil {
		out.delivery.Attempt = int(n) + 1
	}
	return out, nil
}

// validationCode returns the code of a subscription's handshake, or "" if body
// is not exactly one. The code has the form of an identifier, so it may be
// echoed.
// https://learn.microsoft.com/azure/event-grid/end-point-validation-event-grid-events-schema
func validationCode(body []byte) string {
	var batch []json.RawMessage
	if json.Unmarshal(body, &batch) != nil || len(batch) != 1 {
		return ""
	}
	env, err := notice.Parse(batch[0], op, "an event of Event Grid")
	if err != nil || env.Text("eventType") != "Microsoft.EventGrid.SubscriptionValidationEvent" {
		return ""
	}
	return notice.Token(env.Object("data").Text("validationCode"))
}
