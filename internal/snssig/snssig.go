// Package snssig verifies what Amazon SNS posts to an HTTP endpoint: the
// signature of a message, that its topic is one of ours, and its age; and it
// confirms subscriptions, of our topics only.
//
// A message names the address of the certificate that signed it, and a
// confirmation the address to call, so whoever can post here could make us
// call anybody. Both addresses must be on the one host of SNS in the topic's
// region, sns.<region>.amazonaws.com (.cn in China), over TLS on port 443, and
// nothing is called for a topic that is not ours. Redirects are not followed.
//
// What is signed is the text of some members. The others, and members that are
// spelled in another way or there twice, are what an attacker may add to a
// message that he saw; so hand on [Message.Envelope], never the body.
// https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html
package snssig

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/keyturn/keyturn/fault"
)

const (
	op = "snssig"

	// maxBody bounds a message. SNS takes 256 KiB of text, of which JSON may
	// make six times as much.
	maxBody = 2 << 20
	// skew is by how much clocks may differ.
	skew = 5 * time.Minute
)

// Options of [New]. Topics is required; the zero value of each other field
// means its default.
type Options struct {
	// Topics are the ARNs of the topics whose messages are accepted. The name,
	// and nothing before it, may end in *, for any ending.
	Topics []string
	// HTTP calls SNS. It is copied; redirects are refused whatever it says, and
	// it must verify certificates. By default it is one of its own over
	// [http.DefaultTransport].
	HTTP *http.Client
	// MaxAge is how old a message may be, 1 h by default, which is the longest
	// time that SNS retries for. Five minutes are allowed beyond it, and before
	// the time of a message, for clocks that differ.
	// https://docs.aws.amazon.com/sns/latest/dg/sns-message-delivery-retries.html
	MaxAge time.Duration
	// Roots are whom to trust for signing certificates, the system's by default.
	Roots *x509.CertPool
	// Intermediates help to build the chain of a signing certificate, beside
	// those that are in its file and those that the TLS connection showed.
	Intermediates *x509.CertPool
	// RequireChain refuses a signing certificate whose chain cannot be built
	// because its issuer's certificate is not at hand. SNS serves the bare
	// certificate, so by default such a one is accepted for where it came from:
	// the host of SNS, which TLS has proven.
	// https://github.com/robbiet480/go.sns/issues/8
	RequireChain bool
	// Now is the clock, [time.Now] by default.
	Now func() time.Time
	// Logger hears of certificates that were fetched and subscriptions that were
	// confirmed. The default discards.
	Logger *slog.Logger
}

// A Verifier verifies the messages of some topics. It is safe for concurrent
// use.
type Verifier struct {
	o      Options
	topics []pattern
	client *http.Client
	certs  certs
}

// New returns a Verifier. It calls nobody. The error is Invalid: it says what
// is wrong with o.
func New(o Options) (*Verifier, error) {
	v := &Verifier{o: o, client: client(o.HTTP)}
	if len(o.Topics) == 0 {
		return nil, fault.Newf(fault.Invalid, op, "no topic is allowed; expected the ARN of one at least")
	}
	for _, t := range o.Topics {
		p, err := parsePattern(t)
		if err != nil {
			return nil, err
		}
		v.topics = append(v.topics, p)
	}
	if o.MaxAge < 0 {
		return nil, fault.Newf(fault.Invalid, op, "the greatest age is %s; expected more than nothing", o.MaxAge)
	}
	if v.o.MaxAge == 0 {
		v.o.MaxAge = time.Hour
	}
	if v.o.Now == nil {
		v.o.Now = time.Now
	}
	if v.o.Logger == nil {
		v.o.Logger = slog.New(slog.DiscardHandler)
	}
	v.certs.init()
	return v, nil
}

// Verify reads a message and returns it if SNS signed it, for one of our
// topics, of late. It changes nothing: a confirmation is not answered, see
// [Verifier.Confirm]. Errors quote nothing of the body but the ARN of the
// topic, shortened:
//
//   - Invalid: it is no message of SNS. Nobody has been authenticated yet, so
//     such a body is to be refused, not kept.
//   - Denied: signature, certificate, topic or age are wrong.
//   - Unavailable: the certificate cannot be fetched at present, or this
//     machine's clock is before the message's time.
//
// A certificate is waited for until ctx ends; most calls need none.
func (v *Verifier) Verify(ctx context.Context, body []byte) (*Message, error) {
	e, err := parse(body)
	if err != nil {
		return nil, err
	}
	// The topic first: it is looked up and costs no connection.
	place, ok := v.allowed(e.topic)
	if !ok {
		return nil, refuse("the topic %q is none of ours; expected one of those that are configured", short(e.topic))
	}
	if err := v.age(e.time); err != nil {
		return nil, err
	}
	if e.version != "1" && e.version != "2" {
		return nil, refuse("the signature version is another; expected 1 or 2")
	}
	address, err := certAddress(e.certURL, place)
	if err != nil {
		return nil, err
	}
	c, err := v.certificate(ctx, address, place)
	if err != nil {
		return nil, err
	}
	if err := c.check(e, v.o.Now()); err != nil {
		return nil, err
	}
	// SNS signs no message of the future: the wrong clock is ours, and a message
	// that is refused for that is lost.
	if now := v.o.Now(); e.time.Sub(now) > skew {
		return nil, fault.Newf(fault.Unavailable, op, "the message is of %s, and it is %s; set this machine's clock, which is late", stamp(e.time), stamp(now))
	}
	return e.proven(v, place), nil
}

func (v *Verifier) age(t time.Time) error {
	if now := v.o.Now(); now.Sub(t) > v.o.MaxAge+skew {
		return refuse("the message is of %s, and it is %s; expected one of the last %s", stamp(t), stamp(now), v.o.MaxAge)
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// refuse is the error about a message that cannot be trusted.
func refuse(format string, args ...any) error {
	return &fault.Error{Kind: fault.Denied, Class: fault.ClassAuth, Op: op, Msg: fmt.Sprintf(format, args...)}
}
