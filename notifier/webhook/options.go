// Package webhook receives notices by HTTP POST, as an API destination of
// Amazon EventBridge sends them, behind an API key.
//
// What it answers follows from what the sender does with an answer. EventBridge
// waits 5 s, tries again after 429, 5xx and silence, and drops the event for
// good on any other status.
// https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-api-destinations.html
// So an outage of ours is always 503, and 4xx is only for what can never work:
// a wrong key, method, content type or size.
package webhook

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
)

const (
	defaultPath    = "/v1/eventbridge"
	defaultHeader  = "X-Api-Key"
	defaultMaxBody = 1 << 20
	defaultTimeout = 4500 * time.Millisecond

	healthPath = "/healthz"
	readyPath  = "/readyz"

	// minKey is the least length of an API key in bytes: 16 random bytes in
	// any usual encoding are longer.
	minKey = 16

	op = "webhook"
)

// Options of [Handler] and [Listen]. APIKeys is required; the zero value of
// each other field means its default. Options print without their keys.
type Options struct {
	// APIKeys are the keys that are accepted, each at least 16 bytes long.
	// Give two while a key is being rotated.
	APIKeys []string
	// Header holds the key in a request. X-Api-Key by default.
	Header string
	// Path receives notices. /v1/eventbridge by default.
	Path string
	// Name is the source name of deliveries. "webhook" by default.
	Name string
	// MaxBody bounds a body in bytes. 1 MiB by default.
	MaxBody int64
	// Timeout bounds a request from its header to the answer. 4.5 s by
	// default, since EventBridge waits 5 s.
	Timeout time.Duration
	// MaxInFlight bounds how many requests are read and handled at a time, and
	// with MaxBody the memory that they take; more are answered 503. 128 by
	// default.
	MaxInFlight int
	// Ready reports why notices cannot be handed on at present. nil is always
	// ready. It must be safe for concurrent use and obey its context.
	Ready func(context.Context) error
	// Logger gets a line for each refusal and outage, without the notice or
	// any key. The default discards.
	Logger *slog.Logger

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
	// Drain bounds how long requests in flight may go on after the end of the
	// context of Run. Timeout and one second more by default.
	Drain time.Duration
}

// Format prints o without its keys, whatever the verb.
func (o Options) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "{Addr:%s Path:%s Header:%s keys:%d TLS:%t}", o.Addr, o.Path, o.Header, len(o.APIKeys), o.TLS != nil || o.CertFile != "")
}

// LogValue is what slog prints of o.
func (o Options) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(o)) }

// MarshalJSON keeps the keys out of JSON too.
func (o Options) MarshalJSON() ([]byte, error) { return []byte(fmt.Sprintf("%q", fmt.Sprint(o))), nil }

var headerForm = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

// withDefaults returns o complete, its keys moved to digests, or an error of
// kind Invalid.
func (o Options) withDefaults() (Options, keys, error) {
	bad := func(format string, args ...any) (Options, keys, error) {
		return Options{}, nil, fault.Newf(fault.Invalid, op, format, args...)
	}
	if len(o.APIKeys) == 0 {
		return bad("no API key; expected at least one, since anybody could post otherwise")
	}
	var ks keys
	for i, k := range o.APIKeys {
		if len(k) < minKey || strings.TrimSpace(k) != k || strings.ContainsFunc(k, func(r rune) bool { return r < ' ' || r > '~' }) {
			return bad("API key %d has %d bytes; expected at least %d printable ASCII characters without spaces around them; a final newline of a file must go", i+1, len(k), minKey)
		}
		ks = append(ks, sha256.Sum256([]byte(k)))
	}
	o.APIKeys = nil
	if o.Header == "" {
		o.Header = defaultHeader
	}
	if !headerForm.MatchString(o.Header) {
		return bad("header %q; expected letters, digits and hyphens", o.Header)
	}
	o.Header = http.CanonicalHeaderKey(o.Header)
	if o.Path == "" {
		o.Path = defaultPath
	}
	if !strings.HasPrefix(o.Path, "/") || o.Path == healthPath || o.Path == readyPath {
		return bad("path %q; expected one that begins with a slash and is neither %s nor %s", o.Path, healthPath, readyPath)
	}
	if o.MaxBody < 0 || o.Timeout < 0 || o.MaxInFlight < 0 || o.Drain < 0 {
		return bad("a bound is negative; expected positive ones, or 0 for the default")
	}
	if (o.CertFile == "") != (o.KeyFile == "") {
		return bad("only one of certificate and key file; expected both or neither")
	}
	if o.CertFile != "" && o.TLS != nil {
		return bad("both certificate files and a TLS configuration; expected one of them")
	}
	setDefault(&o.Name, "webhook")
	setDefault(&o.MaxBody, defaultMaxBody)
	setDefault(&o.Timeout, defaultTimeout)
	setDefault(&o.MaxInFlight, 128)
	setDefault(&o.Addr, ":8080")
	setDefault(&o.Drain, o.Timeout+time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Ready == nil {
		o.Ready = func(context.Context) error { return nil }
	}
	return o, ks, nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// keys are digests of API keys: digests have one length, so that comparing them
// does not tell a key's.
type keys [][sha256.Size]byte

// hold reports whether k is one of them, in a time that does not depend on
// which.
func (ks keys) hold(k string) bool {
	sum := sha256.Sum256([]byte(k))
	found := 0
	for i := range ks {
		found |= subtle.ConstantTimeCompare(ks[i][:], sum[:])
	}
	return found == 1
}
