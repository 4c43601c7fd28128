// Package pubsub decodes what Google Cloud Secret Manager says about secrets
// on Pub/Sub topics, however a message travels: pulled, pushed with or without
// its wrapper, or as a CloudEvent of Eventarc.
//
// A secret may have ten topics, and a topic any number of subscriptions, so
// one change comes as many messages with ids of their own. The ids of events
// are made from what happened instead: the secret, the version, and for what
// can happen again the time of the change. A new version, which is what every
// reader of latest gets, has the id of the rotator's own announcement of it.
//
// Everything here is pure. Facts about the format are from
// https://cloud.google.com/secret-manager/docs/event-notifications and, where
// that is silent, from captured messages.
package pubsub

import (
	"regexp"
	"strings"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
	"github.com/keyturn/keyturn/ref"
)

const (
	cause    = "pubsub"
	opDecode = "pubsub: decode"
)

// The attributes of a message that matter.
const (
	attrType    = "eventType"
	attrSecret  = "secretId"
	attrVersion = "versionId"
	attrTime    = "timestamp"
)

var attributes = []string{attrType, attrSecret, attrVersion, attrTime}

// A Decoder turns messages into events. The zero Decoder is ready for use, and
// one may be used concurrently.
type Decoder struct {
	// Project returns the id of the project with the given number, or "" if it
	// does not know it. Messages name projects by number, while people and
	// rotators mostly use the id; what is not known keeps the number. Nil
	// knows none.
	Project func(number string) string
}

// Decode turns one message into events. received stands in for the time of a
// message that has none. A message that concerns nobody gives no events and no
// error, and is to be acknowledged: that a topic was set up, a type that is
// newer than this table, the sibling in which a rotation keeps its pending
// version.
//
// The error is of kind Invalid, and says what was expected and where without
// quoting the message.
func (d Decoder) Decode(m Message, received time.Time) ([]events.Event, error) {
	what := strings.TrimSpace(m.Attributes[attrType])
	if what == "" {
		if isAuditLog(m.resource()) {
			return nil, auditLog()
		}
		return nil, fault.Newf(fault.Invalid, opDecode, "the attribute eventType is missing; expected a message that Secret Manager published")
	}
	c, known := changes[what]
	if !known {
		return nil, nil
	}
	id, err := d.identify(m)
	if err != nil {
		return nil, err
	}
	if events.IsSibling(id.ref.Name) {
		return nil, nil
	}
	resource := m.resource()
	typ := c.typ
	if what == "SECRET_VERSION_ADD" && resource.Has("state") && resource.Text("state") != "ENABLED" {
		// Disabled meanwhile, so a reader of latest gets nothing at all.
		typ = events.VersionCreated
	}
	at, timed := notice.Time(strings.TrimSpace(m.Attributes[attrTime]))
	key := []string{id.version}
	if c.repeats || id.version == "" {
		key = []string{"notice", id.version, occurrence(m, at, timed, resource)}
	}
	if !timed {
		at = received
		if !m.Published.IsZero() {
			at = m.Published
		}
	}
	e := events.New(typ, id.ref, at, key...)
	e.Data.Version, e.Data.Cause = id.version, cause
	e.Data.Provider = events.Provider{EventID: notice.Token(m.ID), Type: what, Time: e.Time, ID: id.name}
	return []events.Event{e}, nil
}

// DecodePush is [ParsePush] and [Decoder.Decode].
func (d Decoder) DecodePush(body []byte, received time.Time) ([]events.Event, error) {
	m, err := ParsePush(body)
	if err != nil {
		return nil, err
	}
	return d.Decode(m, received)
}

// DecodeUnwrapped is [ParseUnwrapped] and [Decoder.Decode].
func (d Decoder) DecodeUnwrapped(header func(string) string, body []byte, received time.Time) ([]events.Event, error) {
	m, err := ParseUnwrapped(header, body)
	if err != nil {
		return nil, err
	}
	return d.Decode(m, received)
}

// DecodeEventarc is [ParseEventarc] and [Decoder.Decode].
func (d Decoder) DecodeEventarc(header func(string) string, body []byte, received time.Time) ([]events.Event, error) {
	m, err := ParseEventarc(header, body)
	if err != nil {
		return nil, err
	}
	return d.Decode(m, received)
}

