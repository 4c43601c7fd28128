package natskv

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
)

// A meaning is what an error of the client or the server means here.
type meaning struct {
	kind  fault.Kind
	class fault.Class
	hint  string
}

// meanings is the table of the client's errors, the first match counts. A
// bucket that is gone is not NotFound: that would say that a secret is, and
// invite to create it.
var meanings = []struct {
	err error
	meaning
}{
	{jetstream.ErrKeyExists, meaning{fault.Conflict, fault.ClassConcurrency, ""}},
	{jetstream.ErrKeyRevisionMismatch, meaning{fault.Conflict, fault.ClassConcurrency, ""}},
	{jetstream.ErrKeyNotFound, meaning{fault.NotFound, "", ""}},
	{jetstream.ErrBucketNotFound, meaning{fault.Unavailable, "", "the bucket is gone; restore it, or open the store again to create it"}},
	{jetstream.ErrStreamNotFound, meaning{fault.Unavailable, "", "the bucket is gone; restore it, or open the store again to create it"}},
	{jetstream.ErrBadBucket, meaning{fault.Invalid, "", "a stream of that name is no key-value bucket; take another name"}},
	{jetstream.ErrInvalidBucketName, meaning{fault.Invalid, "", "expected letters, digits, '_' and '-'"}},
	{jetstream.ErrInvalidKey, meaning{fault.Invalid, "", ""}},
	{jetstream.ErrStreamMessageExceedsMaximum, meaning{fault.Invalid, fault.ClassQuota, "raise the longest value of the bucket"}},
	{nats.ErrMaxPayload, meaning{fault.Invalid, fault.ClassQuota, "raise max_payload of the server"}},
	{nats.ErrPermissionViolation, meaning{fault.Denied, fault.ClassPermission, "allow the user the subjects of the bucket"}},
	{nats.ErrAuthorization, meaning{fault.Denied, fault.ClassAuth, "the server refused the user"}},
	{nats.ErrAuthExpired, meaning{fault.Denied, fault.ClassAuth, "the user's credentials expired"}},
	{nats.ErrAuthRevoked, meaning{fault.Denied, fault.ClassAuth, "the user was revoked"}},
	{jetstream.ErrJetStreamNotEnabledForAccount, meaning{fault.Denied, fault.ClassPermission, "enable JetStream for the account"}},
	{jetstream.ErrJetStreamNotEnabled, meaning{fault.Unavailable, "", "enable JetStream on the server, or wait for it to start"}},
	{nats.ErrNoResponders, meaning{fault.Unavailable, fault.ClassNetwork, "JetStream is away"}},
	{jetstream.ErrNoStreamResponse, meaning{fault.Unavailable, fault.ClassNetwork, "JetStream is away"}},
	{nats.ErrConnectionClosed, meaning{fault.Unavailable, fault.ClassNetwork, ""}},
	{nats.ErrConnectionDraining, meaning{fault.Unavailable, fault.ClassNetwork, ""}},
	{nats.ErrConnectionReconnecting, meaning{fault.Unavailable, fault.ClassNetwork, ""}},
	{nats.ErrDisconnected, meaning{fault.Unavailable, fault.ClassNetwork, ""}},
	{nats.ErrNoServers, meaning{fault.Unavailable, fault.ClassNetwork, ""}},
	{nats.ErrReconnectBufExceeded, meaning{fault.Unavailable, fault.ClassNetwork, ""}},
	{jetstream.ErrConnectionClosed, meaning{fault.Unavailable, fault.ClassNetwork, ""}},
	{jetstream.ErrServerShutdown, meaning{fault.Unavailable, fault.ClassNetwork, ""}},
	// A server answers what it does not permit with silence.
	{nats.ErrTimeout, meaning{fault.Unavailable, fault.ClassTimeout, "no answer: JetStream is away, or the user may not use the bucket"}},
	{context.DeadlineExceeded, meaning{fault.Unavailable, fault.ClassTimeout, "no answer: JetStream is away, or the user may not use the bucket"}},
	{context.Canceled, meaning{fault.Unavailable, "", ""}},
}

// apiMeanings is the table of the server's codes that have no error of their
// own in the client.
// https://github.com/nats-io/nats-server/blob/main/server/errors.json
var apiMeanings = map[jetstream.ErrorCode]meaning{
	10071: {fault.Conflict, fault.ClassConcurrency, ""},                             // wrong last sequence
	10164: {fault.Conflict, fault.ClassConcurrency, ""},                             // the same, of a replicated stream
	10058: {fault.Invalid, "", "the bucket exists with another configuration"},      // stream name in use
	10065: {fault.Invalid, "", "another stream takes the subjects of the bucket"},   // subjects overlap
	10074: {fault.Invalid, "", "the server is no cluster; expected one replica"},    // replicas > 1 not supported
	10005: {fault.Unavailable, "", "fewer servers than replicas"},                   // no suitable peers
	10008: {fault.Unavailable, fault.ClassNetwork, "JetStream is away"},             // temporarily unavailable
	10009: {fault.Unavailable, fault.ClassNetwork, "the cluster has no leader"},     // cluster not available
	10023: {fault.Unavailable, fault.ClassQuota, "raise the limits of the server"},  // insufficient resources
	10047: {fault.Unavailable, fault.ClassQuota, "raise the limits of the server"},  // storage resources exceeded
	10002: {fault.Unavailable, fault.ClassQuota, "raise the limits of the account"}, // account resources exceeded
	10077: {fault.Unavailable, fault.ClassQuota, "the bucket is full or its disk is; make room or raise its limit"},
}

// classify makes an error of package fault of one of the client's. Those
// never quote what is stored.
func classify(op string, err error) error {
	if err == nil {
		return nil
	}
	e := &fault.Error{Op: op, Err: err}
	for _, m := range meanings {
		if errors.Is(err, m.err) {
			e.Kind, e.Class, e.Msg = m.kind, m.class, m.hint
			return e
		}
	}
	var api *jetstream.APIError
	if errors.As(err, &api) {
		if m, ok := apiMeanings[api.ErrorCode]; ok {
			e.Kind, e.Class, e.Msg = m.kind, m.class, m.hint
		} else if api.Code >= 500 {
			e.Kind = fault.Unavailable
		}
	}
	return e
}
