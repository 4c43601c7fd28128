// Package gridfake is a stateful Event Grid namespace with one topic and one
// subscription of queue kind, for tests. It listens on loopback and speaks the
// REST API 2024-06-01 over TLS, with bearer tokens, so that the real client is
// what is tested, and it keeps the service's rules for locks, delivery counts,
// delayed release and answers of which only a part is a success.
//
// Where the documentation leaves a rule open, the comment at the rule says
// that the choice is this package's.
package gridfake

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// What the namespace has.
const (
	Topic        = "secrets"
	Subscription = "keyturn"
)

const (
	apiVersion = "2024-06-01"
	scope      = "https://eventgrid.azure.net/.default"
	maxBody    = 4 << 20
	maxBatch   = 100
)

// A Server is one namespace. It is safe for concurrent use, and ends with its
// test.
type Server struct {
	t         testing.TB
	http      *httptest.Server
	transport *http.Transport
	ended     chan struct{}
	o         Options

	mu      sync.Mutex
	events  []*event // oldest first
	locks   map[string]*event
	dead    []string // ids
	serial  int
	settled int
	changed chan struct{} // closed when something may have become available

	tokens map[string]bool
	noAuth bool
	down   bool
	refuse map[string]int // status by operation
	tokenF map[string]*tokenFault
	calls  map[string]int
}

type tokenFault struct {
	next int
	code string
}

// Options of [New].
type Options struct {
	// Second is how long a second of the service lasts; a second by default.
	Second time.Duration
	// Lock is the subscription's lock duration, 60 to 300 seconds of the
	// service; 60 by default.
	Lock int
	// MaxDeliveryCount is after how many deliveries an event is dropped or
	// dead-lettered; 10, the service's most, by default.
	MaxDeliveryCount int
}

// New starts a Server. It ends with t. o may be nil.
func New(t testing.TB, o *Options) *Server {
	t.Helper()
	s := &Server{
		t: t, ended: make(chan struct{}), locks: map[string]*event{}, changed: make(chan struct{}),
		tokens: map[string]bool{}, refuse: map[string]int{}, tokenF: map[string]*tokenFault{}, calls: map[string]int{},
	}
	if o != nil {
		s.o = *o
	}
	if s.o.Second == 0 {
		s.o.Second = time.Second
	}
	if s.o.Lock == 0 {
		s.o.Lock = 60
	}
	if s.o.MaxDeliveryCount == 0 {
		s.o.MaxDeliveryCount = 10
	}
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.http.Config.ErrorLog = log.New(io.Discard, "", 0) // a refused handshake is a test's own doing
	s.http.StartTLS()
	trusted := s.http.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	s.transport = &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: trusted}, MaxIdleConnsPerHost: 64}
	t.Cleanup(func() {
		close(s.ended)
		s.transport.CloseIdleConnections()
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// URL is the endpoint of the namespace.
func (s *Server) URL() string { return s.http.URL }

// Lock is how long a lock lasts.
func (s *Server) Lock() time.Duration { return time.Duration(s.o.Lock) * s.o.Second }

// Client is an HTTP client that trusts the Server, as azcore takes it.
func (s *Server) Client() *http.Client { return &http.Client{Transport: s.transport} }

// Credential issues tokens that the Server takes, to who asks for its scope.
func (s *Server) Credential() azcore.TokenCredential { return credential{s} }

type credential struct{ s *Server }

func (c credential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if err := ctx.Err(); err != nil {
		return azcore.AccessToken{}, err
	}
	if len(o.Scopes) != 1 || o.Scopes[0] != scope {
		return azcore.AccessToken{}, fmt.Errorf("gridfake: asked for a token of scopes %q", o.Scopes)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if c.s.noAuth {
		return azcore.AccessToken{}, fmt.Errorf("gridfake: the identity is gone")
	}
	c.s.serial++
	token := fmt.Sprintf("gridfake.%d", c.s.serial)
	c.s.tokens[token] = true
	return azcore.AccessToken{Token: token, ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// An apiError is an error as the service puts it.
type apiError struct {
	status        int
	code, message string
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

func fail(status int, code, format string, args ...any) error {
	return &apiError{status, code, fmt.Sprintf(format, args...)}
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	down := s.down
	s.mu.Unlock()
	if down {
		panic(http.ErrAbortHandler) // the connection ends without an answer
	}
	out, err := s.handle(r)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	if err != nil {
		e, ok := err.(*apiError) //nolint:errorlint // handle returns no other
		if !ok {
			e = &apiError{http.StatusInternalServerError, "InternalServerError", "gridfake: " + err.Error()}
		}
		if e.status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		}
		w.WriteHeader(e.status)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": e.code, "message": e.message}})
		return
	}
	_ = json.NewEncoder(w).Encode(out)
}

func (s *Server) handle(r *http.Request) (any, error) {
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	s.mu.Lock()
	known := bearer && s.tokens[token]
	s.mu.Unlock()
	if !known {
		return nil, fail(http.StatusUnauthorized, "Unauthorized", "the token is not one of this namespace")
	}
	if v := r.URL.Query().Get("api-version"); v != apiVersion {
		return nil, fail(http.StatusBadRequest, "UnsupportedApiVersion", "found api-version %q; expected %s", v, apiVersion)
	}
	op, ok := strings.CutPrefix(r.URL.Path, "/topics/"+Topic+"/eventsubscriptions/"+Subscription+":")
	if r.Method != http.MethodPost || !ok {
		return nil, fail(http.StatusNotFound, "NotFound", "%s %s: no such topic or subscription", r.Method, r.URL.Path)
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil || len(body) > maxBody {
		return nil, fail(http.StatusRequestEntityTooLarge, "RequestTooLarge", "the body could not be read, or is too long")
	}
	s.mu.Lock()
	s.calls[op]++
	status := s.refuse[op]
	if all := s.refuse[""]; all != 0 {
		status = all
	}
	s.mu.Unlock()
	if status != 0 {
		return nil, fail(status, strings.ReplaceAll(http.StatusText(status), " ", ""), "gridfake was told to refuse %s", op)
	}
	if op == "receive" {
		return s.receive(r)
	}
	return s.settle(op, r, body)
}
