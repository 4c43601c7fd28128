package azurekv

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/keyturn/keyturn/fault"
)

// maxAnswer bounds the body of an answer: 25 versions with their tags, or one
// value with every character escaped.
const maxAnswer = 1 << 20

// A guarded transport carries requests to one vault. What the Azure client
// takes on trust is looked at first: that the link to a list's next page leads
// to the same host, since the token goes there too; that a challenge is well
// formed, since the client panics on one that is not; and how long an answer is.
type guarded struct {
	next policy.Transporter
	host string
}

func guard(op, vaultURL string, next policy.Transporter) (policy.Transporter, error) {
	u, err := url.Parse(vaultURL)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fault.Newf(fault.Invalid, op, "the vault's URL is %q; expected one such as https://NAME.vault.azure.net", vaultURL)
	}
	return &guarded{next, u.Hostname()}, nil
}

// A refusal ends a call without a retry.
type refusal struct{ why string }

func (e *refusal) Error() string { return e.why }

// NonRetriable is how azcore knows.
func (*refusal) NonRetriable() {}

// Do implements [policy.Transporter].
func (g *guarded) Do(req *http.Request) (*http.Response, error) {
	if h := req.URL.Hostname(); h != g.host {
		return nil, &refusal{"the vault's answer leads to another host than " + g.host}
	}
	resp, err := g.next.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusUnauthorized && !wellFormed(resp.Header.Get("WWW-Authenticate")) {
		_ = resp.Body.Close()
		return nil, &refusal{"the answer asks for a token in a way that Key Vault does not"}
	}
	resp.Body = &bounded{resp.Body, maxAnswer}
	return resp, nil
}

// wellFormed reports whether a challenge is one of Key Vault's, which names
// where tokens come from: the tenant is the first element of that URL's path.
// https://learn.microsoft.com/azure/key-vault/general/authentication-requests-and-responses
func wellFormed(challenge string) bool {
	for _, part := range strings.Fields(strings.TrimPrefix(challenge, "Bearer ")) {
		v, ok := strings.CutPrefix(part, "authorization=")
		if !ok {
			continue
		}
		u, err := url.Parse(strings.Trim(v, `",`))
		return err == nil && u.Scheme == "https" && len(strings.Split(u.String(), "/")) > 3
	}
	return false
}

// A bounded body fails when it is longer than it may be.
type bounded struct {
	io.ReadCloser
	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left+1)])
	if b.left -= n; b.left < 0 {
		return 0, &refusal{"the answer is too long"}
	}
	return n, err
}

// A credential marks its errors, which have no type in common.
type credential struct{ azcore.TokenCredential }

type tokenError struct{ err error }

func (e *tokenError) Error() string { return "no token: " + e.err.Error() }
func (e *tokenError) Unwrap() error { return e.err }

// GetToken implements [azcore.TokenCredential].
func (c credential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	t, err := c.TokenCredential.GetToken(ctx, o)
	if err != nil {
		return t, &tokenError{err}
	}
	return t, nil
}
