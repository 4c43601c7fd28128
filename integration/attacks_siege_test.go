package integration_test

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
)

// A siege is the built program, serving every kind of route over TLS, with a
// real NATS server behind it and, beyond a proxy that tells whom it calls, the
// issuers of all clouds. Its log is at level debug.
type siege struct {
	t      *testing.T
	nats   *testenv.NATSServer
	clouds *clouds
	out    *leaktest.Recorder
	cmd    *exec.Cmd
	done   chan struct{}
	client *http.Client

	addr, scrape                 string // host:port
	key, gridKey, password, hmac string

	// stranger is planted in what is sent by those who are not let in: it may
	// be nowhere. known is planted in what is sent by those who are, and in
	// which no event is: it may be in dead letters, and nowhere else.
	stranger, known string
	// stored are the names of the secrets of which there must be one event, and
	// no other may be there.
	stored []string
	n      int
	odd    int // events of odd names, which holds counts
}

const (
	siegeAccount = "111122223333" // of acme
	siegeForeign = "999988887777" // of umbrella
	siegeTopic   = snsTopic
	gridTenant   = "0a1b2c3d-0000-4000-8000-00000000000a"
	gridClient   = "0a1b2c3d-0000-4000-8000-0000000000c1"
	gridURI      = "api://keyturn"
	gridCaller   = "4962773b-9cdb-44cf-a8bf-237846a00ab7"
	gridRole     = "AzureEventGridSecureWebhookSubscriber"
	pushAudience = "https://keyturn.example.com/v1/pubsub"
	pushEmail    = "push@acme.iam.gserviceaccount.com"
)

// besiege starts the program and waits until it is ready.
func besiege(t *testing.T) *siege {
	t.Helper()
	s := &siege{
		t: t, nats: testenv.NATS(t), clouds: newClouds(t), out: &leaktest.Recorder{}, done: make(chan struct{}),
		key: leaktest.Canary(), gridKey: leaktest.Canary(), password: leaktest.Canary(),
		hmac:     "whsec_" + base64.StdEncoding.EncodeToString([]byte(leaktest.Canary())),
		stranger: leaktest.Canary(), known: leaktest.Canary(),
	}
	dir := t.TempDir()
	s.scrape = fmt.Sprintf("127.0.0.1:%d", testenv.FreePort(t))
	for name, text := range map[string]string{
		"key": s.key, "grid.key": s.gridKey, "password": s.password, "hmac.key": s.hmac,
		"ca.pem": string(s.clouds.caPEM), "tls.crt": string(s.clouds.certPEM), "tls.key": string(s.clouds.keyPEM),
		"keyturn.yaml": fmt.Sprintf(siegeConfig, s.nats.URL(), s.scrape),
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(strings.ReplaceAll(text, "DIR", dir)), 0o600))
	}
	bin := filepath.Join(dir, "keyturn")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", bin, "../cmd/keyturn").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	s.cmd = exec.Command(bin, "--config", filepath.Join(dir, "keyturn.yaml"), "--log", "debug", "--log-format", "json", "serve")
	s.cmd.Dir = dir
	// Whatever it calls beyond this machine goes to the proxy.
	s.cmd.Env = []string{
		"HOME=" + dir, "HTTPS_PROXY=" + s.clouds.proxy.URL, "HTTP_PROXY=" + s.clouds.proxy.URL,
		"SSL_CERT_FILE=" + filepath.Join(dir, "ca.pem"), "SSL_CERT_DIR=" + dir,
	}
	s.cmd.Stdout, s.cmd.Stderr = s.out, s.out
	must(t, s.cmd.Start())
	go func() { _ = s.cmd.Wait(); close(s.done) }()
	t.Cleanup(s.stop)
	at := regexp.MustCompile(`notifier on (127\.0\.0\.1:\d+)`)
	testenv.Eventually(t, 30*time.Second, "the program to serve", func() bool {
		select {
		case <-s.done:
			t.Fatalf("it ended:\n%s", s.out.String())
		default:
		}
		m := at.FindStringSubmatch(s.out.String())
		if m != nil {
			s.addr = m[1]
		}
		return m != nil
	})
	s.client = &http.Client{
		Timeout:       30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport:     &http.Transport{TLSClientConfig: s.tls(), DisableCompression: true},
	}
	t.Cleanup(s.client.CloseIdleConnections)
	testenv.Eventually(t, 10*time.Second, "the program to be ready", func() bool { return s.probe("/readyz") == 200 })
	return s
}

