package main

import (
	"net/http"
	"strings"
	"testing"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/gcpfake"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/triggers"
	"github.com/keyturn/keyturn/internal/triggers/triggertest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets/gcpsm"
)

// The scheduler's call retires what its gate lets go, at the store and at the
// database; called again, and before the gate opens, it changes nothing.
func TestRetires(t *testing.T) {
	db, fake := triggertest.New(t), gcpfake.New(t)
	const app = "projects/" + gcpfake.Project + "/secrets/app"
	fake.Create(&secretmanagerpb.Secret{Name: "projects/" + gcpfake.Project + "/secrets/master"}, db.Master())
	fake.Create(&secretmanagerpb.Secret{Name: app}, db.JSON("app", triggertest.Password, "gcp://"+gcpfake.Project+"/master"))
	var rec leaktest.Recorder
	log := triggers.NewLogger(&rec, nil)
	environ := func(after string) []string {
		return []string{
			"KEYTURN_ROTATOR=postgres-alternating", "KEYTURN_CA_FILE=" + db.CAFile, "KEYTURN_GATE_AFTER=" + after,
			// The second does not exist, which is no reason to leave the first.
			"KEYTURN_SECRETS=gcp://" + gcpfake.Project + "/app gcp://" + gcpfake.Project + "/gone",
		}
	}
	deploy := func(after string) (triggers.Env, http.Handler) {
		env, h, err := handler(environ(after), fake.Clients(t), log)
		if err != nil {
			t.Fatal(err)
		}
		return env, h
	}
	env, patient := deploy("24h")
	runner, err := triggers.NewRunner(env, gcpsm.New(fake.Clients(t), nil), log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := runner.Rotate(t.Context(), ref.Ref{Provider: ref.GCP, Scope: gcpfake.Project, Name: "app"}, ""); err != nil {
		t.Fatal(err)
	}
	vs := fake.Versions(app)
	sweep := func(h http.Handler) {
		t.Helper()
		if got, _ := triggertest.Call(t, h, ""); got != http.StatusInternalServerError { // of the one that is gone
			t.Fatalf("answered with %d\n%s", got, rec.String())
		}
	}
	sweep(patient)
	if !db.SignsIn(string(vs[0].Value)) || fake.Versions(app)[0].State != secretmanagerpb.SecretVersion_ENABLED || !strings.Contains(rec.String(), "the gate is closed") {
		t.Fatalf("retired before its gate opened\n%s", rec.String())
	}
	_, h := deploy("1ns")
	for range 2 {
		sweep(h)
		if db.SignsIn(string(vs[0].Value)) || !db.SignsIn(string(vs[1].Value)) || fake.Versions(app)[0].State != secretmanagerpb.SecretVersion_DISABLED {
			t.Fatalf("expected that only the current credential signs in, and that the other version is disabled\n%s", rec.String())
		}
	}
	rec.Check(t, triggertest.Password, db.SuperPassword)
}

func TestNeedsSecrets(t *testing.T) {
	if _, _, err := handler([]string{"KEYTURN_ROTATOR=postgres-single"}, nil, triggers.NewLogger(&leaktest.Recorder{}, nil)); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "KEYTURN_SECRETS") {
		t.Errorf("%v; expected Invalid that names KEYTURN_SECRETS", err)
	}
}
