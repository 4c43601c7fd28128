package vaultevents_test

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/testenv"
)

// A token that may read a part of the metadata only is kept: whoever signed in
// anew for each folder that is denied would fill Vault with tokens.
func TestDeniedPartsCostNoTokens(t *testing.T) {
	r := newRig(t)
	r.Enterprise(false)
	r.put(t, "secret/data/mine/a", "x")
	const others = 50
	for i := range others {
		r.put(t, fmt.Sprintf("secret/data/other%d/a", i), "x")
	}
	r.do(t, "sys/policies/acl/part", map[string]any{"policy": `path "sys/events/subscribe/*" { capabilities = ["read"] }
path "secret/metadata/" { capabilities = ["list"] }
path "secret/metadata/mine/*" { capabilities = ["read", "list"] }`})
	var asked atomic.Int32
	o := r.options()
	o.Token = func(ctx context.Context) (string, error) {
		asked.Add(1)
		got, err := r.root.Logical().WriteWithContext(ctx, "auth/token/create", map[string]any{"policies": []string{"part"}})
		if err != nil {
			return "", err
		}
		return got.Auth.ClientToken, nil
	}
	o.ResyncEvery = 10 * time.Millisecond
	r.start(t, o)
	r.bus.wants(t, "version.activated /secret/mine/a 1")
	testenv.Eventually(t, limit, "three looks", func() bool { return r.calls("secret/metadata/other", http.StatusForbidden) >= 3*others })
	if n := asked.Load(); n != 1 {
		t.Errorf("%d tokens were asked for; expected one", n)
	}
}

// A mount that is not there is asked for again, and the others are not looked
// at each time.
func TestMissingMountLeavesOthersAlone(t *testing.T) {
	r := newRig(t)
	for i := range 5 {
		r.put(t, fmt.Sprint("secret/data/s", i), "x")
	}
	o := r.options()
	o.Mounts = []string{"secret", "later"}
	o.ResyncEvery, o.FullResyncEvery = 10*time.Millisecond, time.Hour
	r.start(t, o)
	r.subscribed(t, 2)
	r.bus.wants(t, "version.activated /secret/s4 1")
	testenv.Eventually(t, limit, "looks for the mount", func() bool { return r.calls("later/metadata/", http.StatusNotFound) > 20 })
	// One look at the start, and one that each subscription asks for.
	if n := r.calls("secret/metadata/s", http.StatusOK); n > 3*5 {
		t.Errorf("the other mount's secrets were read %d times; expected at most 15", n)
	}
	if _, err := r.root.Logical().WriteWithContext(t.Context(), "sys/mounts/later", map[string]any{"type": "kv", "options": map[string]any{"version": "2"}}); err != nil {
		t.Fatal(err)
	}
	r.CutEvents()
	r.put(t, "later/data/x", "x")
	r.bus.wants(t, "version.activated /later/x 1")
}
