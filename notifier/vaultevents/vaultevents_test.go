package vaultevents_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/vault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/internal/vaultfake"
	"github.com/keyturn/keyturn/notifier"
	"github.com/keyturn/keyturn/notifier/vaultevents"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 20 * time.Second

// A bus decodes deliveries and keeps the events, one an id.
type bus struct {
	mu     sync.Mutex
	events map[string]events.Event
	count  map[string]int // deliveries by what they say
	bad    int            // that could not be decoded
	fail   func(notifier.Delivery) error
	flying int
	most   int
}

func newBus() *bus { return &bus{events: map[string]events.Event{}, count: map[string]int{}} }

func (b *bus) handle(_ context.Context, d notifier.Delivery) error {
	b.mu.Lock()
	b.flying++
	b.most = max(b.most, b.flying)
	fail := b.fail
	b.mu.Unlock()
	var err error
	if fail != nil {
		err = fail(d)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.flying--
	if err != nil {
		return err
	}
	es, err := vault.Decoder{Cluster: "main"}.Decode(d.Body, d.Received)
	if err != nil {
		b.bad++
		return err
	}
	for _, e := range es {
		b.events[e.ID] = e
		b.count[say(e)]++
	}
	return nil
}

func (b *bus) set(fail func(notifier.Delivery) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fail = fail
}

func say(e events.Event) string {
	noun, verb := e.Type.Parts()
	return strings.TrimSpace(noun + "." + verb + " " + strings.TrimPrefix(e.Data.Ref.String(), "vault://main/") + " " + e.Data.Version)
}

func (b *bus) heard(what string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count[what]
}

// wants waits for events.
func (b *bus) wants(t *testing.T, what ...string) {
	t.Helper()
	for _, w := range what {
		testenv.Eventually(t, limit, "the event "+w, func() bool { return b.heard(w) > 0 })
	}
}

// A rig is a source on a fake Vault.
type rig struct {
	*vaultfake.Server
	bus  *bus
	log  leaktest.Recorder
	root *api.Client
}

func newRig(t *testing.T) *rig {
	r := &rig{Server: vaultfake.New(t), bus: newBus()}
	r.Enterprise(true)
	r.root = r.Client(vaultfake.Root, nil)
	return r
}

func (r *rig) options() vaultevents.Options { return options(r.URL(), vaultfake.Root, &r.log) }

// options are those of most tests: fast, and looking only when asked to.
func options(address, token string, log *leaktest.Recorder) vaultevents.Options {
	return vaultevents.Options{
		Address: address, Token: func(context.Context) (string, error) { return token, nil }, Mounts: []string{"secret"},
		MinBackoff: 2 * time.Millisecond, MaxBackoff: 20 * time.Millisecond, ResyncEvery: time.Hour, DrainTimeout: 5 * time.Second, Logger: log.Logger(),
	}
}

// start runs the source until the test ends, or stop is called.
func (r *rig) start(t *testing.T, o vaultevents.Options) (stop func()) {
	t.Helper()
	s, err := vaultevents.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, r.bus.handle) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(limit):
			t.Error("Run does not end")
		}
	})
	t.Cleanup(stop)
	return stop
}

func (r *rig) subscribed(t *testing.T, n int) {
	t.Helper()
	testenv.Eventually(t, limit, fmt.Sprint(n, " subscriptions"), func() bool { return r.Subscriptions() == n })
}

func (r *rig) put(t *testing.T, path, value string) {
	t.Helper()
	if _, err := r.root.Logical().WriteWithContext(t.Context(), path, map[string]any{"data": map[string]any{"v": value}}); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) do(t *testing.T, path string, body map[string]any) {
	t.Helper()
	if _, err := r.root.Logical().WriteWithContext(t.Context(), path, body); err != nil {
		t.Fatal(err)
	}
}

// calls counts requests by the beginning of their path.
func (r *rig) calls(path string, status int) (n int) {
	for _, c := range r.Calls() {
		if strings.HasPrefix(c.Path, path) && (status == 0 || c.Status == status) {
			n++
		}
	}
	return n
}

func TestEventsFlow(t *testing.T) {
	r := newRig(t)
	canary := leaktest.Canary()
	r.put(t, "secret/data/before/it", canary)
	r.start(t, r.options())
	r.subscribed(t, 2)
	r.bus.wants(t, "version.activated /secret/before/it 1") // by looking
	r.put(t, "secret/data/a b/c", canary)
	r.put(t, "secret/data/a b/c", canary)
	r.do(t, "secret/delete/a b/c", map[string]any{"versions": []int{1}})
	r.do(t, "secret/undelete/a b/c", map[string]any{"versions": []int{1}})
	r.do(t, "secret/destroy/a b/c", map[string]any{"versions": []int{1}})
	r.put(t, "secret/data/a b/c--pending", canary)
	r.RotateStatic("", "database/", "agent")
	if _, err := r.root.Logical().DeleteWithContext(t.Context(), "secret/metadata/a b/c"); err != nil {
		t.Fatal(err)
	}
	r.bus.wants(t,
		"version.activated /secret/a%20b/c 1", "version.activated /secret/a%20b/c 2", "version.disabled /secret/a%20b/c 1", "version.enabled /secret/a%20b/c 1",
		"version.destroyed /secret/a%20b/c 1", "secret.deleted /secret/a%20b/c", "rotation.succeeded /database/static-creds/agent", "version.activated /database/static-creds/agent")
	r.bus.mu.Lock()
	defer r.bus.mu.Unlock()
	for what := range r.bus.count {
		if strings.Contains(what, "pending") {
			t.Errorf("a sibling is told of: %s", what)
		}
	}
	r.log.Record(r.bus.events)
	r.log.Check(t, canary, vaultfake.Root+"\"")
}

