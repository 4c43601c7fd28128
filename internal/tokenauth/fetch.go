package tokenauth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/fault"
)

const (
	// maxAnswer bounds a document of an issuer. Key sets have some 10 KiB.
	maxAnswer = 1 << 20
	// fetchTimeout bounds a fetch, discovery included, below the 5 s that
	// EventBridge waits.
	fetchTimeout = 4 * time.Second

	minRSA, maxRSA = 2048, 8192 // bits
)

// A locator tells where the key set is.
type locator func(ctx context.Context, c *http.Client) (string, error)

// fixed is a locator that knows.
func fixed(address string) (locator, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return nil, fault.Newf(fault.Invalid, op, "%q is no address of a key set; expected an https URL", address)
	}
	return func(context.Context, *http.Client) (string, error) { return address, nil }, nil
}

// discovered is a locator that asks the issuer, at each fetch: that is once an
// hour, and an issuer may move its keys.
// https://openid.net/specs/openid-connect-discovery-1_0.html
func discovered(issuer string) locator {
	return func(ctx context.Context, c *http.Client) (string, error) {
		p, err := oidc.NewProvider(oidc.ClientContext(ctx, c), issuer)
		if mismatch := (*oidc.IssuerMismatchError)(nil); errors.As(err, &mismatch) {
			return "", unavailable("%s calls itself by another name; configure the issuer exactly as its discovery document says", issuer)
		}
		if err != nil {
			// The library's text may quote the answer.
			return "", cannot(ctx, "read the discovery document of "+issuer, err)
		}
		var doc struct {
			JWKSURL string `json:"jwks_uri"`
		}
		if err := p.Claims(&doc); err != nil {
			return "", unavailable("the discovery document of %s cannot be read", issuer)
		}
		if _, err := fixed(doc.JWKSURL); err != nil {
			return "", unavailable("the discovery document of %s names no key set at an https URL", issuer)
		}
		return doc.JWKSURL, nil
	}
}

// client returns a copy of c that follows no redirect and reads no more than
// maxAnswer of an answer.
func client(c *http.Client) *http.Client {
	out := &http.Client{}
	if c != nil {
		*out = *c
	}
	rt := out.Transport
	if rt == nil {
		rt = http.DefaultTransport
	}
	out.Transport = bounded{rt}
	// An issuer's keys are where it says; what answers elsewhere is not it.
	out.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return out
}

type bounded struct{ rt http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.rt.RoundTrip(r)
	if err == nil {
		resp.Body = http.MaxBytesReader(nil, resp.Body, maxAnswer)
	}
	return resp, err
}

// fetch gets the keys that can be used, by key id.
func fetch(ctx context.Context, c *http.Client, locate locator, algs []jose.SignatureAlgorithm) (map[string][]key, error) {
	address, err := locate(ctx, c)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return nil, unavailable("%q is no address", address)
	}
	req.Header.Set("Accept", "application/jwk-set+json, application/json")
	resp, err := c.Do(req)
	if err != nil {
		return nil, cannot(ctx, "get the key set at "+address, err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return nil, unavailable("the key set at %s was answered with status %d; expected 200", address, resp.StatusCode)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, cannot(ctx, "read the key set at "+address, err)
	}
	keys := parseKeys(body, algs)
	if len(keys) == 0 {
		return nil, unavailable("the key set at %s has no key for %s", address, names(algs))
	}
	return keys, nil
}

// A key is a public key and the one algorithm that it verifies.
type key struct {
	alg    jose.SignatureAlgorithm
	public any
}

// parseKeys reads a key set, and leaves out each key that cannot be used: other
// types are to be ignored (RFC 7517, section 5), and one odd key must not take
// the others away. The algorithm is the key's, never the token's alone.
func parseKeys(body []byte, algs []jose.SignatureAlgorithm) map[string][]key {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if json.Unmarshal(body, &set) != nil {
		return nil
	}
	out := map[string][]key{}
	for _, raw := range set.Keys {
		// Certificates beside a key say nothing here, and an odd one would take
		// the key away.
		var members map[string]json.RawMessage
		if json.Unmarshal(raw, &members) != nil {
			continue
		}
		maps.DeleteFunc(members, func(name string, _ json.RawMessage) bool { return strings.HasPrefix(name, "x5") })
		raw, _ = json.Marshal(members)
		var k jose.JSONWebKey
		if k.UnmarshalJSON(raw) != nil || k.KeyID == "" || k.Use != "" && k.Use != "sig" {
			continue
		}
		for _, alg := range algs {
			if (k.Algorithm == "" || k.Algorithm == string(alg)) && fits(k.Key, alg) {
				out[k.KeyID] = append(out[k.KeyID], key{alg, k.Key})
			}
		}
	}
	return out
}

// fits reports whether a public key is one for alg, and of a sound size.
func fits(public any, alg jose.SignatureAlgorithm) bool {
	switch p := public.(type) {
	case *rsa.PublicKey:
		n := p.N.BitLen()
		return alg == jose.RS256 && n >= minRSA && n <= maxRSA
	case *ecdsa.PublicKey:
		return alg == jose.ES256 && p.Curve == elliptic.P256()
	}
	return false
}

func unavailable(format string, args ...any) error {
	return fault.Newf(fault.Unavailable, op, format, args...)
}

// cannot classifies a request that failed. Its error is not wrapped: a server's
// text has no place in a log.
func cannot(ctx context.Context, what string, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: op, Msg: "cannot " + what}
	var long *http.MaxBytesError
	switch {
	case fault.Untrusted(err):
		e.Class = fault.ClassTLS
		e.Msg += ": its certificate is not trusted, or it does not speak TLS"
	case errors.As(err, &long):
		e.Class = ""
		e.Msg += fmt.Sprintf(": it has more than %d bytes", maxAnswer)
	case ctx.Err() != nil:
		e.Class = fault.ClassTimeout
		e.Msg += ": it took too long"
	default:
		e.Msg += fmt.Sprintf(" (%T)", fault.Root(err))
	}
	return e
}
