package triggers

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

const (
	// maxBody is far above any notice: those of Secret Manager hold a resource
	// without its value, those of Event Grid are below 1 MiB.
	maxBody = 1 << 20
	// callTime bounds one invocation: Cloud Run and the Consumption plan of
	// Azure end it after five minutes unless told otherwise.
	callTime = 4 * time.Minute
)

// A Call is one invocation: a request's headers by name, and its body.
type Call func(ctx context.Context, header func(string) string, body []byte) error

// Decoder reads a platform's notices from one request.
type Decoder func(header func(string) string, body []byte, received time.Time) ([]events.Event, error)

// OnNotice is the Call that rotates. A notice that nobody can understand is
// logged and done with: a platform would deliver it again for days.
func OnNotice(decode Decoder, r *Rotation) Call {
	return func(ctx context.Context, header func(string) string, body []byte) error {
		es, err := decode(header, body, time.Now())
		if err != nil {
			r.log.ErrorContext(ctx, "a notice cannot be understood", "kind", fault.KindOf(err).String(), "bytes", len(body), "err", err)
			if fault.Retryable(err) {
				return err
			}
		}
		return r.Handle(ctx, es)
	}
}

// OnTimer is the Call that sweeps, whatever the timer says.
func OnTimer(s *Sweeper) Call {
	return func(ctx context.Context, _ func(string) string, _ []byte) error { return s.Sweep(ctx) }
}

// Handler serves a Call on every path. ok is the body of the answer to one
// that succeeded, which is 200, or 204 if it is empty. One that failed is
// answered 500, which both platforms deliver again; never 4xx, which Event Grid
// does not.
func Handler(call Call, ok string, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "POST a notice or a timer's call", http.StatusMethodNotAllowed)
			return
		}
		if err := invoke(call, w, r, log); err != nil {
			log.ErrorContext(r.Context(), "failed", "kind", fault.KindOf(err).String(), "class", string(fault.ClassOf(err)), "err", err)
			http.Error(w, fault.KindOf(err).String(), http.StatusInternalServerError)
			return
		}
		if ok == "" {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, ok)
	})
}

func invoke(call Call, w http.ResponseWriter, r *http.Request, log *slog.Logger) (err error) {
	defer func() {
		if v := recover(); v != nil {
			// The panic's own text may quote what was being worked on.
			log.ErrorContext(r.Context(), "panic", "type", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
			err = fault.Newf(fault.Unknown, "function", "panic of type %T; this is a defect, please report it with the log", v)
		}
	}()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return fault.Newf(fault.Unavailable, "read request", "the body did not arrive or has more than %d bytes", maxBody)
	}
	// What has begun is carried to its end if the platform hangs up: it would
	// have to be rolled forward by the next call, and that may be days away.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), callTime)
	defer cancel()
	return call(ctx, r.Header.Get, body)
}
