package eventbridge

import (
	"regexp"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// apiCall reads CloudTrail's record of a call. Reads and calls that failed are
// no events. A record proves that a call was made, and not always what came of
// it: secret values are never in it, and its answer is often cut to the ARN.
func (n *notice) apiCall() ([]events.Event, error) {
	name := n.detail.text("eventName")
	if name == "" {
		return nil, fault.Newf(fault.Invalid, opDecode, "detail.eventName is missing; expected a CloudTrail record")
	}
	if !apiWrites[name] || n.detail.has("errorCode") || n.detail.has("errorMessage") {
		return nil, nil
	}
	id, err := n.identity()
	if err != nil || id.foreign() {
		return nil, err
	}
	req, resp := n.detail.object("requestParameters"), n.detail.object("responseElements")
	// The request's token becomes the id of the version that it makes.
	// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_PutSecretValue.html
	made := safeToken(resp.text("versionId"))
	token := safeToken(req.text("clientRequestToken"))

	switch name {
	case "CreateSecret":
		// A secret may be made empty; then the token names no version, and who
		// hears of it reads the store and finds none.
		return n.written(id, name, first(made, token))
	case "PutSecretValue":
		stages := req.texts("versionStages")
		if len(stages) == 0 || slices.Contains(stages, labelCurrent) {
			return n.written(id, name, first(made, token))
		}
		return n.staged(id, name, first(made, token), stages)
	case "UpdateSecret":
		// The token is sent with a mere change of description too, which makes
		// no version. The proof is the version in the answer, or that a value
		// was sent, of which the record has at most a mask.
		if made == "" && (req.has("secretString") || req.has("secretBinary")) {
			made = token
		}
		return n.written(id, name, made)
	case "UpdateSecretVersionStage":
		label := req.text("versionStage")
		if label == "" {
			return nil, fault.Newf(fault.Invalid, opDecode, "detail.requestParameters.versionStage is missing; expected the staging label that moved")
		}
		return n.labelMoved(id, causeCloudTrail, name, label, req.text("moveToVersionId"), req.text("removeFromVersionId"))
	case "RotateSecret":
		if req.isFalse("rotateImmediately") {
			return n.occurred(events.SecretChanged, id, name) // a new schedule, no rotation
		}
		return n.rotation(events.RotationRequested, id, name, token)
	case "DeleteSecret":
		return n.occurred(events.SecretDeleted, id, name)
	case "RestoreSecret":
		return n.occurred(events.SecretRestored, id, name)
	}
	return n.occurred(events.SecretChanged, id, name)
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
func (n *notice) serviceEvent() ([]events.Event, error) {
	name := n.detail.text("eventName")
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
	id, err := n.identity()
	if err != nil || id.foreign() {
		return nil, err
	}
	switch t {
	case events.RotationFailed:
		// Each attempt fails for itself, and the rotator's own report of it
		// (which knows more) is another statement: the occurrence is the key.
		es, err := n.occurred(t, id, name)
		for i := range es {
			es[i].Data.Reason = failedStep(n.detail.text("errorMessage"))
		}
		return es, err
	case events.SecretChanged, events.VersionDestroyed:
		return n.occurred(t, id, name)
	}
	return n.rotation(t, id, name, n.rotationToken(id))
}

// rotationToken returns the token of the rotation that a service event is
// about, or "". No field holds it; but the request id of captured records is
// "Rotation-<ARN>-<uuid>", and the uuid is presumed to be the token. It is used
// for the event's id only, never as a version: if the presumption is wrong,
// the rotator's announcement and the service's are two events, not one.
func (n *notice) rotationToken(id identity) string {
	rest, ok := strings.CutPrefix(n.detail.text("requestID"), "Rotation-"+id.arn+"-")
	if !ok || id.arn == "" || len(rest) < 32 {
		return ""
	}
	return safeToken(rest)
}

// written is a write after which readers get version; "" means that the record
// does not prove a new version, which is a change of something else.
func (n *notice) written(id identity, what, version string) ([]events.Event, error) {
	if version == "" {
		return n.occurred(events.SecretChanged, id, what)
	}
	return n.labelMoved(id, causeCloudTrail, what, labelCurrent, version, "")
}

// staged is a new version that no plain reader gets, such as a rotation's
// pending one.
func (n *notice) staged(id identity, what, version string, stages []string) ([]events.Event, error) {
	if version == "" {
		return n.occurred(events.SecretChanged, id, what)
	}
	e := events.New(events.VersionCreated, id.ref, n.time(), version)
	e.Data.Version, e.Data.Label = version, safeLabel(stages[0])
	return n.done(e, id, causeCloudTrail, what)
}

// rotation is an event of the rotation with the given token, which is its id's
// key, as it is in the rotator's announcements.
func (n *notice) rotation(t events.Type, id identity, what, token string) ([]events.Event, error) {
	if token == "" {
		return n.occurred(t, id, what)
	}
	return n.done(events.New(t, id.ref, n.time(), token), id, causeCloudTrail, what)
}

// occurred is an event that only CloudTrail tells of: its record is the key.
func (n *notice) occurred(t events.Type, id identity, what string) ([]events.Event, error) {
	return n.done(events.New(t, id.ref, n.time(), "notice", n.occurrence()), id, causeCloudTrail, what)
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
