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
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/eventbridge"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/internal/awsfake/awswire"
)

// Whose fake it is.
const (
	Account   = awswire.Account
	Region    = awswire.Region
	AccessKey = awswire.AccessKey
	SecretKey = awswire.SecretKey
)

// protocol bounds a request: a secret of 64 KiB in base64 and its parameters,
// or ten events.
var protocol = &awswire.Protocol{
	ContentType: "application/x-amz-json-1.1",
	MaxBody:     1 << 20, TooLong: "RequestEntityTooLargeException",
	Unsigned: "MissingAuthenticationTokenException", Incomplete: "IncompleteSignatureException",
	Mismatch: "InvalidSignatureException", UnknownKey: "UnrecognizedClientException",
}

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
func (s *Server) Config() aws.Config { return awswire.Config(s.URL(), s.Transport()) }

// Transport is the HTTP transport of Config, for a test that wraps it.
func (s *Server) Transport() http.RoundTripper { return awswire.Copied(s.transport) }

// SecretsManager returns a client.
func (s *Server) SecretsManager(opts ...func(*secretsmanager.Options)) *secretsmanager.Client {
	return secretsmanager.NewFromConfig(s.Config(), opts...)
}

// EventBridge returns a client.
func (s *Server) EventBridge(opts ...func(*eventbridge.Options)) *eventbridge.Client {
	return eventbridge.NewFromConfig(s.Config(), opts...)
}

func fail(code, format string, args ...any) error { return awswire.Errorf(code, format, args...) }

// status is the HTTP status that goes with a code.
func status(code string) int {
	switch code {
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
	w.Header().Set("Content-Type", protocol.ContentType)
	if err != nil {
		e := awswire.AsError(err)
		w.Header().Set("X-Amzn-Errortype", e.Code)
		w.WriteHeader(status(e.Code))
		_ = json.NewEncoder(w).Encode(map[string]string{
			// Secrets Manager writes Message, the parts of AWS in front of it message.
			"__type": e.Code, "message": e.Message, "Message": e.Message,
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
	service := "secretsmanager"
	if strings.HasPrefix(target, "AWSEvents.") {
		service = "events"
	}
	var in request
	body, err := protocol.Read(r, service, &in)
	if err != nil {
		return nil, err
	}
	_, name, _ := strings.Cut(target, ".")

	s.mu.Lock()
	defer s.mu.Unlock()
	call := Call{Op: name, Params: params(body), Write: op.writes}
	var out any
	if err = s.injected(name); err == nil {
		out, err = op.do(s, &in)
	}
	if err != nil {
		call.Code = awswire.AsError(err).Code
	}
	s.calls = append(s.calls, call)
	return out, err
}

func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand since Go 1.24
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	h := hex.EncodeToString(b[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
