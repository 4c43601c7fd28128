package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/testenv"
)

// The functions notify, built as they are shipped, behind what calls them: the
// Runtime API of Lambda, and HTTP as Cloud Run and the host of Azure Functions
// speak it. NATS is a real server, whose user for them has the rights that
// package funcnotify asks for, less the events of one tenant: so one notice of a
// batch can fail alone.

const notifyTime = 30 * time.Second

// A notifyWorld is the NATS of a function.
type notifyWorld struct {
	t        *testing.T
	srv      *testenv.NATSServer
	gate     *holder
	bus      *natsbus.Bus
	password string
	env      []string // of a function
	out      *leaktest.Recorder
}

func newNotifyWorld(t *testing.T) *notifyWorld {
	t.Helper()
	w := &notifyWorld{t: t, password: leaktest.Canary(), out: &leaktest.Recorder{}}
	w.srv = testenv.NATS(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "admin", Password: "admin"}, {Username: "notify", Password: w.password, Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{
				Allow: []string{
					"keyturn.v1.>", "keyturn.late.v1.>", "keyturn.deadletter.>",
					"$JS.API.DIRECT.GET.KEYTURN_EVENTS", "$JS.API.DIRECT.GET.KEYTURN_EVENTS.>",
					"$JS.API.DIRECT.GET.KEYTURN_LATE", "$JS.API.DIRECT.GET.KEYTURN_LATE.>",
				},
				Deny: []string{"keyturn.v1.globex.>"},
			},
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
		}}}
	})
	w.gate = newHolder(t, strings.TrimPrefix(w.srv.URL(), "nats://"))
	bus, err := natsbus.Open(t.Context(), w.srv.Conn(t, nats.UserInfo("admin", "admin")), nil)
	if err != nil {
		t.Fatal(err)
	}
	w.bus = bus
	w.env = []string{
		"KEYTURN_NATS_URL=nats://" + w.gate.addr(), "KEYTURN_NATS_CREDS=notify:" + w.password,
		`KEYTURN_TENANTS={"rules":[{"tenant":"{tenant}","provider":"aws","name":"{tenant}/**"},{"tenant":"acme","provider":"gcp"},{"tenant":"acme","provider":"azure"}]}`,
		"KEYTURN_PROJECTS=my-project=123456789012",
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the function's log:\n%s", w.out)
		}
	})
	return w
}

// stored counts the events on the bus by their version.
func (w *notifyWorld) stored() (byVersion map[string]int, all []natsbus.StoredEvent) {
	w.t.Helper()
	byVersion = map[string]int{}
	for e, err := range w.bus.Events(w.t.Context(), natsbus.EventsQuery{}) {
		if err != nil {
			w.t.Fatal(err)
		}
		byVersion[e.Data.Version]++
		all = append(all, e)
	}
	return byVersion, all
}

func (w *notifyWorld) letters() (out []natsbus.StoredLetter) {
	w.t.Helper()
	for l, err := range w.bus.DeadLetters(w.t.Context(), 0, 1000) {
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, l)
	}
	return out
}

// clean checks that nothing that was printed holds the password.
func (w *notifyWorld) clean() {
	w.t.Helper()
	_, _ = fmt.Fprintln(w.out, "end")
	w.out.Check(w.t, w.password)
}

// notifyProgram builds a function as it is shipped.
func notifyProgram(t *testing.T, cloud string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-tags", "lambda.norpc", "-o", path, "../functions/"+cloud+"/notify")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the function: %v\n%s", err, out)
	}
	return path
}

// A notifyLambda is the function behind the Runtime API, started anew when it has
// ended, in another sandbox: what asked the one before for work is not to get it.
type notifyLambda struct {
	w       *notifyWorld
	program string
	env     []string

	mu     sync.Mutex
	api    *runtimeAPI
	proc   *process
	starts int
}

func newNotifyLambda(w *notifyWorld, program string, env ...string) *notifyLambda {
	return &notifyLambda{w: w, program: program, env: env}
}

func (l *notifyLambda) process() (*process, *runtimeAPI) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.proc == nil || !l.proc.running() {
		l.api = newRuntimeAPI(l.w.t)
		l.proc = start(l.w.t, l.program, l.api, l.w.out, l.env...)
		l.starts++
	}
	return l.proc, l.api
}

func (l *notifyLambda) invoke(payload string) answer {
	p, api := l.process()
	a := api.invoke(p, []byte(payload), notifyTime)
	_, _ = fmt.Fprintf(l.w.out, "{\"answer\":%q}\n", fmt.Sprintf("%+v", a))
	return a
}

// labelMoved is what Secrets Manager says when a version became current.
func labelMoved(name, version string) string {
	return fmt.Sprintf(`{"version":"0","id":"6a7e8feb-b491-4cf7-a9f1-bf3703467718","detail-type":"Secret Label Updated","source":"aws.secretsmanager","account":"111122223333","time":%q,"region":"us-east-1","resources":["arn:aws:secretsmanager:us-east-1:111122223333:secret:%s-a1b2c3"],"detail":{"name":%q,"labelUpdated":"AWSCURRENT","versionId":%q}}`,
		time.Now().UTC().Format(time.RFC3339), name, name, version)
}

const notifyTrace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

type queued struct{ id, group, body string }

// batchOf is a batch as an event source mapping hands it on.
func batchOf(t *testing.T, queue string, ms ...queued) string {
	t.Helper()
	var rs []map[string]any
	for _, m := range ms {
		rs = append(rs, map[string]any{
			"messageId": m.id, "receiptHandle": "AQEB", "body": m.body, "md5OfBody": "x", "eventSource": "aws:sqs", "awsRegion": "us-east-1",
			"eventSourceARN":    "arn:aws:sqs:us-east-1:111122223333:" + queue,
			"attributes":        map[string]string{"ApproximateReceiveCount": "1", "SentTimestamp": "1717236000000", "SenderId": "x", "ApproximateFirstReceiveTimestamp": "1717236000001", "MessageGroupId": m.group},
			"messageAttributes": map[string]any{"traceparent": map[string]any{"stringValue": notifyTrace, "stringListValues": []string{}, "binaryListValues": []string{}, "dataType": "String"}},
		})
	}
	b, err := json.Marshal(map[string]any{"Records": rs})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// failedOf are the messages that an answer keeps in the queue.
func failedOf(t *testing.T, a answer) string {
	t.Helper()
	var out struct {
		Failures *[]struct{ ItemIdentifier string } `json:"batchItemFailures"`
	}
	if !a.OK || json.Unmarshal([]byte(a.Body), &out) != nil || out.Failures == nil {
		t.Fatalf("answer %+v; expected batchItemFailures", a)
	}
	var ids []string
	for _, f := range *out.Failures {
		ids = append(ids, f.ItemIdentifier)
	}
	return strings.Join(ids, " ")
}

func notice(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "events", path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestNotifyFunctionAWS(t *testing.T) {
	program := notifyProgram(t, "aws")

	t.Run("each way in", func(t *testing.T) {
		w := newNotifyWorld(t)
		l := newNotifyLambda(w, program, w.env...)
		sent := labelMoved("acme/db", "v1")
		sns, err := json.Marshal(map[string]any{"Records": []any{map[string]any{"EventVersion": "1.0", "EventSource": "aws:sns", "EventSubscriptionArn": "arn:aws:sns:us-east-1:111122223333:t:x", "Sns": map[string]any{
			"Type": "Notification", "MessageId": "95df01b4-ee98-5cb9-9903-4c221d41eb5e", "TopicArn": "arn:aws:sns:us-east-1:111122223333:t", "Message": labelMoved("acme/db", "v2"), "MessageAttributes": map[string]any{},
		}}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{sent, sent, string(sns)} {
			if a := l.invoke(p); !a.OK || a.Body != "null" {
				t.Errorf("answer %+v", a)
			}
		}
		if f := failedOf(t, l.invoke(batchOf(t, "q", queued{"1", "", sent}, queued{"2", "", labelMoved("acme/db", "v3")}))); f != "" {
			t.Errorf("failed %s", f)
		}
		// What means no event, and an envelope in an envelope.
		for _, p := range []string{notice(t, "eventbridge/testdata/notices/ct-put-secret-value-denied.json"), notice(t, "eventbridge/testdata/notices/secret-label-updated.json"), notice(t, "eventbridge/testdata/notices/sns-http-notification.json")} {
			if a := l.invoke(p); !a.OK {
				t.Errorf("answer %+v", a)
			}
		}
		byVersion, all := w.stored()
		for _, v := range []string{"v1", "v2", "v3"} {
			if byVersion[v] != 1 {
				t.Errorf("%s is stored %d times; expected once", v, byVersion[v])
			}
		}
		for _, e := range all {
			want, _, has := strings.Cut(e.Data.Ref.Name, "/")
			if !has {
				want = "quarantine"
			}
			if e.Data.Tenant != want {
				t.Errorf("%s is of %s; expected %s", e.Data.Ref, e.Data.Tenant, want)
			}
			if (e.Data.Version == "v3") != (e.Data.TraceParent == notifyTrace) {
				t.Errorf("%s has the trace parent %q", e.Data.Version, e.Data.TraceParent)
			}
		}
		if n := len(w.letters()); n != 0 || l.starts != 1 || w.gate.accepted() != 1 {
			t.Errorf("%d letters, %d starts, %d connections; expected none, one and one", n, l.starts, w.gate.accepted())
		}
		w.clean()
	})

	t.Run("partial failures and poison", func(t *testing.T) {
		w := newNotifyWorld(t)
		l := newNotifyLambda(w, program, w.env...)
		standard := batchOf(t, "q",
			queued{"1", "", labelMoved("acme/a", "a1")}, queued{"2", "", labelMoved("globex/a", "g1")}, queued{"3", "", "poison"}, queued{"4", "", labelMoved("acme/b", "b1")})
		if f := failedOf(t, l.invoke(standard)); f != "2" {
			t.Errorf("failed %q; expected 2 alone: 3 is parked", f)
		}
		fifo := batchOf(t, "q.fifo",
			queued{"5", "x", labelMoved("acme/c", "c1")}, queued{"6", "x", labelMoved("globex/a", "g2")}, queued{"7", "y", labelMoved("acme/d", "d1")},
			queued{"8", "x", labelMoved("acme/c", "c2")}, queued{"9", "y", labelMoved("acme/d", "d2")})
		if f := failedOf(t, l.invoke(fifo)); f != "6 8" {
			t.Errorf("failed %q; expected 6, and 8 after it in its group", f)
		}
		if a := l.invoke(batchOf(t, "q", queued{"2", "", labelMoved("globex/a", "g1")})); a.OK || a.ErrorType != "keyturn.unavailable.permission" {
			t.Errorf("answer %+v; expected an error where nothing was stored", a)
		}
		if a := l.invoke("poison"); !a.OK {
			t.Errorf("poison by itself: %+v", a)
		}
		byVersion, all := w.stored()
		if len(all) != 5 || byVersion["c2"] != 0 || byVersion["d2"] != 1 {
			t.Errorf("stored %v; expected a1, b1, c1, d1 and d2", byVersion)
		}
		ls := w.letters()
		if len(ls) != 2 || ls[0].Source != "eventbridge" || ls[0].ID != "3" || string(ls[0].Body) != "poison" {
			t.Errorf("letters %+v; expected two of poison", ls)
		}
		w.clean()
	})

	t.Run("NATS away and back", func(t *testing.T) {
		w := newNotifyWorld(t)
		l := newNotifyLambda(w, program, w.env...)
		if a := l.invoke(labelMoved("acme/db", "v1")); !a.OK {
			t.Fatalf("answer %+v", a)
		}
		w.srv.Stop()
		for range 2 {
			if a := l.invoke(labelMoved("acme/db", "v2")); a.OK || a.ErrorType != "keyturn.unavailable.network" {
				t.Errorf("answer %+v; expected an error, after which Lambda calls again", a)
			}
		}
		w.srv.Start()
		if a := l.invoke(labelMoved("acme/db", "v2")); !a.OK {
			t.Errorf("answer %+v", a)
		}
		testenv.Eventually(t, notifyTime, "the test to be connected again", func() bool { return w.bus.Ready(t.Context()) == nil })
		if byVersion, _ := w.stored(); byVersion["v1"] != 1 || byVersion["v2"] != 1 || l.starts != 1 {
			t.Errorf("stored %v by %d processes", byVersion, l.starts)
		}
		w.clean()
	})

	// Killed when the server has the event and the function does not know yet, and
	// before the server has it.
	for name, way := range map[string]direction{"killed after it is stored": toClient, "killed before it is stored": toServer} {
		t.Run(name, func(t *testing.T) {
			w := newNotifyWorld(t)
			l := newNotifyLambda(w, program, w.env...)
			if a := l.invoke(labelMoved("acme/db", "v1")); !a.OK {
				t.Fatalf("answer %+v", a)
			}
			w.gate.hold(way)
			second := batchOf(t, "q", queued{"1", "", labelMoved("acme/db", "v2")})
			got := make(chan answer, 1)
			p, _ := l.process()
			go func() { got <- l.invoke(second) }()
			testenv.Eventually(t, notifyTime, "something to be held", w.gate.holds)
			if way == toClient {
				testenv.Eventually(t, notifyTime, "the event to be stored", func() bool { n, _ := w.stored(); return n["v2"] == 1 })
			}
			p.kill()
			if a := <-got; a.ErrorType != "Runtime.ExitError" {
				t.Errorf("answer %+v; expected none", a)
			}
			w.gate.release()
			if f := failedOf(t, l.invoke(second)); f != "" {
				t.Errorf("failed %s at the second time", f)
			}
			if n, _ := w.stored(); n["v1"] != 1 || n["v2"] != 1 || l.starts != 2 {
				t.Errorf("stored %v by %d processes; expected each once, by two", n, l.starts)
			}
			w.clean()
		})
	}

	t.Run("killed at any moment", func(t *testing.T) {
		w := newNotifyWorld(t)
		l := newNotifyLambda(w, program, w.env...)
		const rounds, size = 12, 10
		killed := 0
		for round := range rounds {
			var ms []queued
			for i := range size {
				id := fmt.Sprintf("r%d-%d", round, i)
				ms = append(ms, queued{id, "", labelMoved(fmt.Sprintf("acme/db-%d", i), id)})
			}
			ms = append(ms, queued{fmt.Sprintf("poison-%d", round), "", "poison"})
			payload := batchOf(t, "q", ms...)
			p, _ := l.process()
			var wg sync.WaitGroup
			wg.Go(func() {
				time.Sleep(rand.N(60 * time.Millisecond)) // any moment is right
				p.kill()
			})
			first := l.invoke(payload)
			wg.Wait()
			if first.ErrorType == "Runtime.ExitError" {
				killed++
			}
			if f := failedOf(t, l.invoke(payload)); f != "" {
				t.Errorf("round %d: failed %s", round, f)
			}
		}
		n, _ := w.stored()
		for round := range rounds {
			for i := range size {
				if v := fmt.Sprintf("r%d-%d", round, i); n[v] != 1 {
					t.Errorf("%s is stored %d times", v, n[v])
				}
			}
		}
		if len(n) != rounds*size || len(w.letters()) != rounds {
			t.Errorf("%d events and %d letters; expected %d and %d", len(n), len(w.letters()), rounds*size, rounds)
		}
		t.Logf("%d of %d invocations were killed", killed, rounds)
		w.clean()
	})

	t.Run("credentials in Secrets Manager", func(t *testing.T) {
		w := newNotifyWorld(t)
		fake := awsfake.New(t)
		fake.Create("nats", "notify:"+w.password+"\n")
		var env []string
		for _, kv := range w.env {
			if !strings.HasPrefix(kv, "KEYTURN_NATS_CREDS=") {
				env = append(env, kv)
			}
		}
		l := newNotifyLambda(w, program, append(env, "KEYTURN_NATS_CREDS_SECRET="+fake.ARN("nats"), "SECRETS_MANAGER_ENDPOINT="+fake.URL())...)
		for _, v := range []string{"v1", "v2"} {
			if a := l.invoke(labelMoved("acme/db", v)); !a.OK {
				t.Fatalf("answer %+v", a)
			}
		}
		if n := len(fake.Calls("GetSecretValue")); n != 1 {
			t.Errorf("the secret was read %d times; expected once a connection", n)
		}
		fake.FailNext("GetSecretValue", "AccessDeniedException", "AccessDeniedException", "AccessDeniedException", "AccessDeniedException")
		w.gate.release() // which cuts the connection
		if a := l.invoke(labelMoved("acme/db", "v3")); a.OK || !strings.Contains(a.Message, "KEYTURN_NATS_CREDS_SECRET") {
			t.Errorf("answer %+v; expected an error that names the variable", a)
		}
		w.clean()
	})

	t.Run("no streams", func(t *testing.T) {
		srv := testenv.NATS(t)
		w := &notifyWorld{t: t, srv: srv, password: leaktest.Canary(), out: &leaktest.Recorder{}}
		env := []string{"KEYTURN_NATS_URL=" + srv.URL(), "KEYTURN_TENANT=acme"}
		if a := newNotifyLambda(w, program, env...).invoke(labelMoved("db", "v1")); a.OK || !strings.Contains(a.Message, "no stream answers") {
			t.Errorf("answer %+v; expected an error that says so", a)
		}
		if a := newNotifyLambda(w, program, append(env, "KEYTURN_CREATE_STREAMS=1")...).invoke(labelMoved("db", "v1")); !a.OK {
			t.Errorf("answer %+v", a)
		}
	})

	t.Run("bad environment", func(t *testing.T) {
		w := newNotifyWorld(t)
		l := newNotifyLambda(w, program, "KEYTURN_TENANT=Acme", "KEYTURN_NATS_CREDS="+w.password)
		for range 2 {
			a := l.invoke(labelMoved("acme/db", "v1"))
			for _, name := range []string{"KEYTURN_NATS_URL", "KEYTURN_TENANT", "NATS credentials"} {
				if a.OK || a.ErrorType != "keyturn.invalid" || !strings.Contains(a.Message, name) {
					t.Errorf("answer %+v; expected an error that names %s", a, name)
				}
			}
		}
		w.clean()
	})
}

// A served is a function that its platform calls by HTTP.
type served struct {
	w   *notifyWorld
	url string
	cmd *exec.Cmd
	end chan struct{}
}

func serve(w *notifyWorld, program, port string, env ...string) *served {
	w.t.Helper()
	n := fmt.Sprint(testenv.FreePort(w.t))
	s := &served{w: w, url: "http://127.0.0.1:" + n, cmd: exec.Command(program), end: make(chan struct{})}
	s.cmd.Env = append([]string{port + "=" + n, "HOME=" + w.t.TempDir()}, env...)
	s.cmd.Stdout, s.cmd.Stderr = w.out, w.out
	if err := s.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.end)
	}()
	w.t.Cleanup(s.kill)
	testenv.Eventually(w.t, notifyTime, "the function to listen", func() bool {
		c, err := (&net.Dialer{}).DialContext(w.t.Context(), "tcp", "127.0.0.1:"+n)
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return s
}

func (s *served) kill() {
	_ = s.cmd.Process.Kill()
	<-s.end
}

// post returns the status, or 0 where the function hung up, and the body.
func (s *served) post(body string, headers ...string) (int, string) {
	req, err := http.NewRequestWithContext(s.w.t.Context(), http.MethodPost, s.url+"/", strings.NewReader(body))
	if err != nil {
		s.w.t.Error(err)
		return 0, ""
	}
	req.Close = true
	req.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := (&http.Client{Timeout: notifyTime}).Do(req)
	if err != nil {
		return 0, ""
	}
	defer func() { _ = resp.Body.Close() }()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func (s *served) expect(want int, body string, headers ...string) {
	s.w.t.Helper()
	if got, text := s.post(body, headers...); got != want {
		s.w.t.Errorf("answered %d %.100q; expected %d", got, text, want)
	}
}

// outage takes NATS away and brings it back, kills the function with an event on
// its way, and ends the next one in order.
func (s *served) outage(program, port string, env []string, body func(version string) string) {
	w := s.w
	w.t.Helper()
	w.srv.Stop()
	s.expect(http.StatusServiceUnavailable, body("91"))
	w.srv.Start()
	s.expect(http.StatusOK, body("91"))
	testenv.Eventually(w.t, notifyTime, "the test to be connected again", func() bool { return w.bus.Ready(w.t.Context()) == nil })

	w.gate.hold(toClient)
	got := make(chan int, 1)
	go func() { status, _ := s.post(body("92")); got <- status }()
	testenv.Eventually(w.t, notifyTime, "something to be held", w.gate.holds)
	s.kill()
	if status := <-got; status != 0 {
		w.t.Errorf("answered %d before it was stored", status)
	}
	w.gate.release()
	next := serve(w, program, port, env...)
	next.expect(http.StatusOK, body("92"))
	if err := next.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		w.t.Fatal(err)
	}
	select {
	case <-next.end:
	case <-time.After(notifyTime):
		w.t.Fatal("SIGTERM did not end it")
	}
	if code := next.cmd.ProcessState.ExitCode(); code != 0 {
		w.t.Errorf("ended with %d", code)
	}
}

// ends checks that a function with a bad environment does not start, and says why.
func ends(t *testing.T, program string, want ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program).CombinedOutput()
	if err == nil {
		t.Error("it started without an environment")
	}
	for _, text := range want {
		if !bytes.Contains(out, []byte(text)) {
			t.Errorf("it said %s; expected %q", out, text)
		}
	}
}

func TestNotifyFunctionGCP(t *testing.T) {
	program := notifyProgram(t, "gcp")
	ends(t, program, "KEYTURN_NATS_URL")
	w := newNotifyWorld(t)
	s := serve(w, program, "PORT", w.env...)
	pushed := func(eventType, version string) string {
		attributes := map[string]string{"dataFormat": "JSON_API_V1", "eventType": eventType, "secretId": "projects/123456789012/secrets/agent-stripe", "timestamp": time.Now().Format(time.RFC3339Nano)}
		if version != "" {
			attributes["versionId"] = attributes["secretId"] + "/versions/" + version
		}
		b, err := json.Marshal(map[string]any{"subscription": "projects/my-project/subscriptions/s", "message": map[string]any{"attributes": attributes, "data": "e30=", "messageId": "20704436" + version, "publishTime": time.Now().UTC().Format(time.RFC3339Nano)}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	s.expect(http.StatusOK, pushed("SECRET_VERSION_ADD", "7"), "Traceparent", notifyTrace)
	s.expect(http.StatusOK, pushed("SECRET_VERSION_ADD", "7"))
	const typ = "google.cloud.pubsub.topic.v1.messagePublished"
	s.expect(http.StatusOK, pushed("SECRET_VERSION_ADD", "8"), "ce-type", typ, "ce-id", "1", "ce-specversion", "1.0", "ce-source", "//pubsub.googleapis.com/t")
	s.expect(http.StatusOK, `{"specversion":"1.0","type":"`+typ+`","id":"1","source":"//pubsub.googleapis.com/x","data":`+pushed("SECRET_VERSION_ADD", "9")+`}`, "Content-Type", "application/cloudevents+json")
	s.expect(http.StatusOK, "{}", "x-goog-pubsub-message-id", "5", "eventType", "SECRET_VERSION_ADD", "dataFormat", "JSON_API_V1", "timestamp", time.Now().Format(time.RFC3339Nano),
		"secretId", "projects/123456789012/secrets/agent-stripe", "versionId", "projects/123456789012/secrets/agent-stripe/versions/10")
	// Samples: one that asks for a rotation, and one that means nothing.
	s.expect(http.StatusOK, notice(t, "pubsub/testdata/messages/push-wrapped.SECRET_ROTATE.json"))
	s.expect(http.StatusOK, notice(t, "pubsub/testdata/messages/push-wrapped.TOPIC_CONFIGURED.json"))
	// Poison is parked, and acknowledged (trap 33). Without attributes nobody
	// knows what a message says: it comes again until they are there.
	s.expect(http.StatusOK, "poison", "eventType", "SECRET_VERSION_ADD")
	s.expect(http.StatusServiceUnavailable, `{"name":"projects/123456789012/secrets/agent-stripe/versions/11","state":"ENABLED"}`)
	byVersion, all := w.stored()
	for _, v := range []string{"7", "8", "9", "10"} {
		if byVersion[v] != 1 {
			t.Errorf("version %s is stored %d times", v, byVersion[v])
		}
	}
	for _, e := range all {
		if e.Data.Tenant != "acme" || e.Type == events.VersionActivated && e.Data.Ref.String() != "gcp://my-project/agent-stripe" || (e.Data.Version == "7") != (e.Data.TraceParent == notifyTrace) {
			t.Errorf("%+v", e.Event)
		}
	}
	if ls := w.letters(); len(ls) != 1 || ls[0].Source != "pubsub" {
		t.Errorf("letters %+v; expected one, as of the daemon's route", ls)
	}
	s.outage(program, "PORT", w.env, func(v string) string { return pushed("SECRET_VERSION_ADD", v) })
	if n, _ := w.stored(); n["91"] != 1 || n["92"] != 1 {
		t.Errorf("stored %v", n)
	}
	w.clean()
}

func TestNotifyFunctionAzure(t *testing.T) {
	program := notifyProgram(t, "azure")
	ends(t, program, "KEYTURN_NATS_URL")
	const port = "FUNCTIONS_CUSTOMHANDLER_PORT"
	w := newNotifyWorld(t)
	env := w.env[:len(w.env)-1]
	s := serve(w, program, port, env...)
	call := func(event any) string {
		b, err := json.Marshal(map[string]any{"Data": map[string]any{"event": event}, "Metadata": map[string]any{"sys": map[string]any{"MethodName": "notify", "UtcNow": time.Now(), "RandGuid": "x"}}})
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	version := func(v string) string { return fmt.Sprintf("%032s", v) }
	created := func(v string) json.RawMessage {
		return json.RawMessage(fmt.Sprintf(`{"id":"1","source":"/subscriptions/x/resourceGroups/rg/providers/Microsoft.KeyVault/vaults/kv-agents","subject":"stripe","type":"Microsoft.KeyVault.SecretNewVersionCreated","time":%q,"data":{"Id":"https://kv-agents.vault.azure.net/secrets/stripe/%s","VaultName":"kv-agents","ObjectType":"Secret","ObjectName":"stripe","Version":%q,"NBF":null,"EXP":1782900000},"specversion":"1.0"}`,
			time.Now().UTC().Format(time.RFC3339Nano), version(v), version(v)))
	}
	got, text := s.post(call(created("7")), "traceparent", notifyTrace)
	if want := `{"Outputs":{},"Logs":[],"ReturnValue":null}`; got != http.StatusOK || text != want {
		t.Errorf("answered %d %s; expected 200 %s, which the host reads", got, text, want)
	}
	s.expect(http.StatusOK, call(string(created("7")))) // as a text
	for _, sample := range []string{"SecretNewVersionCreated.cloudevents.json", "SecretNewVersionCreated.eventgrid.json", "SecretNearExpiry.eventgrid.json", "KeyExpired.eventgrid.json"} {
		s.expect(http.StatusOK, call(json.RawMessage(notice(t, "eventgrid/testdata/notices/"+sample))))
	}
	s.expect(http.StatusOK, call("poison"))
	s.expect(http.StatusOK, call("poison")) // with other metadata
	byVersion, all := w.stored()
	if byVersion[version("7")] != 1 || len(all) != 3 {
		t.Errorf("stored %v; expected one each, and the sample in two schemas once, and its near expiry", byVersion)
	}
	for _, e := range all {
		if e.Data.Tenant != "acme" || (e.Data.Version == version("7")) != (e.Data.TraceParent == notifyTrace) {
			t.Errorf("%+v", e.Event)
		}
	}
	if ls := w.letters(); len(ls) != 1 || ls[0].Source != "eventgrid" || string(ls[0].Body) != "poison" {
		t.Errorf("letters %+v; expected one, without what the host adds", ls)
	}
	s.outage(program, port, env, func(v string) string { return call(created(v)) })
	if n, _ := w.stored(); n[version("91")] != 1 || n[version("92")] != 1 {
		t.Errorf("stored %v", n)
	}
	w.clean()
}

// A holder is a TCP proxy that can hold what goes one way.
type holder struct {
	ln net.Listener
	to string

	mu    sync.Mutex
	conns []net.Conn
	n     int
	way   direction
	free  chan struct{} // closed to end the holding
	held  bool
}

type direction int

const (
	neither direction = iota
	toServer
	toClient
)

func newHolder(t *testing.T, to string) *holder {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &holder{ln: ln, to: to, free: make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			s, err := (&net.Dialer{}).Dial("tcp", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			g.mu.Lock()
			g.conns, g.n = append(g.conns, c, s), g.n+1
			g.mu.Unlock()
			wg.Go(func() { g.pass(s, c, toServer) })
			wg.Go(func() { g.pass(c, s, toClient) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		g.release()
		wg.Wait()
	})
	return g
}

func (g *holder) addr() string { return g.ln.Addr().String() }

func (g *holder) accepted() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.n
}

func (g *holder) pass(dst io.WriteCloser, src io.ReadCloser, way direction) {
	defer func() { _, _ = dst.Close(), src.Close() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		g.mu.Lock()
		var wait chan struct{}
		if g.way == way {
			wait, g.held = g.free, true
		}
		g.mu.Unlock()
		if wait != nil {
			<-wait
			return
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

// hold keeps back what goes that way from now on.
func (g *holder) hold(way direction) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.way, g.held = way, false
}

// holds reports whether anything was kept back.
func (g *holder) holds() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held
}

// release ends all connections, and lets later ones pass.
func (g *holder) release() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.way = neither
	close(g.free)
	g.free = make(chan struct{})
	for _, c := range g.conns {
		_ = c.Close()
	}
	g.conns = nil
}
