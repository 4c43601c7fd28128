package integration_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// cloudHosts are what the program may call.
var cloudHosts = []string{"www.googleapis.com", "login.microsoftonline.com", "issuer.example.com", "sns.eu-west-1.amazonaws.com"}

// The keys of the clouds, made once: they take long.
var (
	cloudKey  = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	forgerKey = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	tlsKey    = sync.OnceValue(func() *ecdsa.PrivateKey { k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader); return k })
)

// clouds are the public hosts of the clouds on one TLS server, which a proxy
// leads to; it remembers whom it was asked for. Beside them is a listener that
// nobody may call: attacks name it.
type clouds struct {
	t     testing.TB
	srv   *httptest.Server
	proxy *httptest.Server
	trap  net.Listener

	roots                  *x509.CertPool
	caPEM, certPEM, keyPEM []byte
	signing, forged        []byte // certificates of SNS, PEM

	down      atomic.Bool // every host answers 500
	keySets   atomic.Int64
	certs     atomic.Int64 // how often the right one of SNS was fetched
	confirmed atomic.Int64
	trapped   atomic.Int64

	mu    sync.Mutex
	hosts []string
}

func newClouds(t testing.TB) *clouds {
	t.Helper()
	c := &clouds{t: t, roots: x509.NewCertPool()}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	n := int64(0)
	issue := func(tpl, parent *x509.Certificate, public any) (*x509.Certificate, []byte) {
		n++
		tpl.SerialNumber, tpl.NotBefore, tpl.NotAfter = big.NewInt(n), time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
		if parent == nil {
			parent = tpl
		}
		der, err := x509.CreateCertificate(rand.Reader, tpl, parent, public, caKey)
		must(t, err)
		x, err := x509.ParseCertificate(der)
		must(t, err)
		return x, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	ca, caPEM := issue(&x509.Certificate{Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, caKey.Public())
	c.caPEM = caPEM
	c.roots.AddCert(ca)
	_, c.certPEM = issue(&x509.Certificate{DNSNames: append([]string{"localhost"}, cloudHosts...), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, KeyUsage: x509.KeyUsageDigitalSignature}, ca, tlsKey().Public())
	der, err := x509.MarshalPKCS8PrivateKey(tlsKey())
	must(t, err)
	c.keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	sns := func(k *rsa.PrivateKey, name string) []byte {
		_, p := issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature}, ca, k.Public())
		return p
	}
	c.signing = sns(cloudKey(), "sns.amazonaws.com")
	c.forged = sns(forgerKey(), "files.evil.test")

	pair, err := tls.X509KeyPair(c.certPEM, c.keyPEM)
	must(t, err)
	c.srv = httptest.NewUnstartedServer(http.HandlerFunc(c.serve))
	c.srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	c.srv.Config.ErrorLog = log.New(io.Discard, "", 0) // clients are killed in the middle of a handshake
	c.srv.StartTLS()
	t.Cleanup(c.srv.Close)
	c.proxy = httptest.NewServer(http.HandlerFunc(c.connect))
	t.Cleanup(c.proxy.Close)
	c.trap, err = net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = c.trap.Close() })
	go func() {
		for {
			conn, err := c.trap.Accept()
			if err != nil {
				return
			}
			c.trapped.Add(1)
			_ = conn.Close()
		}
	}()
	return c
}

// connect is the proxy's one method.
func (c *clouds) connect(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	c.hosts = append(c.hosts, r.Host)
	c.mu.Unlock()
	host, port, _ := net.SplitHostPort(r.Host)
	if r.Method != http.MethodConnect || port != "443" || !slices.Contains(cloudHosts, host) {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	to, err := net.Dial("tcp", c.srv.Listener.Addr().String())
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	w.WriteHeader(http.StatusOK)
	from, buf, err := w.(http.Hijacker).Hijack()
	if err != nil {
		_ = to.Close()
		return
	}
	go func() { _, _ = io.Copy(to, buf); _ = to.Close() }()
	go func() { _, _ = io.Copy(from, to); _ = from.Close() }()
}

// called returns what the proxy was asked for.
func (c *clouds) called() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.hosts)
}

func (c *clouds) stray() int { return int(c.trapped.Load()) }

// trapURL is an address that nobody may open.
func (c *clouds) trapURL() string { return "http://" + c.trap.Addr().String() + "/" }

func (c *clouds) serve(w http.ResponseWriter, r *http.Request) {
	if c.down.Load() {
		w.WriteHeader(http.StatusInternalServerError)
		return
	}
	switch at := r.Host + r.URL.Path; at {
	case "issuer.example.com/.well-known/openid-configuration":
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"issuer":"https://issuer.example.com","jwks_uri":"https://issuer.example.com/keys"}`)
	case "issuer.example.com/keys", "www.googleapis.com/oauth2/v3/certs", "login.microsoftonline.com/" + gridTenant + "/discovery/v2.0/keys":
		c.keySets.Add(1)
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{KeyID: "k1", Algorithm: "RS256", Use: "sig", Key: &cloudKey().PublicKey}}})
	case snsHost + signingPath:
		c.certs.Add(1)
		_, _ = w.Write(c.signing)
	case snsHost + "/forged.pem":
		_, _ = w.Write(c.forged)
	case snsHost + "/redirect.pem":
		http.Redirect(w, r, c.trapURL()+"x.pem", http.StatusFound)
	case snsHost + "/bomb.pem":
		for range 64 {
			_, _ = w.Write(make([]byte, 1<<20))
		}
	case snsHost + "/":
		c.confirmed.Add(1)
		_, _ = io.WriteString(w, "<ConfirmSubscriptionResponse/>")
	default:
		http.NotFound(w, r)
	}
}