func (s *siege) tls(protos ...string) *tls.Config {
	return &tls.Config{RootCAs: s.clouds.roots, ServerName: "localhost", NextProtos: protos}
}

// stop ends the program as an operator does, and checks that it goes.
func (s *siege) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.done:
	case <-time.After(40 * time.Second):
		s.t.Error("the program does not end")
		_ = s.cmd.Process.Kill()
		<-s.done
	}
	if strings.Contains(s.out.String(), "panic") {
		s.t.Errorf("something panicked:\n%s", s.out.String())
	}
}

// probe asks as a load balancer does.
func (s *siege) probe(path string) int {
	resp, err := s.client.Get("https://" + s.addr + path)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	return resp.StatusCode
}

// name returns one that no other row has.
func (s *siege) name(kind string) string {
	s.n++
	return fmt.Sprintf("%s-%d-%s", kind, s.n, hex.EncodeToString([]byte{byte(s.n), byte(time.Now().UnixNano())}))
}

// A shot is a request.
type shot struct {
	method, path string
	header       http.Header
	body         []byte
	reader       io.Reader // in place of body, with no length told
}

func (x *shot) set(name, value string) *shot { x.header.Set(name, value); return x }

// fire sends x and returns what came of it. No answer may quote a request.
func (s *siege) fire(t testing.TB, x *shot) (status int, answer string, h http.Header) {
	t.Helper()
	var body io.Reader = bytes.NewReader(x.body)
	if x.reader != nil {
		body = x.reader
	}
	req, err := http.NewRequestWithContext(t.Context(), x.method, "https://"+s.addr+x.path, body)
	must(t, err)
	req.Header = x.header.Clone()
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatalf("%s %.60s: %v", x.method, x.path, err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, _ := io.ReadAll(resp.Body)
	s.clean(t, b)
	for _, vs := range resp.Header {
		s.clean(t, []byte(strings.Join(vs, "\n")))
	}
	return resp.StatusCode, string(b), resp.Header
}

// clean fails t if b holds what was planted, or a key.
func (s *siege) clean(t testing.TB, b []byte) {
	t.Helper()
	for what, c := range map[string]string{
		"a stranger's canary": s.stranger, "a sender's canary": s.known, "the key": s.key,
		"Event Grid's key": s.gridKey, "the password": s.password, "the signing secret": s.hmac,
	} {
		if form := leaktest.Find(b, c); form != "" {
			t.Errorf("%s shows (%s)", what, form)
		}
	}
}

// holds checks, at the end, that the streams hold what they must, and that
// nothing that was planted is where it must not be.
func (s *siege) holds(t *testing.T) {
	t.Helper()
	js, err := jetstream.New(s.nats.Conn(t))
	must(t, err)
	// Audit entries are published from the spool, after the answer.
	testenv.Eventually(t, 10*time.Second, "all events of good requests to be stored", func() bool {
		info, err := js.Stream(t.Context(), natsbus.EventStream)
		return err == nil && info.CachedInfo().State.Msgs >= uint64(len(s.stored)+s.odd)
	})
	want := map[string]int{}
	for _, n := range s.stored {
		want[n]++
	}
	for _, m := range storedEvents(t, js) {
		d := dataOf(t, m)
		name := d.Ref.Name
		tenant := "acme"
		if strings.HasPrefix(d.Ref.Scope, siegeForeign+"/") {
			tenant = "umbrella"
		}
		if want := events.Subject(tenant, d.Ref, events.Type(m.Header.Get("ce-type"))); m.Subject != want || d.Tenant != tenant {
			t.Errorf("an event of %s is on %q and of tenant %q; want %q", d.Ref, m.Subject, d.Tenant, want)
		}
		s.clean(t, append(m.Data, fmt.Sprint(m.Subject, m.Header)...))
		if slices.Contains(oddNames, name) || strings.HasPrefix(name, "name\uFFFD") {
			continue // counted by names
		}
		if want[name] == 0 {
			t.Errorf("there is an event of %q, on %q, which nobody sent or which is there twice", name, m.Subject)
		}
		want[name]--
	}
	for name, n := range want {
		if n > 0 {
			t.Errorf("%d events of %s are missing", n, name)
		}
	}
	bus, err := natsbus.Open(t.Context(), s.nats.Conn(t), nil)
	must(t, err)
	letters := 0
	for l, err := range bus.DeadLetters(t.Context(), 0, 10_000) {
		must(t, err)
		letters++
		if form := leaktest.Find(fmt.Append(nil, l.DeadLetter), s.stranger) + leaktest.Find(l.Body, s.stranger); form != "" {
			t.Errorf("what a stranger sent is a dead letter of %s (%s)", l.Source, form)
		}
		s.clean(t, []byte(l.Reason))
	}
	resp, err := http.Get("http://" + s.scrape + "/metrics")
	must(t, err)
	metrics, err := io.ReadAll(resp.Body)
	_ = resp.Body.Close()
	must(t, err)
	if !bytes.Contains(metrics, []byte("keyturn_notifier_rejected_total")) {
		t.Error("the metrics tell of no rejection")
	}
	s.clean(t, metrics)
	s.stop()
	s.clean(t, []byte(s.out.String()))
	s.nats.Stop()
	leaktest.CheckDir(t, s.nats.Dir(), s.stranger)
	t.Logf("%d events, %d dead letters, %d KiB of log", len(s.stored), letters, len(s.out.String())>>10)
	if s.clouds.stray() > 0 {
		t.Errorf("the program opened %d connections to an address that a request named", s.clouds.stray())
	}
	for _, host := range s.clouds.called() {
		if !slices.Contains(cloudHosts, strings.TrimSuffix(host, ":443")) {
			t.Errorf("the program called %s", host)
		}
	}
}

// letters returns the dead letters of a way in.
func (s *siege) letters(t *testing.T) (out []notifier.DeadLetter) {
	t.Helper()
	bus, err := natsbus.Open(t.Context(), s.nats.Conn(t), nil)
	must(t, err)
	for l, err := range bus.DeadLetters(t.Context(), 0, 10_000) {
		must(t, err)
		out = append(out, l.DeadLetter)
	}
	return out
}

// raw opens a connection to the program for bytes of any form.
func (s *siege) raw(t testing.TB) net.Conn {
	t.Helper()
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", s.addr, s.tls("http/1.1"))
	must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	return c
}

const siegeConfig = `
nats: {url: %q}
notifier:
  listen: 127.0.0.1:0
  cert_file: DIR/tls.crt
  key_file: DIR/tls.key
  metrics: %q
  routes:
    - kind: eventbridge
      api_key_files: [DIR/key]
      basic: [{user: keyturn, password_file: DIR/password}]
      oauth: {issuer: "https://issuer.example.com", audience: keyturn, clients: [eventbridge], scopes: [notify]}
    - kind: eventgrid
      entra: {tenant_id: ` + gridTenant + `, audiences: [` + gridClient + `, "` + gridURI + `"]}
    - kind: eventgrid
      name: grid
      header: X-Keyturn-Key
      api_key_files: [DIR/grid.key]
    - kind: pubsub
      google: {audience: "` + pushAudience + `", emails: [` + pushEmail + `]}
    - kind: sns
      topics: ["` + siegeTopic + `"]
    - kind: cloudevents
      hmac_key_files: [DIR/hmac.key]
    - kind: vaultaudit
      cluster: prod
      api_key_files: [DIR/key]
  sources:
    - {kind: vaultaudit, cluster: prod, spool: DIR/spool}
gcp: {projects: {acme-prod: "123456789012"}}
tenants:
  rules:
    - {tenant: acme, provider: aws, account: "` + siegeAccount + `"}
    - {tenant: umbrella, provider: aws, account: "` + siegeForeign + `"}
    - {tenant: acme, provider: azure}
    - {tenant: acme, provider: gcp}
    - {tenant: acme, provider: vault}
`
