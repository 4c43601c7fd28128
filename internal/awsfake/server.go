// Package awsfake is a stateful AWS Secrets Manager and the PutEvents of
// EventBridge, for tests. It listens on loopback and speaks the wire protocol
// (JSON 1.1), so that the real clients are what is tested, and it keeps the
// service's rules for versions, staging labels and rotations, quirks included.
//
// What a test does behind the client's back (open a rotation, look at labels,
// inject a failure) are methods of [Server]. Where the documentation leaves a
// rule open, the comment at the rule says that the choice is this package's.
package awsfake

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

// Whose fake it is: requests signed for another key, region or service are
// refused as AWS refuses them.
const (
	Account   = "111122223333"
	Region    = "us-east-1"
	AccessKey = "AKIDEXAMPLE"
	SecretKey = "example"
)

// maxBody bounds a request: a secret of 64 KiB in base64 and its parameters,
// or ten events.
const maxBody = 1 << 20

// A Server is one account in one region. It is safe for concurrent use, and
// ends with its test.
type Server struct {
	t         testing.TB
	http      *httptest.Server
	transport *http.Transport
	rotations sync.WaitGroup
	ctx       context.Context //nolint:containedctx // the server's life

	mu      sync.Mutex
	secrets map[string]*secret // by name
	events  map[string][]Event // by bus
	lambdas map[string]Lambda
	faults  map[string][]string // codes of the next failures, by operation
	refuse  []string            // codes of the next entries that PutEvents refuses
	calls   []Call
	results []Rotation
}

// New starts a Server. It ends with t, after the rotations that it began.
func New(t testing.TB) *Server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		t: t, ctx: ctx, transport: &http.Transport{MaxIdleConnsPerHost: 64},
		secrets: map[string]*secret{}, events: map[string][]Event{},
		lambdas: map[string]Lambda{}, faults: map[string][]string{},
	}
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		cancel()
		s.rotations.Wait()
		s.transport.CloseIdleConnections()
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// URL is the endpoint of both services.
func (s *Server) URL() string { return s.http.URL }

// Config is what clients of the fake are made of. Its connections end with
// the Server.
func (s *Server) Config() aws.Config {
	return aws.Config{
		Region: Region, BaseEndpoint: aws.String(s.URL()), HTTPClient: &http.Client{Transport: s.Transport()},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: AccessKey, SecretAccessKey: SecretKey, Source: "awsfake"}, nil
		}),
	}
}

// Transport is the HTTP transport of Config, for a test that wraps it.
//
// It sends a copy of each body. The SDK closes a request's body as soon as the
// answer begins, and a read of net/http that comes later, to see that nothing
// follows, then fails and closes the connection under the answer. Between two
// machines that is rare and retried; on loopback, without retries, it is not.
// https://github.com/aws/aws-sdk-go-v2/issues/2737
func (s *Server) Transport() http.RoundTripper { return copied{s.transport} }

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

// SecretsManager returns a client.
func (s *Server) SecretsManager(opts ...func(*secretsmanager.Options)) *secretsmanager.Client {
	return secretsmanager.NewFromConfig(s.Config(), opts...)
}

// EventBridge returns a client.
func (s *Server) EventBridge(opts ...func(*eventbridge.Options)) *eventbridge.Client {
	return eventbridge.NewFromConfig(s.Config(), opts...)
}

