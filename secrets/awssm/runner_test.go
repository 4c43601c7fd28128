package awssm_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/awssm"
)

// counter makes the values 1, 2, 3, and counts its calls.
type counter struct {
	made, calls int
	fail        error // of the next Test
}

func (c *counter) Create(context.Context, rotators.Change) (secrets.Value, error) {
	c.calls++
	c.made++
	return str(fmt.Sprint(c.made)), nil
}

func (c *counter) Set(context.Context, rotators.Change) error { c.calls++; return nil }

func (c *counter) Test(context.Context, rotators.Change) (err error) {
	c.calls++
	err, c.fail = c.fail, nil
	return err
}

// A rotation of our own works whatever AWS is set to, and leaves nothing in
// the way of the next one, ours or the service's.
func TestRotateWithoutTheService(t *testing.T) {
	yes, no := true, false
	for what, enabled := range map[string]*bool{"absent": nil, "true": &yes, "false": &no} {
		t.Run("RotationEnabled "+what, func(t *testing.T) {
			f, s, r, _ := open(t, nil)
			f.SetRotation(name, enabled, time.Time{})
			rot := &counter{fail: errors.New("not yet")}
			run := rotators.NewRunner(s, rot, nil)
			if _, err := run.Rotate(t.Context(), r, ""); err == nil {
				t.Fatal("the failed test was not reported")
			}
			res, err := run.Rotate(t.Context(), r, "") // rolls it forward
			if err != nil || !res.Resumed || rot.made != 1 {
				t.Fatalf("%+v, %v, %d values made", res, err, rot.made)
			}
			if got, _, _ := f.Value(name, "AWSCURRENT"); string(got) != "1" {
				t.Errorf("AWSCURRENT is %q", got)
			}
			if l := f.Labels(name)[res.Token]; len(l) != 1 {
				t.Errorf("labels %v; want AWSCURRENT alone", l)
			}
			token := awsfake.Token()
			for range 2 { // repeated with its token it does not rotate twice
				if res, err = run.Rotate(t.Context(), r, token); err != nil || res.Version != token || rot.made != 2 {
					t.Fatalf("%+v, %v, %d values made", res, err, rot.made)
				}
			}
			f.StartRotation(name, awsfake.Token()) // fails the test if it is refused
		})
	}
}

