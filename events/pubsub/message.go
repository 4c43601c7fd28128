package pubsub

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
)

// A Message is one Pub/Sub message, as a pull client has it: Data is bytes,
// not base64. Printing it shows Data, which holds no secret value.
type Message struct {
	Attributes map[string]string
	Data       []byte
	// ID is Pub/Sub's id of the message, which is the topic's own: one change
	// told on several topics has several.
	ID        string
	Published time.Time
}

// ErrNoAttributes is why a message cannot be read that was pushed without its
// wrapper and without its metadata: what happened, and to which secret, is in
// the attributes alone. Its error is of kind Unavailable, so the message is
// never acknowledged: once the subscription is corrected it is delivered again
// and can be read.
// https://cloud.google.com/pubsub/docs/payload-unwrapping
var ErrNoAttributes = errors.New("the attributes are missing; set --push-no-wrapper-write-metadata on the subscription, or let it wrap its messages")

func noAttributes() error { return fault.New(fault.Unavailable, opDecode, ErrNoAttributes) }

const (
	wrapped = "the JSON of a Pub/Sub push: an object with the member message"
	// published is the type of the CloudEvents that Eventarc makes of messages.
	// https://github.com/googleapis/google-cloudevents, pubsub/v1/events.proto
	published = "google.cloud.pubsub.topic.v1.messagePublished"
)

// ParsePush reads the body of a push delivery that is wrapped, as it is by
// default. The error is of kind Invalid, or that of [ErrNoAttributes] for a
// body that was not wrapped.
// https://cloud.google.com/pubsub/docs/push
func ParsePush(body []byte) (Message, error) {
	env, err := notice.Parse(body, opDecode, wrapped)
	if err != nil {
		return Message{}, err
	}
	return parseWrapped(env)
}

func parseWrapped(env notice.Object) (Message, error) {
	if !env.Has("message") {
		if isResource(env) {
			return Message{}, noAttributes()
		}
		return Message{}, fault.Newf(fault.Invalid, opDecode, "the member message is missing; expected %s", wrapped)
	}
	in := env.Object("message")
	if in == nil {
		return Message{}, fault.Newf(fault.Invalid, opDecode, "the member message is no object; expected %s", wrapped)
	}
	return parseMessage(in)
}

// parseMessage reads a message as JSON has it, with its data in base64.
// https://cloud.google.com/pubsub/docs/reference/rest/v1/PubsubMessage
func parseMessage(in notice.Object) (m Message, err error) {
	m = Message{Attributes: in.Texts("attributes"), ID: firstOf(in.Text("messageId"), in.Text("message_id"))}
	m.Published, _ = notice.Time(firstOf(in.Text("publishTime"), in.Text("publish_time")))
	if m.Data, err = base64.StdEncoding.DecodeString(in.Text("data")); err != nil {
		return Message{}, fault.Newf(fault.Invalid, opDecode, "message.data is not base64 in the standard alphabet; expected %s", wrapped)
	}
	return m, nil
}

// isResource reports whether env is a secret or a version itself, which is the
// data of a message.
func isResource(env notice.Object) bool {
	return secretForm.MatchString(env.Text("name")) || versionForm.MatchString(env.Text("name"))
}

// ParseUnwrapped reads a push delivery of a subscription with --push-no-wrapper
// and --push-no-wrapper-write-metadata: the body is the data, and the
// attributes are headers. header returns a request's header by name, as
// http.Header.Get does. Without the attributes the error is [ErrNoAttributes].
func ParseUnwrapped(header func(string) string, body []byte) (Message, error) {
	m := Message{Attributes: map[string]string{}, Data: body, ID: header("x-goog-pubsub-message-id")}
	for _, name := range attributes {
		if v := header(name); v != "" {
			m.Attributes[name] = v
		}
	}
	if m.Attributes[attrType] == "" {
		return Message{}, noAttributes()
	}
	m.Published, _ = notice.Time(header("x-goog-pubsub-publish-time"))
	return m, nil
}

// ParseEventarc reads a CloudEvent that Eventarc makes of a message, which is
// how Cloud Run functions are called: with ce- headers, or with the whole
// event as the body. The message in it is wrapped. The error is of kind
// Invalid.
// https://cloud.google.com/eventarc/docs/run/pubsub-handling
func ParseEventarc(header func(string) string, body []byte) (Message, error) {
	if typ := header("ce-type"); typ != "" {
		if typ != published {
			return Message{}, otherType()
		}
		return ParsePush(body)
	}
	const expected = "a CloudEvent, with ce- headers or in structured JSON"
	env, err := notice.Parse(body, opDecode, expected)
	if err != nil {
		return Message{}, err
	}
	if !env.Has("specversion") {
		return Message{}, fault.Newf(fault.Invalid, opDecode, "neither the header ce-type nor the member specversion is there; expected %s", expected)
	}
	return parseStructured(env)
}

func parseStructured(env notice.Object) (Message, error) {
	switch {
	case env.Text("type") != published:
		return Message{}, otherType()
	case env.Has("data"):
		return ParsePush(env["data"])
	}
	data, err := base64.StdEncoding.DecodeString(env.Text("data_base64"))
	if err != nil {
		return Message{}, fault.Newf(fault.Invalid, opDecode, "data_base64 is not base64; expected a Pub/Sub push in it")
	}
	return ParsePush(data)
}

// otherType refuses for instance the audit-log events of the same calls, which
// have another payload.
func otherType() error {
	return fault.Newf(fault.Invalid, opDecode, "the CloudEvent is of another type; expected %s: let the trigger listen to the secret's topic", published)
}

// auditLog refuses an entry of the audit log that came by a log sink or a
// trigger of its own: it tells of calls, failed ones too, and names no version
// in the way of notices.
func auditLog() error {
	return fault.Newf(fault.Invalid, opDecode, "this is an entry of the audit log; expected a message that Secret Manager published: set the topic on the secret (gcloud secrets update --add-topics)")
}

// resource returns the secret or version that the data holds, without any
// value; nil if the data cannot be read, since the attributes say enough.
func (m *Message) resource() notice.Object {
	if len(m.Data) == 0 || !json.Valid(m.Data) {
		return nil
	}
	o, err := notice.Parse(m.Data, opDecode, "")
	if err != nil {
		return nil
	}
	return o
}

func firstOf(ss ...string) string {
	for _, s := range ss {
		if s = strings.TrimSpace(s); s != "" {
			return s
		}
	}
	return ""
}

// ParseRequest reads a request that may be any of the three kinds of push: a
// CloudEvent of Eventarc, a message that is not wrapped, or one that is. Errors
// are those of the kind that it is.
func ParseRequest(header func(string) string, body []byte) (Message, error) {
	switch {
	case header("ce-type") != "" || strings.HasPrefix(header("Content-Type"), "application/cloudevents"):
		return ParseEventarc(header, body)
	case header(attrType) != "":
		return ParseUnwrapped(header, body)
	}
	return ParsePush(body)
}