// An apiError is an error as the services put it.
type apiError struct {
	code, message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

func fail(code, format string, args ...any) error {
	return &apiError{code, fmt.Sprintf(format, args...)}
}

// status is the HTTP status that goes with a code.
func (e *apiError) status() int {
	switch e.code {
	case "InternalServiceError", "InternalFailure", "InternalException", "InternalServerError":
		return http.StatusInternalServerError
	case "ServiceUnavailable", "ServiceUnavailableException":
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}

// operations of both services; a true one writes.
var operations = map[string]struct {
	writes bool
	do     func(*Server, *request) (any, error)
}{
	"secretsmanager.CreateSecret":             {true, (*Server).createSecret},
	"secretsmanager.GetSecretValue":           {false, (*Server).getSecretValue},
	"secretsmanager.PutSecretValue":           {true, (*Server).putSecretValue},
	"secretsmanager.DescribeSecret":           {false, (*Server).describeSecret},
	"secretsmanager.ListSecrets":              {false, (*Server).listSecrets},
	"secretsmanager.ListSecretVersionIds":     {false, (*Server).listSecretVersionIDs},
	"secretsmanager.UpdateSecretVersionStage": {true, (*Server).updateSecretVersionStage},
	"secretsmanager.RotateSecret":             {true, (*Server).rotateSecret},
	"secretsmanager.CancelRotateSecret":       {true, (*Server).cancelRotateSecret},
	"secretsmanager.DeleteSecret":             {true, (*Server).deleteSecret},
	"secretsmanager.RestoreSecret":            {true, (*Server).restoreSecret},
	"AWSEvents.PutEvents":                     {true, (*Server).putEvents},
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	id := uuid()
	out, err := s.handle(r)
	w.Header().Set("X-Amzn-Requestid", id)
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	if err != nil {
		e, ok := err.(*apiError) //nolint:errorlint // handle returns no other
		if !ok {
			e = &apiError{"InternalFailure", "awsfake: " + err.Error()}
		}
		w.Header().Set("X-Amzn-Errortype", e.code)
		w.WriteHeader(e.status())
		_ = json.NewEncoder(w).Encode(map[string]string{
			// Secrets Manager writes Message, the parts of AWS in front of it message.
			"__type": e.code, "message": e.message, "Message": e.message,
		})
		return
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (s *Server) handle(r *http.Request) (any, error) {
	target := r.Header.Get("X-Amz-Target")
	op, ok := operations[target]
	if r.Method != http.MethodPost || r.URL.Path != "/" || !ok {
		return nil, fail("UnknownOperationException", "%s %s: %q is not an operation of awsfake", r.Method, r.URL.Path, target)
	}
	if ct := r.Header.Get("Content-Type"); ct != "application/x-amz-json-1.1" {
		return nil, fail("SerializationException", "found Content-Type %q", ct)
	}
	service := "secretsmanager"
	if strings.HasPrefix(target, "AWSEvents.") {
		service = "events"
	}
	if err := authorize(r, service); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxBody {
		return nil, fail("RequestEntityTooLargeException", "found more than %d bytes", maxBody)
	}
	var in request
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fail("SerializationException", "the body is not what %s takes", target)
	}
	_, name, _ := strings.Cut(target, ".")

	s.mu.Lock()
	defer s.mu.Unlock()
	call := Call{Op: name, Params: params(body), Write: op.writes}
	var out any
	if err = s.injected(name); err == nil {
		out, err = op.do(s, &in)
	}
	if e, ok := err.(*apiError); ok { //nolint:errorlint // made here, never wrapped
		call.Code = e.code
	}
	s.calls = append(s.calls, call)
	return out, err
}

// authorize checks the signature's form, and for whom and where it was made.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
func authorize(r *http.Request, service string) error {
	const algorithm = "AWS4-HMAC-SHA256 "
	h := r.Header.Get("Authorization")
	if h == "" {
		return fail("MissingAuthenticationTokenException", "Missing Authentication Token")
	}
	if !strings.HasPrefix(h, algorithm) {
		return fail("IncompleteSignatureException", "expected AWS Signature Version 4")
	}
	field := map[string]string{}
	for part := range strings.SplitSeq(h[len(algorithm):], ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(part), "=")
		field[k] = v
	}
	date := r.Header.Get("X-Amz-Date")
	when, err := time.Parse("20060102T150405Z", date)
	if err != nil || len(field["Signature"]) != 64 {
		return fail("IncompleteSignatureException", "the signature or X-Amz-Date is missing or malformed")
	}
	if age := time.Since(when); age > 5*time.Minute || age < -5*time.Minute {
		return fail("InvalidSignatureException", "Signature expired: %s", date)
	}
	key, scope, _ := strings.Cut(field["Credential"], "/")
	if key != AccessKey {
		return fail("UnrecognizedClientException", "The security token included in the request is invalid.")
	}
	if want := date[:8] + "/" + Region + "/" + service + "/aws4_request"; scope != want {
		return fail("InvalidSignatureException", "Credential should be scoped to %s, found %s", want, scope)
	}
	signed := ";" + field["SignedHeaders"] + ";"
	for _, name := range []string{"host", "x-amz-date", "x-amz-target"} {
		if !strings.Contains(signed, ";"+name+";") {
			return fail("InvalidSignatureException", "%s is not signed", name)
		}
	}
	return nil
}

func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand since Go 1.24
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
