package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/eventbridge"
	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/rotators"
)

const functionARN = "arn:aws:lambda:us-east-1:111122223333:function:keyturn-rotate"

// A sandbox is the built function behind the Runtime API, started anew when it
// has ended, as Lambda does.
type sandbox struct {
	t       *testing.T
	program string
	api     *runtimeAPI
	env     []string
	out     *leaktest.Recorder // all that it printed

	mu      sync.Mutex
	proc    *process
	starts  int
	answers []answer
}

func newSandbox(w *world, program string, env ...string) *sandbox {
	w.t.Helper()
	return &sandbox{
		t: w.t, program: program, api: newRuntimeAPI(w.t), out: &leaktest.Recorder{},
		env: append([]string{"SECRETS_MANAGER_ENDPOINT=" + w.tap.srv.URL, "AWS_ENDPOINT_URL_EVENTBRIDGE=" + w.tap.srv.URL}, env...),
	}
}

// process is the running one.
func (s *sandbox) process() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.proc == nil || !s.proc.running() {
		s.proc = start(s.t, s.program, s.api, s.out, s.env...)
		s.starts++
	}
	return s.proc
}

func (s *sandbox) invoke(payload []byte, limit time.Duration) answer {
	ans := s.api.invoke(s.process(), payload, limit)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers = append(s.answers, ans)
	return ans
}

// lambda is the sandbox as Secrets Manager sees it.
func (s *sandbox) lambda(_ context.Context, payload []byte) error {
	if ans := s.invoke(payload, 30*time.Second); !ans.OK {
		return errors.New(ans.ErrorType)
	}
	return nil
}

