// Package sqsfake is a stateful Amazon SQS for tests. It listens on loopback
// and speaks the wire protocol (AWS JSON 1.0), so that the real client is what
// is tested, and it keeps the service's rules for visibility, receipt handles,
// receive counts, long polls, redrive and FIFO groups.
//
// What a test does behind the client's back (send, look at depths, inject a
// failure) are methods of [Server] and [Queue]. Where the documentation leaves
// a rule open, the comment at the rule says that the choice is this package's.
package sqsfake

import (
	"bytes"
	"context"
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
	"github.com/aws/aws-sdk-go-v2/service/sqs"
)

// Whose fake it is: requests signed for another key, region or service are
// refused as AWS refuses them.
const (
	Account   = "111122223333"
	Region    = "us-east-1"
	AccessKey = "AKIDEXAMPLE"
	SecretKey = "example"
)

// maxBody bounds a request: ten messages of 1 MiB together, escaped.
const maxBody = 8 << 20

// A Server is one account in one region. It is safe for concurrent use, and
// ends with its test.
type Server struct {
	t         testing.TB
	http      *httptest.Server
	transport *http.Transport
	ended     chan struct{}
	second    time.Duration

	mu      sync.Mutex
	queues  map[string]*Queue
	faults  map[string][]string // codes of the next failures, by operation
	refuse  map[string]string   // code of every request, by operation
	entries map[string]*entryFault
	down    bool
	calls   map[string]int
	serial  int
}

type entryFault struct {
	next   int
	code   string
	sender bool
}

// Options of [New].
type Options struct {
	// Second is how long a second of the service lasts; a second by default.
	// A test makes it shorter, so that leases run out soon.
	Second time.Duration
}

// New starts a Server. It ends with t. o may be nil.
func New(t testing.TB, o *Options) *Server {
	t.Helper()
	s := &Server{
		t: t, transport: &http.Transport{MaxIdleConnsPerHost: 64}, ended: make(chan struct{}), second: time.Second,
		queues: map[string]*Queue{}, faults: map[string][]string{}, refuse: map[string]string{},
		entries: map[string]*entryFault{}, calls: map[string]int{},
	}
	if o != nil && o.Second > 0 {
		s.second = o.Second
	}
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		close(s.ended)
		s.transport.CloseIdleConnections()
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// URL is the endpoint.
func (s *Server) URL() string { return s.http.URL }

// Second is how long a second of the service lasts.
func (s *Server) Second() time.Duration { return s.second }

// Config is what clients of the fake are made of. Its connections end with
// the Server.
func (s *Server) Config() aws.Config {
	return aws.Config{
		Region: Region, BaseEndpoint: aws.String(s.URL()), HTTPClient: &http.Client{Transport: copied{s.transport}},
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: AccessKey, SecretAccessKey: SecretKey, Source: "sqsfake"}, nil
		}),
	}
}

// Client returns a client.
func (s *Server) Client(opts ...func(*sqs.Options)) *sqs.Client {
	return sqs.NewFromConfig(s.Config(), opts...)
}

// copied sends a copy of each body. The SDK closes a request's body as soon as
// the answer begins, which on loopback can close the connection under it.
// https://github.com/aws/aws-sdk-go-v2/issues/2737
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

