package lambdarotate

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
)

func TestEnvDefaultsAreThoseOfTheSamples(t *testing.T) {
	e, err := ParseEnv([]string{"PATH=/bin", "AWS_REGION=us-east-1"})
	if err != nil {
		t.Fatal(err)
	}
	p := e.Policy
	if p.Length != 32 || p.Exclude != `:/@"'\` || p.ExcludeNumbers || p.ExcludePunctuation || p.ExcludeUpper || p.ExcludeLower || p.AllowMissingType {
		t.Errorf("policy %+v; want the samples' defaults", p)
	}
	if e.Strategy != BySecret || e.Tenant != "default" || e.EventBus != "" || e.Endpoint != "" || e.AllowPlaintext || e.RootCAs != nil || len(e.Unknown) != 0 {
		t.Errorf("env %+v; want every switch of ours off", e)
	}
}

func TestEnvValues(t *testing.T) {
	e, err := ParseEnv([]string{
		"SECRETS_MANAGER_ENDPOINT=https://secretsmanager.eu-west-1.amazonaws.com", "PASSWORD_LENGTH=48", "EXCLUDE_CHARACTERS=",
		"EXCLUDE_NUMBERS=Yes", "EXCLUDE_PUNCTUATION=1", "EXCLUDE_UPPERCASE=y", "EXCLUDE_LOWERCASE=enabled", "REQUIRE_EACH_INCLUDED_TYPE=",
		"KEYTURN_STRATEGY=alternating", "KEYTURN_EVENT_BUS=fleet", "KEYTURN_TENANT=acme", "KEYTURN_ALLOW_PLAINTEXT=true",
		"KEYTURN_EVENT_BUSS=x", "AWS_LAMBDA_LOG_LEVEL=WARN",
	})
	if err != nil {
		t.Fatal(err)
	}
	p := e.Policy
	if p.Length != 48 || p.Exclude != "" || !p.ExcludeNumbers || !p.ExcludePunctuation || !p.ExcludeUpper || !p.AllowMissingType {
		t.Errorf("policy %+v", p)
	}
	if p.ExcludeLower {
		t.Error(`"enabled" was taken for true; the samples take it for false`)
	}
	if e.Strategy != Alternating || e.EventBus != "fleet" || e.Tenant != "acme" || !e.AllowPlaintext || e.LogLevel != slog.LevelWarn {
		t.Errorf("env %+v", e)
	}
	if !slices.Equal(e.Unknown, []string{"KEYTURN_EVENT_BUSS"}) {
		t.Errorf("unknown %v; want the misspelt variable", e.Unknown)
	}
}

func TestEnvErrorsSayWhatIsExpected(t *testing.T) {
	noPEM := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(noPEM, []byte("not a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		set  []string
		want string
	}{
		{[]string{"PASSWORD_LENGTH=many"}, "from 1 to 4096"},
		{[]string{"PASSWORD_LENGTH=0"}, "from 1 to 4096"},
		{[]string{"PASSWORD_LENGTH=2"}, "cannot hold one of each"},
		{[]string{"EXCLUDE_NUMBERS=1", "EXCLUDE_PUNCTUATION=1", "EXCLUDE_UPPERCASE=1", "EXCLUDE_LOWERCASE=1"}, "excludes every character"},
		{[]string{"KEYTURN_STRATEGY=both"}, "single or alternating"},
		{[]string{"KEYTURN_EVENT_BUS=my bus"}, "event bus"},
		{[]string{"KEYTURN_TENANT=acme\n"}, "printable"},
		{[]string{"AWS_ENDPOINT_URL_RDS=rds"}, "URL of an endpoint"},
		{[]string{"KEYTURN_ALLOW_PLAINTEXT=maybe"}, "true or false"},
		{[]string{"KEYTURN_CA_FILE=" + noPEM}, "no PEM certificate"},
		{[]string{"KEYTURN_CA_FILE=" + noPEM + "-missing"}, "readable file"},
		{[]string{"SECRETS_MANAGER_ENDPOINT=secretsmanager"}, "URL of an endpoint"},
		{[]string{"SECRETS_MANAGER_ENDPOINT=http://example.com"}, "unencrypted"},
		{[]string{"SECRETS_MANAGER_ENDPOINT=https://a:b@example.com"}, "leave it out"},
	} {
		_, err := ParseEnv(c.set)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: err %v; want Invalid with %q", c.set, err, c.want)
		}
	}
	// All at once, so that a deployment is corrected in one go.
	_, err := ParseEnv([]string{"PASSWORD_LENGTH=x", "KEYTURN_STRATEGY=y"})
	if err == nil || !strings.Contains(err.Error(), "PASSWORD_LENGTH") || !strings.Contains(err.Error(), "KEYTURN_STRATEGY") {
		t.Errorf("err %v; want both variables named", err)
	}
	for _, ok := range []string{"http://127.0.0.1:4566", "http://localhost:4566", "http://[::1]:4566"} {
		if _, err := ParseEnv([]string{"SECRETS_MANAGER_ENDPOINT=" + ok}); err != nil {
			t.Errorf("%s: %v; loopback needs no TLS", ok, err)
		}
	}
}