// rotate has the service rotate the secret of w with s, and waits for it.
func (s *sandbox) rotate(w *world) awsfake.Rotation {
	w.t.Helper()
	w.fake.RegisterLambda(functionARN, s.lambda)
	token := rotators.NewToken()
	_, err := w.sm.RotateSecret(w.t.Context(), &secretsmanager.RotateSecretInput{
		SecretId: aws.String(w.arn), ClientRequestToken: aws.String(token), RotationLambdaARN: aws.String(functionARN),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range w.fake.Wait() {
		if r.Token == token {
			return r
		}
	}
	w.t.Fatalf("the rotation %s did not end", token)
	return awsfake.Rotation{}
}

// clean checks that s printed JSON alone, and neither a value nor the
// RotationToken of any rotation, and that no error said one.
func (s *sandbox) clean(w *world) {
	w.t.Helper()
	if len(logLines(w.t, s.out)) == 0 {
		w.t.Error("the function logged nothing")
	}
	for _, c := range w.tap.of("PutSecretValue") {
		if rt, _ := c.In["RotationToken"].(string); rt != "" {
			w.canaries = append(w.canaries, rt)
		}
	}
	_ = w.value(current)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.answers {
		_, _ = fmt.Fprintf(w.log, "%+v\n", a)
	}
	s.out.Check(w.t, w.canaries...)
}

// The built function, as Lambda runs it.
func TestAWSFunction(t *testing.T) {
	program := bootstrap(t)
	withTLS := func(w *world) string { return "KEYTURN_CA_FILE=" + w.pg.CAFile }

	t.Run("cold and warm", func(t *testing.T) {
		w := withDatabase(t, nil)
		s := newSandbox(w, program, withTLS(w), "KEYTURN_EVENT_BUS=fleet", "KEYTURN_TENANT=acme", "AWS_LAMBDA_LOG_LEVEL=DEBUG")
		var tokens []string
		for range 2 {
			r := s.rotate(w)
			if r.Err != nil || r.Tries != 1 {
				t.Fatalf("rotation %+v; want success at the first try\n%s", r, s.out)
			}
			if w.holder(current) != r.Token || w.holder(pending) != "" {
				t.Errorf("current %s, pending %q; want %s and none", w.holder(current), w.holder(pending), r.Token)
			}
			w.accepts(current, true)
			w.accepts(previous, false)
			tokens = append(tokens, r.Token)
		}
		if s.starts != 1 {
			t.Errorf("the function was started %d times; want once", s.starts)
		}
		for i, a := range s.answers {
			if a.Body != "null" {
				t.Errorf("answer %d is %q; want null, as that of the samples", i, a.Body)
			}
		}
		t.Logf("first step %s, then %s on average", s.answers[0].Took.Round(time.Millisecond), mean(s.answers[1:]).Round(time.Millisecond))

		// What was announced can be read back, in order, and says no value.
		var types []events.Type
		var activated []string
		for _, e := range w.fake.Events("fleet") {
			_, _ = fmt.Fprintf(w.log, "%s\n", e.Detail)
			envelope := fmt.Sprintf(`{"version":"0","id":%q,"detail-type":%q,"source":%q,"account":%q,"time":"2026-01-02T03:04:05Z","region":%q,"resources":[],"detail":%s}`,
				e.ID, e.DetailType, e.Source, awsfake.Account, awsfake.Region, e.Detail)
			es, err := eventbridge.Decode([]byte(envelope), time.Now())
			if err != nil || len(es) != 1 {
				t.Fatalf("announcement %s: %d events, err %v", e.Detail, len(es), err)
			}
			types = append(types, es[0].Type)
			if es[0].Type == events.VersionActivated {
				activated = append(activated, es[0].Data.Version)
			}
			if es[0].Data.Tenant != "acme" || es[0].Data.Ref.String() != "aws://111122223333/us-east-1/orders/app" {
				t.Errorf("event %+v; want the tenant and the secret", es[0])
			}
		}
		each := []events.Type{events.RotationStarted, events.VersionActivated, events.RotationSucceeded}
		if want := append(each, each...); fmt.Sprint(types) != fmt.Sprint(want) || fmt.Sprint(activated) != fmt.Sprint(tokens) {
			t.Errorf("announced %v of versions %v; want %v of %v", types, activated, want, tokens)
		}
		for _, l := range logLines(t, s.out) {
			if l["request_id"] == nil {
				t.Errorf("a line of the log has no request_id: %v", l)
			}
		}
		s.clean(w)
	})

	t.Run("alternating by masterarn", func(t *testing.T) {
		w := withDatabase(t, nil)
		w.useMaster(nil)
		s := newSandbox(w, program, withTLS(w))
		for _, user := range []string{"app_clone", "app"} {
			if r := s.rotate(w); r.Err != nil {
				t.Fatalf("rotation %+v\n%s", r, s.out)
			}
			if got := w.field(current, "username"); got != user {
				t.Errorf("user %q; want %q", got, user)
			}
			w.accepts(current, true)
			w.accepts(previous, true)
		}
		s.clean(w)
	})

	for _, c := range []struct {
		name, event string
		hold        func(*world) func()
	}{
		{"killed in set, before its effect", "Lock", func(w *world) func() { return w.holdRole("app") }},
		{"killed in set, after its effect", "SyncRep", (*world).holdCommits},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := withDatabase(t, asReplicated)
			s := newSandbox(w, program, withTLS(w))
			release := c.hold(w)
			killed := make(chan struct{})
			go func() {
				defer close(killed)
				w.waitFor(c.event)
				s.process().kill()
				release()
			}()
			r := s.rotate(w)
			<-killed
			if r.Err != nil || r.Tries != 2 || s.starts != 2 {
				t.Fatalf("rotation %+v after %d starts; want success at the second try, of the second process\n%s", r, s.starts, s.out)
			}
			if w.holder(current) != r.Token {
				t.Errorf("current %s; want %s", w.holder(current), r.Token)
			}
			w.accepts(current, true)
			w.accepts(previous, false)
			if n := w.fake.Versions(w.name); n != 3 { // the first, that of the set-up, and one new
				t.Errorf("%d versions; want 3: the second try makes no second password", n)
			}
			s.clean(w)
		})
	}

	t.Run("errors have types", func(t *testing.T) {
		w := withDatabase(t, nil)
		s := newSandbox(w, program, withTLS(w), "KEYTURN_EVENT_BUS=fleet")
		token := w.begin()
		expect := func(payload []byte, limit time.Duration, typ, text string) {
			t.Helper()
			ans := s.invoke(payload, limit)
			if ans.OK || ans.ErrorType != typ || !strings.Contains(ans.Message, text) {
				t.Errorf("answer %+v; want an error of type %s that says %q", ans, typ, text)
			}
		}
		const enough = 30 * time.Second
		expect([]byte(`{}`), enough, "keyturn.invalid", "Step and SecretId and ClientRequestToken missing")
		expect([]byte(`["`+w.password+`"]`), enough, "keyturn.invalid", "not a JSON object")
		expect(w.event("dropSecret", token), enough, "keyturn.invalid", "not a step")
		expect(w.event(createStep, rotators.NewToken()), enough, "keyturn.invalid", "no stage for rotation")
		expect([]byte(strings.ReplaceAll(string(w.event(createStep, token)), "orders/app", "orders/none")), enough, "keyturn.not_found", "orders/none")
		expect(w.event(createStep, token), 3*time.Second, "keyturn.unavailable.timeout", "before the deadline")
		// The database refuses the password, and then is away.
		w.super("ALTER ROLE app PASSWORD 'changed by somebody'")
		if ans := s.invoke(w.event(createStep, token), enough); !ans.OK {
			t.Fatalf("answer %+v", ans)
		}
		expect(w.event(setStep, token), enough, "keyturn.denied.auth", "signs in")
		if err := w.pg.Stop(); err != nil {
			t.Fatal(err)
		}
		ans := s.invoke(w.event(setStep, token), enough)
		if ans.OK || ans.ErrorType != "keyturn.unavailable.network" {
			t.Errorf("answer %+v; want an error of type keyturn.unavailable.network", ans)
		}
		if s.starts != 1 {
			t.Errorf("the function was started %d times; want once: an error does not end it", s.starts)
		}
		failed := 0
		for _, e := range w.fake.Events("fleet") {
			if e.DetailType == string(events.RotationFailed) {
				failed++
			}
		}
		if failed == 0 {
			t.Error("no failure was announced")
		}
		s.clean(w)
	})

	t.Run("bad environment", func(t *testing.T) {
		w := newWorld(t)
		s := newSandbox(w, program, "PASSWORD_LENGTH=plenty", "KEYTURN_STRATEGY=both")
		token := w.begin()
		w.untouched(func() {
			for range 2 {
				ans := s.invoke(w.event(createStep, token), 30*time.Second)
				if ans.OK || ans.ErrorType != "keyturn.invalid" || !strings.Contains(ans.Message, "PASSWORD_LENGTH") || !strings.Contains(ans.Message, "KEYTURN_STRATEGY") {
					t.Errorf("answer %+v; want an error that names both variables", ans)
				}
			}
		})
		s.clean(w)
	})

	t.Run("no answer from the service", func(t *testing.T) {
		w := newWorld(t)
		hang := make(chan struct{})
		w.tap.before = func(awsCall) *refusal {
			<-hang
			return &refusal{status: 503, code: "ServiceUnavailable"}
		}
		s := newSandbox(w, program)
		token := w.begin()
		ans := s.invoke(w.event(createStep, token), 7*time.Second)
		close(hang)
		if ans.ErrorType != "keyturn.unavailable.timeout" || ans.Took > 7*time.Second {
			t.Errorf("answer %+v; want a time-out that is told before Lambda's deadline", ans)
		}
		s.clean(w)
	})
}

func mean(as []answer) time.Duration {
	var sum time.Duration
	for _, a := range as {
		sum += a.Took
	}
	return sum / time.Duration(max(1, len(as)))
}
