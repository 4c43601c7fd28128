package eventbridge

import (
	"regexp"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice"
)

// apiCall reads CloudTrail's record of a call. Reads and calls that failed are
// no events. A record proves that a call was made, and not always what came of
// it: secret values are never in it, and its answer is often cut to the ARN.
func (m *message) apiCall() ([]events.Event, error) {
	name := m.detail.Text("eventName")
	if name == "" {
		return nil, fault.Newf(fault.Invalid, opDecode, "detail.eventName is missing; expected a CloudTrail record")
	}
	if !apiWrites[name] || m.detail.Has("errorCode") || m.detail.Has("errorMessage") {
		return nil, nil
	}
	id, err := m.identity()
	if err != nil || id.foreign() {
		return nil, err
	}
	req, resp := m.detail.Object("requestParameters"), m.detail.Object("responseElements")
	// The request's token becomes the id of the version that it makes.
	// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_PutSecretValue.html
	made := notice.Token(resp.Text("versionId"))
	token := notice.Token(req.Text("clientRequestToken"))

	switch name {
	case "CreateSecret":
		// A secret may be made empty; then the token names no version, and who
		// hears of it reads the store and finds none.
		return m.written(id, name, first(made, token))
	case "PutSecretValue":
		stages := req.List("versionStages")
		if len(stages) == 0 || slices.Contains(stages, labelCurrent) {
			return m.written(id, name, first(made, token))
		}
		return m.staged(id, name, first(made, token), stages)
	case "UpdateSecret":
		// The token is sent with a mere change of description too, which makes
		// no version. The proof is the version in the answer, or that a value
		// was sent, of which the record has at most a mask.
		if made == "" && (req.Has("secretString") || req.Has("secretBinary")) {
			made = token
		}
		return m.written(id, name, made)
	case "UpdateSecretVersionStage":
		label := req.Text("versionStage")
		if label == "" {
			return nil, fault.Newf(fault.Invalid, opDecode, "detail.requestParameters.versionStage is missing; expected the staging label that moved")
		}
		return m.labelMoved(id, causeCloudTrail, name, label, req.Text("moveToVersionId"), req.Text("removeFromVersionId"))
	case "RotateSecret":
		if req.IsFalse("rotateImmediately") {
			return m.occurred(events.SecretChanged, id, name) // a new schedule, no rotation
		}
		return m.rotation(events.RotationRequested, id, name, token)
	case "DeleteSecret":
		return m.occurred(events.SecretDeleted, id, name)
	case "RestoreSecret":
		return m.occurred(events.SecretRestored, id, name)
	}
	return m.occurred(events.SecretChanged, id, name)
}

// apiWrites is every call that changes a secret. A call that is not here is a
// read, or newer than this table; agents find its effect when they poll.
var apiWrites = map[string]bool{
	"CreateSecret": true, "PutSecretValue": true, "UpdateSecret": true, "UpdateSecretVersionStage": true,
	"RotateSecret": true, "CancelRotateSecret": true, "DeleteSecret": true, "RestoreSecret": true,
	"ReplicateSecretToRegions": true, "RemoveRegionsFromReplication": true, "StopReplicationToReplica": true,
	"PutResourcePolicy": true, "DeleteResourcePolicy": true, "TagResource": true, "UntagResource": true,
}

// serviceEvent reads CloudTrail's record of what Secrets Manager did by
// itself. None of them names a version for certain.
func (m *message) serviceEvent() ([]events.Event, error) {
	name := m.detail.Text("eventName")
	var t events.Type
	switch name {
	case "RotationStarted":
		t = events.RotationStarted
	case "RotationSucceeded":
		t = events.RotationSucceeded
	case "RotationFailed":
		t = events.RotationFailed
	case "RotationAbandoned":
		t = events.RotationAbandoned
	case "StartSecretVersionDelete", "CancelSecretVersionDelete":
		// The recovery window opens or closes. The calls that cause it are
		// secret.deleted and secret.restored already.
		t = events.SecretChanged
	case "EndSecretVersionDelete":
		t = events.VersionDestroyed
	case "":
		return nil, fault.Newf(fault.Invalid, opDecode, "detail.eventName is missing; expected a CloudTrail record")
	default:
		return nil, nil
	}
	id, err := m.identity()
	if err != nil || id.foreign() {
		return nil, err
	}
	switch t {
	case events.RotationFailed:
		// Each attempt fails for itself, and the rotator's own report of it
		// (which knows more) is another statement: the occurrence is the key.
		es, err := m.occurred(t, id, name)
		for i := range es {
			es[i].Data.Reason = failedStep(m.detail.Text("errorMessage"))
		}
		return es, err
	case events.SecretChanged, events.VersionDestroyed:
		return m.occurred(t, id, name)
	}
	return m.rotation(t, id, name, m.rotationToken(id))
}

// rotationToken returns the token of the rotation that a service event is
// about, or "". No field holds it; but the request id of captured records is
// "Rotation-<ARN>-<uuid>", and the uuid is presumed to be the token. It is used
// for the event's id only, never as a version: if the presumption is wrong,
// the rotator's announcement and the service's are two events, not one.
func (m *message) rotationToken(id identity) string {
	rest, ok := strings.CutPrefix(m.detail.Text("requestID"), "Rotation-"+id.arn+"-")
	if !ok || id.arn == "" || len(rest) < 32 {
		return ""
	}
	return notice.Token(rest)
}

// written is a write after which readers get version; "" means that the record
// does not prove a new version, which is a change of something else.
func (m *message) written(id identity, what, version string) ([]events.Event, error) {
	if version == "" {
		return m.occurred(events.SecretChanged, id, what)
	}
	return m.labelMoved(id, causeCloudTrail, what, labelCurrent, version, "")
}

// staged is a new version that no plain reader gets, such as a rotation's
// pending one.
func (m *message) staged(id identity, what, version string, stages []string) ([]events.Event, error) {
	if version == "" {
		return m.occurred(events.SecretChanged, id, what)
	}
	e := events.New(events.VersionCreated, id.ref, m.time(), version)
	e.Data.Version, e.Data.Label = version, safeLabel(stages[0])
	return m.done(e, id, causeCloudTrail, what)
}

// rotation is an event of the rotation with the given token, which is its id's
// key, as it is in the rotator's announcements.
func (m *message) rotation(t events.Type, id identity, what, token string) ([]events.Event, error) {
	if token == "" {
		return m.occurred(t, id, what)
	}
	return m.done(events.New(t, id.ref, m.time(), token), id, causeCloudTrail, what)
}

// occurred is an event that only CloudTrail tells of: its record is the key.
func (m *message) occurred(t events.Type, id identity, what string) ([]events.Event, error) {
	return m.done(events.New(t, id.ref, m.time(), "notice", m.occurrence()), id, causeCloudTrail, what)
}

var stepForm = regexp.MustCompile(`\b(create|set|test|finish)_?[sS]ecret\b`)

// failedStep returns the phase that an error message names, in the form that
// rotators use. The rest of the message is AWS's and the function's own words,
// and stays out.
func failedStep(message string) string {
	if m := stepForm.FindStringSubmatch(message); m != nil {
		return m[1] + ": " + fault.Unknown.String()
	}
	return fault.Unknown.String()
}

func first(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