// What happens while the connection is cut is found by looking, and has the id
// of the notification that was missed.
func TestMissedIsFound(t *testing.T) {
	r := newRig(t)
	r.start(t, r.options())
	r.subscribed(t, 2)
	for round := range 10 {
		r.Fail("GET", "sys/events/subscribe/kv-v2", 503, "Vault is sealed")
		r.CutEvents()
		path := fmt.Sprint("deep/er/", round%3)
		r.put(t, "secret/data/"+path, "x")
		version := fmt.Sprint(round/3 + 1)
		what := "version.activated /secret/" + path + " " + version
		r.bus.wants(t, what)
		r.subscribed(t, 2)
		r.bus.mu.Lock()
		found := false
		for id, e := range r.bus.events {
			found = found || say(e) == what && id == events.New(events.VersionActivated, e.Data.Ref, time.Now(), version).ID
		}
		r.bus.mu.Unlock()
		if !found {
			t.Errorf("%s has another id than its announcement", what)
		}
	}
}

// Nothing is lost between any write and any cut.
func TestNothingIsLostAtRandom(t *testing.T) {
	r := newRig(t)
	r.start(t, r.options())
	stop := make(chan struct{})
	var cutter sync.WaitGroup
	cutter.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(3 * time.Millisecond):
				r.CutEvents()
			}
		}
	})
	const secrets = 60
	for i := range secrets {
		r.put(t, fmt.Sprint("secret/data/s", i), "x")
	}
	close(stop)
	cutter.Wait()
	for i := range secrets {
		r.bus.wants(t, fmt.Sprintf("version.activated /secret/s%d 1", i))
	}
}

// trap 42: without notifications the metadata is looked at, and that is said
// once; the websocket is tried rarely, and used once it is there.
func TestCommunityFallsBack(t *testing.T) {
	r := newRig(t)
	r.Enterprise(false)
	r.put(t, "secret/data/gone", "x")
	if _, err := r.root.Logical().DeleteWithContext(t.Context(), "secret/data/gone"); err != nil {
		t.Fatal(err)
	}
	o := r.options()
	o.ResyncEvery, o.RetryUnsupported = 10*time.Millisecond, 400*time.Millisecond
	r.start(t, o)
	for i := range 5 {
		r.put(t, "secret/data/a", "x")
		r.bus.wants(t, fmt.Sprintf("version.activated /secret/a %d", i+1))
	}
	looks := r.calls("secret/metadata/", 200)
	testenv.Eventually(t, limit, "20 more looks", func() bool { return r.calls("secret/metadata/", 200) > looks+20 })
	if n := r.bus.heard("version.activated /secret/a 5"); n != 1 {
		t.Errorf("an unchanged secret was handed on %d times", n)
	}
	if r.bus.heard("version.activated /secret/gone 1") > 0 {
		t.Error("a version that was deleted is told as current")
	}
	if n := strings.Count(r.log.String(), `"msg":"there are no event notifications`); n != 1 {
		t.Errorf("it is said %d times that there are no notifications", n)
	}
	r.Enterprise(true)
	r.subscribed(t, 2)
	r.do(t, "secret/delete/a", map[string]any{"versions": []int{1}})
	r.bus.wants(t, "version.disabled /secret/a 1")
}

// Folders in folders, pages, namespaces and mounts with slashes.
func TestLooksEverywhere(t *testing.T) {
	r := newRig(t)
	r.Enterprise(false)
	r.Paged(true)
	r.Namespace("acme/prod")
	client := r.Client(vaultfake.Root, nil)
	client.SetNamespace("acme/prod")
	if _, err := client.Logical().WriteWithContext(t.Context(), "sys/mounts/team/kv", map[string]any{"type": "kv"}); err != nil {
		t.Fatal(err)
	}
	write := func(path string) {
		t.Helper()
		if _, err := client.Logical().WriteWithContext(t.Context(), "team/kv/data/"+path, map[string]any{"data": map[string]any{"x": 1}}); err != nil {
			t.Fatal(err)
		}
	}
	write("data")
	write("a/b/c/d/e")
	write("a/b")
	write("a/b--pending")
	const many = 1003
	for i := range many {
		write(fmt.Sprintf("many/%04d", i))
	}
	o := r.options()
	o.Namespace, o.Mounts, o.ResyncEvery = "acme/prod", []string{"/team/kv/"}, 10*time.Millisecond
	r.start(t, o)
	r.bus.wants(t, "version.activated acme%2Fprod/team%2Fkv/data 1", "version.activated acme%2Fprod/team%2Fkv/a/b/c/d/e 1", "version.activated acme%2Fprod/team%2Fkv/a/b 1",
		"version.activated acme%2Fprod/team%2Fkv/many/0000 1", fmt.Sprintf("version.activated acme%%2Fprod/team%%2Fkv/many/%04d 1", many-1))
}

