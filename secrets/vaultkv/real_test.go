//go:build realvault

package vaultkv_test

import (
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/vaultfake/realvault"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/storetest"
)

// The same tests on a real Vault: make test-vault.

func real(t *testing.T) *target {
	t.Helper()
	s := realvault.Start(t)
	return &target{url: s.URL, transport: s.Transport}
}

func TestRealStore(t *testing.T) {
	tg := real(t)
	storetest.Run(t, func(t *testing.T) storetest.Backend {
		mount, _ := tg.mount(t)
		return &backend{target: tg, mount: mount}
	})
}

func TestRealFacts(t *testing.T) {
	tg := real(t)
	for _, f := range facts {
		t.Run(f.name, func(t *testing.T) { f.run(t, tg) })
	}
	t.Run("version 1 of the engine", func(t *testing.T) { testVersion1(t, tg) })
}

// An engine of version 1 takes any path, data/x among them: nothing there may
// look like a secret.
func testVersion1(t *testing.T, tg *target) {
	mount := "v1-" + word()
	tg.must(t, "POST", "sys/mounts/"+mount, kv{"type": "kv", "options": kv{"version": "1"}})
	tg.must(t, "POST", mount+"/x", kv{"password": "p"})
	s := tg.store(t, nil)
	r := mkref(t, "", mount, "x")
	_, err := s.Get(t.Context(), r, secrets.Current)
	wantErr(t, "get", err, fault.NotFound)
	_, err = s.PutPending(t.Context(), r, word(), secrets.NewString("v"))
	wantErr(t, "put pending", err, fault.NotFound)
	_, err = s.CreateSecret(t.Context(), r, secrets.NewString("v"))
	wantErr(t, "create", err, fault.Invalid, "enable-versioning")
	if status, _ := tg.call(t, "GET", mount+"/data/x", nil); status != 404 {
		t.Errorf("create left something behind: status %d", status)
	}
}
