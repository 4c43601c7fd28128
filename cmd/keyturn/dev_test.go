package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/pgserver"
	"github.com/keyturn/keyturn/internal/testenv"
)

// output collects what a command prints while it runs.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func needPostgres(t *testing.T) {
	t.Helper()
	if pgserver.FindBinaries() == "" {
		testenv.Missing(t, "the PostgreSQL server", pgserver.InstallHint)
	}
}

// post posts a notice to the running dev and returns the status.
func post(t *testing.T, c *config, key, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+c.Notifier.Listen+"/v1/eventbridge", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Api-Key", key)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// The main job as a person runs it, with every other command beside it.
func TestDev(t *testing.T) {
	needPostgres(t)
	state := filepath.Join(t.TempDir(), "state")
	conf := filepath.Join(state, "keyturn.yaml")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs output
	exit := make(chan int, 1)
	go func() {
		exit <- run(ctx, []string{"dev", "--state", state, "--every", "1s", "--listen", "127.0.0.1:0"}, strings.NewReader(""), &out, &errs)
	}()
	start := time.Now()
	testenv.Eventually(t, 60*time.Second, "every agent to adopt a rotated credential", func() bool {
		return strings.Contains(out.String(), "every agent has adopted")
	})
	t.Logf("first rotation adopted by all %s after the start", time.Since(start).Round(time.Millisecond))

	c, err := loadConfig(conf)
	if err != nil {
		t.Fatal(err)
	}
	key, err := readKeyFile(c.Notifier.Routes[0].APIKeyFiles[0])
	if err != nil {
		t.Fatal(err)
	}

	// watch hears what is posted, once.
	var watched output
	wctx, stopWatch := context.WithCancel(ctx)
	watchExit := make(chan int, 1)
	go func() {
		watchExit <- run(wctx, []string{"-c", conf, "watch", "--json"}, strings.NewReader(""), &watched, &errs)
	}()
	for range 2 {
		if status := post(t, c, key, sampleNotice); status/100 != 2 {
			t.Errorf("a notice was answered %d", status)
		}
	}
	if status := post(t, c, "a forged key of good length", sampleNotice); status != http.StatusUnauthorized {
		t.Errorf("a forged key was answered %d", status)
	}
	if status := post(t, c, key, "no JSON at all"); status/100 != 2 {
		t.Errorf("poison was answered %d; it is parked and acknowledged", status)
	}
	const posted = `"ref":"aws://111122223333/eu-west-1/prod/agents/payments"`
	testenv.Eventually(t, 10*time.Second, "watch to show the posted notice", func() bool { return strings.Contains(watched.String(), posted) })

	// rotate and status, from outside.
	code, got, stderr := command(ctx, "", "-c", conf, "rotate", refAcmeLLM, "--token", "5c0c8b6e-6d0a-4f52-9a63-6f7f0a7d9f10")
	if code != 0 && !strings.Contains(stderr, "another rotation") {
		t.Errorf("rotate: exit %d, %s%s", code, got, stderr)
	}
	code, got, stderr = command(ctx, "", "-c", conf, "status", "--json")
	if code != 0 {
		t.Errorf("status: exit %d, %s", code, stderr)
	}
	var row statusOut
	if err := json.Unmarshal([]byte(strings.SplitN(got, "\n", 2)[0]), &row); err != nil || row.Current == "" || row.Previous == "" {
		t.Errorf("status printed %q: %+v, %v", got, row, err)
	}
	if code, got, _ = command(ctx, "", "-c", conf, "status"); code != 0 || !strings.Contains(got, refOrders) {
		t.Errorf("status: exit %d, %q", code, got)
	}
	if code, _, stderr = command(ctx, "", "-c", conf, "rotate", "nats://keyturn/acme/none"); code != 1 || !strings.Contains(stderr, refOrders) {
		t.Errorf("rotate of an unknown secret: exit %d, %q; want which there are", code, stderr)
	}

	// A second dev on the same state is refused.
	if code, _, stderr = command(ctx, "", "dev", "--state", state); code != 1 || !strings.Contains(stderr, "another keyturn dev") {
		t.Errorf("a second dev: exit %d, %q", code, stderr)
	}
	stopWatch()
	if code := <-watchExit; code != 0 && code != 130 {
		t.Errorf("watch ended with %d", code)
	}
	if n := strings.Count(watched.String(), posted); n != 1 {
		t.Errorf("a notice that was posted twice was heard %d times", n)
	}

	cancel()
	if code := <-exit; code != 0 && code != 130 {
		t.Errorf("dev ended with %d", code)
	}
	if text := out.String(); !strings.Contains(text, "failed requests 0") || strings.Contains(text, "request failed") {
		t.Errorf("requests failed:\n%s\n%s", text, errs.String())
	}
	// What it prints and what NATS stores holds no password or key: the ones
	// that exist now are looked for.
	for _, name := range []string{"webhook.key", "nats.password", "issuer-admin.key", "seal.key"} {
		value, err := readKeyFile(filepath.Join(state, name))
		if err != nil {
			t.Fatal(err)
		}
		if form := leaktest.Find([]byte(out.String()+errs.String()+watched.String()), value); form != "" {
			t.Errorf("%s was printed (%s)", name, form)
		}
		leaktest.CheckDir(t, filepath.Join(state, "nats"), value)
	}
}

// A run that is killed anywhere is finished by the next one.
func TestDevKilled(t *testing.T) {
	needPostgres(t)
	dir := t.TempDir()
	bin := filepath.Join(dir, "keyturn")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin, ".")
	if b, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, b)
	}
	state := filepath.Join(dir, "state")
	start := func(args ...string) (*exec.Cmd, *output) {
		out := &output{}
		cmd := exec.CommandContext(t.Context(), bin, append([]string{"dev", "--state", state, "--every", "1s", "--listen", "127.0.0.1:0"}, args...)...)
		cmd.Stdout, cmd.Stderr = out, out
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, out
	}
	// Each kill falls into another phase: right after a line that says where
	// a rotation stands.
	for _, at := range []string{"acme/orders-db     create", "globex/billing-db  create", "globex/billing-db  set", "acme/llm-key       create", "acme/orders-db     test"} {
		cmd, out := start()
		testenv.Eventually(t, 60*time.Second, at, func() bool { return strings.Contains(out.String(), "rotate  "+at) })
		if err := cmd.Process.Signal(os.Kill); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
	}
	cmd, out := start("--rotations", "9")
	if err := cmd.Wait(); err != nil {
		t.Errorf("after the kills: %v\n%s", err, out.String())
	}
	if !strings.Contains(out.String(), "failed requests 0") {
		t.Errorf("requests failed after the kills:\n%s", out.String())
	}
}