// A bound on secrets holds, and is told.
func TestSecretsAreBounded(t *testing.T) {
	r := newRig(t)
	for i := range 20 {
		r.put(t, fmt.Sprintf("secret/data/%02d", i), "x")
	}
	o := r.options()
	o.MaxSecrets = 5
	r.start(t, o)
	testenv.Eventually(t, limit, "a warning", func() bool { return strings.Contains(r.log.String(), "limit_reached=true") })
	r.bus.mu.Lock()
	defer r.bus.mu.Unlock()
	if len(r.bus.events) != 5 {
		t.Errorf("%d events; expected 5", len(r.bus.events))
	}
}

func TestTokenIsAskedForAgain(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	asked, cur := 0, ""
	issue := func() {
		got, err := r.root.Logical().WriteWithContext(t.Context(), "auth/token/create", map[string]any{"policies": []string{"root"}})
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		cur = got.Auth.ClientToken
	}
	issue()
	o := r.options()
	o.Token = func(context.Context) (string, error) {
		mu.Lock()
		defer mu.Unlock()
		if asked++; asked == 1 {
			return "", errors.New("the token is " + cur)
		}
		return cur, nil
	}
	r.start(t, o)
	r.subscribed(t, 2)
	r.put(t, "secret/data/a", "x")
	r.bus.wants(t, "version.activated /secret/a 1")
	mu.Lock()
	old := cur
	mu.Unlock()
	issue()
	if _, err := r.Client(old, nil).Logical().WriteWithContext(t.Context(), "auth/token/revoke-self", nil); err != nil {
		t.Fatal(err)
	}
	r.CutEvents()
	r.subscribed(t, 2)
	r.put(t, "secret/data/a", "x")
	r.bus.wants(t, "version.activated /secret/a 2")
	if r.calls("sys/events/", http.StatusForbidden) == 0 {
		t.Error("the old token was never refused")
	}
	r.log.Check(t, old, cur)
}

// What cannot be a notification harms nothing: garbage goes to the handler,
// which keeps it, and what is too long ends the connection.
func TestForgedFrames(t *testing.T) {
	r := newRig(t)
	canary := leaktest.Canary()
	o := r.options()
	o.MaxMessage = 4096
	r.start(t, o)
	r.subscribed(t, 2)
	for _, frame := range []string{"", "garbage " + canary, `{"id":"` + canary + ` x","data":7}`, "null", "[]", "\x00\xff"} {
		r.SendFrame([]byte(frame))
	}
	testenv.Eventually(t, limit, "garbage to be refused", func() bool {
		r.bus.mu.Lock()
		defer r.bus.mu.Unlock()
		return r.bus.bad == 12
	})
	r.SendFrame([]byte(`{"id":"` + strings.Repeat(canary, 1000) + `"}`))
	testenv.Eventually(t, limit, "the connection to end", func() bool { return strings.Contains(r.log.String(), "longer than 4096 bytes") })
	r.subscribed(t, 2)
	r.put(t, "secret/data/a", canary)
	r.bus.wants(t, "version.activated /secret/a 1")
	r.log.Check(t, canary)
}

func TestNew(t *testing.T) {
	token := func(context.Context) (string, error) { return "t", nil }
	for name, o := range map[string]vaultevents.Options{
		"no address":     {Token: token},
		"http":           {Address: "http://vault.example.com:8200", Token: token},
		"no URL":         {Address: "vault.example.com:8200", Token: token},
		"a password":     {Address: "https://u:p@vault.example.com", Token: token},
		"no token":       {Address: "https://vault.example.com"},
		"an empty mount": {Address: "https://vault.example.com", Token: token, Mounts: []string{"/"}},
		"a type":         {Address: "https://vault.example.com", Token: token, Types: []string{"kv?x"}},
		"not verified":   {Address: "https://vault.example.com", Token: token, TLS: insecure()},
		"nor by client":  {Address: "https://vault.example.com", Token: token, HTTPClient: &http.Client{Transport: &http.Transport{TLSClientConfig: insecure()}}},
	} {
		if _, err := vaultevents.New(o); err == nil || strings.Contains(err.Error(), "u:p") {
			t.Errorf("%s: %v; expected an error", name, err)
		}
	}
	if _, err := vaultevents.New(vaultevents.Options{Address: "https://vault.example.com/", Token: token, Logger: slog.Default()}); err != nil {
		t.Error(err)
	}
}
