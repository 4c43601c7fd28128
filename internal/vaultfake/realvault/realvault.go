// Package realvault starts a real Vault for tests, from the binary that
// scripts/test-vault.sh builds: a dev server with its own certificate, in
// memory, on a free loopback port.
package realvault

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Binary names the environment variable with the path of the binary.
const Binary = "KEYTURN_VAULT"

// Root is the root token.
const Root = "root"

// startTimeout bounds how long a server may take to answer.
const startTimeout = 30 * time.Second

// A Server is a running Vault. It ends with its test.
type Server struct {
	URL       string
	Transport *http.Transport // trusts the server's CA
}

// Start starts a server.
func Start(t testing.TB) *Server {
	t.Helper()
	binary := os.Getenv(Binary)
	if binary == "" {
		t.Fatalf("%s is not set; run make test-vault", Binary)
	}
	dir := t.TempDir()
	addr := freeAddr(t)
	var out output
	cmd := exec.Command(binary, //nolint:gosec,noctx // named by who runs the tests; ended below
		"server", "-dev", "-dev-tls", "-dev-tls-cert-dir="+dir,
		"-dev-root-token-id="+Root, "-dev-listen-address="+addr, "-dev-no-store-token", "-log-level=warn")
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = append(os.Environ(), "HOME="+dir, "VAULT_ADDR=", "VAULT_TOKEN=")
	if err := cmd.Start(); err != nil {
		t.Fatalf("start Vault: %v", err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // a server that ended is seen below
		close(exited)
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-exited:
		case <-time.After(startTimeout):
			_ = cmd.Process.Kill()
			<-exited
		}
	})
	s := &Server{URL: "https://" + addr}
	t.Cleanup(func() {
		if s.Transport != nil {
			s.Transport.CloseIdleConnections()
		}
	})
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(50 * time.Millisecond) {
		err := s.ready(t.Context(), filepath.Join(dir, "vault-ca.pem"))
		if err == nil {
			return s
		}
		select {
		case <-exited:
			t.Fatalf("Vault ended: %s\n%s", cmd.ProcessState, out.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("Vault did not start within %s: %v\n%s", startTimeout, err, out.String())
		}
	}
}

// ready reports whether the server is unsealed and has its secret/ mount.
func (s *Server) ready(ctx context.Context, ca string) error {
	if s.Transport == nil {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s holds no certificate", ca)
		}
		s.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 64}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/v1/secret/config", nil)
	if err != nil {
		return err
	}
	req.Header.Set("X-Vault-Token", Root)
	resp, err := (&http.Client{Transport: s.Transport, Timeout: 5 * time.Second}).Do(req)
	if err != nil {
		return err
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("secret/config answers %s", resp.Status)
	}
	return nil
}

func freeAddr(t testing.TB) string {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// An output is what a process printed so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}
