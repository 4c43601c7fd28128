// Package webhook receives notices that are pushed by HTTP: one listener with a
// route for each sender, each with its own protocol and its own authentication.
//
// What a route answers follows from what its sender does with an answer; see
// the kinds of routes. Most drop a notice for good on most of the 4xx, so these
// are only for what can never work: wrong credentials, method, type or size. An
// outage of ours, also of what authentication needs, is always 503.
//
// Nothing that a request names is ever fetched, and a request waits for nothing
// that has no bound: its header, its body in time and in bytes, how many are in
// flight, and how many bytes these hold together.
package webhook

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"path"
	"regexp"
	"time"

	"github.com/keyturn/keyturn/fault"
)

const (
	healthPath = "/healthz"
	readyPath  = "/readyz"

	op = "webhook"
)

// A Route is one path, for one sender. The zero value of each field but Kind
// and Auth means its kind's default.
type Route struct {
	// Path is compared with a request's as it is: no pattern, no cleaning. It is
	// /v1/ and the name by default.
	Path string
	// Name is the source name of deliveries: letters, digits, hyphen and
	// underscore, unique among the routes. By default it is that of the kind.
	Name string
	// Kind is the protocol.
	Kind Kind
	// MaxBody bounds a body in bytes.
	MaxBody int64
	// Timeout bounds a request from its header to the answer. By default it is
	// somewhat less than the sender waits.
	Timeout time.Duration
	// Auth are alternatives: a request is let in that any of them accepts. At
	// least one is needed, but for a kind whose notices are signed.
	Auth []Authenticator
	// Handler answers the requests of a route of kind [VaultAudit] instead of the
	// handler of deliveries, behind the same authentication and bounds: it gets
	// a body that was read, and a context that ends with Timeout.
	Handler http.Handler
}

// Format prints r without what its authenticators hold.
func (r Route) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{%s %T %s auth:%d}", r.Name, r.Kind, r.Path, len(r.Auth))
}

// MarshalJSON is what Format prints.
func (r Route) MarshalJSON() ([]byte, error) { return []byte(fmt.Sprintf("%q", fmt.Sprint(r))), nil }

// Options of [Handler] and [Listen]. Routes is required; the zero value of each
// other field means its default. Options print without keys.
type Options struct {
	Routes []Route
	// MaxInFlight bounds how many requests are read and handled at a time, on
	// all routes; more are answered 503. 128 by default. Half of it is the most
	// that strangers can take, whose body must be read to know who they are.
	MaxInFlight int
	// MaxBytes bounds the memory that bodies in flight take, likewise. 64 MiB by
	// default. It is at least the largest MaxBody.
	MaxBytes int64
	// Ready reports why notices cannot be handed on at present. nil is always
	// ready. It is asked once a second at most, and must obey its context.
	Ready func(context.Context) error
	// Logger gets a line for each refusal and outage, without the notice or
	// any key. The default discards.
	Logger *slog.Logger
	// Observe is told of each request that was not accepted. It is called
	// concurrently, must not block, and may be nil.
	Observe func(Rejection)

	// What follows is for Listen only.

	// Addr is where to listen, as "127.0.0.1:8443"; port 0 takes a free one.
	// ":8080" by default.
	Addr string
	// CertFile and KeyFile serve TLS. They are read anew when they change, so a
	// renewed certificate needs no restart.
	CertFile, KeyFile string
	// TLS serves TLS with another configuration, at least version 1.2. Without
	// it and CertFile the source speaks plain HTTP, which is for a proxy that
	// terminates TLS in front of it.
	TLS *tls.Config
	// LameDuck is how long requests are still served after the end of the context
	// of Run, while /readyz fails already, so that a load balancer can look
	// elsewhere before the port closes. None by default.
	LameDuck time.Duration
	// Drain bounds how long requests in flight may go on after the end of the
	// context of Run. The longest Timeout and one second more by default.
	Drain time.Duration
}

// Format prints o without keys, whatever the verb.
func (o Options) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{Addr:%s Routes:%v TLS:%t}", o.Addr, o.Routes, o.TLS != nil || o.CertFile != "")
}

// LogValue is what slog prints of o.
func (o Options) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(o)) }

