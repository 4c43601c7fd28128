package webhook

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// A Reason is why a request was not accepted: a bounded set, fit for a label of
// a metric.
type Reason string

// The reasons, each with the status that goes with it.
const (
	Unauthenticated Reason = "unauthenticated" // 401: no credentials, or wrong ones
	Forbidden       Reason = "forbidden"       // 403: a signed notice that is not for us, or whose signature is wrong
	Oversized       Reason = "oversized"       // 413
	MediaType       Reason = "media_type"      // 415
	Encoding        Reason = "encoding"        // 415: a Content-Encoding
	Method          Reason = "method"          // 405
	Handshake       Reason = "handshake"       // 400 or 403: a subscription that is not ours to allow
	Invalid         Reason = "invalid"         // 400
	Timeout         Reason = "timeout"         // 503: the body did not arrive whole, or the answer was not ready in time
	Overload        Reason = "overload"        // 503: too many requests or bytes in flight
	Unavailable     Reason = "unavailable"     // 503: an outage of ours
)

// A Rejection is a request that was not accepted, for metrics.
type Rejection struct {
	// Source is the route's name.
	Source string
	Reason Reason
	// Status is the HTTP status of the answer. It is 200 for a notice that can
	// never be handled and is acknowledged, since its sender would repeat it.
	Status int
}

// retryAfter is after how many seconds a sender should come again. EventBridge
// obeys it.
const retryAfter = "5"

// A refusal says how a request is turned away.
type refusal struct {
	status int
	reason Reason
	// why is a constant, told to the sender and the log.
	why string
	// err is for the log alone.
	err error
}

func refuse(status int, reason Reason, why string) *refusal {
	return &refusal{status: status, reason: reason, why: why}
}

// away is an outage of ours: the sender comes again.
func away(reason Reason, why string, err error) *refusal {
	return &refusal{status: http.StatusServiceUnavailable, reason: reason, why: why, err: err}
}

// awayFor is away for an error of something that had a deadline.
func awayFor(why string, err error) *refusal {
	if fault.ClassOf(err) == fault.ClassTimeout {
		return away(Timeout, why, err)
	}
	return away(Unavailable, why, err)
}

// turnAway answers f. known says that the sender proved who it is; what
// strangers do is logged once a second at most.
func (rt *route) turnAway(w http.ResponseWriter, r *http.Request, f *refusal, known bool) {
	rt.s.o.Observe(Rejection{Source: rt.Name, Reason: f.reason, Status: f.status})
	if f.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", retryAfter)
	}
	if f.status != http.StatusServiceUnavailable || f.reason == Overload {
		w.Header().Set("Connection", "close") // and do not read the body to save it
	}
	switch f.status {
	case http.StatusUnauthorized:
		for _, a := range rt.Auth {
			w.Header().Add("WWW-Authenticate", challengeOf(a))
		}
		if len(rt.Auth) == 0 {
			w.Header().Set("WWW-Authenticate", "Bearer") // there must be one
		}
	case http.StatusMethodNotAllowed:
		w.Header().Set("Allow", http.MethodPost)
	}
	more, ok := int64(0), true
	if !known {
		more, ok = rt.strange.allow(time.Now())
	}
	if ok {
		log := rt.log.With("status", f.status, "reason", string(f.reason), "why", f.why, "length", r.ContentLength, "remote", r.RemoteAddr)
		if f.err != nil {
			log = log.With("kind", fault.KindOf(f.err).String(), "class", string(fault.ClassOf(f.err)), "err", errText(f.err))
		}
		if more > 0 {
			log = log.With("more_before", more)
		}
		switch {
		case f.status == http.StatusServiceUnavailable:
			log.WarnContext(r.Context(), "answered 503, the sender will repeat it")
		case known:
			// The sender drops the notice, so somebody must hear of it.
			log.ErrorContext(r.Context(), "notice refused; most senders drop it for good")
		default:
			log.WarnContext(r.Context(), "request refused")
		}
	}
	answer(w, f.status, f.why)
}

// errText is err's text where it is classified, which means that it may be
// logged, or else its type.
func errText(err error) string {
	if f := (*fault.Error)(nil); errors.As(err, &f) {
		return err.Error()
	}
	return fmt.Sprintf("%T", err)
}

func answer(w http.ResponseWriter, code int, text string) {
	answerAs(w, code, "text/plain; charset=utf-8", text+"\n")
}

func answerAs(w http.ResponseWriter, code int, mediaType, text string) {
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	_, _ = io.Copy(w, strings.NewReader(text))
}

// throttle lets one through a second and counts the rest.
type throttle struct{ next, held atomic.Int64 }

// allow reports whether this one may pass, and how many were held since the
// last.
func (t *throttle) allow(now time.Time) (held int64, ok bool) {
	next := t.next.Load()
	if now.UnixNano() < next || !t.next.CompareAndSwap(next, now.Add(time.Second).UnixNano()) {
		t.held.Add(1)
		return 0, false
	}
	return t.held.Swap(0), true
}
