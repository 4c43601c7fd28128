package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dirlock"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets/natskv"
)

// A world is what surrounds the pipeline in dev: a NATS server, a key issuer,
// a PostgreSQL server, and the files of the state directory.
type world struct {
	dir    string
	cfg    *config
	log    *slog.Logger
	scr    *screen
	pg     *demoPostgres // nil where there is none
	issuer *demoIssuer
	closes []func() error // undone in reverse
	ports  ports
}

// ports outlive a run: the secrets name hosts and ports.
type ports struct {
	NATS     int `json:"nats"`
	Issuer   int `json:"issuer"`
	Postgres int `json:"postgres"`
	Metrics  int `json:"metrics"`
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// short is a ref without what all refs here share.
func (w *world) short(r ref.Ref) string { return strings.TrimPrefix(r.String(), "nats://keyturn/") }

func (w *world) onClose(f func() error) { w.closes = append(w.closes, f) }

func (w *world) close() error {
	var errs []error
	for i := len(w.closes) - 1; i >= 0; i-- {
		errs = append(errs, w.closes[i]())
	}
	w.closes = nil
	return errors.Join(errs...)
}

// openWorld starts what the pipeline needs and writes the configuration that
// all other commands read. What was there from an earlier run is used again.
func openWorld(ctx context.Context, c *devCmd, log *slog.Logger, scr *screen) (_ *world, err error) {
	w := &world{dir: c.State, log: log, scr: scr}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	// 0711: the PostgreSQL server may run as another user, who must reach its
	// own directory below and nothing else.
	if err := os.MkdirAll(w.dir, 0o711); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	if err := w.lock(); err != nil {
		return nil, err
	}
	if err := w.loadPorts(ctx); err != nil {
		return nil, err
	}
	if err := w.sealKey(); err != nil {
		return nil, err
	}
	if err := w.startNATS(ctx); err != nil {
		return nil, err
	}
	if w.issuer, err = startIssuer(ctx, w); err != nil {
		return nil, err
	}
	if w.pg, err = startPostgres(ctx, w, c.Postgres); err != nil {
		return nil, err
	}
	if err := w.writeConfig(ctx, c); err != nil {
		return nil, err
	}
	w.cfg, err = loadConfig(w.path("keyturn.yaml"))
	return w, err
}

// lock keeps a second dev off the same directory. The lock goes with the
// process, however it ends.
func (w *world) lock() error {
	l, err := dirlock.Take(w.path("lock"))
	if fault.Is(err, fault.Conflict) {
		return fault.Newf(fault.Conflict, "state directory", "another keyturn dev is using %s; stop it, or name another directory with --state", w.dir)
	}
	if err != nil {
		return fmt.Errorf("lock the state directory: %w", err)
	}
	w.onClose(l.Close)
	return nil
}

func (w *world) loadPorts(ctx context.Context) error {
	b, err := os.ReadFile(w.path("ports.json"))
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &w.ports); err != nil || w.ports.NATS == 0 || w.ports.Issuer == 0 || w.ports.Postgres == 0 {
			return fault.Newf(fault.Invalid, "state directory", "%s is damaged; delete the directory to start anew", w.path("ports.json"))
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read ports: %w", err)
	}
	missing := false
	for _, p := range []*int{&w.ports.NATS, &w.ports.Issuer, &w.ports.Postgres, &w.ports.Metrics} {
		if *p != 0 {
			continue
		}
		missing = true
		if *p, err = freePort(ctx); err != nil {
			return err
		}
	}
	if !missing {
		return nil
	}
	if b, err = json.Marshal(w.ports); err != nil {
		return err
	}
	return writeFileAtomic(w.path("ports.json"), b)
}

func freePort(ctx context.Context) (int, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// secretFile returns the content of a generated secret file, made on first
// use.
func (w *world) secretFile(name string) (string, error) {
	path := w.path(name)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		var b [24]byte
		_, _ = rand.Read(b[:])
		if err := writeFileAtomic(path, []byte(base64.RawURLEncoding.EncodeToString(b[:])+"\n")); err != nil {
			return "", err
		}
	}
	return readKeyFile(path)
}

// sealKey makes the key of the built-in store with the store itself. A new key
// for an old store would open nothing in it.
func (w *world) sealKey() error {
	if _, err := os.Stat(w.path("seal.key")); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := os.Stat(w.path("nats")); err == nil {
		return fault.Newf(fault.Invalid, "state directory", "%s is gone, and what %s holds cannot be opened without it; put it back, or delete %s to start anew", w.path("seal.key"), w.path("nats"), w.dir)
	}
	return natskv.GenerateKeyFile(w.path("seal.key"))
}

// The demo secrets.
const (
	refOrders  = "nats://keyturn/acme/orders-db"
	refBilling = "nats://keyturn/globex/billing-db"
	refAcmeLLM = "nats://keyturn/acme/llm-key"
	refGlobLLM = "nats://keyturn/globex/llm-key"
	refMaster  = "nats://keyturn/platform/postgres-master"
	refAdmin   = "nats://keyturn/platform/issuer-admin"
)

