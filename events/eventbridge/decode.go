// Package eventbridge decodes what AWS says about Secrets Manager secrets
// through EventBridge: the service's own "Secret Label Updated", and the
// records that CloudTrail passes on. It also reads and writes the
// announcements of our own rotators that travel over an EventBridge bus.
//
// One rotation on AWS comes as up to six notices. Ids are made from what
// happened, so all notices that AWSCURRENT moved to a version, and the
// rotator's own announcement of it, are one event.
//
// Everything here is pure. Facts about the formats are from
// https://docs.aws.amazon.com/secretsmanager/latest/userguide/monitoring-eventbridge.html
// and cloudtrail_log_entries.html there, and where those are silent from
// captured records.
package eventbridge

import (
	"regexp"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
	"github.com/keyturn/keyturn/ref"
)

const (
	sourceAWS = "aws.secretsmanager"

	causeNative     = "eventbridge"
	causeCloudTrail = "cloudtrail"

	opDecode = "eventbridge: decode"
	expected = "an EventBridge event"
)

// The staging labels that mean something to Secrets Manager.
const (
	labelCurrent  = "AWSCURRENT"
	labelPending  = "AWSPENDING"
	labelPrevious = "AWSPREVIOUS"
)

// Decode turns the JSON of one EventBridge event, or of an array of them, into
// events. received stands in for the time of a notice that has none. A notice
// that concerns nothing of ours gives no events and no error: another source,
// a read, a call that failed, the credential of an EventBridge connection.
//
// An error is always of kind Invalid, and says what was expected and where,
// without quoting the notice. Of an array the good members are returned beside
// the error about the others.
func Decode(body []byte, received time.Time) ([]events.Event, error) {
	members, array, err := notice.Members(body, opDecode, expected)
	if err != nil {
		return nil, err
	}
	if !array {
		return decodeOne(body, received)
	}
	var b notice.Batch
	for _, raw := range members {
		b.Add(decodeOne(raw, received))
	}
	return b.Result(opDecode)
}

// message is an EventBridge event, its members as they may be trusted. Of a
// CloudTrail record that came by itself, envelope and detail are the record.
type message struct {
	envelope notice.Object
	detail   notice.Object
	received time.Time
}

func decodeOne(body []byte, received time.Time) ([]events.Event, error) {
	env, err := notice.Parse(body, opDecode, expected)
	if err != nil {
		return nil, err
	}
	if !isEvent(env) {
		return nil, fault.Newf(fault.Invalid, opDecode, "no source or no detail-type; expected an EventBridge event as it is, not inside another envelope and not transformed")
	}
	return decodeEvent(env, received)
}

func isEvent(env notice.Object) bool {
	return env.Text("source") != "" && env.Text("detail-type") != ""
}

func decodeEvent(env notice.Object, received time.Time) ([]events.Event, error) {
	m := &message{envelope: env, detail: env.Object("detail"), received: received}
	detailType := env.Text("detail-type")
	switch env.Text("source") {
	case sourceAWS:
	case Source:
		return m.announcement(detailType)
	default:
		return nil, nil
	}
	switch detailType {
	case "Secret Label Updated":
		return m.labelUpdated()
	// AWS's documents for China print "Amazon" where others have "AWS".
	case "AWS API Call via CloudTrail", "Amazon API Call via CloudTrail":
		return m.apiCall()
	case "AWS Service Event via CloudTrail", "Amazon Service Event via CloudTrail":
		return m.serviceEvent()
	}
	return nil, nil
}

// labelUpdated is the service's own event, sent when a label other than
// AWSPENDING and AWSPREVIOUS moves to a version. It needs no trail.
func (m *message) labelUpdated() ([]events.Event, error) {
	id, err := m.identity()
	if err != nil || id.foreign() {
		return nil, err
	}
	label, version := m.detail.Text("labelUpdated"), m.detail.Text("versionId")
	if label == "" {
		return nil, fault.Newf(fault.Invalid, opDecode, "detail.labelUpdated is missing; expected the staging label that moved")
	}
	return m.labelMoved(id, causeNative, "Secret Label Updated", label, version, "")
}

// labelMoved says what it means that label moved to version: for AWSCURRENT
// that readers get another version, for a label of the user's own a change,
// and for the two labels with which Secrets Manager keeps its books nothing.
func (m *message) labelMoved(id identity, cause, what, label, version, previous string) ([]events.Event, error) {
	version, previous = notice.Token(version), notice.Token(previous)
	var e events.Event
	switch label {
	case labelPending, labelPrevious:
		return nil, nil
	case labelCurrent:
		key := []string{version}
		if version == "" {
			// Hear of it all the same: who hears re-reads the store.
			key = []string{"notice", m.occurrence()}
		}
		e = events.New(events.VersionActivated, id.ref, m.time(), key...)
	default:
		key := []string{"label", label, version}
		if version == "" {
			key = []string{"notice", m.occurrence()}
		}
		e = events.New(events.SecretChanged, id.ref, m.time(), key...)
	}
	e.Data.Version, e.Data.PreviousVersion, e.Data.Label = version, previous, safeLabel(label)
	return m.done(e, id, cause, what)
}

// done fills in what the provider called the notice.
func (m *message) done(e events.Event, id identity, cause, what string) ([]events.Event, error) {
	e.Data.Cause = cause
	e.Data.Provider = events.Provider{EventID: m.eventID(), Type: what, Time: e.Time, ID: id.arn}
	return []events.Event{e}, nil
}

// eventID is EventBridge's id, or CloudTrail's of a record that did not come
// over EventBridge.
func (m *message) eventID() string {
	return first(notice.Token(m.envelope.Text("id")), notice.Token(m.detail.Text("eventID")))
}

// time is when it happened, by CloudTrail's record where there is one.
func (m *message) time() time.Time {
	for _, s := range []string{m.detail.Text("eventTime"), m.envelope.Text("time")} {
		if t, ok := notice.Time(s); ok {
			return t
		}
	}
	return m.received.UTC()
}

// occurrence names this one occurrence for changes that have no version:
// CloudTrail's id of the record, which is the same on every bus and trail, or
// else EventBridge's id, or else the digest of the notice's members.
func (m *message) occurrence() string {
	for _, s := range []string{m.detail.Text("eventID"), m.envelope.Text("id")} {
		if t := notice.Token(s); t != "" {
			return t
		}
	}
	return m.envelope.Digest()
}

// A staging label is of 1 to 256 characters; only those with which people name
// things are copied.
// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_UpdateSecretVersionStage.html
var labelForm = regexp.MustCompile(`^[A-Za-z0-9_.:/+=@-]{1,256}$`)

func safeLabel(s string) string {
	if labelForm.MatchString(s) {
		return s
	}
	return ""
}

// An identity is which secret a notice is about.
type identity struct {
	ref ref.Ref
	arn string // the full ARN, or ""
}

// foreign reports that the secret is none that anybody but AWS may rotate or
// read. Other service-owned secrets, such as rds!db-..., have readers.
func (id identity) foreign() bool {
	return events.IsConnection(id.ref.Name)
}
