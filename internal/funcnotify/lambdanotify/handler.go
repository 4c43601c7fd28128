// Package lambdanotify is Lambda's side of the function notify: what services
// call it with, and what they want to hear.
//
//   - A rule of EventBridge calls with one event, asynchronously: an error makes
//     Lambda call twice more, and then hand the event to the function's failure
//     destination, if it has one.
//   - SNS calls with one notification, likewise.
//   - An event source mapping of SQS calls with a batch, and deletes what is not
//     among the answer's batchItemFailures. It must have
//     FunctionResponseTypes: [ReportBatchItemFailures]; without it a message
//     that failed alone is deleted all the same.
//
// https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-errorhandling.html,
// https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html
package lambdanotify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/aws/aws-lambda-go/lambda/messages"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/eventbridge"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/funcnotify"
	"github.com/keyturn/keyturn/notifier"
)

// answerTime is kept back from an invocation's time: Lambda kills the sandbox at
// the deadline, and an answer that says which messages failed must be out by
// then.
const answerTime = time.Second

// A Handler serves invocations. It is a lambda.Handler, and safe for concurrent
// use.
type Handler struct {
	source string
	handle notifier.Handler
	log    *slog.Logger
	err    error // why nothing can be served, or nil
}

// New returns a Handler that publishes on bus. Errors are of kind Invalid.
func New(env funcnotify.Env, bus *funcnotify.Bus, log *slog.Logger) (*Handler, error) {
	h, err := funcnotify.NewHandler(env, bus, func(d notifier.Delivery) ([]events.Event, error) {
		return eventbridge.DecodeAny(d.Body, d.Received)
	}, log)
	return &Handler{source: env.Source, handle: h, log: log}, err
}

// Refusing returns a Handler that fails every invocation with err. A function
// that exits at its start is reported as Runtime.ExitError and no more, so a
// wrong environment is told to whoever invokes.
func Refusing(err error, log *slog.Logger) *Handler {
	log.Error("the function cannot start", "kind", fault.KindOf(err).String(), "err", err)
	return &Handler{err: err, log: log}
}

// Invoke hands on what payload holds, and returns the answer after all of it is
// stored, or after SQS can be told which messages are not. An error has the type
// keyturn.<kind> or keyturn.<kind>.<class>, in the words of package fault.
func (h *Handler) Invoke(ctx context.Context, payload []byte) (answer []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			// The panic's own text may quote what was being worked on.
			h.log.ErrorContext(ctx, "panic", "type", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
			err = errPanic
		}
		if err != nil {
			answer, err = nil, lambdaError(err)
		}
	}()
	if h.err != nil {
		return nil, h.err
	}
	received := time.Now()
	if d, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, d.Add(-answerTime))
		defer cancel()
	}
	trace := traceParent(ctx)
	switch rs := parse(payload); rs.from {
	case fromSQS:
		return h.batch(ctx, rs.sqs(h.source, trace, received))
	case fromSNS:
		var errs []error
		for _, d := range rs.sns(h.source, trace, received) {
			errs = append(errs, h.one(ctx, d))
		}
		return []byte("null"), errors.Join(errs...)
	default:
		d := notifier.Delivery{Source: h.source, Body: payload, Received: received}
		carry(&d, trace)
		return []byte("null"), h.one(ctx, d)
	}
}

// one handles a delivery. The handler has parked what can never work, so Invalid
// is not to be expected of it; it would mean that there is nothing to repeat.
func (h *Handler) one(ctx context.Context, d notifier.Delivery) error {
	err := h.handle(ctx, d)
	if fault.Is(err, fault.Invalid) {
		h.log.ErrorContext(ctx, "a notice that can never be handled was passed over", "key", d.Key(), "err", err)
		return nil
	}
	return err
}

var errPanic = fault.Newf(fault.Unknown, "function", "a panic; this is a defect, please report it with the log")

// lambdaError is err in the form that Lambda reports. After a panic the process
// is not used again.
func lambdaError(err error) error {
	typ := "keyturn." + fault.KindOf(err).String()
	if c := fault.ClassOf(err); c != "" {
		typ += "." + string(c)
	}
	return messages.InvokeResponse_Error{Message: err.Error(), Type: typ, ShouldExit: errors.Is(err, errPanic)}
}

// An answer tells an event source mapping which messages are to be kept.
type answer struct {
	Failures []failure `json:"batchItemFailures"`
}

type failure struct {
	ID string `json:"itemIdentifier"`
}

func encode(failed []string) ([]byte, error) {
	a := answer{Failures: []failure{}}
	for _, id := range failed {
		a.Failures = append(a.Failures, failure{id})
	}
	return json.Marshal(a)
}
