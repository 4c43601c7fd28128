package main

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/internal/vaultfake"
	"github.com/keyturn/keyturn/secrets/natskv"
)

// pipelineOf opens a pipeline on srv with one secret a name.
func pipelineOf(t *testing.T, url, deployment, key string, names ...string) *pipeline {
	t.Helper()
	demo := demoIssuer{url: "http://127.0.0.1:1"}
	apikey, err := json.Marshal(demo.config("p"))
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("name: %s\nnats: {url: %q}\nstore: {key_file: %q}\nsecrets:\n", deployment, url, key)
	for _, name := range names {
		text += fmt.Sprintf("  - {ref: \"nats://keyturn/%s\", rotator: apikey, schedule: \"@every 24h\", apikey: %s}\n", name, apikey)
	}
	cfg, err := loadConfig(writeFile(t, "c.yaml", text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := openPipeline(t.Context(), cfg, slog.New(slog.DiscardHandler), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p
}

// Deployments that share a server leave each other's schedules alone, and a
// firing that is not ours is left to whom it belongs.
func TestDeploymentsShareAServer(t *testing.T) {
	srv := testenv.NATS(t)
	key := filepath.Join(t.TempDir(), "seal.key")
	if err := natskv.GenerateKeyFile(key); err != nil {
		t.Fatal(err)
	}
	schedules := func(p *pipeline) string {
		if _, err := p.sched.Reconcile(t.Context(), p.bus); err != nil {
			t.Fatal(err)
		}
		list, err := p.bus.ListSchedules(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range list {
			names = append(names, strings.TrimPrefix(s.Name, "nats://keyturn/"))
		}
		return strings.Join(names, " ")
	}
	a := pipelineOf(t, srv.URL(), "a", key, "one", "two")
	if got := schedules(a); got != "one two" {
		t.Errorf("schedules %q", got)
	}
	b := pipelineOf(t, srv.URL(), "b", key, "three")
	if got := schedules(b); got != "one three two" {
		t.Errorf("schedules %q after another deployment came; want all three", got)
	}
	if got := schedules(pipelineOf(t, srv.URL(), "a", key, "two")); got != "three two" {
		t.Errorf("schedules %q after a secret was taken out; want the others", got)
	}
	err := b.sched.Fire(t.Context(), natsbus.Firing{Name: "nats://keyturn/two", ID: "two/1/1", Attempt: 1})
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("a firing of another deployment: %v; want that it is given back", err)
	}
}

// A store without its key is not given a new one.
func TestLostSealKey(t *testing.T) {
	w := &world{dir: t.TempDir()}
	if err := w.sealKey(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(w.path("nats"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := w.sealKey(); err != nil {
		t.Errorf("with its key: %v", err)
	}
	if err := os.Remove(w.path("seal.key")); err != nil {
		t.Fatal(err)
	}
	if err := w.sealKey(); err == nil || !strings.Contains(err.Error(), "put it back") {
		t.Errorf("got %v; want what to do", err)
	}
}

// A store that is away does not keep the secrets of the others from being
// served, and is there again as soon as it is.
func TestServeBesideAStoreThatIsAway(t *testing.T) {
	srv := testenv.NATS(t)
	key := filepath.Join(t.TempDir(), "seal.key")
	if err := natskv.GenerateKeyFile(key); err != nil {
		t.Fatal(err)
	}
	apikey, err := json.Marshal((&demoIssuer{url: "http://127.0.0.1:1"}).config("p"))
	if err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(t.TempDir(), "token")
	vault := vaultfake.New(t)
	cfg, err := loadConfig(writeFile(t, "c.yaml", fmt.Sprintf(`
nats: {url: %q}
store: {key_file: %q}
vault: {test: {address: %q, token_file: %q}}
secrets:
  - {ref: "vault://test//secret/a", rotator: apikey, schedule: "@every 24h", apikey: %s}
  - {ref: "nats://keyturn/b", rotator: apikey, schedule: "@every 24h", apikey: %s}
`, srv.URL(), key, vault.URL(), token, apikey, apikey)))
	if err != nil {
		t.Fatal(err)
	}
	p, err := openPipeline(t.Context(), cfg, slog.New(slog.DiscardHandler), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	if done, err := p.sched.Reconcile(t.Context(), p.bus); err != nil || done.Set != 2 {
		t.Errorf("%+v, %v; want both schedules", done, err)
	}
	a, b := cfg.Secrets[0].ref, cfg.Secrets[1].ref
	if _, err := p.runner(t.Context(), b); err != nil {
		t.Errorf("the one whose store is there: %v", err)
	}
	if _, err := p.runner(t.Context(), a); err == nil || !strings.Contains(err.Error(), a.String()) {
		t.Errorf("the one whose token is not there yet: %v", err)
	}
	if err := os.WriteFile(token, []byte(vaultfake.Root), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.runner(t.Context(), a); err != nil {
		t.Errorf("once its token is there: %v", err)
	}
}
