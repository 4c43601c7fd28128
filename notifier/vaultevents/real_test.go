//go:build realvault

package vaultevents_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/vaultfake/realvault"
	"github.com/keyturn/keyturn/ref"
)

// trap 42, on a real Vault of the community edition: it answers 404, and its
// metadata tells of each write, with the id of the write's announcement.
func TestRealVaultFallsBack(t *testing.T) {
	v := realvault.Start(t)
	client, err := api.NewClient(&api.Config{Address: v.URL, HttpClient: &http.Client{Transport: v.Transport}, Timeout: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	client.SetToken(realvault.Root)
	r := &rig{bus: newBus()}
	r.Server = nil // there is a real one
	r.root = client
	r.put(t, "secret/data/a b/c", "x")
	o := options(v.URL, realvault.Root, &r.log)
	o.TLS, o.ResyncEvery = v.Transport.TLSClientConfig, 20*time.Millisecond
	r.start(t, o)
	r.bus.wants(t, "version.activated /secret/a%20b/c 1")
	r.put(t, "secret/data/a b/c", "y")
	r.put(t, "secret/data/a b/c--pending", "z")
	r.bus.wants(t, "version.activated /secret/a%20b/c 2")
	name := ref.Ref{Provider: ref.Vault, Scope: "main//secret", Name: "a b/c"}
	r.bus.mu.Lock()
	defer r.bus.mu.Unlock()
	if _, ok := r.bus.events[events.SemanticID(events.VersionActivated, name, "2")]; !ok || len(r.bus.events) != 2 {
		t.Errorf("events %v; expected the two writes", r.bus.count)
	}
	if n := strings.Count(r.log.String(), `"msg":"there are no event notifications`); n != 1 {
		t.Errorf("it is said %d times that there are no notifications", n)
	}
}
