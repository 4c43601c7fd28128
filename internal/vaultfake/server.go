// Package vaultfake is a stateful Vault for tests: the key-value engine of
// version 2, policies, tokens, AppRole, response wrapping, namespaces and, if
// it is to be the Enterprise edition, event notifications. It
// listens on loopback and speaks the HTTP API, so that the real client is what
// is tested. Set it up over that API too, with [Root] as the token, exactly as
// a real server: the tests of vaultkv send one list of requests to both and
// compare the answers.
//
// What a test does behind the client's back (seal it, let time pass, inject a
// failure) are methods of [Server].
package vaultfake

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
)

// Root is a token that may do everything, as in a dev server.
const Root = "root"

// maxBody bounds a request in bytes, as max_request_size does.
const maxBody = 32 << 20

// A Call is one request that was answered. Calls have no bodies: those hold
// values.
type Call struct {
	Namespace, Method, Path string
	Status                  int
}

// A Server is one cluster. It is safe for concurrent use, and ends with its
// test. In the root namespace it has a key-value engine of version 2 at
// secret/, as a dev server does.
type Server struct {
	http      *httptest.Server
	transport *http.Transport

	mu     sync.Mutex
	ahead  time.Duration // of the clock
	sealed bool
	spaces map[string]*space // by namespace
	tokens map[string]*token
	wraps  map[string]*wrapped
	faults []failure
	calls  []Call

	enterprise bool
	paged      bool
	subs       map[*subscriber]bool
	serving    sync.WaitGroup // the handlers of subscriptions
}

// A space is what a namespace has of its own.
type space struct {
	mounts   map[string]*engine // by path, with a slash at its end
	auths    map[string]*approle
	policies map[string][]rule
}

// A failure answers the next request whose method and path begin so.
type failure struct {
	method, path string
	status       int
	text         string
}

// New starts a Server.
func New(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		transport: &http.Transport{MaxIdleConnsPerHost: 64},
		spaces:    map[string]*space{}, wraps: map[string]*wrapped{}, tokens: map[string]*token{},
		subs: map[*subscriber]bool{},
	}
	s.tokens[Root] = &token{
		id: Root, accessor: id(12), policies: []string{"root"}, path: "auth/token/create", name: "token",
		orphan: true, client: id(16), issued: s.now(),
	}
	s.space("").mounts["secret/"] = newEngine()
	s.http = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		s.CutEvents()
		s.serving.Wait()
		s.transport.CloseIdleConnections()
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// URL is where clients connect.
func (s *Server) URL() string { return s.http.URL }

// Transport is what clients send with, to be wrapped by a test's own.
func (s *Server) Transport() http.RoundTripper { return s.transport }

// Client returns a client with a token that sends through rt, or, if that is
// nil, straight to the server. It does not retry.
func (s *Server) Client(token string, rt http.RoundTripper) *api.Client {
	if rt == nil {
		rt = s.transport
	}
	c, err := api.NewClient(&api.Config{Address: s.URL(), HttpClient: &http.Client{Transport: rt}, MaxRetries: 0, Timeout: time.Minute})
	if err != nil {
		panic("vaultfake: " + err.Error()) // a broken environment
	}
	c.SetToken(token)
	c.ClearNamespace()
	return c
}

// Namespace makes a namespace, which the API of the community edition cannot.
func (s *Server) Namespace(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.space(strings.Trim(name, "/"))
}

// Seal seals or unseals the server.
func (s *Server) Seal(sealed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealed = sealed
}

// Advance puts the server's clock forward.
func (s *Server) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead += d
}

// Fail answers the next request whose method is method (or any, if that is
// empty) and whose path, without /v1/, begins with path. Called twice, two
// requests fail.
func (s *Server) Fail(method, path string, status int, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, failure{method, path, status, text})
}

// Calls returns the requests that were answered so far.
func (s *Server) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Call(nil), s.calls...)
}

// space returns a namespace and makes it if need be.
func (s *Server) space(name string) *space {
	sp := s.spaces[name]
	if sp == nil {
		sp = &space{mounts: map[string]*engine{}, auths: map[string]*approle{}, policies: map[string][]rule{}}
		sp.policies["default"] = defaultPolicy
		s.spaces[name] = sp
	}
	return sp
}

func (s *Server) now() time.Time { return time.Now().Add(s.ahead).UTC() }

// A request is one that was read.
type request struct {
	method string // LIST for a GET with list=true
	ns     string
	path   string
	query  map[string][]string
	body   map[string]any
	raw    []byte
	token  *token
	space  *space
}

// An answer is a status and, unless it is an error, what the envelope holds.
type answer struct {
	status   int
	errors   []string
	data     any
	auth     any
	warnings []string
	kind     string         // mount_type
	beside   map[string]any // members beside those of the envelope
	full     bool           // an error status with an envelope, or, without data and warnings, with nothing
	rewrap   []byte         // an envelope that was kept
	sub      *subscriber    // that is to be served instead
}

func ok(data any) answer                  { return answer{status: http.StatusOK, data: data} }
func fail(status int, e ...string) answer { return answer{status: status, errors: e} }

