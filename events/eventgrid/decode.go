// Package eventgrid decodes what Azure Key Vault says about secrets through
// Event Grid, in Event Grid's own schema and in that of CloudEvents, whichever
// way in delivered it: a webhook, a namespace topic that is pulled, or the
// trigger of a function.
//
// The ids of events are made from what happened: a new version is what every
// reader of the secret gets, so it has the id of the rotator's own
// announcement of it, and a near expiry is one for each version and expiry.
//
// Key Vault tells of no deletion, recovery, disabling or other change of an
// attribute. Everything here is pure. Facts about the formats are from
// https://learn.microsoft.com/azure/event-grid/event-schema-key-vault and
// https://learn.microsoft.com/azure/event-grid/cloud-event-schema.
package eventgrid

import (
	"encoding/base64"
	"encoding/json"
	"strconv"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
)

const (
	cause    = "eventgrid"
	opDecode = "eventgrid: decode"
	expected = "an event in the schema of Event Grid or CloudEvents, or an array of them"
)

// Decode turns the JSON of one delivery into events: an array in Event Grid's
// schema, an object in that of CloudEvents, or an array where those are
// batched. The first byte decides, since the header is not the same for every
// way in. received stands in for the time of an event that has none.
//
// What concerns no secret gives no events and no error: keys, certificates,
// access policies, other sources, the handshake of a subscription or its end,
// and the sibling in which a rotation keeps its pending version.
//
// An error is always of kind Invalid, and says what was expected and where,
// without quoting the body. Of an array the good members are returned beside
// the error about the others.
func Decode(body []byte, received time.Time) ([]events.Event, error) {
	batch, err := split(body)
	if err != nil {
		return nil, err
	}
	var b notice.Batch
	for _, raw := range batch {
		b.Add(decodeOne(raw, received))
	}
	return b.Result(opDecode)
}

// split returns the members of the array that body is, or body itself.
func split(body []byte) ([]json.RawMessage, error) {
	batch, array, err := notice.Members(body, opDecode, expected)
	if err == nil && !array {
		batch = []json.RawMessage{body}
	}
	return batch, err
}

// eventType is the type in either schema.
func eventType(env notice.Object) string {
	if t := env.Text("eventType"); t != "" {
		return t
	}
	return env.Text("type")
}

// changes says what Key Vault's events about secrets mean.
var changes = map[string]events.Type{
	// The newest version is what a read without a version gives, even one that
	// is disabled or not valid yet: who hears of it reads, and may have to read
	// again.
	"Microsoft.KeyVault.SecretNewVersionCreated": events.VersionActivated,
	// 30 days before the expiry, or at once if it is nearer.
	"Microsoft.KeyVault.SecretNearExpiry": events.SecretNearExpiry,
	// The value can be read all the same.
	"Microsoft.KeyVault.SecretExpired": events.SecretExpired,
}

func decodeOne(raw []byte, received time.Time) ([]events.Event, error) {
	env, err := notice.Parse(raw, opDecode, expected)
	if err != nil {
		return nil, err
	}
	if eventType(env) == "" {
		return nil, fault.Newf(fault.Invalid, opDecode, "neither eventType nor type is there; expected %s", expected)
	}
	return decodeEvent(env, received)
}

func decodeEvent(env notice.Object, received time.Time) ([]events.Event, error) {
	what := eventType(env)
	typ, ours := changes[what]
	if !ours {
		return nil, nil
	}
	data := payload(env)
	id, err := identify(env, data)
	if err != nil {
		return nil, err
	}
	if events.IsSibling(id.ref.Name) {
		return nil, nil
	}
	key := []string{id.version}
	if typ != events.VersionActivated {
		// The expiry of one version can be moved, and come near again.
		key = []string{id.version, "exp", expiry(data)}
	}
	if id.version == "" {
		key = []string{"notice", occurrence(env)}
	}
	e := events.New(typ, id.ref, at(env, received), key...)
	e.Data.Version, e.Data.Cause = id.version, cause
	e.Data.Provider = events.Provider{EventID: notice.Token(env.Text("id")), Type: what, Time: e.Time, ID: id.url}
	return []events.Event{e}, nil
}

// payload is the event's data. CloudEvents may carry it in base64.
// https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md#31-handling-of-data
func payload(env notice.Object) notice.Object {
	if data := env.Object("data"); data != nil {
		return data
	}
	raw, err := base64.StdEncoding.DecodeString(env.Text("data_base64"))
	if err != nil || len(raw) == 0 {
		return nil
	}
	data, err := notice.Parse(raw, opDecode, expected)
	if err != nil {
		return nil // as for data of any other kind, the event itself may say enough
	}
	return data
}

func at(env notice.Object, received time.Time) time.Time {
	for _, key := range []string{"eventTime", "time"} {
		if t, ok := notice.Time(env.Text(key)); ok {
			return t
		}
	}
	return received
}

// expiry returns EXP, seconds since 1970, in one spelling: it is a number on
// the wire, a string in the documents' sample, and null where there is none.
func expiry(data notice.Object) string {
	n := data.Number("EXP")
	if i, err := strconv.ParseInt(n, 10, 64); err == nil {
		return strconv.FormatInt(i, 10)
	}
	if f, err := strconv.ParseFloat(n, 64); err == nil && f > -1e15 && f < 1e15 {
		return strconv.FormatInt(int64(f), 10)
	}
	return ""
}

// occurrence names this one event where there is no version: by Event Grid's
// id, which a redelivery keeps.
func occurrence(env notice.Object) string {
	if id := notice.Token(env.Text("id")); id != "" {
		return id
	}
	return env.Digest()
}
