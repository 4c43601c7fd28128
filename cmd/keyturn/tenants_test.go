package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/internal/natsaccounts"
	"github.com/keyturn/keyturn/ref"
)

// tenantsCommand runs one keyturn tenants command in process.
func tenantsCommand(t *testing.T, config, stdin string, args ...string) (string, error) {
	t.Helper()
	var c struct {
		Tenants tenantsCmd `cmd:""`
	}
	parser, err := kong.New(&c)
	if err != nil {
		t.Fatal(err)
	}
	k, err := parser.Parse(append([]string{"tenants"}, args...))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err = k.Run(&env{ctx: t.Context(), stdin: strings.NewReader(stdin), stdout: &out, log: slog.New(slog.DiscardHandler), config: config})
	return out.String(), err
}

func tenantsOK(t *testing.T, config string, args ...string) string {
	t.Helper()
	out, err := tenantsCommand(t, config, "", args...)
	if err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
	return out
}

func natsFrom(t *testing.T, fragment string) *server.Server {
	t.Helper()
	dir := t.TempDir()
	b, err := os.ReadFile(fragment)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Replace(string(b), `dir: "jwt"`, fmt.Sprintf("dir: %q", filepath.Join(dir, "jwt")), 1)
	if err := os.Mkdir(filepath.Join(dir, "jwt"), 0o700); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(dir, "nats-server.conf")
	if err := os.WriteFile(conf, []byte(fmt.Sprintf("listen: \"127.0.0.1:-1\"\njetstream: {store_dir: %q}\n%s", dir, text)), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	opts.NoSigs, opts.NoLog = true, true
	srv, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server did not start")
	}
	return srv
}

