package natsbus

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
)

// refusalCheck is how often a waiting caller looks for a refusal.
const refusalCheck = 50 * time.Millisecond

// refusedSchedule are the answers to a schedule that can never work: the
// pattern, and the time zone, for which nats.go has no name.
var refusedSchedule = []jetstream.ErrorCode{jetstream.JSErrCodeSchedulePatternInvalid, 10223}

// classify maps what nats.go and the server say to a fault. It is the only
// place that reads their errors.
func classify(op string, err error) error {
	if err == nil {
		return nil
	}
	var known *fault.Error
	if errors.As(err, &known) {
		return err
	}
	e := &fault.Error{Kind: fault.Unknown, Op: "natsbus: " + op, Err: err}
	api := apiError(err)
	switch {
	case errors.Is(err, nats.ErrMaxPayload):
		e.Kind, e.Msg = fault.Invalid, "the message is larger than the server takes (max_payload)"
	case errors.Is(err, nats.ErrPermissionViolation):
		e.Kind, e.Class = fault.Denied, fault.ClassPermission
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		e.Kind, e.Class = fault.Denied, fault.ClassAuth
	case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount):
		e.Kind, e.Msg = fault.Unavailable, "JetStream is not enabled; start nats-server with -js, and enable it for this account"
	case errors.Is(err, jetstream.ErrStreamNotFound), errors.Is(err, jetstream.ErrMsgNotFound):
		e.Kind = fault.NotFound
	case errors.Is(err, jetstream.ErrNoStreamResponse), errors.Is(err, nats.ErrNoResponders):
		e.Kind, e.Msg = fault.Unavailable, "no stream answers; expected JetStream enabled (nats-server -js) and the streams that natsbus.Open creates"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout), errors.Is(err, jetstream.ErrAsyncPublishTimeout):
		e.Kind, e.Class = fault.Unavailable, fault.ClassTimeout
	case errors.Is(err, jetstream.ErrTooManyStalledMsgs):
		e.Kind, e.Class = fault.Unavailable, fault.ClassQuota
	case errors.Is(err, context.Canceled):
		e.Kind = fault.Unavailable
	case errors.Is(err, nats.ErrConnectionClosed), errors.Is(err, nats.ErrDisconnected), errors.Is(err, nats.ErrConnectionReconnecting),
		errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrConnectionDraining), errors.Is(err, jetstream.ErrConnectionClosed),
		errors.Is(err, jetstream.ErrJetStreamPublisherClosed):
		e.Kind, e.Class = fault.Unavailable, fault.ClassNetwork
	case api != nil && api.ErrorCode == jetstream.JSErrCodeStreamMessageExceedsMaximum:
		e.Kind, e.Msg = fault.Invalid, "the message is larger than the stream takes"
	case api != nil && (api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence || api.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant):
		e.Kind, e.Class = fault.Conflict, fault.ClassConcurrency
	case api != nil && slices.Contains(refusedSchedule, api.ErrorCode):
		e.Kind, e.Msg = fault.Invalid, "the server does not take this schedule"
	case api != nil && api.Code >= 500:
		e.Kind = fault.Unavailable
	case api != nil && (api.Code == 401 || api.Code == 403):
		e.Kind, e.Class = fault.Denied, fault.ClassPermission
	}
	return e
}

// apiError returns the server's own answer in err's chain, or nil.
func apiError(err error) *jetstream.APIError {
	var api *jetstream.APIError
	if errors.As(err, &api) {
		return api
	}
	if je := jetstream.JetStreamError(nil); errors.As(err, &je) {
		return je.APIError()
	}
	return nil
}

// denied returns the server's refusal of subject on nc, if that came after
// before was taken from nc.LastError. The server reports refusals apart from
// what they refuse, and a connection keeps only its last error; a refusal that
// another error hides shows at the next attempt.
func denied(nc *nats.Conn, before error, subject string) error {
	err := nc.LastError()
	if err == nil || err == before || !errors.Is(err, nats.ErrPermissionViolation) || !strings.Contains(err.Error(), `"`+subject+`"`) { //nolint:errorlint // the same error value, not the same kind
		return nil
	}
	return err
}

// guarded calls f and returns the server's refusal of one of subjects, if that
// is why f fails, and nats.ErrDisconnected if the connection is a new one since.
// Neither a refused request nor one on a lost connection has an answer, so
// without this it would look like a server that is away, and cost the whole time
// limit.
func guarded(ctx context.Context, nc *nats.Conn, subjects []string, f func(context.Context) error) error {
	before, connections, on := nc.LastError(), nc.Stats().Reconnects, nc.IsConnected()
	refused := func() error {
		for _, s := range subjects {
			if err := denied(nc, before, s); err != nil {
				return err
			}
		}
		if on && nc.Stats().Reconnects != connections {
			return nats.ErrDisconnected
		}
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(refusalCheck)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if refused() != nil {
					cancel()
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	err := f(ctx)
	cancel()
	wg.Wait()
	if err != nil {
		if d := refused(); d != nil {
			return d
		}
	}
	return err
}
