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
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/sqs"

	"github.com/keyturn/keyturn/internal/awsfake/awswire"
)

// Whose fake it is.
const (
	Account   = awswire.Account
	Region    = awswire.Region
	AccessKey = awswire.AccessKey
	SecretKey = awswire.SecretKey
)

// protocol bounds a request: ten messages of 1 MiB together, escaped.
var protocol = &awswire.Protocol{
	ContentType: "application/x-amz-json-1.0",
	MaxBody:     8 << 20, TooLong: "BatchRequestTooLong",
	Unsigned: "MissingAuthenticationToken", Incomplete: "IncompleteSignature",
	Mismatch: "SignatureDoesNotMatch", UnknownKey: "InvalidClientTokenId",
}

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
func (s *Server) Config() aws.Config { return awswire.Config(s.URL(), awswire.Copied(s.transport)) }

// Client returns a client.
func (s *Server) Client(opts ...func(*sqs.Options)) *sqs.Client {
	return sqs.NewFromConfig(s.Config(), opts...)
}

func fail(code, format string, args ...any) error { return awswire.Errorf(code, format, args...) }

// query is a code in the older protocol, which the service sends in a header
// beside, or "".
func query(code string) string {
	switch code {
	case "QueueDoesNotExist":
		return "AWS.SimpleQueueService.NonExistentQueue"
	case "MessageNotInflight", "EmptyBatchRequest", "TooManyEntriesInBatchRequest", "BatchEntryIdsNotDistinct":
		return "AWS.SimpleQueueService." + code
	case "RequestThrottled":
		return code
	}
	return ""
}

// status is the HTTP status that goes with a code.
func status(code string) int {
	switch code {
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
	w.Header().Set("Content-Type", protocol.ContentType)
	w.Header().Set("X-Amzn-Requestid", s.id("req"))
	if err != nil {
		e := awswire.AsError(err)
		if q := query(e.Code); q != "" {
			w.Header().Set("X-Amzn-Query-Error", q+";Sender")
		}
		w.WriteHeader(status(e.Code))
		_ = json.NewEncoder(w).Encode(map[string]string{"__type": "com.amazonaws.sqs#" + e.Code, "message": e.Message})
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
	var in input
	if _, err := protocol.Read(r, "sqs", &in); err != nil {
		return nil, err
	}
	if err := s.injected(name); err != nil {
		return nil, err
	}
	return op(s, r, &in)
}
