package tokenauth

import (
	"strings"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/fault"
)

// googleKeys is where Google publishes the keys of its ID tokens.
// https://accounts.google.com/.well-known/openid-configuration
const googleKeys = "https://www.googleapis.com/oauth2/v3/certs"

// GoogleOptions of [Google]. Audience and Emails are required.
type GoogleOptions struct {
	// Audience is what the subscription was given as its audience. A
	// subscription that was given none sends the push endpoint's full URL.
	Audience string
	// Emails are the service accounts that push subscriptions sign as. Any
	// Google account can get a token for any audience, so without this the
	// audience would say nothing.
	Emails []string
	// JWKSURL is where the keys are; Google's by default.
	JWKSURL string
	Options
}

// Google returns the Verifier of the ID tokens that Pub/Sub push subscriptions
// send. The issuer is Google in either spelling, the audience is ours, the
// e-mail address is one of those expected and is verified, and the token is of
// this hour. The error is Invalid: it says what is wrong with o.
// https://cloud.google.com/pubsub/docs/authenticate-push-subscriptions
func Google(o GoogleOptions) (*Verifier, error) {
	if o.Audience == "" || len(o.Emails) == 0 {
		return nil, fault.Newf(fault.Invalid, op, "the audience or the e-mail addresses of the push subscription are missing; expected both, since anybody with a Google account can get a token for any audience")
	}
	for _, e := range o.Emails {
		if at := strings.Index(e, "@"); at < 1 || at == len(e)-1 {
			return nil, fault.Newf(fault.Invalid, op, "%q is no e-mail address of a service account", e)
		}
	}
	if o.JWKSURL == "" {
		o.JWKSURL = googleKeys
	}
	find, err := fixed(o.JWKSURL)
	if err != nil {
		return nil, err
	}
	return newVerifier(o.Options, "Google's Pub/Sub", []jose.SignatureAlgorithm{jose.RS256}, find, func(c claims) error {
		if err := c.is("iss", "https://accounts.google.com", "accounts.google.com"); err != nil {
			return err
		}
		if err := c.audience(o.Audience); err != nil {
			return err
		}
		if err := c.is("email", o.Emails...); err != nil {
			return err
		}
		// A boolean, as Google signs it. The string is what its tokeninfo
		// endpoint answers, which is another thing.
		if string(c["email_verified"]) != "true" {
			return forbid("the token's e-mail address is not verified (email_verified); expected true")
		}
		return nil
	}), nil
}
