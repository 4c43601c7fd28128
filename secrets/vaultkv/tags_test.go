package vaultkv_test

import (
	"maps"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// Custom metadata without the notes, by a token that may not read data.
func TestTags(t *testing.T) {
	tg := fake(t)
	mount, named := tg.mount(t)
	s := tg.store(t, nil)
	r := named("team/db")
	if _, err := s.CreateSecret(t.Context(), r, secrets.NewString("one")); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"tenant": "acme", "keyturn-tenant": "acme", "keyturn-0": "x"}
	tg.must(t, "PATCH", mount+"/metadata/team/db", kv{"custom_metadata": want})
	if _, err := s.PutPending(t.Context(), r, "token-1", secrets.NewString("two")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Promote(t.Context(), r, "token-1"); err != nil {
		t.Fatal(err)
	}
	tg.must(t, "PUT", "sys/policies/acl/tags", kv{"policy": `path "` + mount + `/metadata/*" { capabilities = ["read"] }`})
	_, out := tg.call(t, "POST", "auth/token/create", kv{"policies": []string{"tags"}})
	auth, _ := out["auth"].(map[string]any)
	token, _ := auth["client_token"].(string)
	reader, err := vaultkv.New(tg.client(t, token, tg.transport), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := reader.Tags(t.Context(), r); err != nil || !maps.Equal(got, want) {
		t.Errorf("tags %v, %v; expected %v", got, err, want)
	}
	if _, err := reader.Get(t.Context(), r, secrets.Current); !fault.Is(err, fault.Denied) {
		t.Errorf("the token reads data: %v; expected Denied", err)
	}
	tg.must(t, "DELETE", mount+"/data/team/db", nil)
	if got, err := reader.Tags(t.Context(), r); err != nil || !maps.Equal(got, want) {
		t.Errorf("deleted: tags %v, %v; expected %v", got, err, want)
	}
	tg.must(t, "DELETE", mount+"/metadata/team/db", nil)
	if _, err := reader.Tags(t.Context(), r); !fault.Is(err, fault.NotFound) {
		t.Errorf("gone: %v; expected NotFound", err)
	}
}
