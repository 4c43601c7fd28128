package funcnotify

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/funcenv"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
)

var form = Form{Source: "pubsub", Port: "PORT", LogLevel: "KEYTURN_LOG_LEVEL"}

func TestEnvironment(t *testing.T) {
	secret := leaktest.Canary()
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ env, want string }{
		{"", "KEYTURN_NATS_URL"},
		{"KEYTURN_NATS_URL=nats.example.com:4222", "expected tls://"},
		{"KEYTURN_NATS_URL=https://nats.example.com", "expected tls://"},
		{"KEYTURN_NATS_URL=nats://nats.example.com", "unencrypted"},
		{"KEYTURN_NATS_URL=tls://a:4222,nats://b:4222", "unencrypted"},
		{"KEYTURN_NATS_URL=tls://me:" + secret + "@nats.example.com", "holds a user name"},
		{"KEYTURN_NATS_URL=tls://%zz" + secret, "expected tls://"},
		{"KEYTURN_NATS_URL=tls://a KEYTURN_CA_FILE=" + file, "no PEM"},
		{"KEYTURN_NATS_URL=tls://a KEYTURN_NATS_CREDS=" + secret, "expected a creds file"},
		{"KEYTURN_NATS_URL=tls://a KEYTURN_NATS_CREDS=SU" + secret, "NATS credentials"},
		{"KEYTURN_NATS_URL=tls://a KEYTURN_NATS_CREDS=a:" + secret + " KEYTURN_NATS_CREDS_FILE=/x", "in 2 ways"},
		{"KEYTURN_NATS_URL=tls://a KEYTURN_NATS_DOMAIN=a.b", "JetStream domain"},
		{"KEYTURN_NATS_URL=tls://a KEYTURN_NATS_INBOX=_INBOX.>", "without wildcards"},
		{"KEYTURN_NATS_URL=tls://a KEYTURN_CREATE_STREAMS=2", "1, 3 or 5"},
		{"KEYTURN_NATS_URL=tls://a KEYTURN_SOURCE=a.b", "KEYTURN_SOURCE"},
		{"KEYTURN_NATS_URL=tls://a KEYTURN_TENANT=Acme", "KEYTURN_TENANT"},
		{"KEYTURN_NATS_URL=tls://a KEYTURN_TENANT=acme KEYTURN_TENANTS={}", "one tenant or rules"},
		{`KEYTURN_NATS_URL=tls://a KEYTURN_TENANTS={"rules":[{"tenent":"acme"}]}`, "tenent"},
		{`KEYTURN_NATS_URL=tls://a KEYTURN_TENANTS={"rules":[{"tenant":"acme","tags":{"a":"b"}}]}`, "tags"},
		{`KEYTURN_NATS_URL=tls://a KEYTURN_TENANTS={"rules":[{"tenant":"acme"}]}{}`, "KEYTURN_TENANTS"},
		{"KEYTURN_NATS_URL=tls://a KEYTURN_REDACT_DEADLETTERS=perhaps", "true or false"},
	} {
		_, err := ParseEnv(strings.Fields(c.env), form)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; expected Invalid with %q", c.env, err, c.want)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error quotes a password", c.env)
		}
	}
}

func TestEnvironmentThatIsRight(t *testing.T) {
	e, err := ParseEnv([]string{"KEYTURN_NATS_URL=nats://127.0.0.1:4222,nats://localhost:4223", "PORT=9090", "KEYTURN_TYPO=1", "KEYTURN_CREATE_STREAMS=3", "KEYTURN_LOG_LEVEL=debug"}, form)
	if err != nil {
		t.Fatal(err)
	}
	if e.Address != ":9090" || e.Source != "pubsub" || e.Replicas != 3 || e.LogLevel != slog.LevelDebug || strings.Join(e.Unknown, " ") != "KEYTURN_TYPO" {
		t.Errorf("%+v", e)
	}
	_, err = ParseEnv([]string{"KEYTURN_NATS_URL=tls://a", "KEYTURN_NATS_CREDS=a:b"}, Form{Source: "x", More: func(*funcenv.Parser) bool { return true }})
	if err == nil || !strings.Contains(err.Error(), "in 2 ways") {
		t.Errorf("credentials here and elsewhere: %v", err)
	}
}

// What is of no tenant goes to the quarantine, also where nobody said whose
// anything is.
func TestTenants(t *testing.T) {
	const url = "KEYTURN_NATS_URL=tls://a"
	for name, c := range map[string]struct{ env, want string }{
		"fixed":          {"KEYTURN_TENANT=acme", "acme"},
		"rule":           {`KEYTURN_TENANTS={"rules":[{"tenant":"{tenant}","account":"111122223333","name":"{tenant}/**"}]}`, "globex"},
		"no rule fits":   {`KEYTURN_TENANTS={"rules":[{"tenant":"acme","name":"acme/**"}]}`, "quarantine"},
		"own quarantine": {`KEYTURN_TENANTS={"quarantine":"nobody"}`, "nobody"},
		"nothing said":   {"KEYTURN_X=", "quarantine"},
	} {
		e, err := ParseEnv([]string{url, c.env}, form)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var rec leaktest.Recorder
		tenant, err := e.Tenants(rec.Logger())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		ev := events.New(events.VersionActivated, ref.Ref{Provider: ref.AWS, Scope: "111122223333/us-east-1", Name: "globex/db"}, time.Now(), "v")
		if got, err := tenant(t.Context(), ev); err != nil || got != c.want {
			t.Errorf("%s: tenant %q, %v; expected %q", name, got, err, c.want)
		}
		if warned := strings.Contains(rec.String(), "neither KEYTURN_TENANT"); warned != (len(e.rules.Rules) == 0 && e.tenant == "") {
			t.Errorf("%s: warned %t", name, warned)
		}
	}
}

func TestCredentials(t *testing.T) {
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	other, err := account.Seed()
	if err != nil {
		t.Fatal(err)
	}
	creds := "-----BEGIN NATS USER JWT-----\neyJ0.eyJ1.c2ln\n------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n" + string(seed) + "\n------END USER NKEY SEED------\n"
	for name, c := range map[string]struct {
		text string
		bad  bool
	}{
		"none": {"\n", false}, "creds file": {creds, false}, "with Windows line ends": {strings.ReplaceAll(creds, "\n", "\r\n"), false},
		"nkey": {string(seed) + "\n", false}, "password": {"name:pass:word\n", false},
		"JWT without seed": {creds[:strings.Index(creds, "-----BEGIN USER NKEY")], true}, "seed of an account": {string(other), true},
		"no password": {"name:", true}, "no name": {":password", true}, "several lines": {"a:b\nc:d", true},
	} {
		opt, err := parseCredentials([]byte(c.text))
		if (err != nil) != c.bad || c.bad && !fault.Is(err, fault.Invalid) || name != "none" && !c.bad && opt == nil {
			t.Errorf("%s: option %t, %v", name, opt != nil, err)
		}
		if err != nil && len(c.text) > 20 && strings.Contains(err.Error(), strings.TrimSpace(c.text)) {
			t.Errorf("%s: the error quotes the credentials", name)
		}
	}
}

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }
