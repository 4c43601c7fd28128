// Package tokenauth verifies the bearer tokens (JWT, RFC 7519) with which
// clouds sign what they push: Pub/Sub ([Google]), Event Grid ([Entra]), and
// EventBridge connections that sign in at an authorization server ([OAuth]).
//
// What a sender does with the answer decides the kinds of errors. Event Grid
// drops an event for good after 401, and EventBridge after any 4xx, so a token
// is Denied only when it certainly is not a good one. Whatever keeps us from
// knowing is Unavailable, and the sender comes again: the key set cannot be
// fetched, or the token names a key that came up after it was fetched.
//
// Tokens are signed by RS256, or ES256 for [OAuth]; nothing else is accepted,
// so neither "none" nor a secret that is somebody's public key. The key is
// found by the token's key id (kid) in the issuer's own set. Keys in the
// token's header (jwk, jku, x5c, x5u) are not looked at.
package tokenauth

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/fault"
)

const (
	op = "tokenauth"

	// maxHeader bounds the header. Tokens with many roles have 2 to 4 KiB.
	maxHeader = 16 << 10
	// leeway is by how much the clocks of issuer and verifier may differ.
	leeway = time.Minute
)

// Options are common to all constructors. The zero value of each field means
// its default.
type Options struct {
	// HTTP fetches key sets. It is copied; redirects are refused whatever it
	// says. By default it is one of its own over [http.DefaultTransport].
	HTTP *http.Client
	// Now is the clock, [time.Now] by default.
	Now func() time.Time
	// Logger hears of key sets that cannot be fetched. The default discards.
	Logger *slog.Logger
}

// A Verifier accepts the tokens of one issuer that its constructor's options
// describe. It is safe for concurrent use. Make one with [Google], [Entra] or
// [OAuth].
type Verifier struct {
	keys *keySet
	algs []jose.SignatureAlgorithm
	now  func() time.Time
	// from says of whom a token is expected, for errors.
	from string
	// check looks at the claims of a token whose signature and times are good.
	check func(claims) error
}

func newVerifier(o Options, from string, algs []jose.SignatureAlgorithm, find locator, check func(claims) error) *Verifier {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return &Verifier{
		keys: newKeySet(o.HTTP, find, algs, o.Now, o.Logger), algs: algs, now: o.Now, from: from, check: check,
	}
}

// Warm fetches the key set, so that the first delivery need not wait for it.
// The error is Unavailable, and no reason not to start: it will be tried again.
func (v *Verifier) Warm(ctx context.Context) error { return v.keys.warm(ctx) }

// Authenticate accepts a request with the headers h by returning nil. Errors
// are of two kinds. Denied: the token is missing, forged, expired, or not for
// us; the text says which check failed and what was expected. Unavailable:
// the issuer's keys are not known at present, or our clock is before the time
// from which the token is good, and the same request may be good later. No error holds the token. It quotes, shortened, the one claim that was
// wrong, and only of a token that the issuer signed.
//
// A fetch of keys is waited for until ctx ends; most calls need none, and take
// some tens of microseconds.
func (v *Verifier) Authenticate(ctx context.Context, h http.Header) error {
	token, err := bearer(h)
	if err != nil {
		return err
	}
	// The compact form only: JSON serializations have headers that nobody signed.
	jws, err := jose.ParseSignedCompact(token, v.algs)
	if err != nil {
		return refuse("the bearer token is no JWT in compact form that is signed by %s", names(v.algs))
	}
	head := jws.Signatures[0].Protected
	if head.KeyID == "" {
		return refuse("the token names no key (kid); expected one of %s, which does", v.from)
	}
	if _, found := head.ExtraHeaders["crit"]; found {
		return refuse("the token has critical headers (crit); expected none")
	}
	candidates, err := v.keys.find(ctx, head.KeyID, jose.SignatureAlgorithm(head.Algorithm))
	if err != nil {
		return err
	}
	if len(candidates) == 0 {
		return refuse("the issuer's key set has no key for %s with the token's key id; expected a token of %s", head.Algorithm, v.from)
	}
	for _, key := range candidates {
		payload, err := jws.Verify(key)
		if err != nil {
			continue
		}
		c, err := parseClaims(payload)
		if err != nil {
			return err
		}
		if err := v.expiry(c); err != nil {
			return err
		}
		if err := v.check(c); err != nil {
			return err
		}
		return v.early(c)
	}
	return refuse("the token's signature is wrong; expected a token of %s", v.from)
}

// bearer finds the token in the one Authorization header.
// https://www.rfc-editor.org/rfc/rfc6750#section-2.1
func bearer(h http.Header) (string, error) {
	vs := h.Values("Authorization")
	if len(vs) != 1 {
		return "", refuse("found %d Authorization headers; expected one with a bearer token", len(vs))
	}
	if n := len(vs[0]); n > maxHeader {
		return "", refuse("the Authorization header has %d bytes; expected at most %d", n, maxHeader)
	}
	scheme, token, _ := strings.Cut(vs[0], " ")
	if !strings.EqualFold(scheme, "Bearer") || token == "" {
		return "", refuse("the Authorization header has another form; expected Bearer and a token")
	}
	if i := strings.IndexFunc(token, func(c rune) bool {
		return (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && c != '-' && c != '_' && c != '.'
	}); i >= 0 {
		return "", refuse("the bearer token has a character that no JWT has, at byte %d", i)
	}
	return token, nil
}

// expiry checks exp, which must be there.
// https://www.rfc-editor.org/rfc/rfc7519#section-4.1
func (v *Verifier) expiry(c claims) error {
	now := v.now()
	exp, found, err := c.time("exp")
	switch {
	case err != nil:
		return err
	case !found:
		return refuse("the token never expires; expected the claim exp")
	case !now.Before(exp.Add(leeway)):
		return refuse("the token expired at %s, and it is %s; expected a fresh one, or a clock that is right", stamp(exp), stamp(now))
	}
	return nil
}

// early checks nbf and iat, which may be there. Senders use a token at once: one
// that is not good yet tells that our clock is late, and refusing it for that
// would lose what it came with.
func (v *Verifier) early(c claims) error {
	now := v.now()
	for _, name := range []string{"nbf", "iat"} {
		from, found, err := c.time(name)
		if err != nil {
			return err
		}
		if found && now.Before(from.Add(-leeway)) {
			return unavailable("the token is good from %s on (%s), and it is %s; set this machine's clock, which is late", stamp(from), name, stamp(now))
		}
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func names(algs []jose.SignatureAlgorithm) string {
	s := make([]string, len(algs))
	for i, a := range algs {
		s[i] = string(a)
	}
	return strings.Join(s, " or ")
}

// refuse is the error about a token that is not a good one.
func refuse(format string, args ...any) error {
	return &fault.Error{Kind: fault.Denied, Class: fault.ClassAuth, Op: op, Msg: fmt.Sprintf(format, args...)}
}

// forbid is the error about a good token of somebody who is not expected.
func forbid(format string, args ...any) error {
	return &fault.Error{Kind: fault.Denied, Class: fault.ClassPermission, Op: op, Msg: fmt.Sprintf(format, args...)}
}
