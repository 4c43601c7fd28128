package webhook

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
)

// raw speaks HTTP by hand.
func raw(t *testing.T, r *running, head string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", r.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, head); err != nil {
		t.Fatal(err)
	}
	return c
}

func status(t *testing.T, c net.Conn) int {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("no answer: %v", err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

func head(k string, length int) string {
	return fmt.Sprintf("POST /v1/eventbridge HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", k, length)
}

// TestKeyIsCheckedBeforeTheBody: with a wrong key, or a body announced too
// long, the answer comes though the body never does.
func TestKeyIsCheckedBeforeTheBody(t *testing.T) {
	r := serve(t, Options{Routes: within(time.Minute)}, func(context.Context, notifier.Delivery) error { t.Error("handled"); return nil })
	if got := status(t, raw(t, r, head("wrong", 1000))); got != 401 {
		t.Errorf("status %d; expected 401 before the body", got)
	}
	if got := status(t, raw(t, r, head(key, 1<<30))); got != 413 {
		t.Errorf("status %d; expected 413 before the body", got)
	}
}

// TestSlowLoris: neither a header nor a body that trickles holds a connection
// for long, and neither keeps others out.
func TestSlowLoris(t *testing.T) {
	b := newBus()
	r := serve(t, Options{Routes: within(300 * time.Millisecond)}, notifier.New(b, b, nil).Handler(decode))
	slowBody := raw(t, r, head(key, 1000)+"{")
	slowHead := raw(t, r, "POST /v1/eventbridge HTTP/1.1\r\nHost: x\r\nX-Api-")
	if code, _, _ := r.post(moved(1), nil); code != 200 {
		t.Errorf("status %d beside slow clients; expected 200", code)
	}
	if got := status(t, slowBody); got != 503 {
		t.Errorf("status %d for a body that does not come; expected 503", got)
	}
	if _, err := io.ReadAll(slowHead); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("a header that does not come held its connection for 20 s")
	}
	long := raw(t, r, "POST /v1/eventbridge HTTP/1.1\r\nHost: x\r\nX-Long: "+strings.Repeat("x", 64<<10))
	_, _ = io.WriteString(long, "\r\n\r\n")
	if resp, err := http.ReadResponse(bufio.NewReader(long), nil); err == nil {
		if _ = resp.Body.Close(); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("status %d for a header of 64 KiB; expected 431", resp.StatusCode)
		}
	}
}

// TestHandlerBoundsTheBodyByItself: the handler mounted in somebody else's
// server, which has no time-outs.
func TestHandlerBoundsTheBodyByItself(t *testing.T) {
	h, err := Handler(func(context.Context, notifier.Delivery) error { t.Error("handled"); return nil }, Options{Routes: within(200 * time.Millisecond)})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, head(key, 1000)+"{"); err != nil {
		t.Fatal(err)
	}
	if got := status(t, c); got != 503 {
		t.Errorf("status %d for a body that does not come; expected 503", got)
	}
}

