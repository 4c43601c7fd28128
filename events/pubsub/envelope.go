package pubsub

import (
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/notice"
)

const expectedAny = "a Pub/Sub message, as it is pushed, pulled or passed on by Eventarc"

// DecodeAny turns everything that JSON can hold of messages into events, told
// apart by content:
//
//   - a push that is wrapped ({"message","subscription"});
//   - a message by itself ({"attributes","data","messageId"}, its data in
//     base64);
//   - the answer of pull by REST ({"receivedMessages":[{"message"}]}), and what
//     gcloud pubsub subscriptions pull --format=json prints;
//   - a CloudEvent of Eventarc in structured mode;
//   - an array of any of these.
//
// They may lie in one another, [notice.MaxDepth] deep. An entry of the audit
// log, as a CloudEvent or by itself, is refused. Errors are those of
// [Decoder.Decode] and [ParsePush]; of several messages the good ones' events
// are returned beside the error about the others, which is of kind Unavailable
// if one of them is.
//
// https://cloud.google.com/pubsub/docs/reference/rest/v1/projects.subscriptions/pull
func (d Decoder) DecodeAny(body []byte, received time.Time) ([]events.Event, error) {
	w := walker{Walker: notice.Walker{Op: opDecode, Expected: expectedAny}, decoder: d, received: received}
	w.Open = w.open
	w.Walk(body, 0)
	return w.Result(opDecode)
}

// A walker goes into the envelopes of one delivery.
type walker struct {
	notice.Walker
	decoder  Decoder
	received time.Time
}

// open looks for what only one kind of envelope has.
func (w *walker) open(env notice.Object, depth int) {
	switch {
	case env.Has("specversion"):
		w.message(parseStructured(env))
	case env.Has("receivedMessages"):
		w.List(env, "receivedMessages", depth)
	case env.Has("message"):
		w.message(parseWrapped(env))
	case env.Has("attributes"), env.Has("data") && (env.Has("messageId") || env.Has("message_id")):
		w.message(parseMessage(env))
	case isAuditLog(env):
		w.Add(nil, auditLog())
	case isResource(env):
		w.Add(nil, noAttributes())
	default:
		w.Unknown()
	}
}

func (w *walker) message(m Message, err error) {
	if err != nil {
		w.Add(nil, err)
		return
	}
	w.Add(w.decoder.Decode(m, w.received))
}

// isAuditLog reports whether env is a LogEntry of the audit log, which a log
// sink publishes and which is the data of Eventarc's events about calls.
// https://cloud.google.com/logging/docs/reference/v2/rest/v2/LogEntry
func isAuditLog(env notice.Object) bool {
	return env.Object("protoPayload").Has("methodName")
}
