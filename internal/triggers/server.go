package triggers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os/signal"
	"runtime/debug"
	"syscall"
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
	// stopTime is what is left of an invocation when the platform ends the
	// process: Cloud Run kills it 10 s after its signal.
	stopTime = 9 * time.Second
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

// Serve answers on address until the platform ends the process with SIGTERM,
// and lets what runs finish within what the platform leaves. An error means
// that it could not listen, or could not finish.
func Serve(ctx context.Context, address string, h http.Handler, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fault.New(fault.Invalid, "listen", err)
	}
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: callTime + 30*time.Second,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	log.InfoContext(ctx, "ready", "address", l.Addr().String())
	select {
	case err := <-done:
		return fault.New(fault.Unavailable, "serve", err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if err := s.Shutdown(end); err != nil {
		return errors.Join(fault.New(fault.Unavailable, "stop", err), s.Close())
	}
	return nil
}