// The steps that the service asks for, with the checks of AWS's samples.
func TestSteps(t *testing.T) {
	yes, no := true, false
	steps := []string{"createSecret", "setSecret", "testSecret", "finishSecret"}
	type env struct {
		f     *awsfake.Server
		run   *rotators.Runner
		rot   *counter
		r     ref.Ref
		token string
	}
	start := func(t *testing.T) env {
		t.Helper()
		f, s, r, _ := open(t, nil)
		e := env{f, nil, &counter{}, r, awsfake.Token()}
		e.run = rotators.NewRunner(s, e.rot, nil)
		return e
	}
	quiet := func(t *testing.T, e env) {
		t.Helper()
		wantWrites(t, e.f)
		if e.rot.calls != 0 {
			t.Errorf("%d calls of the rotator; want none", e.rot.calls)
		}
	}
	t.Run("C01 disabled", func(t *testing.T) {
		e := start(t)
		e.f.StartRotation(name, e.token)
		e.f.SetRotation(name, &no, time.Time{})
		wantKind(t, "step", e.run.Step(t.Context(), e.r, e.token, steps[0]), fault.Invalid, "")
		quiet(t, e)
	})
	t.Run("C02 absent", func(t *testing.T) {
		e := start(t)
		e.f.StartRotation(name, e.token)
		e.f.SetRotation(name, nil, time.Time{})
		for _, step := range steps {
			if err := e.run.Step(t.Context(), e.r, e.token, step); err != nil {
				t.Fatal(err)
			}
		}
	})
	for what, enabled := range map[string]*bool{"enabled": &yes, "absent": nil} {
		t.Run("C03 unknown token, rotation "+what, func(t *testing.T) {
			e := start(t)
			e.f.SetRotation(name, enabled, time.Time{})
			wantKind(t, "step", e.run.Step(t.Context(), e.r, e.token, steps[0]), fault.Invalid, "")
			quiet(t, e)
		})
	}
	t.Run("C04 current already", func(t *testing.T) {
		e := start(t)
		e.f.SetRotation(name, &yes, time.Time{})
		current := e.f.Holder(name, "AWSCURRENT")
		e.f.SetLabel(name, "AWSPENDING", current)
		for _, step := range append(steps, "nonsense") {
			if err := e.run.Step(t.Context(), e.r, current, step); err != nil {
				t.Errorf("%s: %v", step, err)
			}
		}
		quiet(t, e)
	})
	t.Run("C05 not pending", func(t *testing.T) {
		e := start(t)
		e.f.SetRotation(name, &yes, time.Time{})
		e.f.SetLabel(name, "AWSPREVIOUS", e.token)
		wantKind(t, "step", e.run.Step(t.Context(), e.r, e.token, steps[0]), fault.Invalid, "")
		quiet(t, e)
	})
	t.Run("C06 no such step", func(t *testing.T) {
		e := start(t)
		e.f.StartRotation(name, e.token)
		wantKind(t, "step", e.run.Step(t.Context(), e.r, e.token, "nonsense"), fault.Invalid, "")
		quiet(t, e)
	})
	t.Run("C07 C08 C22 C23 each step twice", func(t *testing.T) {
		e := start(t)
		first := e.f.Holder(name, "AWSCURRENT")
		e.f.StartRotation(name, e.token)
		e.f.ForgetCalls()
		for _, step := range steps {
			for range 2 {
				if err := e.run.Step(t.Context(), e.r, e.token, step); err != nil {
					t.Fatalf("%s: %v", step, err)
				}
			}
		}
		wantWrites(t, e.f,
			"PutSecretValue ClientRequestToken="+e.token+" VersionStages=[AWSPENDING] SecretString=[redacted]",
			"UpdateSecretVersionStage VersionStage=AWSCURRENT MoveToVersionId="+e.token+" RemoveFromVersionId="+first)
		if e.rot.made != 1 {
			t.Errorf("%d values made", e.rot.made)
		}
		if got, _, _ := e.f.Value(name, "AWSPREVIOUS"); string(got) != "old" {
			t.Errorf("AWSPREVIOUS is %q", got)
		}
	})
}

// The service runs the whole rotation: it repeats all steps after a failure,
// and afterwards takes AWSPENDING away.
func TestRotateSecret(t *testing.T) {
	const lambda = "arn:aws:lambda:us-east-1:111122223333:function:rotate"
	f, s, _, _ := open(t, nil)
	rot := &counter{fail: errors.New("not yet")}
	run := rotators.NewRunner(s, rot, nil)
	f.RegisterLambda(lambda, func(ctx context.Context, payload []byte) error {
		var e struct{ Step, SecretId, ClientRequestToken, RotationToken string } //nolint:revive // as sent
		if err := json.Unmarshal(payload, &e); err != nil {
			return err
		}
		id, err := ref.FromARN(e.SecretId)
		if err != nil {
			return err
		}
		return run.Step(awssm.WithRotationToken(awssm.WithARN(ctx, e.SecretId), e.RotationToken), id, e.ClientRequestToken, e.Step)
	})
	for i := 1; i <= 3; i++ {
		out, err := f.SecretsManager().RotateSecret(t.Context(), &secretsmanager.RotateSecretInput{SecretId: aws.String(name), RotationLambdaARN: aws.String(lambda)})
		if err != nil {
			t.Fatal(err)
		}
		got := f.Wait()
		if last := got[len(got)-1]; last.Err != nil || i == 1 && last.Tries != 2 {
			t.Fatalf("%+v", last)
		}
		if v, _, _ := f.Value(name, "AWSCURRENT"); string(v) != fmt.Sprint(i) {
			t.Errorf("AWSCURRENT is %q; want %d", v, i)
		}
		l := f.Labels(name)
		delete(l, f.Holder(name, awssm.Retired)) // two generations back
		if len(l) != 2 || len(l[aws.ToString(out.VersionId)]) != 1 {
			t.Errorf("labels %v", f.Labels(name))
		}
	}
}
