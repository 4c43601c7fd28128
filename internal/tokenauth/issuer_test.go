package tokenauth

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Keys are made once: they take long, and a test changes none.
var (
	rsaKey   = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	rsaOther = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	rsaShort = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 1024); return k })
	ecKey    = sync.OnceValue(func() *ecdsa.PrivateKey { k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader); return k })
)

const (
	issuerHost = "issuer.example.com"
	issuerURL  = "https://" + issuerHost
	stsHost    = "login.microsoftonline.com"
)

// hosts are what the fake answers for, and the path of each one's key set.
var hosts = map[string]string{
	"www.googleapis.com":               "/oauth2/v3/certs",
	stsHost:                            "/" + tenant + "/discovery/v2.0/keys",
	"login.microsoftonline.us":         "/" + tenant + "/discovery/v2.0/keys",
	"login.partner.microsoftonline.cn": "/" + tenant + "/discovery/v2.0/keys",
	issuerHost:                         "/keys",
}

// An issuer is the servers of all issuers, over TLS on loopback. Its clock is
// that of the verifiers too.
type issuer struct {
	t       testing.TB
	srv     *httptest.Server
	roots   *x509.CertPool
	fetches atomic.Int64 // of key sets
	ahead   atomic.Int64 // nanoseconds
	logs    leaktest.Recorder

	mu   sync.Mutex
	keys []jose.JSONWebKey
	// answer takes the place of the key set's answer, if it is set.
	answer http.HandlerFunc
	// discovery is the discovery document.
	discovery map[string]any
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	is := &issuer{t: t, discovery: map[string]any{"issuer": issuerURL, "jwks_uri": issuerURL + "/keys"}}
	is.publish(public("k1", "RS256", &rsaKey().PublicKey))
	is.srv = httptest.NewUnstartedServer(http.HandlerFunc(is.serve))
	cert, roots := certificate(t)
	is.roots = roots
	is.srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	is.srv.StartTLS()
	t.Cleanup(is.srv.Close)
	return is
}

func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	var names []string
	for h := range hosts {
		names = append(names, h)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "issuers"}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, ecKey().Public(), ecKey())
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: ecKey()}, pool
}

func (is *issuer) serve(w http.ResponseWriter, r *http.Request) {
	is.mu.Lock()
	keys, answer, doc := is.keys, is.answer, is.discovery
	is.mu.Unlock()
	switch {
	case r.Host == issuerHost && r.URL.Path == "/.well-known/openid-configuration":
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(doc)
	case r.URL.Path == hosts[r.Host]:
		is.fetches.Add(1)
		if answer != nil {
			answer(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: keys})
	default:
		http.NotFound(w, r)
	}
}

func public(id, alg string, k crypto.PublicKey) jose.JSONWebKey {
	return jose.JSONWebKey{KeyID: id, Algorithm: alg, Use: "sig", Key: k}
}

func (is *issuer) publish(keys ...jose.JSONWebKey) {
	is.mu.Lock()
	defer is.mu.Unlock()
	is.keys = keys
}

// respond makes f answer for the key set; nil undoes it.
func (is *issuer) respond(f http.HandlerFunc) {
	is.mu.Lock()
	defer is.mu.Unlock()
	is.answer = f
}

func (is *issuer) now() time.Time { return time.Now().Add(time.Duration(is.ahead.Load())) }

func (is *issuer) advance(d time.Duration) { is.ahead.Add(int64(d)) }

// options reach the issuer, and nothing else.
func (is *issuer) options() Options {
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, port, _ := net.SplitHostPort(addr)
		if _, known := hosts[host]; !known || port != "443" {
			is.t.Errorf("a connection to %s was asked for", addr)
		}
		return (&net.Dialer{}).DialContext(ctx, network, is.srv.Listener.Addr().String())
	}
	tr := &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: is.roots}, ForceAttemptHTTP2: true}
	is.t.Cleanup(tr.CloseIdleConnections)
	return Options{HTTP: &http.Client{Transport: tr}, Now: is.now, Logger: is.logs.Logger()}
}

// settle waits until no fetch is under way.
func settle(v *Verifier) {
	v.keys.mu.Lock()
	f := v.keys.flight
	v.keys.mu.Unlock()
	if f != nil {
		<-f.done
	}
}

type object map[string]any

// with returns a copy of o with some members set, or removed if nil.
func (o object) with(members ...any) object {
	out := object{}
	for k, v := range o {
		out[k] = v
	}
	for i := 0; i < len(members); i += 2 {
		if members[i+1] == nil {
			delete(out, members[i].(string))
		} else {
			out[members[i].(string)] = members[i+1]
		}
	}
	return out
}

// sign makes a token. claims is an object, or the payload as a string.
func sign(t testing.TB, alg jose.SignatureAlgorithm, key any, head object, claims any) string {
	t.Helper()
	o := &jose.SignerOptions{}
	for k, v := range head {
		o.WithHeader(jose.HeaderKey(k), v)
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, o)
	if err != nil {
		t.Fatal(err)
	}
	payload, isText := []byte(nil), false
	if text, ok := claims.(string); ok {
		payload, isText = []byte(text), true
	}
	if !isText {
		if payload, err = json.Marshal(claims); err != nil {
			t.Fatal(err)
		}
	}
	jws, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := jws.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func header(token string) http.Header { return http.Header{"Authorization": {"Bearer " + token}} }

// good is a token by the key that the issuer publishes.
func good(t testing.TB, claims any) string {
	return sign(t, jose.RS256, rsaKey(), object{"kid": "k1"}, claims)
}

func wantKind(t testing.TB, err error, want fault.Kind) {
	t.Helper()
	if err == nil || fault.KindOf(err) != want {
		t.Errorf("error %v of kind %s; expected kind %s", err, fault.KindOf(err), want)
	}
}
