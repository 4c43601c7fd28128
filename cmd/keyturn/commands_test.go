package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events/natsbus"
)

// command runs one command in process.
func command(ctx context.Context, stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(ctx, args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

func TestHelpTeaches(t *testing.T) {
	for _, args := range [][]string{{}, {"--help"}} {
		code, out, _ := command(t.Context(), "", args...)
		if code != 0 {
			t.Errorf("%v: exit %d", args, code)
		}
		for _, want := range []string{"dev", "serve", "rotate", "retire", "restore", "rollback", "destroy", "doctor", "status", "watch", "normalize", "Start with"} {
			if !strings.Contains(out, want) {
				t.Errorf("%v: help lacks %q", args, want)
			}
		}
	}
}

func TestWrongCommandLine(t *testing.T) {
	for _, args := range [][]string{{"rotat"}, {"normalize"}, {"normalize", "--from", "carrier-pigeon"}, {"dev", "--every", "soon"}} {
		code, _, errs := command(t.Context(), "", args...)
		if code != 2 || !strings.Contains(errs, "keyturn:") {
			t.Errorf("%v: exit %d and %q; want 2 and a reason", args, code, errs)
		}
	}
	code, _, errs := command(t.Context(), "", "dev", "--every", "1500ms", "--state", t.TempDir())
	if code != 1 || !strings.Contains(errs, "whole seconds") {
		t.Errorf("a period that schedules cannot keep: exit %d, %q", code, errs)
	}
}

func TestNormalize(t *testing.T) {
	code, out, errs := command(t.Context(), sampleNotice, "normalize", "--from", "eventbridge", "--tenant", "acme")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, errs)
	}
	var e eventOut
	if err := json.Unmarshal([]byte(out), &e); err != nil {
		t.Fatal(err)
	}
	const subject = "keyturn.v1.acme.aws.111122223333/eu-west-1.prod/agents/payments.version.activated"
	if e.Subject != subject || e.Data.Version != "9b1d7e42-0c5a-4f6b-8e3d-6a7c9f2b1d55" || e.ID == "" {
		t.Errorf("got %+v", e)
	}

	other := strings.NewReplacer("aws.secretsmanager", "aws.ec2", "Secret Label Updated", "EC2 Instance State-change Notification").Replace(sampleNotice)
	if code, out, errs := command(t.Context(), other, "normalize", "--from", "eventbridge"); code != 0 || out != "" {
		t.Errorf("a notice that means no event: exit %d, %q, %q", code, out, errs)
	}
	for name, body := range map[string]string{"garbage": "no JSON c4nary", "nothing": "", "too long": strings.Repeat(" ", maxNotice+1)} {
		code, out, errs := command(t.Context(), body, "normalize", "--from", "eventbridge")
		if code != 1 || out != "" || errs == "" || strings.Contains(errs, "c4nary") {
			t.Errorf("%s: exit %d, %q, %q; want 1, nothing, and a reason that quotes nothing", name, code, out, errs)
		}
	}
}

// Each provider's notice is read by its own decoder.
func TestNormalizeFrom(t *testing.T) {
	for from, c := range map[string]struct{ body, want string }{
		"eventgrid": {`[{"id":"00eccf70-95a7-4e7c-8299-2eb17ee9ad64","topic":"/subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/sample-kv","subject":"newsecret","eventType":"Microsoft.KeyVault.SecretNewVersionCreated","eventTime":"2026-07-25T01:08:33.1036736Z","data":{"Id":"https://sample-kv.vault.azure.net/secrets/newsecret/ee059b2bb5bc48398a53b168c6cdcb10","VaultName":"sample-kv","ObjectType":"Secret","ObjectName":"newsecret","Version":"ee059b2bb5bc48398a53b168c6cdcb10"},"dataVersion":"1","metadataVersion":"1"}]`, "azure://sample-kv/newsecret"},
		"pubsub":    {`{"message":{"attributes":{"dataFormat":"JSON_API_V1","eventType":"SECRET_ROTATE","secretId":"projects/82150720798/secrets/s","timestamp":"2026-10-02T06:11:21.055625-07:00"},"data":"e30=","messageId":"1"},"subscription":"projects/p/subscriptions/s"}`, "rotation.requested"},
	} {
		code, out, errs := command(t.Context(), c.body, "normalize", "--from", from)
		if code != 0 || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit %d, %q, %q; want %q", from, code, out, errs, c.want)
		}
	}
}

