package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
	"github.com/keyturn/keyturn/ref"
)

// writeConfig writes a configuration, and the key files that it may name.
func writeConfig(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	for name, body := range map[string]string{"key": strings.Repeat("k", 24), "hmac": "whsec_" + strings.Repeat("QUJD", 10), "keyturn.yaml": strings.ReplaceAll(text, "DIR", dir)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "keyturn.yaml")
}

// TestWaysIn: each way in is a few lines, and what cannot work is said with
// what would.
func TestWaysIn(t *testing.T) {
	const head = "nats: {url: 'nats://127.0.0.1:4222'}\nnotifier:\n  listen: 127.0.0.1:0\n"
	for name, c := range map[string]struct{ text, want string }{
		"every route": {head + `  routes:
    - {kind: eventbridge, api_key_files: [DIR/key], basic: [{user: u, password_file: DIR/key}], oauth: {issuer: "https://i.example", audience: a, clients: [c]}}
    - {kind: eventgrid, entra: {tenant_id: 00000000-0000-0000-0000-000000000001, audiences: [x]}}
    - {kind: pubsub, google: {audience: a, emails: [e@p.iam.gserviceaccount.com]}}
    - {kind: sns, topics: ["arn:aws:sns:eu-west-1:111122223333:keyturn"]}
    - {kind: cloudevents, hmac_key_files: [DIR/hmac]}
    - {kind: vaultaudit, cluster: prod, api_key_files: [DIR/key]}
  sources:
    - {kind: vaultaudit, cluster: prod, spool: DIR/spool}
    - {kind: sqs, queue_url: "https://sqs.eu-west-1.amazonaws.com/1/q"}
    - {kind: pubsub, name: pull, subscription: projects/p/subscriptions/s}
`, ""},
		"unknown kind":     {head + "  routes: [{kind: carrier-pigeon, api_key_files: [DIR/key]}]\n", "expected one of eventbridge"},
		"unknown source":   {head + "  routes: [{kind: eventbridge, api_key_files: [DIR/key]}]\n  sources: [{kind: eventbridge}]\n", "expected one of sqs"},
		"open to anybody":  {head + "  routes: [{kind: eventbridge}]\n", "nothing says who may send"},
		"sns needs topics": {head + "  routes: [{kind: sns}]\n", "expected topics"},
		"sns with a key":   {head + "  routes: [{kind: sns, topics: [x], api_key_files: [DIR/key]}]\n", "are signed"},
		"pubsub by key":    {head + "  routes: [{kind: pubsub, api_key_files: [DIR/key]}]\n", "expected google"},
		"hmac elsewhere":   {head + "  routes: [{kind: eventbridge, hmac_key_files: [DIR/hmac]}]\n", "only for kind cloudevents"},
		"two of a name":    {head + "  routes: [{kind: pubsub, google: {audience: a, emails: [e]}}]\n  sources: [{kind: pubsub, subscription: projects/p/subscriptions/s}]\n", "there twice"},
		"two on a path":    {head + "  routes: [{kind: sns, topics: [x]}, {kind: sns, name: b, path: /v1/sns, topics: [y]}]\n", "is there twice"},
		"bad name":         {head + "  routes: [{kind: sns, name: Big.Name, topics: [x]}]\n", "lower-case"},
		"no port":          {"nats: {url: x}\nnotifier: {routes: [{kind: sns, topics: [x]}]}\n", "notifier.listen is missing"},
		"nothing there":    {head, "nothing is served there"},
		"no queue":         {head + "  routes: [{kind: eventbridge, api_key_files: [DIR/key]}]\n  sources: [{kind: sqs}]\n", "queue_url is missing"},
		"no spool":         {head + "  routes: [{kind: eventbridge, api_key_files: [DIR/key]}]\n  sources: [{kind: vaultaudit, cluster: c}]\n", "spool is missing"},
		"one spool twice":  {head + "  routes: [{kind: eventbridge, api_key_files: [DIR/key]}]\n  sources: [{kind: vaultaudit, cluster: c, spool: DIR/a}, {kind: vaultaudit, name: b, cluster: c, spool: DIR/b}]\n", "has a source of kind vaultaudit already"},
		"no such cluster":  {head + "  routes: [{kind: vaultaudit, cluster: c, api_key_files: [DIR/key]}]\n", "expected a source of kind vaultaudit"},
		"misspelt":         {head + "  routes: [{kind: eventbridge, api_key_files: [DIR/key]}]\n  sources: [{kind: sqs, queue: x}]\n", "queue"},
		"bad rule":         {head + "  routes: [{kind: eventbridge, api_key_files: [DIR/key]}]\ntenants: {rules: [{tenant: acme, provider: acme}]}\n", "tenants.rules"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, err := loadConfig(writeConfig(t, c.text))
			if c.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				for _, r := range cfg.Notifier.Routes {
					if r.Kind == wayVaultAudit {
						continue // its source is opened first
					}
					if _, err := r.route(nil, newLogger(t.Output(), "warn", "json")); err != nil {
						t.Errorf("route %s: %v", r.Path, err)
					}
					if _, err := cfg.decoder(r.Name); err != nil {
						t.Errorf("route %s: %v", r.Path, err)
					}
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v; expected %q", err, c.want)
			}
		})
	}
}

// TestDecodersAreChosenByTheWayIn feeds each kind of way in its provider's
// notice in the shape in which it comes there.
func TestDecodersAreChosenByTheWayIn(t *testing.T) {
	cfg := &config{GCP: gcpConfig{Projects: map[string]string{"my-project": "82150720798"}}}
	cfg.Notifier.Routes = []routeConfig{{Kind: wayEventBridge, Name: "eb"}, {Kind: waySNS, Name: "sns"}, {Kind: wayEventGrid, Name: "eg"}, {Kind: wayPubSub, Name: "ps"}, {Kind: wayCloudEvents, Name: "ce"}}
	cfg.Notifier.Sources = []sourceConfig{{Kind: waySQS, Name: "sqs"}, {Kind: wayEventGrid, Name: "grid"}, {Kind: wayPubSub, Name: "pull"}, {Kind: wayVaultAudit, Name: "audit", Cluster: "prod"}, {Kind: wayVaultEvents, Name: "ws", Cluster: "prod"}}
	grid := `{"specversion":"1.0","id":"1","source":"/subscriptions/s/resourceGroups/g/providers/Microsoft.KeyVault/vaults/kv","subject":"s","type":"Microsoft.KeyVault.SecretNewVersionCreated","time":"2026-07-25T01:08:33Z","data":{"Id":"https://kv.vault.azure.net/secrets/s/ee059b2bb5bc48398a53b168c6cdcb10","VaultName":"kv","ObjectType":"Secret","ObjectName":"s","Version":"ee059b2bb5bc48398a53b168c6cdcb10"}}`
	message := map[string]string{"eventType": "SECRET_VERSION_ADD", "secretId": "projects/82150720798/secrets/s", "versionId": "projects/82150720798/secrets/s/versions/7", "timestamp": "2026-10-02T06:11:21.05-07:00", "publishtime": "2026-10-02T13:11:22Z"}
	lower := map[string]string{}
	for k, v := range message {
		lower[strings.ToLower(k)] = v
	}
	audit := `{"type":"response","time":"2026-11-24T00:12:53Z","request":{"id":"47b0e5ed-eab3-0b65-6338-278424cda1a2","operation":"create","path":"secret/data/a","mount_point":"secret/","mount_type":"kv"},"response":{"mount_type":"kv","data":{"version":1}}}`
	note := `{"id":"9c78ae4b-0949-b44d-1a00-8d7bf818ae48","source":"vault://vm","specversion":"1.0","type":"*","time":"2026-11-24T00:12:53.48Z","data":{"event":{"id":"9c78ae4b-0949-b44d-1a00-8d7bf818ae48","metadata":{"current_version":"1","data_path":"secret/data/a","modified":"true","operation":"data-write","path":"secret/data/a"}},"event_type":"kv-v2/data-write","plugin_info":{"mount_class":"secret","mount_path":"secret/","plugin":"kv","version":"2"}}}`
	for name, c := range map[string]struct {
		d    notifier.Delivery
		want string
	}{
		"eb":    {notifier.Delivery{Body: []byte(sampleNotice)}, "aws://111122223333/eu-west-1/prod/agents/payments"},
		"sns":   {notifier.Delivery{Body: []byte(sampleNotice)}, "aws://111122223333/eu-west-1/prod/agents/payments"},
		"sqs":   {notifier.Delivery{Body: []byte(sampleNotice)}, "aws://111122223333/eu-west-1/prod/agents/payments"},
		"eg":    {notifier.Delivery{Body: []byte("[" + grid + "]")}, "azure://kv/s"},
		"grid":  {notifier.Delivery{Body: []byte(grid)}, "azure://kv/s"},
		"ps":    {notifier.Delivery{Attributes: lower}, "gcp://my-project/s"},
		"pull":  {notifier.Delivery{Attributes: message}, "gcp://my-project/s"},
		"ce":    {notifier.Delivery{Body: []byte(`{"specversion":"1.0","id":"1","source":"mine","type":"dev.keyturn.version.activated.v1","time":"2026-11-24T00:12:53Z","data":{"ref":"nats://keyturn/a","version":"v1"}}`)}, "nats://keyturn/a"},
		"audit": {notifier.Delivery{Body: []byte(audit)}, "vault://prod//secret/a"},
		"ws":    {notifier.Delivery{Body: []byte(note)}, "vault://prod//secret/a"},
	} {
		dec, err := cfg.decoder(name)
		if err != nil {
			t.Fatal(err)
		}
		c.d.Source, c.d.Received = name, time.Now()
		es, err := dec(c.d)
		if err != nil || len(es) != 1 || es[0].Data.Ref.String() != c.want || es[0].Type != events.VersionActivated {
			t.Errorf("%s: %+v, %v; expected an activation of %s", name, es, err, c.want)
		}
	}
	for name, want := range map[string]string{"pigeon": "--as", "triggers-keyturn": "keyturn rotate"} {
		if _, err := cfg.decoder(name); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDeadLetters: a letter can be seen and is handed on once its cause is
// mended; what cannot be handed on stays, with why.
func TestDeadLetters(t *testing.T) {
	srv := testenv.NATS(t)
	config := writeConfig(t, "nats: {url: '"+srv.URL()+"'}\nnotifier: {listen: '127.0.0.1:0', routes: [{kind: eventbridge, api_key_files: [DIR/key]}]}\n")
	bus, err := natsbus.Open(t.Context(), srv.Conn(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	park := func(id, source string, l notifier.DeadLetter) {
		t.Helper()
		l.Source, l.ID, l.Kind, l.Reason, l.Received = source, id, fault.Invalid, "of a version that did not know it", time.Now()
		if l.Size == 0 {
			l.Size = len(l.Body)
		}
		if err := bus.Park(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	kt := func(want int, args ...string) string {
		t.Helper()
		code, out, errs := command(t.Context(), "", append([]string{"--config", config, "deadletters"}, args...)...)
		if code != want {
			t.Fatalf("%v: exit %d, %s%s; expected %d", args, code, out, errs, want)
		}
		return out + errs
	}
	if out := kt(0, "list"); !strings.Contains(out, "no dead letters") {
		t.Errorf("none: %q", out)
	}
	park("1", "eventbridge", notifier.DeadLetter{Delivery: notifier.Delivery{Body: []byte(sampleNotice), Attempt: 3}})
	park("2", "eventbridge", notifier.DeadLetter{Delivery: notifier.Delivery{Body: []byte("\x1b[2Jno JSON")}})
	park("3", "gone", notifier.DeadLetter{Delivery: notifier.Delivery{Body: []byte(sampleNotice)}})
	park("4", "eventbridge", notifier.DeadLetter{Delivery: notifier.Delivery{Body: []byte(`{"a":"(1 bytes)"}`)}, Size: 900, Redacted: true})
	park("5", "eventbridge", notifier.DeadLetter{Delivery: notifier.Delivery{Body: []byte("cut")}, Size: 900})

	if out := kt(0, "list"); strings.Count(out, "\n") != 6 || !strings.Contains(out, "of a version that did not know it") {
		t.Errorf("list: %q", out)
	}
	if out := kt(0, "list", "--source", "gone", "--json"); strings.Count(out, "\n") != 1 || strings.Contains(out, "Secret Label") {
		t.Errorf("list of one source: %q", out)
	}
	if out := kt(0, "list", "--limit", "2"); !strings.Contains(out, "and more") {
		t.Errorf("limit: %q", out)
	}
	if out := kt(0, "show", "1"); !strings.Contains(out, "Secret Label Updated") || !strings.Contains(out, "attempt   3") {
		t.Errorf("show: %q", out)
	}
	if out := kt(0, "show", "2"); strings.Contains(out, "\x1b") {
		t.Errorf("show lets a notice steer the terminal: %q", out)
	}
	if out := kt(0, "show", "4"); !strings.Contains(out, "the shape of the notice (900 bytes)") {
		t.Errorf("show of a shape: %q", out)
	}
	if out := kt(1, "show", "99"); !strings.Contains(out, "there is no dead letter 99") {
		t.Errorf("show of none: %q", out)
	}
	if out := kt(1, "replay"); !strings.Contains(out, "--all") {
		t.Errorf("replay of nothing: %q", out)
	}

	out := kt(1, "replay", "--all")
	for _, want := range []string{"1\thanded on: 1 events stored", "2\tstays", "3\tstays", "--as", "4\tstays", "not kept", "5\tstays", "only 3 of 900", "1 handed on, 4 stay"} {
		if !strings.Contains(out, want) {
			t.Errorf("replay: %q lacks %q", out, want)
		}
	}
	if out := kt(0, "replay", "3", "--as", "eventbridge"); !strings.Contains(out, "1 known before") {
		t.Errorf("replay as another: %q", out)
	}
	if out := kt(0, "remove", "2", "4", "5"); strings.Count(out, "removed") != 3 {
		t.Errorf("remove: %q", out)
	}
	if out := kt(0, "list"); !strings.Contains(out, "no dead letters") {
		t.Errorf("at the end: %q", out)
	}
}

// TestReplay gives a consumer again what was stored, and stores nothing twice.
func TestReplay(t *testing.T) {
	srv := testenv.NATS(t)
	nc := srv.Conn(t)
	config := writeConfig(t, "nats: {url: '"+srv.URL()+"'}\n")
	bus, err := natsbus.Open(t.Context(), nc, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i, tenant := range []string{"acme", "acme", "globex"} {
		e := events.New(events.VersionActivated, ref.Ref{Provider: ref.NATS, Scope: "keyturn", Name: fmt.Sprint("s", i)}, time.Now(), "v")
		e.Data.Tenant = tenant
		if err := bus.Publish(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	kt := func(args ...string) (int, string) {
		code, out, errs := command(t.Context(), "", append([]string{"--config", config, "replay"}, args...)...)
		return code, out + errs
	}
	if code, out := kt("--json"); code != 0 || strings.Count(out, "\n") != 3 {
		t.Errorf("all: %d, %q", code, out)
	}
	if code, out := kt("--subject", "keyturn.v1.acme.>"); code != 0 || strings.Count(out, "tenant acme") != 2 || strings.Contains(out, "globex") {
		t.Errorf("of a tenant: %d, %q", code, out)
	}
	if code, out := kt("--since", "2h", "--until", "1h"); code != 0 || out != "" {
		t.Errorf("before: %d, %q", code, out)
	}
	sub, err := nc.SubscribeSync("replay.billing")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	if code, out := kt("--to", "replay.billing"); code != 0 || !strings.Contains(out, "3 events published") {
		t.Errorf("to a consumer: %d, %q", code, out)
	}
	for range 3 {
		m, err := sub.NextMsg(10 * time.Second)
		if err != nil || m.Header.Get("ce-type") != string(events.VersionActivated) {
			t.Fatalf("%v, %v", m, err)
		}
	}
	for _, bad := range []string{"keyturn.v1.acme.x", "$JS.API.x", "a.>", "a..b", "a b"} {
		if code, out := kt("--to", bad); code != 1 || !strings.Contains(out, "expected a subject") {
			t.Errorf("--to %s: %d, %q", bad, code, out)
		}
	}
	if code, _ := kt("--since", "1h", "--until", "2h"); code != 1 {
		t.Error("a time that ends before it begins is taken")
	}
}

// TestReplayAsksForTags: a rule that needs tags is asked as in serve, and a
// store that is away keeps no other letter from being handed on.
func TestReplayAsksForTags(t *testing.T) {
	srv := testenv.NATS(t)
	aws := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadRequest) }))
	defer aws.Close()
	t.Setenv("AWS_ACCESS_KEY_ID", "x")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "x")
	config := writeConfig(t, "nats: {url: '"+srv.URL()+"'}\naws: {endpoint: '"+aws.URL+"'}\nnotifier: {listen: '127.0.0.1:0', routes: [{kind: eventbridge, api_key_files: [DIR/key]}]}\n"+
		"tenants: {rules: [{tenant: acme, provider: aws, tags: {team: acme}}]}\n")
	bus, err := natsbus.Open(t.Context(), srv.Conn(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	for id, body := range map[string]string{"1": sampleNotice, "2": "no JSON", "3": sampleNotice} {
		l := notifier.DeadLetter{Delivery: notifier.Delivery{Source: "eventbridge", ID: id, Body: []byte(body), Received: time.Now()}, Kind: fault.Invalid, Size: len(body)}
		if err := bus.Park(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	code, out, errs := command(t.Context(), "", "--config", config, "deadletters", "replay", "--all")
	if code != 1 || strings.Count(out, "stays: ") != 3 || strings.Count(out, "tenants: tags of ") != 2 || strings.Contains(out, "not asked for here") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
}

func TestLameDuck(t *testing.T) {
	for listen, want := range map[string]time.Duration{"127.0.0.1:8080": 0, "[::1]:8080": 0, "localhost:0": 0, "0.0.0.0:8443": 3 * time.Second, ":8443": 3 * time.Second, "10.0.0.1:1": 3 * time.Second} {
		if got := (&notifierConfig{Listen: listen}).lameDuck(); got != want {
			t.Errorf("%s: %s; expected %s", listen, got, want)
		}
	}
	cfg, err := loadConfig(writeConfig(t, "nats: {url: x}\nnotifier: {listen: '127.0.0.1:0', lame_duck: 250ms, routes: [{kind: eventbridge, api_key_files: [DIR/key]}]}\n"))
	if err != nil || cfg.Notifier.lameDuck() != 250*time.Millisecond {
		t.Errorf("%v", err)
	}
}
