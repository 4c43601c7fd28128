package main

import (
	"net/http"
	"testing"

	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/triggers"
	"github.com/keyturn/keyturn/internal/triggers/triggertest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets/azurekv"
)

// The timer's call retires what its gate lets go, at the vault and at the
// database; called again, and before the gate opens, it changes nothing.
func TestRetires(t *testing.T) {
	const vault = "kv-agents"
	db, fake := triggertest.New(t), azurefake.New(t, vault)
	fake.Put(vault, "master", azurefake.Version{Value: db.Master()})
	fake.Put(vault, "app", azurefake.Version{Value: db.JSON("app", triggertest.Password, "azure://"+vault+"/master")})
	var rec leaktest.Recorder
	log := triggers.NewLogger(&rec, nil)
	o := azurekv.Options{Logger: log}
	o.Client.Transport = fake.Client()
	deploy := func(after string) (triggers.Env, http.Handler) {
		env, h, err := handler([]string{
			"KEYTURN_ROTATOR=postgres-alternating", "KEYTURN_CA_FILE=" + db.CAFile, "KEYTURN_GATE_AFTER=" + after, "KEYTURN_SECRETS=azure://" + vault + "/app",
		}, fake.Credential(), &o, log)
		if err != nil {
			t.Fatal(err)
		}
		return env, h
	}
	env, patient := deploy("24h")
	runner, err := triggers.NewRunner(env, azurekv.New(fake.Credential(), &o), log)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := runner.Rotate(t.Context(), ref.Ref{Provider: ref.Azure, Scope: vault, Name: "app"}, ""); err != nil {
		t.Fatal(err)
	}
	tick := func(h http.Handler) {
		t.Helper()
		if got, answer := triggertest.Call(t, h, `{"Data":{"timer":{"IsPastDue":false}},"Metadata":{}}`); got != http.StatusOK || answer != triggers.HostAnswer {
			t.Fatalf("answered %d %q\n%s", got, answer, rec.String())
		}
	}
	tick(patient)
	vs := fake.Versions(vault, "app")
	if !db.SignsIn(vs[0].Value) || !vs[0].Enabled {
		t.Fatalf("retired before its gate opened\n%s", rec.String())
	}
	_, h := deploy("1ns")
	for range 2 {
		tick(h)
		vs = fake.Versions(vault, "app")
		if db.SignsIn(vs[0].Value) || !db.SignsIn(vs[1].Value) || vs[0].Enabled || !vs[1].Enabled {
			t.Fatalf("expected that only the current credential signs in, and that the other version is disabled\n%s", rec.String())
		}
	}
	rec.Check(t, triggertest.Password, db.SuperPassword)
}
