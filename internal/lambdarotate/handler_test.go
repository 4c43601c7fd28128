package lambdarotate

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/lambda/messages"
	"github.com/aws/aws-lambda-go/lambdacontext"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

const goodEvent = `{"Step":"createSecret","SecretId":"arn:aws:secretsmanager:us-east-1:111122223333:secret:db-ABCD1E","ClientRequestToken":"11111111-2222-4333-8444-555555555555"}`

// store is one whose every call does the same.
type store struct {
	secrets.Store
	do func(context.Context) error
}

func (s store) Describe(ctx context.Context, r secrets.Ref) (*secrets.Description, error) {
	return nil, s.do(ctx)
}

func handler(rec *leaktest.Recorder, do func(context.Context) error) *Handler {
	return &Handler{runner: rotators.NewRunner(store{do: do}, &byStrategy{}, nil), log: NewLogger(rec, 0)}
}

func invokeError(t *testing.T, h *Handler, ctx context.Context) messages.InvokeResponse_Error { //nolint:revive // t comes first in tests
	t.Helper()
	_, err := h.Invoke(ctx, []byte(goodEvent))
	var ie messages.InvokeResponse_Error
	if !errors.As(err, &ie) {
		t.Fatalf("err %v; want one that Lambda reports", err)
	}
	return ie
}

// A panic is an error that says where and not what, and ends the process.
func TestPanic(t *testing.T) {
	canary := leaktest.Canary()
	var rec leaktest.Recorder
	h := handler(&rec, func(context.Context) error { panic("about " + canary) })
	ie := invokeError(t, h, lambdacontext.NewContext(t.Context(), &lambdacontext.LambdaContext{AwsRequestID: "request-1"}))
	if ie.Type != "keyturn.unknown" || !ie.ShouldExit || !strings.Contains(ie.Message, "panic of type string") {
		t.Errorf("error %+v; want keyturn.unknown that ends the process", ie)
	}
	rec.Record(ie)
	rec.Check(t, canary)
	var line map[string]any
	if err := json.NewDecoder(strings.NewReader(rec.String())).Decode(&line); err != nil {
		t.Fatal(err)
	}
	if line["request_id"] != "request-1" || !strings.Contains(line["stack"].(string), "handler_test.go") {
		t.Errorf("log line %v; want the request and the stack", line)
	}
}

// An answer is out before Lambda's deadline, and says what kind of error it is.
func TestAnswerBeforeTheDeadline(t *testing.T) {
	var rec leaktest.Recorder
	deadline := time.Now().Add(time.Hour)
	h := handler(&rec, func(ctx context.Context) error {
		if d, ok := ctx.Deadline(); !ok || deadline.Sub(d) != answerTime {
			t.Errorf("deadline %v; want %s before %v", d, answerTime, deadline)
		}
		return &fault.Error{Kind: fault.Denied, Class: fault.ClassPermission, Op: "test"}
	})
	ctx, cancel := context.WithDeadline(t.Context(), deadline)
	defer cancel()
	if ie := invokeError(t, h, ctx); ie.Type != "keyturn.denied.permission" || ie.ShouldExit {
		t.Errorf("error %+v; want keyturn.denied.permission", ie)
	}
}

func TestRefusing(t *testing.T) {
	var rec leaktest.Recorder
	h := Refusing(fault.Newf(fault.Invalid, "environment", "PASSWORD_LENGTH"), NewLogger(&rec, 0))
	for range 2 {
		if ie := invokeError(t, h, t.Context()); ie.Type != "keyturn.invalid" || !strings.Contains(ie.Message, "PASSWORD_LENGTH") {
			t.Errorf("error %+v", ie)
		}
	}
	if !strings.Contains(rec.String(), "PASSWORD_LENGTH") {
		t.Error("the log does not say why the function cannot start")
	}
}

func TestStrategies(t *testing.T) {
	one, two := &byStrategy{}, &byStrategy{}
	current := func(s string) rotators.Change { return rotators.Change{Current: secrets.NewString(s)} }
	plain := `{"engine":"postgres","host":"h","username":"u","password":"p"`
	for _, c := range []struct {
		strategy Strategy
		value    string
		want     rotators.Rotator
	}{
		{BySecret, plain + `}`, one}, {BySecret, plain + `,"masterarn":"arn"}`, two}, {BySecret, plain + `,"masterarn":""}`, one}, {BySecret, "not JSON", one},
		{Single, plain + `,"masterarn":"arn"}`, one}, {Alternating, plain + `}`, two},
	} {
		b := &byStrategy{strategy: c.strategy, single: one, alternating: two}
		change := current(c.value)
		// A pending value has no say.
		change.Pending = secrets.NewString(plain + `,"masterarn":"arn:of:somebody"}`)
		if got := b.of(change); got != c.want {
			t.Errorf("%s, %s: the wrong rotator", c.strategy, c.value)
		}
	}
}