// DecodeRequest is [ParseRequest] and [Decoder.Decode].
func (d Decoder) DecodeRequest(header func(string) string, body []byte, received time.Time) ([]events.Event, error) {
	m, err := ParseRequest(header, body)
	if err != nil {
		return nil, err
	}
	return d.Decode(m, received)
}

// changes says what each type of message means.
var changes = map[string]struct {
	typ events.Type
	// repeats says that it can happen to one secret or version again, so that
	// its time belongs to its id.
	repeats bool
}{
	// A version is added enabled, and the newest is what latest names.
	"SECRET_VERSION_ADD":     {events.VersionActivated, false},
	"SECRET_VERSION_ENABLE":  {events.VersionEnabled, true},
	"SECRET_VERSION_DISABLE": {events.VersionDisabled, true},
	// With a delay before destruction the version is disabled at once, and may
	// be enabled again until then.
	"SECRET_VERSION_DESTROY_SCHEDULED": {events.VersionDisabled, true},
	"SECRET_VERSION_DESTROY":           {events.VersionDestroyed, false},
	// A request: nothing was rotated, and the next one may come before this one
	// is done.
	"SECRET_ROTATE": {events.RotationRequested, true},
	// An empty secret; its first version is a message of its own.
	"SECRET_CREATE": {events.SecretChanged, true},
	"SECRET_UPDATE": {events.SecretChanged, true},
	"SECRET_DELETE": {events.SecretDeleted, true},
}

// occurrence names one change of many of its kind: by its time, which is the
// same on every topic, or else by the etag that it left, or at last by the
// message.
func occurrence(m Message, at time.Time, timed bool, resource notice.Object) string {
	if timed {
		return at.Format(time.RFC3339Nano)
	}
	if etag := strings.Trim(resource.Text("etag"), `"`); notice.Token(etag) != "" {
		return "etag " + etag
	}
	if id := notice.Token(m.ID); id != "" {
		return "message " + id
	}
	return resource.Digest()
}

// Names are checked before anything is made of them, so that neither an event
// nor an error holds what a stranger wrote.
// https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets
var (
	secretForm  = regexp.MustCompile(`^projects/([a-z0-9][a-z0-9.:-]{0,127})/(?:locations/([a-z0-9-]{1,63})/)?secrets/([A-Za-z0-9_-]{1,255})$`)
	versionForm = regexp.MustCompile(`^(projects/.{1,500})/versions/([1-9][0-9]{0,18})$`)
)

// An identity is which secret and version a message is about.
type identity struct {
	ref     ref.Ref
	name    string // the secret's full resource name, with the project's number
	version string // the version's number, or ""
}

// identify reads the names in the attributes. The version is a part of its
// secret, or the message is not what Secret Manager writes.
func (d Decoder) identify(m Message) (identity, error) {
	var id identity
	secret, version := strings.TrimSpace(m.Attributes[attrSecret]), strings.TrimSpace(m.Attributes[attrVersion])
	if v := versionForm.FindStringSubmatch(version); v != nil {
		if secret == "" {
			secret = v[1]
		}
		if v[1] != secret {
			return id, fault.Newf(fault.Invalid, opDecode, "the attributes secretId and versionId name two secrets; expected a version of the secret")
		}
		id.version = v[2]
	} else if version != "" {
		return id, fault.Newf(fault.Invalid, opDecode, "the attribute versionId is not the name of a version; expected projects/NUMBER/secrets/NAME/versions/NUMBER")
	}
	s := secretForm.FindStringSubmatch(secret)
	if s == nil {
		return id, fault.Newf(fault.Invalid, opDecode, "the attribute secretId is missing or not the name of a secret; expected projects/NUMBER/secrets/NAME or projects/NUMBER/locations/LOCATION/secrets/NAME")
	}
	scope := []string{d.project(s[1])}
	if s[2] != "" {
		scope = append(scope, s[2])
	}
	r, err := ref.New(ref.GCP, s[3], scope...)
	if err != nil {
		return id, fault.Newf(fault.Invalid, opDecode, "the attribute secretId names no secret that a ref can name; expected projects/NUMBER/secrets/NAME")
	}
	id.ref, id.name = r, secret
	return id, nil
}

func (d Decoder) project(number string) string {
	if d.Project != nil {
		if id := d.Project(number); id != "" {
			return id
		}
	}
	return number
}