// MarshalJSON is what Format prints.
func (o Options) MarshalJSON() ([]byte, error) { return []byte(fmt.Sprintf("%q", fmt.Sprint(o))), nil }

func bad(format string, args ...any) error { return fault.Newf(fault.Invalid, op, format, args...) }

// withDefaults returns o complete, or an error of kind Invalid.
func (o Options) withDefaults() (Options, error) {
	if o.MaxInFlight < 0 || o.MaxBytes < 0 || o.Drain < 0 || o.LameDuck < 0 {
		return o, bad("a bound is negative; expected positive ones, or 0 for the default")
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return o, bad("only one of certificate and key file; expected both or neither")
	}
	if o.CertFile != "" && o.TLS != nil {
		return o, bad("both certificate files and a TLS configuration; expected one of them")
	}
	if len(o.Routes) == 0 {
		return o, bad("no route; expected at least one")
	}
	setDefault(&o.MaxInFlight, 128)
	setDefault(&o.MaxBytes, 64<<20)
	setDefault(&o.Addr, ":8080")
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Ready == nil {
		o.Ready = func(context.Context) error { return nil }
	}
	if o.Observe == nil {
		o.Observe = func(Rejection) {}
	}
	routes := make([]Route, len(o.Routes))
	paths, names := map[string]bool{healthPath: true, readyPath: true}, map[string]bool{}
	for i, r := range o.Routes {
		var err error
		if r, _, err = r.withDefaults(); err != nil {
			return o, fmt.Errorf("route %d: %w", i+1, err)
		}
		if paths[r.Path] || names[r.Name] {
			return o, bad("route %d has the path %s and the name %s, of which one is taken; expected unique ones, and neither %s nor %s", i+1, r.Path, r.Name, healthPath, readyPath)
		}
		paths[r.Path], names[r.Name] = true, true
		routes[i] = r
	}
	o.Routes = routes
	for _, r := range routes {
		o.MaxBytes = max(o.MaxBytes, 2*(r.MaxBody+1))
	}
	setDefault(&o.Drain, o.longest()+time.Second)
	return o, nil
}

// longest is the longest time-out of a route.
func (o Options) longest() (d time.Duration) {
	for _, r := range o.Routes {
		d = max(d, r.Timeout)
	}
	return d
}

var (
	nameForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)
	pathForm = regexp.MustCompile(`^(/[A-Za-z0-9._~-]+)+$`)
)

// withDefaults returns r complete, with what is known of its kind.
func (r Route) withDefaults() (Route, profile, error) {
	if r.Kind == nil {
		return r, profile{}, bad("no kind; expected one, as webhook.EventBridge{}")
	}
	p, err := r.Kind.profile()
	if err != nil {
		return r, p, err
	}
	if r.MaxBody < 0 || r.Timeout < 0 {
		return r, p, bad("a bound is negative; expected positive ones, or 0 for the default")
	}
	setDefault(&r.Name, p.name)
	setDefault(&r.Path, "/v1/"+r.Name)
	setDefault(&r.MaxBody, p.maxBody)
	setDefault(&r.Timeout, p.timeout)
	switch {
	case !nameForm.MatchString(r.Name):
		return r, p, bad("name %q; expected at most 64 letters, digits, hyphens and underscores", r.Name)
	case !pathForm.MatchString(r.Path) || path.Clean(r.Path) != r.Path:
		return r, p, bad("path %q; expected a slash before each of its parts, of letters, digits and ._~-", r.Path)
	case len(r.Auth) == 0 && !p.signed:
		return r, p, bad("route %s has no authentication; expected at least one, since anybody could post otherwise", r.Name)
	case r.Handler != nil && !p.plain:
		return r, p, bad("route %s has a handler of its own; expected that only for webhook.VaultAudit", r.Name)
	}
	for i, a := range r.Auth {
		if a == nil {
			return r, p, bad("authenticator %d of route %s is nil", i+1, r.Name)
		}
	}
	for _, o := range p.origins {
		if o == "" || o == "*" {
			return r, p, bad("an origin of route %s is empty or *; expected names", r.Name)
		}
	}
	return r, p, nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
