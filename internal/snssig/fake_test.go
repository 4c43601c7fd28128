package snssig

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	region   = "eu-west-1"
	host     = "sns." + region + ".amazonaws.com"
	hostCN   = "sns.cn-north-1.amazonaws.com.cn"
	topic    = "arn:aws:sns:" + region + ":111122223333:secrets"
	topicCN  = "arn:aws-cn:sns:cn-north-1:111122223333:secrets"
	certPEM  = "/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"
	subToken = "2336412f37fb687f5d51e6e2425ba1f3"
)

var (
	signKey  = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	otherKey = sync.OnceValue(func() *rsa.PrivateKey { k, _ := rsa.GenerateKey(rand.Reader, 2048); return k })
	caKey    = sync.OnceValue(func() *ecdsa.PrivateKey { k, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader); return k })
)

// An authority is a CA.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

var serial atomic.Int64

func issue(t testing.TB, by *authority, c *x509.Certificate, key any) *x509.Certificate {
	t.Helper()
	c.SerialNumber = big.NewInt(serial.Add(1))
	if c.NotAfter.IsZero() {
		c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(240*time.Hour)
	}
	parent, signer := c, caKey()
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key, signer)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func newAuthority(t testing.TB, name string, by *authority) *authority {
	t.Helper()
	key := caKey()
	if by != nil {
		key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return &authority{issue(t, by, &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, &key.PublicKey), key}
}

func asPEM(cs ...*x509.Certificate) []byte {
	var b []byte
	for _, c := range cs {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return b
}

// A service is SNS in all regions, over TLS on loopback.
type service struct {
	t            testing.TB
	srv          *httptest.Server
	root         *authority
	intermediate *authority
	signing      *x509.Certificate
	ahead        atomic.Int64
	logs         leaktest.Recorder

	mu        sync.Mutex
	files     map[string][]byte // by path
	answer    http.HandlerFunc  // in place of all else
	confirmed []string          // topics
	requests  []string
	dialled   []string
}

func newService(t testing.TB) *service {
	t.Helper()
	s := &service{t: t, root: newAuthority(t, "root", nil)}
	s.intermediate = newAuthority(t, "intermediate", s.root)
	s.signing = s.sign(func(*x509.Certificate) {})
	s.files = map[string][]byte{certPEM: asPEM(s.signing)}
	leaf := issue(t, s.intermediate, &x509.Certificate{DNSNames: []string{host, hostCN}, KeyUsage: x509.KeyUsageDigitalSignature}, &caKey().PublicKey)
	s.srv = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{leaf.Raw, s.intermediate.cert.Raw}, PrivateKey: caKey()}}}
	s.srv.StartTLS()
	t.Cleanup(s.srv.Close)
	return s
}

// sign issues a signing certificate as SNS has it, with some change.
func (s *service) sign(change func(*x509.Certificate)) *x509.Certificate {
	c := &x509.Certificate{Subject: pkix.Name{CommonName: "sns.amazonaws.com"}, DNSNames: []string{"sns.amazonaws.com"}, KeyUsage: x509.KeyUsageDigitalSignature}
	change(c)
	return issue(s.t, s.intermediate, c, &signKey().PublicKey)
}

func (s *service) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, r.Method+" "+r.Host+r.URL.String())
	if s.answer != nil {
		s.answer(w, r)
		return
	}
	if r.URL.Path == "/" {
		q := r.URL.Query()
		if q.Get("Action") != "ConfirmSubscription" || q.Get("Token") != subToken {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		s.confirmed = append(s.confirmed, q.Get("TopicArn"))
		_, _ = w.Write([]byte("<ConfirmSubscriptionResponse/>"))
		return
	}
	b, ok := s.files[r.URL.Path]
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	_, _ = w.Write(b)
}

func (s *service) serveFile(path string, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[path] = b
}

func (s *service) respond(f http.HandlerFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = f
}

// seen returns the requests, and where connections went.
func (s *service) seen() (requests, dialled []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests), slices.Clone(s.dialled)
}

func (s *service) now() time.Time { return time.Now().Add(time.Duration(s.ahead.Load())) }

func (s *service) verifier(change ...func(*Options)) *Verifier {
	s.t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(s.root.cert)
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		s.mu.Lock()
		s.dialled = append(s.dialled, addr)
		s.mu.Unlock()
		return (&net.Dialer{}).DialContext(ctx, network, s.srv.Listener.Addr().String())
	}
	tr := &http.Transport{DialContext: dial, TLSClientConfig: &tls.Config{RootCAs: roots}}
	s.t.Cleanup(tr.CloseIdleConnections)
	o := Options{
		Topics: []string{topic, topicCN, "arn:aws:sns:" + region + ":111122223333:team-*"},
		HTTP:   &http.Client{Transport: tr}, Roots: roots, Now: s.now, Logger: s.logs.Logger(),
	}
	for _, f := range change {
		f(&o)
	}
	v, err := New(o)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

type object map[string]any

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

func (o object) body() []byte {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return b
}

// notification is a message that is not signed yet.
func (s *service) notification() object {
	return object{
		"Type": "Notification", "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324", "TopicArn": topic,
		"Message": "{\"detail-type\":\"Secret Label Updated\"}\nsecond line", "Timestamp": s.now().UTC().Format("2006-01-02T15:04:05.000Z"),
		"SignatureVersion": "1", "SigningCertURL": "https://" + host + certPEM,
		"UnsubscribeURL": "https://" + host + "/?Action=Unsubscribe&SubscriptionArn=x",
	}
}

func (s *service) confirmation() object {
	return s.notification().with("Type", "SubscriptionConfirmation", "Token", subToken, "UnsubscribeURL", nil,
		"SubscribeURL", "https://"+host+"/?Action=ConfirmSubscription&TopicArn="+topic+"&Token="+subToken)
}

// signed signs a message as the documentation says, apart from the code under
// test.
func signed(t testing.TB, o object, key *rsa.PrivateKey) object {
	t.Helper()
	names := []string{"Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"}
	if o["Type"] != "Notification" {
		names = []string{"Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"}
	}
	text := ""
	for _, n := range names {
		if v, ok := o[n]; ok {
			text += n + "\n" + v.(string) + "\n"
		}
	}
	h, sum := crypto.SHA1, sha1.Sum([]byte(text))
	digest := sum[:]
	if o["SignatureVersion"] == "2" {
		sum := sha256.Sum256([]byte(text))
		h, digest = crypto.SHA256, sum[:]
	}
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, h, digest)
	if err != nil {
		t.Fatal(err)
	}
	return o.with("Signature", base64.StdEncoding.EncodeToString(sig))
}

func wantKind(t testing.TB, err error, want fault.Kind) {
	t.Helper()
	if err == nil || fault.KindOf(err) != want {
		t.Errorf("error %v of kind %s; expected kind %s", err, fault.KindOf(err), want)
	}
}
