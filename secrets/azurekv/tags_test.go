package azurekv_test

import (
	"maps"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/secrets"
)

// The tags of the newest version, whatever its state, from the list of
// versions: nobody reads a value, and nobody may have to.
func TestTags(t *testing.T) {
	b := newBackend(t).(*backend)
	s := b.open(nil)
	n := name()
	r := b.fake.Ref(vault, n)
	b.fake.Put(vault, n, azurefake.Version{Value: "1", Tags: map[string]string{"tenant": "old"}})
	for range 4 { // several pages
		b.fake.Advance(time.Minute)
		b.fake.Put(vault, n, azurefake.Version{Value: "2"})
	}
	b.fake.Advance(time.Minute)
	want := map[string]string{"Tenant": "acme", "empty": ""}
	last := b.fake.Put(vault, n, azurefake.Version{Value: "3", Tags: map[string]string{"Tenant": "acme", "empty": "", "keyturn-token": "t"}})
	b.fake.Deny(azurefake.Get, azurefake.Set, azurefake.Update)
	for _, enabled := range []bool{true, false} {
		b.fake.SetEnabled(vault, n, last, enabled)
		if got, err := s.Tags(t.Context(), r); err != nil || !maps.Equal(got, want) {
			t.Errorf("enabled %t: tags %v, %v; expected %v", enabled, got, err, want)
		}
	}
	b.fake.Deny(azurefake.List)
	if _, err := s.Tags(t.Context(), r); !fault.Is(err, fault.Denied) {
		t.Errorf("without permission: %v; expected Denied", err)
	}
	b.fake.Allow(azurefake.List)
	b.fake.Remove(vault, n)
	if _, err := s.Tags(t.Context(), r); !fault.Is(err, fault.NotFound) {
		t.Errorf("a deleted secret: %v; expected NotFound", err)
	}
	if _, err := s.Tags(t.Context(), secrets.Ref{Provider: r.Provider, Scope: vault, Name: "UPPER"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("another spelling: %v; expected Invalid", err)
	}
}
