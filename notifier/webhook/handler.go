package webhook

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

// Handler returns the HTTP handler that gives the notices of each route to h,
// beside /healthz, which is 200 while the process lives, and /readyz, which is
// 200 while notices can be handed on. The error is of kind Invalid and says what
// is wrong with o. Delivery.Source tells h the route.
//
//	200  handed on, or parked: h returned nil; or a handshake
//	400  h says that it can never work, and had nowhere to put it: the dead
//	     letter queue of the sender is the last place for it; or no handshake
//	401  no credentials or wrong ones
//	403  signed by another, or a handshake that is not ours to allow
//	404  no such path      405  not POST      413  longer than MaxBody
//	415  a type that the kind does not have, or compressed
//	503  an outage or time-out of ours, with Retry-After
func Handler(h notifier.Handler, o Options) (http.Handler, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	return newServer(h, o)
}

type server struct {
	h      notifier.Handler
	o      Options
	routes map[string]*route
	gate   *gate
	ready  *readiness
	// draining is set when the process is about to end.
	draining atomic.Bool
}

// A route is a Route at work.
type route struct {
	Route
	s       *server
	profile profile
	log     *slog.Logger
	// strangers is the share of the server's gate for those whose body must be
	// read to know who they are. Each such route has its own, so that an attack
	// on one shuts no other.
	strangers *gate
	strange   throttle
}

// newServer wants options that are complete.
func newServer(h notifier.Handler, o Options) (*server, error) {
	s := &server{h: h, o: o, routes: map[string]*route{}, gate: newGate(o.MaxInFlight, o.MaxBytes), ready: newReadiness(o.Ready)}
	open := 0
	for _, r := range o.Routes {
		r, p, err := r.withDefaults()
		if err != nil {
			return nil, err
		}
		s.routes[r.Path] = &route{Route: r, s: s, profile: p, log: o.Logger.With("source", r.Name)}
		if s.routes[r.Path].open() {
			open++
		}
	}
	for _, rt := range s.routes {
		if rt.open() {
			rt.strangers = newGate(o.MaxInFlight/2/open, max(o.MaxBytes/2/int64(open), rt.MaxBody+1))
		}
	}
	return s, nil
}

// open reports whether a stranger's body may have to be read.
func (rt *route) open() bool {
	if rt.profile.signed {
		return true
	}
	for _, a := range rt.Auth {
		if _, ok := a.(BodyAuthenticator); ok {
			return true
		}
	}
	return false
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	rt := s.routes[r.URL.Path]
	switch {
	case r.URL.RawPath != "":
		// Escaped where it need not be: a proxy in front may have taken it for
		// another path.
		answer(w, http.StatusNotFound, "nothing here")
	case rt != nil:
		rt.serve(w, r)
	case r.URL.Path == healthPath:
		answer(w, http.StatusOK, "ok")
	case r.URL.Path == readyPath:
		s.probe(w, r)
	default:
		answer(w, http.StatusNotFound, "nothing here")
	}
}

func (rt *route) serve(w http.ResponseWriter, r *http.Request) {
	received := time.Now()
	ctx, cancel := context.WithDeadline(r.Context(), received.Add(rt.Timeout))
	defer cancel()
	known := false
	// A panic is a defect of ours, so an outage. It is not left to net/http,
	// which prints its value.
	defer func() {
		if p := recover(); p != nil {
			err := fault.Newf(fault.Unknown, op, "a panic with a %T; this is a defect, please report it", p)
			rt.turnAway(w, r, away(Unavailable, "the notice could not be handed on", err), known)
		}
	}()
	if f := rt.handle(ctx, w, r, received, &known); f != nil {
		rt.turnAway(w, r, f, known)
	}
}

