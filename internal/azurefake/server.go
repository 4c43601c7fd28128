// Package azurefake is a stateful Azure Key Vault, its secrets only, for
// tests. It listens on loopback and speaks the wire protocol of the REST API
// over TLS, challenge included, so that the real client is what is tested, and
// it keeps the service's rules for versions, soft delete and events.
//
// A vault is reached by its own host name through [Server.Transport], which
// takes the place of the DNS, or by the path of [Server.URL] where a process
// of its own has to reach it.
//
// What a test does behind the client's back (look at versions, deny an action,
// move the clock) are methods of [Server]. Where the documentation leaves a
// rule open, the comment at the rule says that the choice is this package's.
package azurefake

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

// What the challenge names, and what a token must have been asked for.
const (
	Domain   = "vault.azure.net"
	Resource = "https://" + Domain
	Tenant   = "72f988bf-0000-4000-8000-2d7cd011db47"
)

// maxBody bounds a request: a value of 25,600 characters, escaped, and tags.
const maxBody = 1 << 20

// A Server is a few vaults of one tenant. It is safe for concurrent use, and
// ends with its test.
type Server struct {
	t         testing.TB
	http      *httptest.Server
	roots     *x509.CertPool
	transport *http.Transport

	mu       sync.Mutex
	vaults   map[string]*vault
	ahead    time.Duration // of the real clock
	pageSize int
	lag      int // how many requests a deletion or a recovery takes
	tokens   map[string]bool
	issued   int
	denied   map[Action]bool
	faults   map[string][]Failure
	calls    []Call
	notify   func(Event)
}

// New starts a Server with the given vaults, or with one named "kv-agents".
func New(t testing.TB, vaults ...string) *Server {
	t.Helper()
	if len(vaults) == 0 {
		vaults = []string{"kv-agents"}
	}
	s := &Server{
		t: t, vaults: map[string]*vault{}, pageSize: 25, tokens: map[string]bool{},
		denied: map[Action]bool{}, faults: map[string][]Failure{},
	}
	for _, name := range vaults {
		s.vaults[name] = newVault(name)
	}
	cert, leaf := certificate(t)
	s.roots = x509.NewCertPool()
	s.roots.AddCert(leaf)
	s.http = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.http.TLS = &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}
	s.http.Config.ErrorLog = log.New(io.Discard, "", 0) // a refused handshake is a test's own doing
	s.http.StartTLS()
	s.transport = &http.Transport{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: s.roots}, DialContext: s.dial, MaxIdleConnsPerHost: 64,
	}
	t.Cleanup(func() {
		s.transport.CloseIdleConnections()
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// certificate is for every vault's host name and for loopback.
func certificate(t testing.TB) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "azurefake"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"*." + Domain, "localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, leaf
}

// dial stands for the DNS: a host that is no vault does not exist.
func (s *Server) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	host, _, err := net.SplitHostPort(addr)
	if err != nil || net.ParseIP(host) != nil {
		return d.DialContext(ctx, network, addr)
	}
	name, ok := strings.CutSuffix(host, "."+Domain)
	s.mu.Lock()
	_, known := s.vaults[name]
	s.mu.Unlock()
	if !ok || !known {
		return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}}
	}
	return d.DialContext(ctx, network, s.http.Listener.Addr().String())
}

// Transport reaches the vaults by their own host names, and trusts the
// certificate of the Server.
func (s *Server) Transport() http.RoundTripper { return s.transport }

// Client is an HTTP client over Transport, as azcore takes it.
func (s *Server) Client() *http.Client { return &http.Client{Transport: s.transport} }

// URL is the address of a vault on loopback, for a process that does not use
// Transport. Its host is not the vault's own, so a client of it has to set
// DisableChallengeResourceVerification.
func (s *Server) URL(vault string) string { return s.http.URL + "/" + vault }

// Roots holds the certificate of the Server.
func (s *Server) Roots() *x509.CertPool { return s.roots }

// Credential issues tokens that the Server takes, to who asks for the scope
// and tenant of its challenge.
func (s *Server) Credential() azcore.TokenCredential { return credential{s} }

type credential struct{ s *Server }