var (
	done     = answer{status: http.StatusNoContent}
	notFound = fail(http.StatusNotFound)
	denied   = fail(http.StatusForbidden, "1 error occurred:\n\t* permission denied\n\n")
)

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil {
		return
	}
	req := &request{
		method: r.Method, ns: strings.Trim(r.Header.Get(api.NamespaceHeaderName), "/"),
		path: strings.TrimPrefix(r.URL.Path, "/v1/"), query: r.URL.Query(), raw: body,
	}
	if req.method == http.MethodGet && r.URL.Query().Get("list") == "true" {
		req.method = "LIST"
	}
	if req.method == http.MethodPut {
		req.method = http.MethodPost
	}
	s.mu.Lock()
	a := s.answer(req, r)
	var out []byte
	if ttl := r.Header.Get("X-Vault-Wrap-TTL"); ttl != "" && a.status == http.StatusOK {
		out = s.wrap(req, a, ttl)
	} else {
		out = a.encode()
	}
	s.calls = append(s.calls, Call{req.ns, req.method, req.path, a.status})
	w.Header().Set("Date", s.now().Format(http.TimeFormat))
	s.mu.Unlock()
	if a.sub != nil {
		s.stream(w, r, a.sub)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(a.status)
	_, _ = w.Write(out) //nolint:gosec // JSON, to a test
}

// answer finds who answers, in the order in which Vault looks.
func (s *Server) answer(req *request, r *http.Request) answer {
	for i, f := range s.faults {
		if (f.method == "" || f.method == req.method) && strings.HasPrefix(req.path, f.path) {
			s.faults = append(s.faults[:i:i], s.faults[i+1:]...)
			return fail(f.status, f.text)
		}
	}
	if s.sealed {
		return fail(http.StatusServiceUnavailable, "Vault is sealed")
	}
	if len(req.raw) > maxBody {
		return fail(http.StatusRequestEntityTooLarge, "http: request body too large")
	}
	if err := checkJSON(req.raw); err != nil {
		return fail(http.StatusInternalServerError, err.Error())
	}
	if req.method == http.MethodPatch && !strings.HasPrefix(r.Header.Get("Content-Type"), "application/merge-patch+json") {
		return fail(http.StatusUnsupportedMediaType, "PATCH requires Content-Type of application/merge-patch+json, provided "+r.Header.Get("Content-Type"))
	}
	if len(bytes.TrimSpace(req.raw)) > 0 {
		dec := json.NewDecoder(bytes.NewReader(req.raw))
		dec.UseNumber()
		if err := dec.Decode(&req.body); err != nil {
			return fail(http.StatusBadRequest, "error parsing JSON")
		}
	}
	if req.space = s.spaces[req.ns]; req.space == nil {
		return noRoute(req.ns + "/" + req.path)
	}
	if (req.method == http.MethodPost || req.method == http.MethodPatch) && strings.HasSuffix(req.path, "/") {
		return fail(http.StatusBadRequest, "cannot write to a path ending in '/'")
	}
	if a, open := s.open(req, r); open {
		return a
	}
	if a := s.authorize(req, r.Header.Get(api.AuthHeaderName)); a != nil {
		return *a
	}
	switch {
	case strings.HasPrefix(req.path, "sys/"):
		return s.sys(req, strings.TrimPrefix(req.path, "sys/"))
	case strings.HasPrefix(req.path, "auth/token/"):
		return s.tokenAPI(req, strings.TrimPrefix(req.path, "auth/token/"))
	case strings.HasPrefix(req.path, "auth/"):
		return s.approleAPI(req, strings.TrimPrefix(req.path, "auth/"))
	}
	path, e := req.space.mount(req.path)
	if e == nil {
		return noRoute(req.path)
	}
	_, name, _ := strings.Cut(path, "/")
	existed := e.keys[name] != nil
	a := s.kv(e, req, path)
	a.kind = "kv"
	if a.status < 300 {
		s.notifyKV(req, strings.TrimSuffix(req.path, path), path, e, existed)
	}
	return a
}

// mount finds the engine that a path belongs to, and the rest of the path.
func (sp *space) mount(path string) (string, *engine) {
	best := ""
	for m := range sp.mounts {
		if strings.HasPrefix(path, m) && len(m) > len(best) {
			best = m
		}
	}
	return strings.TrimPrefix(path, best), sp.mounts[best]
}

func noRoute(path string) answer {
	return fail(http.StatusNotFound, `no handler for route "`+path+`". route entry not found.`)
}

// encode writes an answer as Vault does.
func (a answer) encode() []byte {
	switch {
	case a.rewrap != nil:
		return a.rewrap
	case a.status == http.StatusNoContent:
		return nil
	case a.status >= 400 && !a.full:
		if a.errors == nil {
			a.errors = []string{}
		}
		return encode(map[string]any{"errors": a.errors})
	case a.full && a.data == nil && a.warnings == nil:
		return nil
	case a.full:
		a.kind = "" // is not known yet where these are made
	}
	return encode(a.envelope())
}

func (a answer) envelope() map[string]any {
	e := map[string]any{
		"request_id": id(16), "lease_id": "", "renewable": false, "lease_duration": 0,
		"data": a.data, "wrap_info": nil, "warnings": nil, "auth": a.auth, "mount_type": a.kind,
	}
	if a.warnings != nil {
		e["warnings"] = a.warnings
	}
	maps.Copy(e, a.beside)
	return e
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("vaultfake: " + err.Error())
	}
	return append(b, '\n')
}

// id returns n random bytes in hex.
func id(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b)
	return hex.EncodeToString(b)
}