// TestDrain: at the end a request in flight is finished, a new one is not
// taken, and Run returns when all is done.
func TestDrain(t *testing.T) {
	b := newBus()
	hold := make(chan struct{})
	b.set(nil, hold)
	r := serve(t, Options{}, notifier.New(b, b, nil).Handler(decode))
	code := make(chan int, 1)
	go func() { c, _, _, _ := r.try(moved(1), nil); code <- c }()
	testenv.Eventually(t, 10*time.Second, "a post inside the bus", func() bool { _, _, in := b.counts(); return in == 1 })
	r.stop()
	testenv.Eventually(t, 10*time.Second, "the port to be closed", func() bool {
		c, err := net.Dial("tcp", r.Addr().String())
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	select {
	case err := <-r.ended:
		t.Fatalf("Run returned with a request in flight: %v", err)
	default:
	}
	close(hold)
	if got := <-code; got != 200 {
		t.Errorf("status %d of the request in flight; expected 200", got)
	}
	if n, _, _ := b.counts(); n != 1 {
		t.Errorf("%d events; expected 1", n)
	}
}

// TestDrainIsBounded: a request that does not end is cut off, by its context
// too, and Run returns nil.
func TestDrainIsBounded(t *testing.T) {
	b := newBus()
	b.set(nil, make(chan struct{}))
	r := serve(t, Options{Routes: within(time.Hour), Drain: 100 * time.Millisecond}, notifier.New(b, b, nil).Handler(decode))
	done := make(chan struct{})
	go func() { defer close(done); _, _, _, _ = r.try(moved(1), nil) }()
	testenv.Eventually(t, 10*time.Second, "a post inside the bus", func() bool { _, _, in := b.counts(); return in == 1 })
	start := time.Now()
	r.stop()
	err := <-r.ended
	r.ended <- err
	if took := time.Since(start); err != nil || took > 10*time.Second {
		t.Errorf("Run returned %v after %s; expected nil soon after 100 ms", err, took)
	}
	if n, _, in := b.counts(); n != 0 || in != 0 {
		t.Errorf("%d events, %d publishes still in flight after Run; expected none", n, in)
	}
	<-done
}

func TestRunSaysWhyItEnded(t *testing.T) {
	s, err := Listen(t.Context(), Options{Routes: bridge(nil), Addr: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), nil); err == nil {
		t.Error("Run on a closed port returned nil; expected an error")
	}
}

// writePair writes a fresh certificate for 127.0.0.1 and returns a pool that
// trusts it.
func writePair(t *testing.T, dir string, serial int64) *x509.CertPool {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	pool.AppendCertsFromPEM(cert)
	for name, b := range map[string][]byte{"cert.pem": cert, "key.pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kder})} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return pool
}

func TestTLS(t *testing.T) {
	dir := t.TempDir()
	pool := writePair(t, dir, 1)
	b := newBus()
	r := serve(t, Options{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}, notifier.New(b, b, nil).Handler(decode))
	if !strings.HasPrefix(r.URL("/"), "https://127.0.0.1:") {
		t.Errorf("URL %s", r.URL("/"))
	}
	use := func(c *tls.Config) { r.http.Transport = &http.Transport{TLSClientConfig: c, ForceAttemptHTTP2: true} }
	use(&tls.Config{RootCAs: pool})
	if code, _, _ := r.post(moved(1), nil); code != 200 {
		t.Errorf("status %d; expected 200", code)
	}
	r.http.CloseIdleConnections()
	use(&tls.Config{RootCAs: pool, MaxVersion: tls.VersionTLS11}) //nolint:gosec // what must fail
	if _, _, _, err := r.try(moved(1), nil); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
	if n, _, _ := b.counts(); n != 1 {
		t.Errorf("%d events; expected 1", n)
	}
	r.http.CloseIdleConnections()
}

// TestCertificateIsRenewed: new files are served without a restart, and files
// that are broken for a while change nothing.
func TestCertificateIsRenewed(t *testing.T) {
	dir := t.TempDir()
	writePair(t, dir, 1)
	c := &certificate{certFile: filepath.Join(dir, "cert.pem"), keyFile: filepath.Join(dir, "key.pem"), log: slog.New(slog.DiscardHandler)}
	if err := c.load(time.Now()); err != nil {
		t.Fatal(err)
	}
	serial := func() int64 {
		c.checked = time.Time{}
		pair, err := c.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		return leaf.SerialNumber.Int64()
	}
	touch := func(at time.Time) {
		for _, f := range []string{c.certFile, c.keyFile} {
			if err := os.Chtimes(f, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	if got := serial(); got != 1 {
		t.Fatalf("serial %d; expected 1", got)
	}
	if err := os.WriteFile(c.certFile, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	touch(time.Now().Add(time.Minute))
	if got := serial(); got != 1 {
		t.Errorf("serial %d from broken files; expected the one before", got)
	}
	writePair(t, dir, 2)
	touch(time.Now().Add(2 * time.Minute))
	if got := serial(); got != 2 {
		t.Errorf("serial %d after the renewal; expected 2", got)
	}
}

// TestLameDuck: after the end was asked for, a load balancer hears that it
// should look elsewhere while posts are still taken.
func TestLameDuck(t *testing.T) {
	b := newBus()
	r := serve(t, Options{LameDuck: time.Minute}, notifier.New(b, b, nil).Handler(decode))
	if code := r.get("/readyz"); code != 200 {
		t.Fatalf("ready: %d", code)
	}
	r.stop()
	testenv.Eventually(t, 10*time.Second, "/readyz to fail", func() bool { return r.get("/readyz") == http.StatusServiceUnavailable })
	if code, _, _, err := r.try(moved(1), nil); code != 200 || err != nil {
		t.Errorf("a post within the lame-duck time: %d, %v; expected 200", code, err)
	}
	_ = r.Close() // a port that is gone ends it
	select {
	case err := <-r.ended:
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v; expected that the port is gone", err)
		}
		r.ended <- nil
	case <-time.After(20 * time.Second):
		t.Error("Run waits for a port that is gone")
	}
}
