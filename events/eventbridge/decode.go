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
	"bytes"
	"encoding/json"
	"regexp"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

const (
	sourceAWS = "aws.secretsmanager"

	causeNative     = "eventbridge"
	causeCloudTrail = "cloudtrail"

	opDecode = "eventbridge: decode"
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
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return nil, fault.Newf(fault.Invalid, opDecode, "the body is empty; expected the JSON of an EventBridge event")
	}
	if body[0] != '[' {
		return decodeOne(body, received)
	}
	var batch []json.RawMessage
	if err := json.Unmarshal(body, &batch); err != nil {
		return nil, notJSON(body, err)
	}
	var out []events.Event
	var bad int
	var first error
	for _, raw := range batch {
		es, err := decodeOne(raw, received)
		if err != nil {
			if bad++; first == nil {
				first = err
			}
			continue
		}
		out = append(out, es...)
	}
	if bad > 0 {
		return out, &fault.Error{Kind: fault.Invalid, Op: opDecode, Msg: plural(bad, len(batch)), Err: first}
	}
	return out, nil
}

// notice is an EventBridge event, its members as they may be trusted.
type notice struct {
	envelope object
	detail   object
	received time.Time
}

func decodeOne(body []byte, received time.Time) ([]events.Event, error) {
	env, err := parseObject(body)
	if err != nil {
		return nil, err
	}
	source, detailType := env.text("source"), env.text("detail-type")
	if source == "" || detailType == "" {
		return nil, fault.Newf(fault.Invalid, opDecode, "no source or no detail-type; expected an EventBridge event as it is, not inside another envelope and not transformed")
	}
	n := &notice{envelope: env, detail: env.object("detail"), received: received}
	switch source {
	case sourceAWS:
	case Source:
		return n.announcement(detailType)
	default:
		return nil, nil
	}
	switch detailType {
	case "Secret Label Updated":
		return n.labelUpdated()
	// AWS's documents for China print "Amazon" where others have "AWS".
	case "AWS API Call via CloudTrail", "Amazon API Call via CloudTrail":
		return n.apiCall()
	case "AWS Service Event via CloudTrail", "Amazon Service Event via CloudTrail":
		return n.serviceEvent()
	}
	return nil, nil
}

// labelUpdated is the service's own event, sent when a label other than
// AWSPENDING and AWSPREVIOUS moves to a version. It needs no trail.
func (n *notice) labelUpdated() ([]events.Event, error) {
	id, err := n.identity()
	if err != nil || id.foreign() {
		return nil, err
	}
	label, version := n.detail.text("labelUpdated"), n.detail.text("versionId")
	if label == "" {
		return nil, fault.Newf(fault.Invalid, opDecode, "detail.labelUpdated is missing; expected the staging label that moved")
	}
	return n.labelMoved(id, causeNative, "Secret Label Updated", label, version, "")
}

// labelMoved says what it means that label moved to version: for AWSCURRENT
// that readers get another version, for a label of the user's own a change,
// and for the two labels with which Secrets Manager keeps its books nothing.
func (n *notice) labelMoved(id identity, cause, what, label, version, previous string) ([]events.Event, error) {
	version, previous = safeToken(version), safeToken(previous)
	var e events.Event
	switch label {
	case labelPending, labelPrevious:
		return nil, nil
	case labelCurrent:
		key := []string{version}
		if version == "" {
			// Hear of it all the same: who hears re-reads the store.
			key = []string{"notice", n.occurrence()}
		}
		e = events.New(events.VersionActivated, id.ref, n.time(), key...)
	default:
		key := []string{"label", label, version}
		if version == "" {
			key = []string{"notice", n.occurrence()}
		}
		e = events.New(events.SecretChanged, id.ref, n.time(), key...)
	}
	e.Data.Version, e.Data.PreviousVersion, e.Data.Label = version, previous, safeLabel(label)
	return n.done(e, id, cause, what)
}

// done fills in what the provider called the notice.
func (n *notice) done(e events.Event, id identity, cause, what string) ([]events.Event, error) {
	e.Data.Cause = cause
	e.Data.Provider = events.Provider{EventID: safeToken(n.envelope.text("id")), Type: what, Time: e.Time, ID: id.arn}
	return []events.Event{e}, nil
}

// time is when it happened, by CloudTrail's record where there is one.
func (n *notice) time() time.Time {
	for _, s := range []string{n.detail.text("eventTime"), n.envelope.text("time")} {
		if t, ok := parseTime(s); ok {
			return t
		}
	}
	return n.received.UTC()
}

// parseTime reads RFC 3339. Years that JSON cannot carry in UTC are refused.
func parseTime(s string) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.UTC().Year() < 1 || t.UTC().Year() > 9998 {
		return time.Time{}, false
	}
	return t.UTC(), true
}

// occurrence names this one occurrence for changes that have no version:
// CloudTrail's id of the record, which is the same on every bus and trail, or
// else EventBridge's id, or else the digest of the notice's members.
func (n *notice) occurrence() string {
	for _, s := range []string{n.detail.text("eventID"), n.envelope.text("id")} {
		if t := safeToken(s); t != "" {
			return t
		}
	}
	return n.envelope.digest()
}

// What may be copied from a notice into an event.
var (
	tokenForm = regexp.MustCompile(`^[A-Za-z0-9_.:/+=@-]{1,64}$`)
	labelForm = regexp.MustCompile(`^[A-Za-z0-9_.:/+=@-]{1,256}$`)
)

// safeToken returns s if it looks like a version id, a request token or an
// event id, or "". Version ids are 32 to 64 characters by the API, and UUIDs in
// practice.
func safeToken(s string) string {
	if tokenForm.MatchString(s) {
		return s
	}
	return ""
}

func safeLabel(s string) string {
	if labelForm.MatchString(s) {
		return s
	}
	return ""
}

// connectionPrefix starts the names of the secrets in which EventBridge keeps
// the credentials of API destinations. A rule that matches every secret would
// tell the notifier of its own credential.
const connectionPrefix = "events!connection/"

// An identity is which secret a notice is about.
type identity struct {
	ref ref.Ref
	arn string // the full ARN, or ""
}

// foreign reports that the secret is none that anybody but AWS may rotate or
// read. Other service-owned secrets, such as rds!db-..., have readers.
func (id identity) foreign() bool {
	return len(id.ref.Name) >= len(connectionPrefix) && id.ref.Name[:len(connectionPrefix)] == connectionPrefix
}
