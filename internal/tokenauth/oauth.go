package tokenauth

import (
	"slices"
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/fault"
)

// OAuthOptions of [OAuth]. Issuer is required, and so is one at least of
// ClientIDs, Subjects and Scopes.
type OAuthOptions struct {
	// Issuer is the authorization server's issuer identifier, an https URL. Its
	// key set is found by OpenID Connect discovery.
	Issuer string
	// Audience is what the server puts into aud for us. Without it a token
	// must have no audience at all, as those that Amazon Cognito gives for
	// client credentials, and ClientIDs are required.
	Audience string
	// ClientIDs are the clients whose tokens are accepted, by the claims
	// client_id and azp. Where a token has both they must be the same.
	ClientIDs []string
	// Subjects are the subjects (sub) whose tokens are accepted.
	Subjects []string
	// Scopes must all be granted to the token, in scope or scp.
	Scopes []string
	// JWKSURL is where the keys are, for a server without discovery.
	JWKSURL string
	Options
}

// OAuth returns the Verifier of JWT access tokens, as an EventBridge connection
// gets them with client credentials. A token must meet each option that is
// given. It may be signed by RS256 or ES256. The error is Invalid: it says what
// is wrong with o.
// https://www.rfc-editor.org/rfc/rfc9068
func OAuth(o OAuthOptions) (*Verifier, error) {
	bad := func(format string, args ...any) (*Verifier, error) {
		return nil, fault.Newf(fault.Invalid, op, format, args...)
	}
	if _, err := fixed(o.Issuer); err != nil {
		return bad("%q is no issuer; expected an https URL", o.Issuer)
	}
	if len(o.ClientIDs) == 0 && len(o.Subjects) == 0 && len(o.Scopes) == 0 {
		return bad("nothing tells the sender from other clients of %s; expected client ids, subjects or scopes", o.Issuer)
	}
	if o.Audience == "" && len(o.ClientIDs) == 0 {
		return bad("the audience is missing; expected it, or client ids where the server's tokens have none")
	}
	for _, list := range [][]string{o.ClientIDs, o.Subjects, o.Scopes} {
		if slices.Contains(list, "") {
			return bad("a client id, subject or scope is empty")
		}
	}
	find := discovered(o.Issuer)
	if o.JWKSURL != "" {
		var err error
		if find, err = fixed(o.JWKSURL); err != nil {
			return nil, err
		}
	}
	return newVerifier(o.Options, o.Issuer, []jose.SignatureAlgorithm{jose.RS256, jose.ES256}, find, o.check), nil
}

func (o *OAuthOptions) check(c claims) error {
	if err := c.is("iss", o.Issuer); err != nil {
		return err
	}
	if o.Audience != "" {
		if err := c.audience(o.Audience); err != nil {
			return err
		}
	} else if _, found := c["aud"]; found {
		return forbid("the token has an audience (aud), and none is expected; configure it")
	}
	if len(o.ClientIDs) > 0 {
		if err := o.client(c); err != nil {
			return err
		}
	}
	if len(o.Subjects) > 0 {
		if err := c.is("sub", o.Subjects...); err != nil {
			return err
		}
	}
	if len(o.Scopes) == 0 {
		return nil
	}
	granted, err := c.scopes()
	if err != nil {
		return err
	}
	for _, s := range o.Scopes {
		if !slices.Contains(granted, s) {
			return forbid("the token's scopes are %s; expected %s among them", quoted(granted), quoted([]string{s}))
		}
	}
	return nil
}

// client requires the client to be expected, by whichever claim the server
// tells it: client_id is the standard's, azp that of OpenID Connect.
func (o *OAuthOptions) client(c claims) error {
	seen := false
	for _, name := range []string{"client_id", "azp"} {
		if _, found := c[name]; !found {
			continue
		}
		seen = true
		if err := c.is(name, o.ClientIDs...); err != nil {
			return err
		}
	}
	id, _ := c.text("client_id")
	azp, _ := c.text("azp")
	switch {
	case !seen:
		return refuse("the token tells no client; expected client_id or azp to be %s", quoted(o.ClientIDs))
	case id != "" && azp != "" && id != azp:
		return forbid("the token tells two clients, in client_id and in azp; expected the same")
	}
	return nil
}

// scopes are a string with spaces between them in scope (RFC 8693, section
// 4.2), and with some servers a string or an array in scp.
func (c claims) scopes() ([]string, error) {
	var out []string
	for _, name := range []string{"scope", "scp"} {
		list, err := c.list(name)
		if err != nil {
			return nil, err
		}
		for _, s := range list {
			out = append(out, strings.Fields(s)...)
		}
	}
	return out, nil
}
