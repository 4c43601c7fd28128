package funcnotify

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/funcserve"
	"github.com/keyturn/keyturn/notifier"
	"github.com/keyturn/keyturn/notifier/webhook"
)

// pushPath is where package webhook is asked, whatever path the platform calls.
const pushPath = "/push"

// platform takes every caller: Cloud Run has checked the token before, and lets
// nobody in whom IAM does not.
// https://cloud.google.com/run/docs/authenticating/overview
type platform struct{}

func (platform) Authenticate(context.Context, http.Header) error { return nil }

// Push serves a push of Pub/Sub or Eventarc on every path: 200 after h returned
// nil, 503 on an outage of ours. It checks no caller, so it must run where the
// platform does. Errors are of kind Invalid.
func Push(env Env, h notifier.Handler, log *slog.Logger) (http.Handler, error) {
	hook, err := webhook.Handler(h, webhook.Options{
		Routes: []webhook.Route{{Path: pushPath, Name: env.Source, Kind: webhook.PubSub{}, Auth: []webhook.Authenticator{platform{}}}},
		Logger: log,
	})
	if err != nil {
		return nil, err
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			to := *r.URL
			to.Path, to.RawPath = pushPath, ""
			r = r.WithContext(r.Context())
			r.URL = &to
		}
		hook.ServeHTTP(w, r)
	}), nil
}

const (
	// maxTrigger is far above a call of the host: an event has at most 1 MiB.
	maxTrigger = 4 << 20
	// triggerTime bounds one call; Event Grid's own limit is the host's matter.
	triggerTime = 20 * time.Second
	// maxCalls bounds how many calls are read and handled at a time.
	maxCalls = 32
)

// Trigger serves the host of Azure Functions on every path: 200 with the host's
// answer after h returned nil, else 503, after which the host reports a failure
// and Event Grid delivers again. Never 4xx for a notice. It checks no caller:
// the host alone reaches the program.
func Trigger(env Env, h notifier.Handler, log *slog.Logger) http.Handler {
	calls := make(chan struct{}, maxCalls)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPost {
			w.Header().Set("Allow", http.MethodPost)
			http.Error(w, "POST a trigger's call", http.StatusMethodNotAllowed)
			return
		}
		received := time.Now()
		ctx, cancel := context.WithTimeout(r.Context(), triggerTime)
		defer cancel()
		var err error
		select {
		case calls <- struct{}{}:
			defer func() { <-calls }()
			err = trigger(ctx, env, h, w, r, received)
		case <-ctx.Done():
			err = fault.Newf(fault.Unavailable, "function", "%d calls are in flight", maxCalls)
		}
		if err != nil {
			log.WarnContext(ctx, "a call failed; Event Grid delivers again", "kind", fault.KindOf(err).String(), "class", string(fault.ClassOf(err)), "err", err)
			http.Error(w, fault.KindOf(err).String(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, funcserve.HostAnswer)
	})
}

func trigger(ctx context.Context, env Env, h notifier.Handler, w http.ResponseWriter, r *http.Request, received time.Time) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxTrigger))
	if err != nil {
		return fault.Newf(fault.Unavailable, "read request", "the body did not arrive or has more than %d bytes", maxTrigger)
	}
	d := notifier.Delivery{Source: env.Source, Body: unwrap(body), Received: received}
	if tp := r.Header.Get("Traceparent"); tp != "" {
		d.Attributes = map[string]string{"traceparent": tp}
	}
	return h(ctx, d)
}

// unwrap returns the event of a call with one binding. What the host adds differs
// at each repetition, and is of no use to who reads a dead letter; what is not
// such a call is returned as it is, for the decoder to refuse.
func unwrap(body []byte) []byte {
	var call struct{ Data map[string]json.RawMessage }
	if json.Unmarshal(body, &call) != nil || len(call.Data) != 1 {
		return body
	}
	for _, raw := range call.Data {
		var text string
		if json.Unmarshal(raw, &text) == nil {
			raw = []byte(text)
		}
		return bytes.TrimSpace(raw)
	}
	return body
}

// Header reads the headers that [Push] has put into a delivery's attributes.
func Header(d notifier.Delivery) func(string) string {
	return func(name string) string { return d.Attributes[strings.ToLower(name)] }
}
