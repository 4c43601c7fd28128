package lambdarotate

import (
	"errors"
	"strings"
	"testing"

	"github.com/aws/aws-lambda-go/lambda/messages"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/triggers/triggertest"
	"github.com/keyturn/keyturn/rotators"
)

// The schedule's invocation retires what its gate lets go, at the store and at
// the database, although the function that rotates retires nothing; again, and
// before the gate opens, it changes nothing.
func TestSweep(t *testing.T) {
	db, fake := triggertest.New(t), awsfake.New(t)
	master := fake.Create("orders/master", db.Master())
	arn := fake.Create("orders/app", db.JSON("app", triggertest.Password, master))
	alone := fake.Create("orders/alone", db.JSON("app", triggertest.Password, ""))
	cfg := fake.Config()
	var rec leaktest.Recorder
	opts := &Options{Logger: NewLogger(&rec, 0), AWS: &cfg}
	deploy := func(after string, secrets ...string) *Sweeper {
		t.Helper()
		env, err := ParseSweepEnv([]string{"KEYTURN_CA_FILE=" + db.CAFile, "KEYTURN_GATE_AFTER=" + after, "KEYTURN_SECRETS=" + strings.Join(secrets, ",")})
		if err != nil {
			t.Fatal(err)
		}
		s, err := NewSweeper(t.Context(), env, opts)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	env, err := ParseEnv([]string{"KEYTURN_CA_FILE=" + db.CAFile})
	if err != nil {
		t.Fatal(err)
	}
	h, err := New(t.Context(), env, opts)
	if err != nil {
		t.Fatal(err)
	}
	old, _, _ := fake.Value("orders/app", "AWSCURRENT")
	token := rotators.NewToken()
	fake.StartRotation("orders/app", token)
	for _, step := range []string{"createSecret", "setSecret", "testSecret", "finishSecret"} {
		if err := h.Step(t.Context(), []byte(`{"Step":"`+step+`","SecretId":"`+arn+`","ClientRequestToken":"`+token+`"}`)); err != nil {
			t.Fatal(err)
		}
	}
	answer := func(s *Sweeper) error {
		t.Helper()
		out, err := s.Invoke(t.Context(), []byte(`{"source":"aws.scheduler"}`))
		if err == nil && string(out) != "null" {
			t.Fatalf("answer %s", out)
		}
		return err
	}
	if err := answer(deploy("24h", arn, alone)); err != nil || !db.SignsIn(string(old)) {
		t.Fatalf("%v; expected that nothing is retired before the gate opens\n%s", err, rec.String())
	}
	// One that is gone is no reason to leave the other.
	gone := strings.Replace(arn, "orders/app", "orders/gone", 1)
	for range 2 {
		var lambda messages.InvokeResponse_Error
		if err := answer(deploy("1ns", gone, arn)); !errors.As(err, &lambda) || lambda.Type != "keyturn.not_found" {
			t.Fatalf("%v; expected keyturn.not_found\n%s", err, rec.String())
		}
		now, _, _ := fake.Value("orders/app", "AWSCURRENT")
		if db.SignsIn(string(old)) || !db.SignsIn(string(now)) {
			t.Fatalf("expected that only the current credential signs in\n%s", rec.String())
		}
		if id := fake.Holder("orders/app", "AWSPREVIOUS"); id != "" {
			t.Errorf("AWSPREVIOUS is still on %s", id)
		}
	}
	rec.Check(t, triggertest.Password, db.SuperPassword)
}

func TestSweepEnvironment(t *testing.T) {
	for _, c := range []struct{ env, want string }{
		{"KEYTURN_GATE_AFTER=24h", "names no secret"},
		{"KEYTURN_SECRETS=orders/app", "ARN"},
		{"KEYTURN_SECRETS=arn:aws:secretsmanager:us-east-1:111122223333:secret:db-ABCD1E KEYTURN_GATE_ADOPTED=true", "does not hear which agents"},
		{"KEYTURN_SECRETS=arn:aws:secretsmanager:us-east-1:111122223333:secret:db-ABCD1E KEYTURN_GATE_MAX=1h", "nothing waits"},
	} {
		if _, err := ParseSweepEnv(strings.Fields(c.env)); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; expected Invalid with %q", c.env, err, c.want)
		}
	}
	var rec leaktest.Recorder
	s := RefusingSweep(fault.Newf(fault.Invalid, "environment", "KEYTURN_SECRETS"), NewLogger(&rec, 0))
	if _, err := s.Invoke(t.Context(), nil); err == nil || !strings.Contains(err.Error(), "KEYTURN_SECRETS") {
		t.Errorf("%v; expected what is wrong with the environment", err)
	}
}
