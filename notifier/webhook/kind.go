package webhook

import (
	"context"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/keyturn/keyturn/notifier"
)

// A Kind is the protocol of a route: [EventBridge], [EventGrid], [PubSub],
// [SNS], [CloudEvents] or [VaultAudit]. Everything that they share, from
// authentication to the bounds, is written once outside of them.
type Kind interface {
	// profile says how requests of the kind are, or why the kind's own options
	// cannot work.
	profile() (profile, error)
	// receive says what is to be done with a request that was read. Its sender
	// is known, unless the profile says that receive finds out. An error is a
	// [*refusal].
	receive(ctx context.Context, q *request) (outcome, *refusal)
}

// A profile is what the shared code needs to know of a kind.
type profile struct {
	// name is the default of Route.Name, and after /v1/ of Route.Path.
	name    string
	maxBody int64
	timeout time.Duration
	// media reports whether a body may be of this media type, in lower case
	// without parameters; "" stands for none said. Nil takes any.
	media func(string) bool
	// origins may ask by OPTIONS whether they may post, and unasked says that
	// they need no credentials for that.
	origins []string
	unasked bool
	// signed says that a body proves by itself who sent it.
	signed bool
	// plain says that an http.Handler may stand in for receive.
	plain bool
	// loops says that the sender repeats whatever is not acknowledged, so that
	// a notice that can never be handled is acknowledged.
	loops bool
}

// A request is what a kind sees of one.
type request struct {
	route    *route
	header   http.Header
	body     []byte
	received time.Time
}

// An outcome is a delivery for the handler, or an answer without one.
type outcome struct {
	delivery notifier.Delivery
	// done says that there is nothing to hand on: reply is the JSON answered
	// with status 200, or "" for a plain one.
	done  bool
	reply string
}

// deliver returns the outcome that hands q's body on, with those headers among
// names that are there once.
func (q *request) deliver(id string, names ...string) outcome {
	d := notifier.Delivery{Source: q.route.Name, ID: id, Body: q.body, Received: q.received}
	q.attribute(&d, "traceparent")
	for _, n := range names {
		q.attribute(&d, n)
	}
	return outcome{delivery: d}
}

// attribute copies a header, whose name is in lower case. Of two with one name
// it is anybody's guess which one counts, so neither does.
func (q *request) attribute(d *notifier.Delivery, name string) {
	if v := q.get(name); v != "" {
		if d.Attributes == nil {
			d.Attributes = map[string]string{}
		}
		d.Attributes[name] = v
	}
}

// prefixed copies the headers whose names begin with prefix, which is in the
// canonical form of net/http.
func (q *request) prefixed(d *notifier.Delivery, prefix string) {
	for name := range q.header {
		if strings.HasPrefix(name, prefix) {
			q.attribute(d, strings.ToLower(name))
		}
	}
}

// get returns a header that is there exactly once, or "".
func (q *request) get(name string) string {
	if vs := q.header.Values(name); len(vs) == 1 {
		return vs[0]
	}
	return ""
}

// isJSON takes JSON and what is written in it, and a body whose type is not
// said: it is parsed in any case.
func isJSON(mt string) bool {
	return mt == "" || mt == "application/json" || strings.HasPrefix(mt, "application/") && strings.HasSuffix(mt, "+json")
}

// mediaType returns the media type of h, and whether it can be read and is
// UTF-8.
func mediaType(h http.Header) (mt string, ok bool) {
	ct := h.Get("Content-Type")
	if ct == "" {
		return "", true
	}
	mt, params, err := mime.ParseMediaType(ct)
	if err != nil {
		return "", false
	}
	cs := params["charset"]
	return mt, cs == "" || strings.EqualFold(cs, "utf-8")
}

// EventBridge is an API destination of Amazon EventBridge: the body is one
// event. EventBridge waits 5 s, tries again after 429, 5xx and silence, and
// drops the event for good on any other status; after 401 it also gets a new
// OAuth token. It signs nothing, so authentication is by [APIKey], [Basic] or a
// token of the OAuth client credentials grant.
// https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-api-destinations.html
type EventBridge struct{}

func (EventBridge) profile() (profile, error) {
	return profile{name: "eventbridge", maxBody: 1 << 20, timeout: 4500 * time.Millisecond, media: isJSON}, nil
}

func (EventBridge) receive(_ context.Context, q *request) (outcome, *refusal) {
	return q.deliver(""), nil
}

// VaultAudit is a POST of anything, as the http audit device of OpenBao sends it: one
// entry a request, without a Content-Type unless one is configured, while a
// request to OpenBao waits for our answer; a status of 300 or more fails the
// entry and is not repeated. So the time is short, and its Route.Handler should
// only append to a local file.
// https://openbao.org/docs/audit/http/
type VaultAudit struct{}

func (VaultAudit) profile() (profile, error) {
	// An entry holds a whole request or response, of which lists are long.
	return profile{name: "vaultaudit", maxBody: 4 << 20, timeout: 2 * time.Second, plain: true}, nil
}

func (VaultAudit) receive(_ context.Context, q *request) (outcome, *refusal) {
	return q.deliver("", "content-type"), nil
}
