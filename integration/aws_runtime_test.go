package integration

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/leaktest"
)

// A runtimeAPI is Lambda's side of one sandbox: the HTTP interface from which
// a function fetches invocations and to which it hands answers.
// https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
type runtimeAPI struct {
	t    testing.TB
	srv  *httptest.Server
	todo chan invocation

	mu      sync.Mutex
	waiting map[string]chan answer
	n       int
}

type invocation struct {
	id       string
	payload  []byte
	deadline time.Time
}

// An answer is what the function said, or what Lambda says of one that ended.
type answer struct {
	OK        bool
	Body      string
	ErrorType string        `json:"errorType"`
	Message   string        `json:"errorMessage"`
	Took      time.Duration `json:"-"`
}

func newRuntimeAPI(t testing.TB) *runtimeAPI {
	t.Helper()
	a := &runtimeAPI{t: t, todo: make(chan invocation), waiting: map[string]chan answer{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2018-06-01/runtime/invocation/next", a.next)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/response", a.answer)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/error", a.answer)
	a.srv = httptest.NewServer(mux)
	t.Cleanup(func() {
		a.srv.CloseClientConnections()
		a.srv.Close()
	})
	return a
}

func (a *runtimeAPI) addr() string { return strings.TrimPrefix(a.srv.URL, "http://") }

func (a *runtimeAPI) next(w http.ResponseWriter, r *http.Request) {
	select {
	case <-r.Context().Done():
	case i := <-a.todo:
		if r.Context().Err() != nil { // the poll of a process that was killed
			go func() { a.todo <- i }()
			return
		}
		w.Header().Set("Lambda-Runtime-Aws-Request-Id", i.id)
		w.Header().Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(i.deadline.UnixMilli(), 10))
		w.Header().Set("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:us-east-1:111122223333:function:keyturn-rotate")
		w.Header().Set("Lambda-Runtime-Trace-Id", "Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=0")
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(i.payload)
	}
}

func (a *runtimeAPI) answer(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 6<<20))
	a.mu.Lock()
	ch := a.waiting[r.PathValue("id")]
	delete(a.waiting, r.PathValue("id"))
	a.mu.Unlock()
	if err != nil || ch == nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	ans := answer{OK: strings.HasSuffix(r.URL.Path, "/response"), Body: string(body)}
	if !ans.OK {
		if err := json.Unmarshal(body, &ans); err != nil {
			a.t.Errorf("the function reported an error that is not JSON: %v", err)
		}
	}
	w.WriteHeader(http.StatusAccepted)
	ch <- ans
}

// invoke makes one invocation of p and waits for its answer, or for the end of
// p, which Lambda reports in its own name.
func (a *runtimeAPI) invoke(p *process, payload []byte, limit time.Duration) answer {
	start := time.Now()
	ch := make(chan answer, 1)
	a.mu.Lock()
	a.n++
	id := fmt.Sprintf("8476a536-e9f4-11e8-9739-%012d", a.n)
	a.waiting[id] = ch
	a.mu.Unlock()
	exited := answer{ErrorType: "Runtime.ExitError"}
	select {
	case a.todo <- invocation{id, payload, time.Now().Add(limit)}:
	case <-p.done:
		return exited
	case <-time.After(20 * time.Second):
		return answer{ErrorType: "test: within 20 s the function asked for no invocation"}
	}
	select {
	case ans := <-ch:
		ans.Took = time.Since(start)
		return ans
	case <-p.done:
		return exited
	case <-time.After(limit + 10*time.Second):
		return answer{ErrorType: "test: no answer 10 s after the deadline"}
	}
}

// A process is the built function, running.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	done chan struct{}
}

// bootstrap builds the function as scripts/package.sh does, for this machine.
func bootstrap(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bootstrap")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags", "lambda.norpc", "-o", path, "../functions/aws/rotate")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the function: %v\n%s", err, out)
	}
	return path
}

// start runs the function against a, with env and nothing else in its
// environment, as in a sandbox. What it prints goes to out.
func start(t testing.TB, program string, a *runtimeAPI, out io.Writer, env ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(program), done: make(chan struct{})}
	p.cmd.Dir = t.TempDir()
	p.cmd.Env = append([]string{
		"AWS_LAMBDA_RUNTIME_API=" + a.addr(), "AWS_LAMBDA_FUNCTION_NAME=keyturn-rotate", "AWS_LAMBDA_FUNCTION_MEMORY_SIZE=128",
		"AWS_REGION=" + awsfake.Region, "AWS_DEFAULT_REGION=" + awsfake.Region, "HOME=" + p.cmd.Dir,
		"AWS_ACCESS_KEY_ID=" + awsfake.AccessKey, "AWS_SECRET_ACCESS_KEY=" + awsfake.SecretKey, "AWS_SESSION_TOKEN=example",
	}, env...)
	p.cmd.Stdout, p.cmd.Stderr = out, out
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(p.kill)
	return p
}

// kill is kill -9 of this one process.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// logLines checks that everything that was printed is one JSON object a line,
// and returns the objects.
func logLines(t testing.TB, rec *leaktest.Recorder) []map[string]any {
	t.Helper()
	var out []map[string]any
	for _, line := range strings.Split(strings.TrimSpace(rec.String()), "\n") {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Errorf("a line of the log is not JSON: %q", line)
			continue
		}
		out = append(out, m)
	}
	return out
}
