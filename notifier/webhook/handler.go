package webhook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

// retryAfter is after how many seconds a sender should come again. EventBridge
// obeys it.
const retryAfter = "5"

// Handler returns the HTTP handler that gives each notice to h: at the path of
// o, beside /healthz, which is 200 while the process lives, and /readyz, which
// is 200 while notices can be handed on. The error is of kind Invalid and says
// what is wrong with o.
//
//	200  handed on, or parked: h returned nil
//	400  h says that it can never work, and had nowhere to put it; the dead
//	     letter queue of the sender is the last place for it
//	401  no key or a wrong one; the body was not read
//	405  not POST          413  longer than MaxBody
//	415  not JSON, or compressed
//	503  an outage or time-out of ours, with Retry-After
func Handler(h notifier.Handler, o Options) (http.Handler, error) {
	o, ks, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	return newServer(h, o, ks), nil
}

type server struct {
	h     notifier.Handler
	o     Options
	keys  keys
	slots chan struct{}
	// draining is set when the process is about to end.
	draining atomic.Bool
	refused  throttle
}

func newServer(h notifier.Handler, o Options, ks keys) *server {
	return &server{h: h, o: o, keys: ks, slots: make(chan struct{}, o.MaxInFlight)}
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case s.o.Path:
		s.receive(w, r)
	case healthPath:
		answer(w, http.StatusOK, "ok")
	case readyPath:
		s.ready(w, r)
	default:
		answer(w, http.StatusNotFound, "nothing here")
	}
}

func (s *server) ready(w http.ResponseWriter, r *http.Request) {
	if s.draining.Load() {
		answer(w, http.StatusServiceUnavailable, "draining")
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	if err := s.o.Ready(ctx); err != nil {
		s.o.Logger.DebugContext(ctx, "not ready", "err", err)
		answer(w, http.StatusServiceUnavailable, "not ready") // why is for the log
		return
	}
	answer(w, http.StatusOK, "ready")
}

func (s *server) receive(w http.ResponseWriter, r *http.Request) {
	received := time.Now()
	if vs := r.Header.Values(s.o.Header); len(vs) != 1 || !s.keys.hold(vs[0]) {
		// One line a second is enough for a stranger who tries keys.
		if n, ok := s.refused.allow(received); ok {
			s.o.Logger.WarnContext(r.Context(), "refused: no valid API key", "remote", r.RemoteAddr, "header", s.o.Header, "keys_sent", len(vs), "more_refused", n)
		}
		w.Header().Set("WWW-Authenticate", `ApiKey header="`+s.o.Header+`"`)
		w.Header().Set("Connection", "close") // and do not read the body to save it
		answer(w, http.StatusUnauthorized, "no valid API key")
		return
	}
	if code, why := s.acceptable(r); code != 0 {
		s.refuse(w, r, code, why)
		return
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		s.away(w, r, "too many requests in flight", nil)
		return
	}

	ctx, cancel := context.WithDeadline(r.Context(), received.Add(s.o.Timeout))
	defer cancel()
	body, err := s.read(w, r, received)
	if tooLong := (*http.MaxBytesError)(nil); errors.As(err, &tooLong) {
		s.refuse(w, r, http.StatusRequestEntityTooLarge, s.tooLong())
		return
	}
	if err != nil {
		s.away(w, r, "the body did not arrive", err)
		return
	}
	d := notifier.Delivery{Source: s.o.Name, Body: body, Received: received}
	if tp := r.Header.Get("Traceparent"); tp != "" {
		d.Attributes = map[string]string{"traceparent": tp}
	}
	switch err := s.call(ctx, d); {
	case err == nil:
		answer(w, http.StatusOK, "ok")
	case fault.Is(err, fault.Invalid):
		s.refuse(w, r, http.StatusBadRequest, "the notice can never be handled")
	default:
		s.away(w, r, "the notice could not be handed on", err)
	}
}

// idle takes every slot, so that no request is or will be handled, and reports
// whether it got them within limit.
func (s *server) idle(limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	for range cap(s.slots) {
		select {
		case s.slots <- struct{}{}:
		case <-t.C:
			return false
		}
	}
	return true
}

// acceptable checks what can be checked without the body.
func (s *server) acceptable(r *http.Request) (code int, why string) {
	if r.Method != http.MethodPost {
		return http.StatusMethodNotAllowed, "expected POST"
	}
	// Absent is taken for JSON: the body is parsed in any case.
	if ct := r.Header.Get("Content-Type"); ct != "" {
		mt, params, err := mime.ParseMediaType(ct)
		if err != nil || mt != "application/json" && !(strings.HasPrefix(mt, "application/") && strings.HasSuffix(mt, "+json")) {
			return http.StatusUnsupportedMediaType, "expected Content-Type application/json"
		}
		if cs := params["charset"]; cs != "" && !strings.EqualFold(cs, "utf-8") {
			return http.StatusUnsupportedMediaType, "expected charset utf-8"
		}
	}
	// EventBridge does not compress; what would have to be unpacked could be a
	// bomb.
	if ce := r.Header.Get("Content-Encoding"); ce != "" && !strings.EqualFold(ce, "identity") {
		return http.StatusUnsupportedMediaType, "expected a body without Content-Encoding"
	}
	if r.ContentLength > s.o.MaxBody {
		return http.StatusRequestEntityTooLarge, s.tooLong()
	}
	return 0, ""
}

func (s *server) tooLong() string {
	return fmt.Sprintf("expected a body of at most %d bytes", s.o.MaxBody)
}

// read reads the body within its bounds of size and time.
func (s *server) read(w http.ResponseWriter, r *http.Request, received time.Time) ([]byte, error) {
	// A recorder in a test has no deadlines; a server's connection has.
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(received.Add(s.o.Timeout))
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, s.o.MaxBody))
	if err == nil {
		// Else the deadline would later look like a client that hung up.
		_ = rc.SetReadDeadline(time.Time{})
	}
	return body, err
}

// call calls the handler. Its panic is an outage of ours, and is not left to
// net/http, which prints its value.
func (s *server) call(ctx context.Context, d notifier.Delivery) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fault.Newf(fault.Unknown, op, "the handler panicked with a %T; this is a defect, please report it", p)
		}
	}()
	return s.h(ctx, d)
}

// refuse answers what can never work. The sender drops the notice, so somebody
// must hear of it.
func (s *server) refuse(w http.ResponseWriter, r *http.Request, code int, why string) {
	s.o.Logger.ErrorContext(r.Context(), "notice refused, the sender will drop it", "status", code, "why", why, "length", r.ContentLength, "remote", r.RemoteAddr)
	if code == http.StatusMethodNotAllowed {
		w.Header().Set("Allow", http.MethodPost)
	}
	w.Header().Set("Connection", "close")
	answer(w, code, why)
}

// away answers an outage of ours: the sender comes again.
func (s *server) away(w http.ResponseWriter, r *http.Request, why string, err error) {
	log := s.o.Logger.With("why", why, "remote", r.RemoteAddr)
	if err != nil {
		log = log.With("kind", fault.KindOf(err).String(), "class", string(fault.ClassOf(err)), "err", errText(err))
	}
	log.WarnContext(r.Context(), "answered 503, the sender will repeat it")
	w.Header().Set("Retry-After", retryAfter)
	answer(w, http.StatusServiceUnavailable, why)
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
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, text+"\n")
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