// A secret is found by the end of its ref too, if that is the end of one only.
func TestFind(t *testing.T) {
	c, err := loadConfig(writeFile(t, "c.yaml", goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"nats://keyturn/acme/db": "nats://keyturn/acme/db", "acme/db": "nats://keyturn/acme/db", "key": "nats://keyturn/acme/key",
		"aws://1/eu/x": "aws://1/eu/x", "": "", "cme/db": "", "acme": "",
	} {
		r, err := c.find(text)
		if r.String() != want || (err == nil) != (want != "") {
			t.Errorf("%q: %s, %v; want %q", text, r, err, want)
		}
	}
}

func writeFile(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// What defaults say holds for a secret that says nothing itself; freezes add
// up.
func TestDefaults(t *testing.T) {
	c, err := loadConfig(writeFile(t, "c.yaml", goodConfig+`
defaults:
  time_zone: America/New_York
  windows: ["01:00-05:00"]
  freezes: ["2030-12-20/2031-01-06"]
  jitter: 30m
  min_age: 1h
  gate: {after: 12h}
  retry: {first: 1s, longest: 2s, limit: 3}
  password: {password_length: 20, exclude_punctuation: true}
`))
	if err != nil {
		t.Fatal(err)
	}
	db, key := c.Secrets[0], c.Secrets[1]
	if db.TimeZone != "America/New_York" || key.TimeZone != "Europe/Berlin" || db.spec.TimeZone != "" {
		t.Errorf("zones %q, %q; of the period %q", db.TimeZone, key.TimeZone, db.spec.TimeZone)
	}
	for _, s := range c.Secrets {
		if s.Jitter != 30*time.Minute || s.MinAge != time.Hour || s.gate.After != 12*time.Hour || s.Retry.Limit != 3 {
			t.Errorf("%s has %+v", s.ref, s.policyConfig)
		}
		p, err := s.Password.policy().Generate()
		if err != nil || len(p) != 20 || strings.ContainsAny(p, "!:/@") {
			t.Errorf("a password of %d characters, %v", len(p), err)
		}
	}
	frozen := time.Date(2030, 12, 24, 7, 0, 0, 0, time.UTC)
	if db.calendar.Allows(frozen) || !db.calendar.Allows(frozen.AddDate(0, -1, 0)) {
		t.Error("the freeze or the window is not that of the defaults")
	}
}

// The periods that a gate is compared with.
func TestShortestPeriod(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"@every 90m": 90 * time.Minute, "@daily": 24 * time.Hour, "0 3 * * *": 24 * time.Hour, "0 0 */6 * * *": 6 * time.Hour, "": 0,
	} {
		spec, err := parseSchedule(text, "")
		if err != nil {
			t.Fatal(err)
		}
		if got := shortestPeriod(spec); got != want {
			t.Errorf("%q comes every %s; want %s", text, got, want)
		}
	}
}

const goodConfig = `
nats: {url: "nats://127.0.0.1:4222"}
store: {key_file: seal.key}
secrets:
  - {ref: "nats://keyturn/acme/db", tenant: acme, rotator: postgres-single, schedule: "@every 24h"}
  - {ref: "nats://keyturn/acme/key", rotator: apikey, apikey: {preset: openai}, schedule: "0 3 * * *", time_zone: Europe/Berlin}
`

func TestConfig(t *testing.T) {
	t.Setenv("KEYTURN_NATS__URL", "nats://elsewhere:4222")
	t.Setenv("KEYTURN_CONFIG", "ignored here")
	c, err := loadConfig(writeFile(t, "c.yaml", goodConfig))
	if err != nil {
		t.Fatal(err)
	}
	if c.NATS.URL != "nats://elsewhere:4222" {
		t.Errorf("the environment did not win: %q", c.NATS.URL)
	}
	if want := (natsbus.Spec{Every: 24 * time.Hour}); c.Secrets[0].spec != want {
		t.Errorf("got %+v, want %+v", c.Secrets[0].spec, want)
	}
	if want := (natsbus.Spec{Cron: "0 0 3 * * *", TimeZone: "Europe/Berlin"}); c.Secrets[1].spec != want {
		t.Errorf("got %+v, want %+v", c.Secrets[1].spec, want)
	}
	if got := c.tenant(c.Secrets[1].ref); got != "default" {
		t.Errorf("tenant %q, want default", got)
	}
}

func TestBadConfig(t *testing.T) {
	replace := func(old, new string) string { return strings.Replace(goodConfig, old, new, 1) }
	for name, c := range map[string]struct{ text, want string }{
		"misspelt key":      {replace("schedule:", "shedule:"), "shedule"},
		"no url":            {replace(`nats: {url: "nats://127.0.0.1:4222"}`, ""), "nats.url"},
		"no key":            {replace("store: {key_file: seal.key}", ""), "keygen"},
		"no YAML":           {"\t{", "yaml"},
		"bad ref":           {replace("nats://keyturn/acme/db", "acme/db"), "no scheme"},
		"unknown cluster":   {replace("nats://keyturn/acme/db", "vault://prod//kv/db"), "vault.prod.address"},
		"no way to sign in": {replace("nats://keyturn/acme/db", "vault://prod//kv/db") + "vault: {prod: {address: \"https://v\"}}\n", "token_file and approle"},
		"other bucket":      {replace("nats://keyturn/acme/db", "nats://other/acme/db"), "nats://keyturn/NAME"},
		"twice":             {replace("nats://keyturn/acme/key", "nats://keyturn/acme/db"), "twice"},
		"unknown rotator":   {replace("postgres-single", "postgres"), "postgres-alternating"},
		"bad schedule":      {replace("@every 24h", "daily"), "no schedule"},
		"too fast":          {replace("@every 24h", "@every 10ms"), "one second"},
		"unknown zone":      {replace("Europe/Berlin", "Europe/Bielefeld"), "unknown; expected an IANA name"},
		"bad window":        {replace(`"@every 24h"`, `"@every 24h", windows: ["sometimes"]`), "Mon-Fri 01:00-05:00"},
		"bad freeze":        {replace(`"@every 24h"`, `"@every 24h", freezes: ["soon"]`), "2026-12-20/2027-01-06"},
		"after nothing":     {replace(`"@every 24h"`, `"@every 24h", after: ["nats://keyturn/master"]`), "not configured"},
		"gate too slow":     {replace(`"@every 24h"`, `"@every 24h", gate: {after: 24h}`), "rotate less often"},
		"cron gate":         {replace("Europe/Berlin", "Europe/Berlin, gate: {after: 30h}"), "rotate less often"},
		"bad gate":          {replace(`"@every 24h"`, `"@every 24h", gate: {adopted: true, max: 1h, at_limit: panic}`), "retire or hold"},
		"bad password":      {replace(`"@every 24h"`, `"@every 24h", password: {password_length: 4}`), "expected 8 or more"},
		"adopted for ever":  {replace(`"@every 24h"`, `"@every 24h", gate: {adopted: true}`), "set max"},
		"jitter too long":   {replace(`"@every 24h"`, `"@every 24h", jitter: 24h`), "shorten jitter"},
		"no apikey section": {replace("apikey: {preset: openai}, ", ""), "section apikey is missing"},
		"cron out of range": {replace("0 3 * * *", "61 3 * * *"), "61 3"},
		"unknown word":      {replace("0 3 * * *", "@hourli"), "@hourli"},
		"negative jitter":   {replace(`"@every 24h"`, `"@every 24h", jitter: -1s`), "negative"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := loadConfig(writeFile(t, "c.yaml", c.text))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; want an error with %q", err, c.want)
			}
		})
	}
	if _, err := loadConfig(filepath.Join(t.TempDir(), "none.yaml")); err == nil || !strings.Contains(err.Error(), "keyturn dev") {
		t.Errorf("no file: got %v; want what to do", err)
	}
}