func (c credential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if err := ctx.Err(); err != nil {
		return azcore.AccessToken{}, err
	}
	if len(o.Scopes) != 1 || o.Scopes[0] != Resource+"/.default" || o.TenantID != Tenant {
		return azcore.AccessToken{}, fmt.Errorf("azurefake: asked for a token of scopes %q and tenant %q", o.Scopes, o.TenantID)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	token := "azurefake." + hexID()
	c.s.tokens[token] = true
	c.s.issued++
	return azcore.AccessToken{Token: token, ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// An apiError is an error as Key Vault puts it.
type apiError struct {
	status               int
	code, inner, message string
	retryAfter           int
}

func (e *apiError) Error() string { return e.code + ": " + e.message }

func fail(status int, code, inner, format string, args ...any) error {
	return &apiError{status: status, code: code, inner: inner, message: fmt.Sprintf(format, args...)}
}

// A request is one that has been routed.
type request struct {
	s             *Server
	v             *vault
	base          string // of links to further pages
	name, version string
	body          struct {
		Value       *string           `json:"value"`
		ContentType *string           `json:"contentType"`
		Tags        map[string]string `json:"tags"`
		Attributes  *attributes       `json:"attributes"`
	}
	query  map[string][]string
	events []Event
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("X-Ms-Request-Id", hexID())
	h.Set("X-Ms-Keyvault-Service-Version", "1.9.0.0")
	out, status, events, err := s.handle(r)
	for _, e := range events {
		s.mu.Lock()
		notify := s.notify
		s.mu.Unlock()
		if notify != nil {
			notify(e)
		}
	}
	if err != nil {
		e, ok := err.(*apiError) //nolint:errorlint // handle returns no other
		if !ok {
			e = &apiError{status: http.StatusInternalServerError, code: "InternalServerError", message: "azurefake: " + err.Error()}
		}
		if e.status == http.StatusUnauthorized {
			h.Set("WWW-Authenticate", `Bearer authorization="https://login.windows.net/`+Tenant+`", resource="`+Resource+`"`)
		}
		if e.retryAfter > 0 {
			h.Set("Retry-After", fmt.Sprint(e.retryAfter))
		}
		body := map[string]any{"code": e.code, "message": e.message}
		if e.inner != "" {
			body["innererror"] = map[string]any{"code": e.inner}
		}
		w.WriteHeader(e.status)
		_ = json.NewEncoder(w).Encode(map[string]any{"error": body})
		return
	}
	w.WriteHeader(status)
	if out != nil {
		_ = json.NewEncoder(w).Encode(out)
	}
}

// handle routes one request. The state changes under one lock, as in a vault
// that serves one request at a time.
func (s *Server) handle(r *http.Request) (out any, status int, events []Event, err error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, maxBody+1))
	if err != nil || len(body) > maxBody {
		return nil, 0, nil, fail(http.StatusRequestEntityTooLarge, "RequestEntityTooLarge", "", "the body could not be read, or is too long")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	req := &request{s: s, query: r.URL.Query()}
	path := strings.Trim(r.URL.Path, "/")
	host, _, herr := net.SplitHostPort(r.Host)
	if herr != nil {
		host = r.Host
	}
	name, byHost := strings.CutSuffix(host, "."+Domain)
	if byHost {
		req.base = "https://" + host + ":443"
	} else {
		name, path, _ = strings.Cut(path, "/")
		req.base = "https://" + r.Host + "/" + name
	}
	if req.v = s.vaults[name]; req.v == nil {
		return nil, 0, nil, fail(http.StatusNotFound, "ResourceNotFound", "", "azurefake has no vault %q", name)
	}
	// The challenge comes before anything is looked at.
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); !ok || !s.tokens[token] {
		s.calls = append(s.calls, Call{Op: "challenge", Vault: name})
		return nil, 0, nil, fail(http.StatusUnauthorized, "Unauthorized", "", "AKV10000: Request is missing a Bearer or PoP token.")
	}
	if r.URL.Query().Get("api-version") == "" {
		return nil, 0, nil, fail(http.StatusBadRequest, "BadParameter", "", "api-version must be specified")
	}
	op, ok := route(r.Method, path, req)
	if !ok {
		return nil, 0, nil, fail(http.StatusMethodNotAllowed, "BadParameter", "", "%s /%s is no operation of azurefake", r.Method, path)
	}
	if len(body) > 0 {
		if json.Unmarshal(body, &req.body) != nil {
			return nil, 0, nil, fail(http.StatusBadRequest, "BadParameter", "", "the body is not what %s takes", op.name)
		}
	}
	call := Call{Op: op.name, Vault: name, Name: req.name, Version: req.version, Write: op.writes}
	f, injected := s.injected(op.name)
	switch {
	case s.denied[op.action]:
		err = fail(http.StatusForbidden, "Forbidden", "ForbiddenByRbac",
			"Caller is not authorized to perform action on resource.\r\nAction: '%s'\r\nResource: '/subscriptions/x/vaults/%s/secrets/%s'\r\n", op.action, name, req.name)
	case injected && !f.AfterEffect:
		err = f.err()
	default:
		out, status, err = op.do(req)
		if err == nil && injected {
			err = f.err()
		}
	}
	if e, ok := err.(*apiError); ok { //nolint:errorlint // made here, never wrapped
		call.Code = e.code
	}
	s.calls = append(s.calls, call)
	return out, status, req.events, err
}

type operation struct {
	name   string
	action Action
	writes bool
	do     func(*request) (any, int, error)
}

// route finds the operation and takes its names from the path.
// https://learn.microsoft.com/rest/api/keyvault/secrets/operation-groups
func route(method, path string, req *request) (operation, bool) {
	part := strings.Split(path, "/")
	if len(part) > 1 {
		req.name = part[1]
	}
	if len(part) > 2 {
		req.version = part[2]
	}
	switch key := fmt.Sprintf("%s %s/%d", method, part[0], len(part)); {
	case key == "GET secrets/1":
		return operation{"list", List, false, (*request).list}, true
	case key == "GET secrets/3" && req.version == "versions":
		req.version = ""
		return operation{"versions", List, false, (*request).versions}, true
	case key == "GET secrets/2" || key == "GET secrets/3":
		return operation{"get", Get, false, (*request).get}, true
	case key == "PUT secrets/2":
		return operation{"set", Set, true, (*request).set}, true
	case key == "PATCH secrets/2" || key == "PATCH secrets/3":
		return operation{"update", Update, true, (*request).update}, true
	case key == "DELETE secrets/2":
		return operation{"delete", Delete, true, (*request).del}, true
	case key == "GET deletedsecrets/2":
		return operation{"getdeleted", List, false, (*request).getDeleted}, true
	case key == "DELETE deletedsecrets/2":
		return operation{"purge", Purge, true, (*request).purge}, true
	case key == "POST deletedsecrets/3" && req.version == "recover":
		req.version = ""
		return operation{"recover", Recover, true, (*request).recover}, true
	}
	return operation{}, false
}

// hexID is 32 hexadecimal digits, as in the ids of versions.
func hexID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand since Go 1.24
	return hex.EncodeToString(b[:])
}
