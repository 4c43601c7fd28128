package webhook

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CloudEvents is any sender of CloudEvents by HTTP: structured, batched or
// binary, the latter with its attributes as ce- headers, which become
// attributes of the delivery as they are. A sender that has no credentials to
// send signs with [StandardWebhooks].
// https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/http-protocol-binding.md
type CloudEvents struct {
	// Origins may ask by OPTIONS whether they may post here, under the names
	// given; none by default.
	Origins []string
	// AnonymousHandshake answers them without credentials too.
	AnonymousHandshake bool
}

func (c CloudEvents) profile() (profile, error) {
	return profile{name: "cloudevents", maxBody: 1 << 20, timeout: 10 * time.Second, media: isJSON, origins: c.Origins, unasked: c.AnonymousHandshake}, nil
}

func (CloudEvents) receive(_ context.Context, q *request) (outcome, *refusal) {
	// Standard Webhooks keeps webhook-id over all attempts. A CloudEvent is
	// named by its source and id together.
	id := q.get(headerWebhookID)
	if id == "" {
		if id = q.get("Ce-Id"); id != "" {
			id = q.get("Ce-Source") + " " + id
		}
	}
	out := q.deliver(id, "content-type")
	q.prefixed(&out.delivery, "Ce-")
	if a := out.delivery.Attributes; a["traceparent"] == "" && a["ce-traceparent"] != "" {
		a["traceparent"] = a["ce-traceparent"]
	}
	return out, nil
}

// The handshake by which a target allows a sender to post.
// https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md#4-abuse-protection
const (
	headerRequestOrigin = "Webhook-Request-Origin"
	headerRequestRate   = "Webhook-Request-Rate"
)

// handshake answers OPTIONS. Only an origin of our list is allowed, by the name
// that the list has: neither * nor what the sender wrote. A callback that the
// sender offers in WebHook-Request-Callback is never fetched, since whoever asks
// could have us call any address.
func (rt *route) handshake(w http.ResponseWriter, r *http.Request) *refusal {
	asked := r.Header.Values(headerRequestOrigin)
	if len(asked) != 1 {
		return refuse(http.StatusForbidden, Handshake, "expected one WebHook-Request-Origin")
	}
	i := slices.IndexFunc(rt.profile.origins, func(o string) bool { return strings.EqualFold(o, asked[0]) })
	if i < 0 {
		return refuse(http.StatusForbidden, Handshake, "the origin may not post here")
	}
	h := w.Header()
	h.Set("Allow", http.MethodPost)
	h["WebHook-Allowed-Origin"] = []string{rt.profile.origins[i]}
	// Whoever asks for a rate must be told one. Ours is what is in flight, which
	// a 503 bounds.
	if n, err := strconv.ParseUint(r.Header.Get(headerRequestRate), 10, 31); err == nil && n > 0 {
		h["WebHook-Allowed-Rate"] = []string{strconv.FormatUint(n, 10)}
	}
	rt.log.InfoContext(r.Context(), "allowed a sender to post", "origin", rt.profile.origins[i])
	answer(w, http.StatusOK, "allowed")
	return nil
}