// writeConfig writes the file that status, watch, rotate and serve read.
func (w *world) writeConfig(ctx context.Context, c *devCmd) error {
	if _, err := w.secretFile("webhook.key"); err != nil {
		return err
	}
	listen, err := listenAddr(ctx, c.Listen)
	if err != nil {
		return err
	}
	every := "@every " + c.Every.String()
	secret := func(name, tenant, rotator string, extra map[string]any) map[string]any {
		m := map[string]any{"ref": name, "tenant": tenant, "rotator": rotator, "schedule": every}
		for k, v := range extra {
			m[k] = v
		}
		return m
	}
	list := []any{secret(refAcmeLLM, "acme", rotatorAPIKey, map[string]any{"apikey": w.issuer.config("acme")})}
	if w.pg != nil {
		orders := map[string]any{"postgres": w.pg.config()}
		if c.Every >= 4*time.Second {
			// So that a retirement is seen too: half-way to the next rotation.
			orders["gate"] = map[string]any{"after": (c.Every / 2).String()}
		}
		list = append(list,
			secret(refOrders, "acme", rotatorPostgresAlternating, orders),
			secret(refBilling, "globex", rotatorPostgresSingle, map[string]any{"postgres": w.pg.config()}))
	} else {
		list = append(list, secret(refGlobLLM, "globex", rotatorAPIKey, map[string]any{"apikey": w.issuer.config("globex")}))
	}
	b, err := yaml.Marshal(map[string]any{
		"name":  "dev",
		"nats":  map[string]any{"url": fmt.Sprintf("nats://127.0.0.1:%d", w.ports.NATS), "user": natsUser, "password_file": w.path("nats.password"), "group_commit": true},
		"store": map[string]any{"bucket": "keyturn", "key_file": w.path("seal.key")},
		"notifier": map[string]any{
			"listen": listen, "metrics": fmt.Sprintf("127.0.0.1:%d", w.ports.Metrics), "tenant": "default",
			"routes": []map[string]any{{"kind": wayEventBridge, "api_key_files": []string{w.path("webhook.key")}}},
		},
		"secrets": list,
	})
	if err != nil {
		return err
	}
	head := "# Written by keyturn dev at every start; copy it to make your own.\n"
	if err := writeFileAtomic(w.path("keyturn.yaml"), append([]byte(head), b...)); err != nil {
		return err
	}
	return writeFileAtomic(w.path("label-updated.json"), []byte(sampleNotice))
}

// listenAddr returns want, or a free port on its host if it is taken.
func listenAddr(ctx context.Context, want string) (string, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", want)
	if errors.Is(err, syscall.EADDRINUSE) {
		host, _, splitErr := net.SplitHostPort(want)
		if splitErr != nil {
			return "", splitErr
		}
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(host, "0"))
	}
	if err != nil {
		return "", fmt.Errorf("notifier: %w", err)
	}
	return l.Addr().String(), l.Close()
}

// sampleNotice is what EventBridge sends when AWSCURRENT moves.
// https://docs.aws.amazon.com/secretsmanager/latest/userguide/event-detail-secret-label-updated-secretsmanager.html
const sampleNotice = `{"version":"0","id":"6a7e8feb-b491-4cf7-a9f1-bf3703467718","detail-type":"Secret Label Updated","source":"aws.secretsmanager","account":"111122223333","time":"2026-06-01T10:00:00Z","region":"eu-west-1","resources":["arn:aws:secretsmanager:eu-west-1:111122223333:secret:prod/agents/payments-Ab12Cd"],"detail":{"name":"prod/agents/payments","labelUpdated":"AWSCURRENT","versionId":"9b1d7e42-0c5a-4f6b-8e3d-6a7c9f2b1d55"}}
`

// shown is a file of the state directory as a person would type it.
func (w *world) shown(name string) string {
	path := w.path(name)
	if cwd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(cwd, path); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
	}
	return path
}

// banner says what runs and what to try.
func (w *world) banner(addr string) string {
	conf := ""
	if c := w.shown("keyturn.yaml"); c != defaultConfig {
		conf = " -c " + c
	}
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "\nkeyturn dev: NATS on 127.0.0.1:%d, notifier on %s, state in %s\n", w.ports.NATS, addr, w.shown("."))
	if w.pg != nil {
		_, _ = fmt.Fprintf(&b, "  acme/orders-db     PostgreSQL, two users that alternate; the old one is retired half-way\n  globex/billing-db  PostgreSQL, one user\n")
	} else {
		_, _ = fmt.Fprintf(&b, "  no PostgreSQL found (install it with: %s), so both tenants rotate LLM keys only\n", pgInstallHint)
	}
	_, _ = fmt.Fprintf(&b, "  acme/llm-key       key of an LLM provider, here a demo issuer\n")
	if w.pg == nil {
		_, _ = fmt.Fprintf(&b, "  globex/llm-key     the same for the other tenant\n")
	}
	_, _ = fmt.Fprintf(&b, `
Post what EventBridge would send, from another terminal:
  curl -sS -i -H "X-Api-Key: $(cat %[1]s)" -H 'Content-Type: application/json' --data @%[2]s http://%[3]s/v1/eventbridge
Measure: curl -sS http://127.0.0.1:%[6]d/metrics
Watch the events, ask for the state, rotate now:
  build/keyturn%[4]s watch
  build/keyturn%[4]s status
  build/keyturn%[4]s rotate %[5]s
Ctrl-C stops in order. kill -9 is fine too: the next start finishes what was under way.
`, w.shown("webhook.key"), w.shown("label-updated.json"), addr, conf, refAcmeLLM, w.ports.Metrics)
	return b.String()
}

// startTimeout bounds each server's start.
const startTimeout = 30 * time.Second