// The whole way of the operator form, as docs/tenants.md has it.
func TestTenantsOperator(t *testing.T) {
	config := filepath.Join(t.TempDir(), "none.yaml")
	dir := filepath.Join(t.TempDir(), "a")
	at := "--dir=" + dir
	tenantsOK(t, config, "init", at)
	if _, err := tenantsCommand(t, config, "", "init", at); err == nil {
		t.Error("init overwrites keys")
	}
	tenantsOK(t, config, "creds", at, natsaccounts.Platform, "notifier")
	srv := natsFrom(t, filepath.Join(dir, "operator.conf"))
	push := "--push=" + srv.ClientURL()
	daemon, err := nats.Connect(srv.ClientURL(), nats.UserCredentials(filepath.Join(dir, "creds", natsaccounts.Platform, "notifier.creds")))
	if err != nil {
		t.Fatal(err)
	}
	defer daemon.Close()
	if _, err := natsbus.Open(t.Context(), daemon, nil); err != nil {
		t.Fatal(err)
	}
	tenantsOK(t, config, "add", at, push, "acme")
	if out := tenantsOK(t, config, "add", at, push, "acme"); !strings.Contains(out, "there already") {
		t.Errorf("add again says %q", out)
	}
	if out := tenantsOK(t, config, "creds", at, "acme", "agent-1", "--ttl=1h"); !strings.Contains(out, "_INBOX_agent-1") {
		t.Errorf("creds says %q", out)
	}
	file := filepath.Join(dir, "creds", "acme", "agent-1.creds")
	connect := func() error {
		nc, err := nats.Connect(srv.ClientURL(), nats.UserCredentials(file), nats.CustomInboxPrefix("_INBOX_agent-1"))
		if err == nil {
			nc.Close()
		}
		return err
	}
	if err := connect(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if out := tenantsOK(t, config, "rotate", at, push, "acme"); !strings.Contains(out, "wrote "+file) {
		t.Errorf("rotate says %q", out)
	}
	if err := connect(); err != nil {
		t.Fatal(err)
	}
	if out := tenantsOK(t, config, "rotate", at, push, "acme"); !strings.Contains(out, "nothing done") {
		t.Errorf("rotate again says %q", out)
	}
	if out := tenantsOK(t, config, "list", at); !strings.Contains(out, "old keys until") || !strings.Contains(out, "agent-1") {
		t.Errorf("list says %q", out)
	}
	if out := tenantsOK(t, config, "rotate", at, push, "acme", "--force"); !strings.Contains(out, "done: ") {
		t.Errorf("rotate --force says %q", out)
	}
	if err := connect(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if connect() == nil {
		t.Error("the old credentials still work")
	}
}

// The same with plain accounts, without a server to push to.
func TestTenantsConfigForm(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a")
	config := writeFile(t, "c.yaml", fmt.Sprintf("tenants: {dir: %q, quarantine: nobody}\n", dir))
	tenantsOK(t, config, "init", "--form=config")
	for _, name := range []string{"nobody", "quarantine", "ACME", "keyturn", "a/b"} {
		if _, err := tenantsCommand(t, config, "", "add", name); err == nil {
			t.Errorf("%q can be added", name)
		}
	}
	tenantsOK(t, config, "add", "acme")
	tenantsOK(t, config, "creds", "acme", "a1")
	tenantsOK(t, config, "creds", "acme", "a2", "--kind=password")
	if _, err := tenantsCommand(t, config, "", "creds", "acme", "a1"); err == nil {
		t.Error("a user is overwritten")
	}
	file := filepath.Join(dir, "creds", "acme", "a1.nk")
	first, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	same := func() bool {
		b, err := os.ReadFile(file)
		return err == nil && bytes.Equal(b, first)
	}
	if out := tenantsOK(t, config, "rotate", "acme"); !same() || !strings.Contains(out, "repeat this command") {
		t.Errorf("the first step says %q", out)
	}
	if out := tenantsOK(t, config, "rotate", "acme"); same() || !strings.Contains(out, "wrote "+file) {
		t.Errorf("the second step says %q", out)
	}
	if out := tenantsOK(t, config, "rotate", "acme", "--force"); !strings.Contains(out, "removed ") {
		t.Errorf("the third step says %q", out)
	}
	natsFrom(t, filepath.Join(dir, "accounts.conf"))
	if _, err := tenantsCommand(t, config, "", "add", "b", "--push=nats://127.0.0.1:1"); err == nil {
		t.Error("plain accounts are pushed")
	}
}

const tenantsRules = `
secrets:
  - {ref: "aws://1/eu/special", tenant: vip}
tenants:
  rules:
    - {tenant: "{tenant}", account: 111122223333, name: "prod/{tenant}/**"}
    - tenant: other
      provider: aws
      region: "us-*"
`

func TestTenantsExplain(t *testing.T) {
	config := writeFile(t, "c.yaml", tenantsRules)
	for name, c := range map[string]struct {
		stdin string
		args  []string
		want  string
		fails bool
	}{
		"notice":        {stdin: sampleNotice, want: "tenant agents, by rule 1"},
		"event":         {stdin: `{"id":"x","data":{"ref":"aws://9/us-east-1/x"}}`, want: "tenant other, by rule 2"},
		"ref":           {args: []string{"--ref=aws://9/us-east-1/x"}, want: "rule 1 does not match: account"},
		"configured":    {args: []string{"--ref=aws://1/eu/special"}, want: "tenant vip, as the secret's own"},
		"quarantine":    {args: []string{"--ref=gcp://p/x"}, want: "since no rule matches", fails: true},
		"no notice":     {stdin: "c4nary", fails: true},
		"no such file":  {args: []string{"/nowhere"}, fails: true},
		"no such ref":   {args: []string{"--ref=x"}, fails: true},
		"notice = none": {stdin: strings.ReplaceAll(sampleNotice, "aws.secretsmanager", "aws.ec2"), want: "nobody's"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := tenantsCommand(t, config, c.stdin, append([]string{"explain"}, c.args...)...)
			if (err != nil) != c.fails || !strings.Contains(out, c.want) || err != nil && strings.Contains(err.Error(), "c4nary") {
				t.Errorf("%q, %v; expected %q", out, err, c.want)
			}
		})
	}
}

// A mistake in a rule is found with its line.
func TestTenantRulesAreChecked(t *testing.T) {
	for name, c := range map[string]struct{ rules, want string }{
		"pattern":         {"\n    - {tenant: a, bucket: b}\n    - tenant: b\n      name: \"a**\"\n", "line 4: "},
		"catch-all first": {"\n    - {tenant: a}\n    - {tenant: b, bucket: b}\n", "line 3: "},
		"shadowed":        {"\n    - {tenant: a, bucket: b}\n\n    - {tenant: b, bucket: b}\n", "line 5: "},
		"octal account":   {"\n    - {tenant: a, account: 012345670123}\n", "line 3 has a value that YAML takes for int; put it in quotes"},
		"zero account":    {"\n    - {tenant: a, account: 0123}\n", "put it in quotes"},
		"a boolean":       {"\n    - {tenant: a, name: true}\n", "YAML takes for bool"},
		"misspelt":        {"\n    - {tenant: a, acount: \"1\"}\n", "acount"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := readTenants(writeFile(t, "c.yaml", "tenants:\n  rules:"+c.rules))
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v; expected %q", err, c.want)
			}
		})
	}
}

func TestTenantOfConfiguredSecret(t *testing.T) {
	f, err := readTenants(writeFile(t, "c.yaml", tenantsRules))
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{"aws://1/us-1/x": "other", "gcp://p/x": "quarantine"} {
		if got, err := f.of(refOf(t, text), "default"); err != nil || got != want {
			t.Errorf("%s is of %q, %v; expected %q", text, got, err, want)
		}
	}
	none := &tenantsConfig{}
	if got, err := none.of(refOf(t, "gcp://p/x"), "default"); err != nil || got != "default" {
		t.Errorf("without rules: %q, %v", got, err)
	}
	tagged := &tenantsConfig{Rules: []tenantRule{{Tenant: "a", Provider: "aws", Tags: map[string]string{"t": "a"}}}}
	if err := tagged.check("no file"); err != nil {
		t.Fatal(err)
	}
	if _, err := tagged.of(refOf(t, "aws://1/us-1/x"), ""); err == nil {
		t.Error("a tag is guessed")
	}
}

func refOf(t *testing.T, text string) ref.Ref {
	t.Helper()
	r, err := ref.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return r
}