func TestKeyFiles(t *testing.T) {
	path := writeFile(t, "k", "a key\n")
	if got, err := readKeyFile(path); err != nil || got != "a key" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := readKeyFile(path); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that all may read: got %v", err)
	}
	seal := filepath.Join(t.TempDir(), "seal.key")
	if code, _, errs := command(t.Context(), "", "keygen", seal); code != 0 {
		t.Errorf("keygen: exit %d, %s", code, errs)
	}
	if code, _, _ := command(t.Context(), "", "keygen", seal); code != 1 {
		t.Errorf("keygen wrote over a key: exit %d", code)
	}
}

func TestPercentiles(t *testing.T) {
	var l lags
	if _, _, ok := l.percentiles(); ok {
		t.Error("percentiles of nothing")
	}
	for i := range 2 * lagsKept { // the older half is forgotten
		l.add(time.Duration(i) * time.Microsecond)
	}
	p50, p99, _ := l.percentiles()
	if want := time.Duration(lagsKept+lagsKept/2-1) * time.Microsecond; p50 != want {
		t.Errorf("p50 %s, want %s", p50, want)
	}
	if p99 <= p50 || p99 > 2*lagsKept*time.Microsecond {
		t.Errorf("p99 %s", p99)
	}
	if got := grouped(1234567); got != "1,234,567" {
		t.Errorf("grouped: %s", got)
	}
}
