package webhook

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"

	"github.com/keyturn/keyturn/fault"
)

// An Authenticator decides from a request's header alone who sends. It is safe
// for concurrent use and obeys ctx.
type Authenticator interface {
	// Authenticate returns nil to accept. An error of kind Denied or Invalid
	// refuses: the answer is 401. Any other error means that it cannot be told
	// at present, as when a key set cannot be fetched: the answer is 503, so
	// that the sender comes again.
	Authenticate(ctx context.Context, h http.Header) error
}

// A BodyAuthenticator needs the body too, as a signature over it does.
// Authenticate then only turns away what cannot be accepted whatever the body
// is, before the body is read.
type BodyAuthenticator interface {
	Authenticator
	// AuthenticateBody has the errors of Authenticate. It does not keep body.
	AuthenticateBody(ctx context.Context, h http.Header, body []byte) error
}

const (
	// minKey is the least length of an API key or password in bytes: 16 random
	// bytes in any usual encoding are longer.
	minKey = 16

	opAuth = "webhook: authenticate"
)

// A challenger says what a 401 must tell the sender.
// https://www.rfc-editor.org/rfc/rfc9110#section-11.6.1
type challenger interface{ challenge() string }

func challengeOf(a Authenticator) string {
	if c, ok := a.(challenger); ok {
		return c.challenge()
	}
	return "Bearer"
}

func denied(format string, args ...any) error {
	return &fault.Error{Kind: fault.Denied, Class: fault.ClassAuth, Op: opAuth, Msg: fmt.Sprintf(format, args...)}
}

// only returns the value of a header that must be there once. Of two, a proxy
// in front may have looked at the other.
func only(h http.Header, name string) (string, error) {
	switch vs := h.Values(name); {
	case len(vs) == 0:
		return "", denied("the header %s is missing", name)
	case len(vs) > 1:
		return "", denied("the header %s is there %d times; expected once", name, len(vs))
	default:
		return vs[0], nil
	}
}

// A digest stands for a secret: digests have one length, so that comparing them
// does not tell the secret's.
type digest [sha256.Size]byte

func digestOf(s string) digest { return sha256.Sum256([]byte(s)) }

func (d digest) equal(e digest) int { return subtle.ConstantTimeCompare(d[:], e[:]) }

var headerForm = regexp.MustCompile(`^[A-Za-z0-9-]{1,64}$`)

type apiKey struct {
	header string
	keys   []digest
}

// APIKey accepts requests that carry one of keys in a header of their own, as
// API destinations of EventBridge send it and as a secret delivery header of
// Event Grid. Give two keys while one is being rotated; each is at least 16
// bytes of printable ASCII. header is X-Api-Key if empty. Which key it was, and
// how much of a wrong one was right, does not show in the time that it takes.
// The error is of kind Invalid.
func APIKey(header string, keys ...string) (Authenticator, error) {
	if header == "" {
		header = "X-Api-Key"
	}
	if !headerForm.MatchString(header) {
		return nil, fault.Newf(fault.Invalid, op, "header %q; expected letters, digits and hyphens", header)
	}
	if len(keys) == 0 {
		return nil, fault.Newf(fault.Invalid, op, "no API key; expected at least one, since anybody could post otherwise")
	}
	a := &apiKey{header: http.CanonicalHeaderKey(header)}
	for i, k := range keys {
		if err := checkSecret(fmt.Sprintf("API key %d", i+1), k); err != nil {
			return nil, err
		}
		a.keys = append(a.keys, digestOf(k))
	}
	return a, nil
}

func checkSecret(what, s string) error {
	if len(s) < minKey || strings.TrimSpace(s) != s || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
		return fault.Newf(fault.Invalid, op, "%s has %d bytes; expected at least %d printable ASCII characters without spaces around them; a final newline of a file must go", what, len(s), minKey)
	}
	return nil
}

func (a *apiKey) Authenticate(_ context.Context, h http.Header) error {
	k, err := only(h, a.header)
	if err != nil {
		return err
	}
	sum, found := digestOf(k), 0
	for i := range a.keys {
		found |= a.keys[i].equal(sum)
	}
	if found != 1 {
		return denied("the key in %s is not one of ours", a.header)
	}
	return nil
}

func (a *apiKey) challenge() string { return `ApiKey header="` + a.header + `"` }

// Format prints a without its keys, whatever the verb.
func (a *apiKey) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "API key in %s (%d accepted)", a.header, len(a.keys))
}

// LogValue is what slog prints of a.
func (a *apiKey) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(a)) }

// A Login is a name and password of [Basic].
type Login struct{ User, Password string }

// Format prints l without its password.
func (l Login) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "login of %q", l.User) }

// MarshalJSON keeps the password out of JSON too.
func (l Login) MarshalJSON() ([]byte, error) { return []byte(fmt.Sprintf("%q", fmt.Sprint(l))), nil }

type basic struct{ users, passwords []digest }

// Basic accepts requests with one of several names and passwords, as RFC 7617
// has it. Give two logins while one is being rotated. A name has no colon, and
// a password at least 16 bytes. All are compared, each in constant time. The
// error is of kind Invalid.
func Basic(logins ...Login) (Authenticator, error) {
	if len(logins) == 0 {
		return nil, fault.Newf(fault.Invalid, op, "no login; expected at least one name and password")
	}
	b := &basic{}
	for i, l := range logins {
		if l.User == "" || strings.ContainsFunc(l.User, func(r rune) bool { return r == ':' || r < ' ' || r == 0x7f }) {
			return nil, fault.Newf(fault.Invalid, op, "the name of login %d is empty or has a colon or control character, which RFC 7617 does not allow", i+1)
		}
		if err := checkSecret(fmt.Sprintf("the password of login %d", i+1), l.Password); err != nil {
			return nil, err
		}
		b.users, b.passwords = append(b.users, digestOf(l.User)), append(b.passwords, digestOf(l.Password))
	}
	return b, nil
}

func (b *basic) Authenticate(_ context.Context, h http.Header) error {
	if _, err := only(h, "Authorization"); err != nil {
		return err
	}
	user, password, ok := (&http.Request{Header: h}).BasicAuth()
	if !ok {
		return denied("the header Authorization holds no Basic credentials")
	}
	u, p, found := digestOf(user), digestOf(password), 0
	for i := range b.users {
		found |= b.users[i].equal(u) & b.passwords[i].equal(p)
	}
	if found != 1 {
		return denied("the name and password are not ours")
	}
	return nil
}

func (b *basic) challenge() string { return `Basic realm="keyturn", charset="UTF-8"` }

// Format prints b without its logins, whatever the verb.
func (b *basic) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "Basic (%d logins)", len(b.users))
}

// LogValue is what slog prints of b.
func (b *basic) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(b)) }
