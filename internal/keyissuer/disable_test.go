package keyissuer_test

import (
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/internal/keyissuer"
)

// A disabled key is refused until it is enabled, by whichever process.
func TestDisableAndEnable(t *testing.T) {
	file := filepath.Join(t.TempDir(), "issuer.json")
	s := start(t, keyissuer.Options{MaxKeys: 1, File: file})
	k, secret, err := s.Issuer.Create("acme", "first")
	if err != nil {
		t.Fatal(err)
	}
	keys := s.URL + "/v1/projects/acme/keys"
	ask := func(method, what, token string, want int) {
		t.Helper()
		if got, _ := do(t, method, keys+"/"+what, token, ""); got != want {
			t.Errorf("%s %s answered %d; want %d", method, what, got, want)
		}
	}
	verify := func(want int) {
		t.Helper()
		if got, _ := do(t, "GET", s.URL+"/v1/verify", secret, ""); got != want {
			t.Errorf("verify answered %d; want %d", got, want)
		}
	}
	ask("POST", k.ID+"/disable", secret, 403)
	ask("GET", k.ID+"/disable", admin, 405)
	ask("POST", "key_none/disable", admin, 404)
	ask("POST", k.ID+"/forget", admin, 404)
	if got, _ := do(t, "POST", s.URL+"/v1/projects/globex/keys/"+k.ID+"/disable", admin, ""); got != 404 {
		t.Errorf("another project's key: answered %d; want 404", got)
	}
	verify(200)
	for range 2 {
		ask("POST", k.ID+"/disable", admin, 204)
		verify(401)
	}
	if _, v := do(t, "GET", keys, admin, ""); v["data"].([]any)[0].(map[string]any)["disabled"] != true {
		t.Errorf("the list is %v; want the key disabled in it", v)
	}
	again, err := keyissuer.New(keyissuer.Options{AdminKey: admin, File: file})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := again.Verify(secret); ok {
		t.Error("the key was enabled by a restart")
	}
	// It is not live, so there is room for another, and then none for it.
	other, _, err := s.Issuer.Create("acme", "second")
	if err != nil {
		t.Fatal(err)
	}
	ask("POST", k.ID+"/enable", admin, 429)
	verify(401)
	ask("DELETE", other.ID, admin, 204)
	for range 2 {
		ask("POST", k.ID+"/enable", admin, 204)
		verify(200)
	}
	ask("DELETE", k.ID, admin, 204)
	ask("POST", k.ID+"/enable", admin, 404)
}