// handle answers a request or says why not. It sets known once the sender is.
func (rt *route) handle(ctx context.Context, w http.ResponseWriter, r *http.Request, received time.Time, known *bool) *refusal {
	asks := r.Method == http.MethodOptions && len(rt.profile.origins) > 0
	if asks && rt.profile.unasked {
		return rt.handshake(w, r)
	}
	p, f := rt.authenticate(ctx, r.Header)
	if f != nil {
		return f
	}
	if asks {
		if f := p.settle(ctx, r.Header, nil); f != nil {
			return f
		}
		*known = true
		return rt.handshake(w, r)
	}
	stranger := len(p.pending) > 0 || rt.profile.signed
	*known = !stranger
	if f := rt.acceptable(r); f != nil {
		return f
	}

	gates := []*gate{rt.s.gate}
	if stranger {
		gates = append(gates, rt.strangers)
	}
	t := admit(gates...)
	if t == nil {
		return away(Overload, "too many requests in flight", nil)
	}
	defer t.leave()
	body, f := rt.read(w, r, t, received.Add(rt.Timeout))
	if f != nil {
		return f
	}
	if f := p.settle(ctx, r.Header, body); f != nil {
		return f
	}
	if !rt.profile.signed {
		t.prove()
		*known = true
	}
	if rt.Handler != nil {
		return rt.mounted(ctx, w, r, body)
	}
	out, f := rt.Kind.receive(ctx, &request{route: rt, header: r.Header, body: body, received: received})
	if f != nil {
		return f
	}
	t.prove()
	*known = true
	if !out.done {
		if f := rt.handOn(ctx, out.delivery); f != nil {
			return f
		}
	}
	if out.reply != "" {
		answerAs(w, http.StatusOK, "application/json", out.reply)
	} else {
		answer(w, http.StatusOK, "ok")
	}
	return nil
}

// A proof is what is left to be proven once the header was looked at.
type proof struct {
	// pending must see the body, and one of them accept; if there is none, the
	// sender is known already.
	pending []BodyAuthenticator
	errs    []error // of those that did not accept
}

// authenticate tries the alternatives on the header.
func (rt *route) authenticate(ctx context.Context, h http.Header) (p proof, f *refusal) {
	if len(h.Values("Authorization")) > 1 {
		return p, refuse(http.StatusUnauthorized, Unauthenticated, "expected one Authorization header")
	}
	for _, a := range rt.Auth {
		err := a.Authenticate(ctx, h)
		b, more := a.(BodyAuthenticator)
		switch {
		case err != nil:
			p.errs = append(p.errs, err)
		case more:
			p.pending = append(p.pending, b)
		default:
			return proof{}, nil
		}
	}
	if len(p.pending) > 0 || len(rt.Auth) == 0 {
		return p, nil
	}
	return p, unauthenticated(p.errs)
}

// settle asks those who must see the body.
func (p proof) settle(ctx context.Context, h http.Header, body []byte) *refusal {
	for _, a := range p.pending {
		err := a.AuthenticateBody(ctx, h, body)
		if err == nil {
			return nil
		}
		p.errs = append(p.errs, err)
	}
	if len(p.pending) == 0 {
		return nil
	}
	return unauthenticated(p.errs)
}

// unauthenticated is 401 if every alternative says so. One that cannot tell
// might have accepted, and most senders take a 401 as final.
func unauthenticated(errs []error) *refusal {
	for _, err := range errs {
		if k := fault.KindOf(err); k != fault.Denied && k != fault.Invalid {
			return awayFor("the credentials cannot be checked at present", err)
		}
	}
	return &refusal{status: http.StatusUnauthorized, reason: Unauthenticated, why: "no valid credentials", err: errors.Join(errs...)}
}

// handOn gives a delivery to the handler.
func (rt *route) handOn(ctx context.Context, d notifier.Delivery) *refusal {
	switch err := rt.s.h(ctx, d); {
	case err == nil:
		return nil
	case !fault.Is(err, fault.Invalid):
		return awayFor("the notice could not be handed on", err)
	case rt.profile.loops:
		rt.s.o.Observe(Rejection{Source: rt.Name, Reason: Invalid, Status: http.StatusOK})
		rt.log.ErrorContext(ctx, "a notice that can never be handled was acknowledged, since the sender would repeat it without end", "err", errText(err), "id", d.ID)
		return nil
	default:
		return &refusal{status: http.StatusBadRequest, reason: Invalid, why: "the notice can never be handled", err: err}
	}
}

// mounted gives a request whose body was read to the route's own handler.
func (rt *route) mounted(ctx context.Context, w http.ResponseWriter, r *http.Request, body []byte) *refusal {
	r = r.WithContext(ctx)
	r.Body, r.ContentLength, r.TransferEncoding = io.NopCloser(bytes.NewReader(body)), int64(len(body)), nil
	rt.Handler.ServeHTTP(w, r)
	return nil
}
