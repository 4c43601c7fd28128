// Package awswire is what the fakes of AWS have in common: an account, a client
// that reaches it, and the wire protocol AWS JSON with its signatures.
// https://smithy.io/2.0/aws/protocols/aws-json-1_0-protocol.html
package awswire

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// Whose fakes they are: requests signed for another key, region or service are
// refused as AWS refuses them.
const (
	Account   = "111122223333"
	Region    = "us-east-1"
	AccessKey = "AKIDEXAMPLE"
	SecretKey = "example"
)

// Config is what clients of a fake are made of, which is at endpoint and is
// reached through rt.
func Config(endpoint string, rt http.RoundTripper) aws.Config {
	return aws.Config{
		Region: Region, BaseEndpoint: aws.String(endpoint), HTTPClient: &http.Client{Transport: rt},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: AccessKey, SecretAccessKey: SecretKey, Source: "awswire"}, nil
		}),
	}
}

// Copied sends a copy of each body through rt. The SDK closes a request's body
// as soon as the answer begins, and a read of net/http that comes later, to see
// that nothing follows, then fails and closes the connection under the answer.
// Between two machines that is rare and retried; on loopback, without retries,
// it is not.
// https://github.com/aws/aws-sdk-go-v2/issues/2737
func Copied(rt http.RoundTripper) http.RoundTripper { return copied{rt} }

type copied struct{ rt http.RoundTripper }

func (c copied) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body == nil {
		return c.rt.RoundTrip(r)
	}
	b, err := io.ReadAll(r.Body)
	_ = r.Body.Close()
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(b))
	return c.rt.RoundTrip(r)
}

// An Error is an error as the services put it.
type Error struct {
	Code, Message string
}

func (e *Error) Error() string { return e.Code + ": " + e.Message }

// Errorf returns an [*Error].
func Errorf(code, format string, args ...any) error {
	return &Error{code, fmt.Sprintf(format, args...)}
}

// AsError returns err, which no one has wrapped, as a service would put it.
func AsError(err error) *Error {
	if e, ok := err.(*Error); ok { //nolint:errorlint // the fakes wrap none
		return e
	}
	return &Error{"InternalFailure", "fake: " + err.Error()}
}

// A Protocol is one version of AWS JSON, with the codes by which its services
// refuse a request.
type Protocol struct {
	ContentType string
	MaxBody     int64 // bytes
	TooLong     string
	Unsigned    string // without a signature
	Incomplete  string // with half of one
	Mismatch    string // signed for something else, or long ago
	UnknownKey  string // signed by somebody else
}

// Read checks a request to a service, whose name is that of signatures, and
// reads its body into in. The error is an [*Error], unless the body could not be
// read.
func (p *Protocol) Read(r *http.Request, service string, in any) (body []byte, err error) {
	if ct := r.Header.Get("Content-Type"); ct != p.ContentType {
		return nil, Errorf("SerializationException", "found Content-Type %q", ct)
	}
	if err := p.authorize(r, service); err != nil {
		return nil, err
	}
	if body, err = io.ReadAll(io.LimitReader(r.Body, p.MaxBody+1)); err != nil {
		return nil, err
	}
	if int64(len(body)) > p.MaxBody {
		return nil, Errorf(p.TooLong, "found more than %d bytes", p.MaxBody)
	}
	if err := json.Unmarshal(body, in); err != nil {
		return nil, Errorf("SerializationException", "the body is not what %s takes", r.Header.Get("X-Amz-Target"))
	}
	return body, nil
}

// authorize checks the signature's form, and for whom and where it was made.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
func (p *Protocol) authorize(r *http.Request, service string) error {
	const algorithm = "AWS4-HMAC-SHA256 "
	h := r.Header.Get("Authorization")
	if h == "" {
		return Errorf(p.Unsigned, "Missing Authentication Token")
	}
	if !strings.HasPrefix(h, algorithm) {
		return Errorf(p.Incomplete, "expected AWS Signature Version 4")
	}
	field := map[string]string{}
	for part := range strings.SplitSeq(h[len(algorithm):], ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(part), "=")
		field[k] = v
	}
	date := r.Header.Get("X-Amz-Date")
	when, err := time.Parse("20060102T150405Z", date)
	if err != nil || len(field["Signature"]) != 64 {
		return Errorf(p.Incomplete, "the signature or X-Amz-Date is missing or malformed")
	}
	if age := time.Since(when); age > 5*time.Minute || age < -5*time.Minute {
		return Errorf(p.Mismatch, "Signature expired: %s", date)
	}
	key, scope, _ := strings.Cut(field["Credential"], "/")
	if key != AccessKey {
		return Errorf(p.UnknownKey, "The security token included in the request is invalid.")
	}
	if want := date[:8] + "/" + Region + "/" + service + "/aws4_request"; scope != want {
		return Errorf(p.Mismatch, "Credential should be scoped to %s, found %s", want, scope)
	}
	signed := ";" + field["SignedHeaders"] + ";"
	for _, name := range []string{"host", "x-amz-date", "x-amz-target"} {
		if !strings.Contains(signed, ";"+name+";") {
			return Errorf(p.Mismatch, "%s is not signed", name)
		}
	}
	return nil
}
