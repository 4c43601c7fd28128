package natslock

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
)

// meanings is the table of the client's errors that are no outage, the first
// match counts.
var meanings = []struct {
	err   error
	kind  fault.Kind
	class fault.Class
	hint  string
}{
	{jetstream.ErrKeyExists, fault.Conflict, fault.ClassConcurrency, ""},
	{jetstream.ErrKeyRevisionMismatch, fault.Conflict, fault.ClassConcurrency, ""},
	{nats.ErrPermissionViolation, fault.Denied, fault.ClassPermission, "allow the user the subjects of the bucket"},
	{nats.ErrAuthorization, fault.Denied, fault.ClassAuth, "the server refused the user"},
	{jetstream.ErrJetStreamNotEnabledForAccount, fault.Denied, fault.ClassPermission, "enable JetStream for the account"},
	{jetstream.ErrBadBucket, fault.Invalid, "", "a stream of that name is no key-value bucket; take another name"},
	{jetstream.ErrInvalidBucketName, fault.Invalid, "", "expected letters, digits, '_' and '-'"},
	{jetstream.ErrStreamMessageExceedsMaximum, fault.Invalid, fault.ClassQuota, "raise the longest value of the bucket"},
	// A server answers what it does not permit with silence.
	{nats.ErrTimeout, fault.Unavailable, fault.ClassTimeout, "no answer: JetStream is away, or the user may not use the bucket"},
	{context.DeadlineExceeded, fault.Unavailable, fault.ClassTimeout, "no answer: JetStream is away, or the user may not use the bucket"},
}

// classify makes an error of package fault of one of the client's. What is not
// known is an outage: a lock can only be waited for. A bucket that is gone is
// one too, until somebody opens it again.
func classify(op string, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Op: op, Err: err}
	for _, m := range meanings {
		if errors.Is(err, m.err) {
			e.Kind, e.Class, e.Msg = m.kind, m.class, m.hint
			return e
		}
	}
	var api *jetstream.APIError
	if errors.As(err, &api) {
		// Wrong last sequence, and the same of a replicated stream.
		// https://github.com/nats-io/nats-server/blob/main/server/errors.json
		switch api.ErrorCode {
		case 10071, 10164:
			e.Kind, e.Class = fault.Conflict, fault.ClassConcurrency
		}
	}
	return e
}
