package snssig

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/keyturn/keyturn/fault"
)

// The types of messages.
const (
	TypeNotification = "Notification"
	TypeSubscription = "SubscriptionConfirmation"
	TypeUnsubscribed = "UnsubscribeConfirmation"
)

// A Message is what SNS has signed, and nothing else.
// https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html
type Message struct {
	Type      string // one of the types above
	MessageID string
	TopicARN  string
	// Subject and Message are what was published, unless it is a confirmation.
	Subject, Message string
	// SubscribeURL and Token are of a confirmation. Whoever has them can
	// subscribe us: they are not for logs.
	SubscribeURL, Token string
	// Timestamp is when it was published.
	Timestamp time.Time

	// proof is what was verified, and by whom; the fields above may be changed.
	proof struct {
		by         *Verifier
		place      place
		kind       string
		url, token string
	}
}

// Envelope returns the message as SNS puts it, with no member but those that
// were verified. This is what decoders may read.
func (m *Message) Envelope() []byte {
	b, err := json.Marshal(struct {
		Type      string `json:"Type"`
		MessageID string `json:"MessageId"`
		TopicARN  string `json:"TopicArn"`
		Subject   string `json:"Subject,omitempty"`
		Message   string `json:"Message"`
		Timestamp string `json:"Timestamp"`
	}{m.Type, m.MessageID, m.TopicARN, m.Subject, m.Message, m.Timestamp.UTC().Format("2006-01-02T15:04:05.000Z")})
	if err != nil {
		panic("snssig: " + err.Error()) // strings only
	}
	return b
}

// An envelope is a message of which nothing is known yet.
type envelope struct {
	kind, id, topic, message string
	subject                  *string
	subscribeURL, token      string
	stamp                    string
	time                     time.Time
	version, certURL         string
	signature                []byte
}

// confirmation reports whether it is one of the two types that have a token.
func (e *envelope) confirmation() bool { return e.kind != TypeNotification }

var idForm = regexp.MustCompile(`^[0-9A-Za-z-]{1,100}$`)

func invalid(format string, args ...any) error { return fault.Newf(fault.Invalid, op, format, args...) }

// parse reads a body. The members that are signed must have a form in which
// the line breaks of the text that is signed cannot be moved from one into
// another.
func parse(body []byte) (*envelope, error) {
	if len(body) > maxBody {
		return nil, invalid("the body has %d bytes; expected at most %d", len(body), maxBody)
	}
	m, err := members(body)
	if err != nil {
		return nil, err
	}
	e := &envelope{}
	for name, to := range map[string]*string{
		"Type": &e.kind, "MessageId": &e.id, "TopicArn": &e.topic, "Message": &e.message, "Timestamp": &e.stamp,
		"SignatureVersion": &e.version, "SigningCertURL": &e.certURL,
	} {
		s := m[name]
		if s == nil {
			return nil, invalid("there is no %s; expected a message of SNS", name)
		}
		*to = *s
	}
	e.subject = m["Subject"]
	switch e.kind {
	case TypeNotification:
	case TypeSubscription, TypeUnsubscribed:
		if m["SubscribeURL"] == nil || m["Token"] == nil {
			return nil, invalid("a confirmation without SubscribeURL or Token; expected both")
		}
		e.subscribeURL, e.token = *m["SubscribeURL"], *m["Token"]
	default:
		return nil, invalid("the Type is another; expected %s, %s or %s", TypeNotification, TypeSubscription, TypeUnsubscribed)
	}
	// Also, SNS takes no subject with a line break in it.
	for name, s := range map[string]string{"SubscribeURL": e.subscribeURL, "Token": e.token, "Subject": deref(e.subject)} {
		if strings.ContainsFunc(s, unicode.IsControl) {
			return nil, invalid("there is a control character in %s; expected none", name)
		}
	}
	if !idForm.MatchString(e.id) {
		return nil, invalid("the MessageId has another form; expected a UUID")
	}
	if e.time, err = time.Parse(time.RFC3339, e.stamp); err != nil {
		return nil, invalid("the Timestamp is no time; expected one as in RFC 3339")
	}
	if m["Signature"] == nil {
		return nil, invalid("there is no Signature; expected a message of SNS")
	}
	if e.signature, err = base64.StdEncoding.DecodeString(*m["Signature"]); err != nil {
		return nil, invalid("the Signature is not base64")
	}
	return e, nil
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

// ours are the members that are read. No other may be spelled like one: a
// lenient reader behind us could take it instead.
var ours = []string{
	"Type", "MessageId", "TopicArn", "Subject", "Message", "Timestamp", "SignatureVersion", "Signature", "SigningCertURL", "SubscribeURL", "Token",
}

// members reads the members of the object that body is, those of ours that are
// strings. One that is there twice, in whatever case, is Invalid.
func members(body []byte) (map[string]*string, error) {
	const expected = "expected a message of SNS, one JSON object"
	dec := json.NewDecoder(bytes.NewReader(body))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, invalid("the body is no JSON object; %s", expected)
	}
	out := map[string]*string{}
	seen := map[string]bool{}
	for dec.More() {
		t, err := dec.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return nil, invalid("the body is no JSON object; %s", expected)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, invalid("the body is no JSON object; %s", expected)
		}
		for _, o := range ours {
			if !strings.EqualFold(strings.TrimSpace(name), o) {
				continue
			}
			if name != o {
				return nil, invalid("%s is spelled in another way; %s", o, expected)
			}
			if seen[o] {
				return nil, invalid("%s is there twice; %s", o, expected)
			}
			seen[o] = true
			var s *string // null is none
			if err := json.Unmarshal(value, &s); err != nil {
				return nil, invalid("%s is no string; %s", o, expected)
			}
			out[o] = s
		}
	}
	if _, err := dec.Token(); err != nil {
		return nil, invalid("the body is no JSON object; %s", expected)
	}
	if dec.More() {
		return nil, invalid("something comes behind the object; %s", expected)
	}
	return out, nil
}

// signed is the text that SNS signs.
// https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message-verify-message-signature.html
func (e *envelope) signed() []byte {
	var b bytes.Buffer
	line := func(name, value string) {
		b.WriteString(name + "\n")
		b.WriteString(value + "\n")
	}
	line("Message", e.message)
	line("MessageId", e.id)
	if e.confirmation() {
		line("SubscribeURL", e.subscribeURL)
		line("Timestamp", e.stamp)
		line("Token", e.token)
	} else {
		if e.subject != nil {
			line("Subject", *e.subject)
		}
		line("Timestamp", e.stamp)
	}
	line("TopicArn", e.topic)
	line("Type", e.kind)
	return b.Bytes()
}

// proven is what the signature covers. It is called once that was checked.
func (e *envelope) proven(v *Verifier, p place) *Message {
	m := &Message{
		Type: e.kind, MessageID: e.id, TopicARN: e.topic, Message: e.message, Timestamp: e.time,
		SubscribeURL: e.subscribeURL, Token: e.token,
	}
	if !e.confirmation() {
		m.Subject = deref(e.subject) // of a confirmation it is not signed
	}
	m.proof.by, m.proof.place, m.proof.kind, m.proof.url, m.proof.token = v, p, e.kind, e.subscribeURL, e.token
	return m
}
