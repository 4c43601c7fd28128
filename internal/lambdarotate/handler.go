package lambdarotate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/aws/aws-lambda-go/lambda/messages"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets/awssm"
)

const (
	// answerTime is kept back from an invocation's time: Lambda kills the
	// sandbox at the deadline, and an answer that says "timeout" must be out
	// by then. A failure is announced in this time too.
	answerTime = time.Second
	// budget is the least time in which a step is begun: one connection that
	// takes as long as it may.
	budget = 5 * time.Second
)

// A Handler serves invocations, each one step of a rotation. It is a
// [lambda.Handler], and safe for concurrent use.
type Handler struct {
	runner *rotators.Runner
	log    *slog.Logger
	err    error // why nothing can be served, or nil
}

// Refusing returns a Handler that fails every invocation with err. A function
// that exits at its start is reported as Runtime.ExitError and no more, so a
// wrong environment is told to whoever invokes.
func Refusing(err error, log *slog.Logger) *Handler {
	log.Error("the function cannot start", "kind", fault.KindOf(err).String(), "err", err)
	return &Handler{err: err, log: log}
}

// Invoke runs one step for Lambda. The answer is null, as that of the
// samples. An error has the type keyturn.<kind> or keyturn.<kind>.<class>, in
// the words of package fault.
func (h *Handler) Invoke(ctx context.Context, payload []byte) ([]byte, error) {
	err := h.Step(ctx, payload)
	if err == nil {
		return []byte("null"), nil
	}
	return nil, lambdaError(err)
}

// lambdaError is err in the form that Lambda reports.
func lambdaError(err error) error {
	typ := "keyturn." + fault.KindOf(err).String()
	if c := fault.ClassOf(err); c != "" {
		typ += "." + string(c)
	}
	return messages.InvokeResponse_Error{Message: err.Error(), Type: typ, ShouldExit: errors.Is(err, errPanic)}
}

// errPanic marks the error of a step that panicked: the process is not to be
// used again.
var errPanic = errors.New("panic")

// Step runs the step that payload names. Errors are of package fault.
func (h *Handler) Step(ctx context.Context, payload []byte) (err error) {
	if h.err != nil {
		return h.err
	}
	e, id, err := parseEvent(payload)
	if err != nil {
		h.log.ErrorContext(ctx, "bad event", "err", err)
		return err
	}
	defer recovered(ctx, h.log, id.String(), &err)
	if d, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, d.Add(-answerTime))
		defer cancel()
	}
	// By its ARN, since the secret may belong to another account.
	ctx = awssm.WithRotationToken(awssm.WithARN(ctx, e.SecretId), e.RotationToken)
	return h.runner.Step(ctx, id, e.ClientRequestToken, e.Step)
}

// recovered is deferred: it makes an error of a panic at work on what.
func recovered(ctx context.Context, log *slog.Logger, what string, err *error) {
	if v := recover(); v != nil {
		// The panic's own text may quote what was being worked on.
		log.ErrorContext(ctx, "panic", "type", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
		*err = fault.New(fault.Unknown, "function", fmt.Errorf("%w of type %T in %s; this is a defect, please report it with the log", errPanic, v, what))
	}
}
