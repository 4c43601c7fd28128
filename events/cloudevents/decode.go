// Package cloudevents decodes CloudEvents 1.0 that speak Keyturn's own types,
// from senders with sources of their own: an in-house rotator, or whoever else
// changes a secret and wants the fleet to hear of it.
//
//	{"specversion": "1.0", "id": "42", "source": "/rotators/ldap",
//	 "type": "dev.keyturn.version.activated.v1", "time": "2026-06-01T10:00:00Z",
//	 "data": {"ref": "aws://111122223333/eu-west-1/prod/agents/payments", "version": "7"}}
//
// Data is the JSON of [events.Data], of which a stranger is believed ref,
// version, previous_version, label and reason. Which tenant a secret belongs to
// is for the notifier's rules to say, and what the provider called the notice
// is for the provider's own decoder.
//
// A version that is told of here and by its provider is one event: where
// something can happen to a version only once, the version is the id's key. All
// else is named by the event's source and id, which CloudEvents wants to be
// unique.
//
// Everything here is pure. The formats are those of
// https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md,
// formats/json-format.md and bindings/http-protocol-binding.md there.
package cloudevents

import (
	"encoding/base64"
	"encoding/json"
	"regexp"
	"strings"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
)

const (
	cause    = "cloudevents"
	opDecode = "cloudevents: decode"
	expected = "a CloudEvent in JSON, or an array of them"
	inData   = "the JSON of an event's data: an object with ref, and version where there is one"
)

// Decode turns the JSON of one event in structured mode, or of a batch, into
// events. The time is required, which CloudEvents leaves optional: it tells
// news from what is older. An event of a type that is not Keyturn's gives no
// events and no error; so does the sibling in which a rotation keeps its
// pending version.
//
// An error is always of kind Invalid, and says what was expected and where,
// without quoting the body. Of a batch the good members are returned beside
// the error about the others.
func Decode(body []byte) ([]events.Event, error) {
	members, array, err := notice.Members(body, opDecode, expected)
	if err != nil {
		return nil, err
	}
	if !array {
		return decodeStructured(body)
	}
	var b notice.Batch
	for _, raw := range members {
		b.Add(decodeStructured(raw))
	}
	return b.Result(opDecode)
}

func decodeStructured(raw []byte) ([]events.Event, error) {
	env, err := notice.Parse(raw, opDecode, expected)
	if err != nil {
		return nil, err
	}
	e := event{attribute: env.Text}
	switch {
	case env.Has("data"):
		e.data = env["data"]
	case env.Has("data_base64"):
		if e.data, err = base64.StdEncoding.DecodeString(env.Text("data_base64")); err != nil {
			return nil, fault.Newf(fault.Invalid, opDecode, "data_base64 is not base64 in the standard alphabet; expected %s in it", inData)
		}
	}
	return e.decode()
}

// An event is a CloudEvent in either mode.
type event struct {
	attribute func(name string) string
	data      json.RawMessage
}

// once says what can happen to a version only once, so that the version names
// it, as it does for rotators and for the decoders of providers. A version can
// be disabled, and a rotation fail, again.
var once = map[events.Type]bool{
	events.VersionCreated: true, events.VersionActivated: true, events.VersionDestroyed: true,
	events.VersionRevoked: true, events.VersionRetired: true,
}

func (e event) decode() ([]events.Event, error) {
	if e.attribute("specversion") != "1.0" {
		return nil, fault.Newf(fault.Invalid, opDecode, "the attribute specversion is missing or another one; expected 1.0")
	}
	id, source, typ := e.attribute("id"), e.attribute("source"), events.Type(e.attribute("type"))
	for _, a := range [][2]string{{"id", id}, {"source", source}, {"type", string(typ)}} {
		if a[1] == "" || len(a[1]) > 2048 {
			return nil, fault.Newf(fault.Invalid, opDecode, "the attribute %s is missing, no text or too long; expected 1 to 2048 bytes", a[0])
		}
	}
	if !typ.Valid() {
		if strings.HasPrefix(string(typ), "dev.keyturn.") {
			// Misspelt, or of a newer version: either way somebody means us.
			return nil, fault.Newf(fault.Invalid, opDecode, "the type begins with dev.keyturn. and is none of them; expected one of events.Types, such as %s", events.VersionActivated)
		}
		return nil, nil
	}
	// Events of a secret are told apart from older ones by it.
	at, ok := notice.Time(e.attribute("time"))
	if !ok {
		return nil, fault.Newf(fault.Invalid, opDecode, "the attribute time is missing or no time that can be used; expected when it happened, in RFC 3339, between the years 1 and 9998")
	}
	if !isJSON(e.attribute("datacontenttype")) {
		return nil, fault.Newf(fault.Invalid, opDecode, "the attribute datacontenttype is of another format; expected application/json")
	}
	d, err := readData(e.data)
	if err != nil {
		return nil, err
	}
	if events.IsSibling(d.Ref.Name) {
		return nil, nil
	}
	key := []string{"cloudevents", source, id}
	if once[typ] && d.Version != "" {
		key = []string{d.Version}
	}
	out := events.New(typ, d.Ref, at, key...)
	out.Data = d
	out.Data.Cause = cause
	out.Data.Provider = events.Provider{EventID: notice.Token(id), Type: string(typ), Time: out.Time}
	if tp := e.attribute("traceparent"); traceForm.MatchString(tp) {
		out.Data.TraceParent = tp
	}
	return []events.Event{out}, nil
}

// https://www.w3.org/TR/trace-context/#traceparent-header-field-values
var traceForm = regexp.MustCompile(`^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$`)