// An apiError is an error as the service puts it. query is the code of the
// older protocol, which the service sends in a header beside.
type apiError struct {
	code, query, message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

func fail(code, format string, args ...any) error {
	e := &apiError{code: code, message: fmt.Sprintf(format, args...)}
	switch code {
	case "QueueDoesNotExist":
		e.query = "AWS.SimpleQueueService.NonExistentQueue"
	case "MessageNotInflight", "EmptyBatchRequest", "TooManyEntriesInBatchRequest", "BatchEntryIdsNotDistinct":
		e.query = "AWS.SimpleQueueService." + code
	case "RequestThrottled":
		e.query = "RequestThrottled"
	}
	return e
}

func (e *apiError) status() int {
	switch e.code {
	case "InternalFailure", "InternalError":
		return http.StatusInternalServerError
	case "ServiceUnavailable":
		return http.StatusServiceUnavailable
	case "AccessDenied", "AccessDeniedException", "ExpiredTokenException", "InvalidClientTokenId", "SignatureDoesNotMatch":
		return http.StatusForbidden
	}
	return http.StatusBadRequest
}

var operations = map[string]func(*Server, *http.Request, *input) (any, error){
	"SendMessage":                  (*Server).sendMessage,
	"SendMessageBatch":             (*Server).sendMessageBatch,
	"ReceiveMessage":               (*Server).receiveMessage,
	"DeleteMessage":                (*Server).deleteMessage,
	"DeleteMessageBatch":           (*Server).deleteMessageBatch,
	"ChangeMessageVisibility":      (*Server).changeVisibility,
	"ChangeMessageVisibilityBatch": (*Server).changeVisibilityBatch,
	"GetQueueUrl":                  (*Server).getQueueURL,
	"GetQueueAttributes":           (*Server).getQueueAttributes,
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_ = c.Close()
		}
		return
	}
	out, err := s.handle(r)
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	w.Header().Set("X-Amzn-Requestid", s.id("req"))
	if err != nil {
		e, ok := err.(*apiError) //nolint:errorlint // handle returns no other
		if !ok {
			e = &apiError{code: "InternalFailure", message: "sqsfake: " + err.Error()}
		}
		if e.query != "" {
			w.Header().Set("X-Amzn-Query-Error", e.query+";Sender")
		}
		w.WriteHeader(e.status())
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": "com.amazonaws.sqs#" + e.code, "message": e.message})
		return
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (s *Server) handle(r *http.Request) (any, error) {
	target := r.Header.Get("X-Amz-Target")
	name, ok := strings.CutPrefix(target, "AmazonSQS.")
	op := operations[name]
	if r.Method != http.MethodPost || !ok || op == nil {
		return nil, fail("UnknownOperationException", "%s: %q is not an operation of sqsfake", r.Method, target)
	}
	if ct := r.Header.Get("Content-Type"); ct != "application/x-amz-json-1.0" {
		return nil, fail("SerializationException", "found Content-Type %q", ct)
	}
	if err := authorize(r); err != nil {
		return nil, err
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return nil, err
	}
	if len(body) > maxBody {
		return nil, fail("BatchRequestTooLong", "found more than %d bytes", maxBody)
	}
	var in input
	if err := json.Unmarshal(body, &in); err != nil {
		return nil, fail("SerializationException", "the body is not what %s takes", target)
	}
	if err := s.injected(name); err != nil {
		return nil, err
	}
	return op(s, r, &in)
}

// authorize checks the signature's form, and for whom and where it was made.
// https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
func authorize(r *http.Request) error {
	const algorithm = "AWS4-HMAC-SHA256 "
	h := r.Header.Get("Authorization")
	if h == "" {
		return fail("MissingAuthenticationToken", "Missing Authentication Token")
	}
	if !strings.HasPrefix(h, algorithm) {
		return fail("IncompleteSignature", "expected AWS Signature Version 4")
	}
	field := map[string]string{}
	for part := range strings.SplitSeq(h[len(algorithm):], ",") {
		k, v, _ := strings.Cut(strings.TrimSpace(part), "=")
		field[k] = v
	}
	date := r.Header.Get("X-Amz-Date")
	when, err := time.Parse("20060102T150405Z", date)
	if err != nil || len(field["Signature"]) != 64 {
		return fail("IncompleteSignature", "the signature or X-Amz-Date is missing or malformed")
	}
	if age := time.Since(when); age > 5*time.Minute || age < -5*time.Minute {
		return fail("SignatureDoesNotMatch", "Signature expired: %s", date)
	}
	key, scope, _ := strings.Cut(field["Credential"], "/")
	if key != AccessKey {
		return fail("InvalidClientTokenId", "The security token included in the request is invalid.")
	}
	if want := date[:8] + "/" + Region + "/sqs/aws4_request"; scope != want {
		return fail("SignatureDoesNotMatch", "Credential should be scoped to %s, found %s", want, scope)
	}
	signed := ";" + field["SignedHeaders"] + ";"
	for _, name := range []string{"host", "x-amz-date", "x-amz-target"} {
		if !strings.Contains(signed, ";"+name+";") {
			return fail("SignatureDoesNotMatch", "%s is not signed", name)
		}
	}
	return nil
}
