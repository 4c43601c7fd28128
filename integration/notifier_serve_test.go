package integration_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/testenv"
)

// binDir holds what the tests of this package have built.
var binDir string

// TestMain runs the tests, or a NATS server for one that kills it.
func TestMain(m *testing.M) {
	testenv.ServeNATS()
	var err error
	if binDir, err = os.MkdirTemp("", "keyturn-integration-"); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	_ = os.RemoveAll(binDir)
	os.Exit(code)
}

// keyturn is the binary as it is shipped, built once.
var keyturn = sync.OnceValues(func() (string, error) {
	path := filepath.Join(binDir, "keyturn")
	out, err := exec.CommandContext(context.Background(), "go", "build", "-ldflags=-s -w", "-o", path, "../cmd/keyturn").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build keyturn: %w\n%s", err, out)
	}
	return path, nil
})

// A replica is one keyturn serve, which may end and be started again.
type replica struct {
	t    *testing.T
	name string
	conf string
	env  []string
	logs tailWriter

	mu      sync.Mutex
	cmd     *exec.Cmd
	addr    string // of its routes; "" while it does not serve
	started time.Time
	expects bool          // that it ends
	gone    chan struct{} // closed when the process is
	exit    error
	starts  []time.Duration // until it served
	alone   int             // how often it ended by itself
}

func newReplica(t *testing.T, name, config string, env ...string) *replica {
	t.Helper()
	_, err := keyturn()
	must(t, err)
	r := &replica{t: t, name: name, conf: filepath.Join(t.TempDir(), name+".yaml"), env: append([]string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "AWS_EC2_METADATA_DISABLED=true",
	}, env...)}
	must(t, os.WriteFile(r.conf, []byte(config), 0o600))
	t.Cleanup(func() {
		r.kill()
		if t.Failed() {
			t.Logf("the last lines of %s:\n%s", r.name, r.logs.String())
		}
	})
	return r
}

// start starts the process and does not wait until it serves. One that ends
// by itself is started again, as a supervisor does.
func (r *replica) start(env ...string) {
	r.t.Helper()
	bin, err := keyturn()
	must(r.t, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	cmd := exec.CommandContext(context.Background(), bin, "--log", "warn", "-c", r.conf, "serve")
	cmd.Env = append(slices.Clone(r.env), env...)
	cmd.Stderr = &r.logs
	out, err := cmd.StdoutPipe()
	must(r.t, err)
	must(r.t, cmd.Start())
	gone := make(chan struct{})
	r.cmd, r.addr, r.started, r.expects, r.gone, r.exit = cmd, "", time.Now(), false, gone, nil
	go func() {
		r.listen(cmd, out)
		err := cmd.Wait()
		r.mu.Lock()
		again := false
		if r.cmd == cmd {
			r.addr, r.exit = "", err
			if again = !r.expects; again {
				r.alone++
			}
		}
		r.mu.Unlock()
		close(gone)
		if again && r.t.Context().Err() == nil {
			_, _ = fmt.Fprintf(&r.logs, "%s ended by itself: %v\n", r.name, err)
			r.start(env...)
		}
	}()
}

// listen learns from what the process prints where it listens.
func (r *replica) listen(cmd *exec.Cmd, out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, rest, ok := strings.Cut(lines.Text(), "notifier on "); ok {
			addr, _, _ := strings.Cut(rest, ",")
			r.mu.Lock()
			if r.cmd == cmd && !r.expects {
				r.addr = addr
				r.starts = append(r.starts, time.Since(r.started))
			}
			r.mu.Unlock()
		}
	}
}

// url is where it serves, or "" while it does not.
func (r *replica) url() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.addr == "" {
		return ""
	}
	return "http://" + r.addr
}

// serving waits until it serves.
func (r *replica) serving() *replica {
	r.t.Helper()
	testenv.Eventually(r.t, limit, r.name+" to serve", func() bool { return r.url() != "" })
	return r
}

// stop sends a signal and waits for the end, whose error it returns.
func (r *replica) stop(sig os.Signal) error {
	r.t.Helper()
	r.mu.Lock()
	cmd, gone := r.cmd, r.gone
	r.expects = true
	if sig == syscall.SIGKILL {
		r.addr = ""
	}
	r.mu.Unlock()
	if cmd == nil {
		return nil
	}
	_ = cmd.Process.Signal(sig)
	select {
	case <-gone:
	case <-time.After(limit):
		_ = cmd.Process.Kill()
		<-gone
		r.t.Errorf("%s did not end within %s of %v", r.name, limit, sig)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exit
}

func (r *replica) kill() { _ = r.stop(syscall.SIGKILL) }

// probe returns what a path of it answers, or 0 for nothing.
func (r *replica) probe(path string) int {
	at := r.url()
	if at == "" {
		return 0
	}
	ctx, cancel := context.WithTimeout(r.t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at+path, http.NoBody)
	must(r.t, err)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// tell logs how long starts took.
func (r *replica) tell(t *testing.T) {
	r.mu.Lock()
	defer r.mu.Unlock()
	slices.Sort(r.starts)
	if n := len(r.starts); n > 0 {
		t.Logf("%s: %d starts that came to serve, within %s (median) and %s (longest); ended by itself %d times",
			r.name, n, r.starts[n/2].Round(time.Millisecond), r.starts[n-1].Round(time.Millisecond), r.alone)
	}
}

// A tailWriter keeps the last lines that were written.
type tailWriter struct {
	mu  sync.Mutex
	buf []byte
}

func (w *tailWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = append(w.buf, b...)
	if over := len(w.buf) - 8<<10; over > 0 {
		w.buf = slices.Delete(w.buf, 0, over)
	}
	return len(b), nil
}

func (w *tailWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return string(w.buf)
}

// shortPath is a path for a socket, which has 107 bytes at most.
func shortPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kt")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "audit.sock")
}
