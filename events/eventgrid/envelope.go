package eventgrid

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
)

const expectedAny = expected + ", as it is delivered, pulled, queued or dead-lettered"

// DecodeAny is [Decode] for every way in which such events travel, told apart
// by content:
//
//   - what a webhook, an Event Hub, a Service Bus queue or a dead-letter blob
//     of a subscription gets, which is what [Decode] reads;
//   - the answer of a namespace topic to receive
//     ({"value":[{"brokerProperties","event"}]}), one of its members, and the
//     same of a namespace's dead letters ({"deadLetterProperties","event"});
//   - the base64 of an event, which is the body of a storage queue's message;
//   - what the host of Azure Functions hands to a custom handler, as for
//     [DecodeTrigger];
//   - an array, or a JSON string, of any of these.
//
// They may lie in one another, [notice.MaxDepth] deep. Errors are those of
// [Decode]; of several events the good ones are returned beside the error
// about the others.
//
// https://learn.microsoft.com/rest/api/eventgrid/dataplane/receive-cloud-events,
// https://learn.microsoft.com/azure/event-grid/handler-storage-queues,
// https://learn.microsoft.com/azure/event-grid/dead-letter-event-subscriptions-namespace-topics
func DecodeAny(body []byte, received time.Time) ([]events.Event, error) {
	w := walker{Walker: notice.Walker{Op: opDecode, Expected: expectedAny}, received: received}
	w.Open = w.open
	w.Unwrap = unquote
	w.Walk(body, 0)
	return w.Result(opDecode)
}

// A walker goes into the envelopes of one delivery.
type walker struct {
	notice.Walker
	received time.Time
}

// open looks for what only one kind of envelope has. The event comes first: its
// data may hold anything.
func (w *walker) open(env notice.Object, depth int) {
	data := env.Object("Data")
	switch {
	case eventType(env) != "":
		w.Add(decodeEvent(env, w.received))
	case env.Has("event") && (env.Has("brokerProperties") || env.Has("deadLetterProperties")):
		w.Walk(env["event"], depth+1)
	case env.Has("value"):
		w.List(env, "value", depth)
	case env.Has("Metadata") && len(data) == 1:
		for _, raw := range data {
			w.Walk(raw, depth+1)
		}
	default:
		w.Add(nil, fault.Newf(fault.Invalid, opDecode, "the object has neither eventType nor type, nor the members of an envelope that is known; expected %s", expectedAny))
	}
}

// unquote returns the JSON in a JSON string or in base64, if raw is one.
func unquote(raw []byte) ([]byte, bool) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || raw[0] == '{' || raw[0] == '[' {
		return nil, false
	}
	if raw[0] == '"' {
		var s string
		if json.Unmarshal(raw, &s) != nil {
			return nil, false
		}
		return []byte(s), true
	}
	inner, err := base64.StdEncoding.DecodeString(string(raw))
	if err != nil {
		return nil, false
	}
	inner = bytes.TrimSpace(inner)
	return inner, len(inner) > 0 && strings.IndexByte(`{["`, inner[0]) >= 0
}
