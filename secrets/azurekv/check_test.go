package azurekv_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/azurekv"
)

func TestCheck(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	if err := s.Check(t.Context(), r); err != nil {
		t.Error(err)
	}
	if !strings.Contains(b.Logs(), "set, update and recover secrets shows only when it does") {
		t.Error("the log does not say what could not be told")
	}
	rotate(t, s, r, "v1")
	b.fake.ForgetCalls()
	if err := s.Check(t.Context(), r); err != nil {
		t.Error(err)
	}
	if w := b.fake.Writes(); len(w) > 0 {
		t.Errorf("check wrote %v", w)
	}
	missing := r
	missing.Name += "-missing"
	want(t, "check of a secret that is not there", s.Check(t.Context(), missing), fault.NotFound)

	b.fake.Deny(azurefake.Get, azurefake.List)
	want(t, "check without permissions", s.Check(t.Context(), r), fault.Denied,
		"get (getSecret) on "+r.Name+", ", "list (readMetadata)", "on "+pendingName(r)+";", "set, update and recover")
	b.fake.Allow(azurefake.Get)
	err := s.Check(t.Context(), r)
	want(t, "check without list", err, fault.Denied, "lacks list (readMetadata)")
	if strings.Contains(err.Error(), "lacks get") {
		t.Errorf("what is there is called missing: %v", err)
	}
}

func TestOrphans(t *testing.T) {
	b := newBackend(t).(*backend)
	s := b.open(nil)
	live, deleted, gone, done := b.Create(t, text("v0")), b.Create(t, text("v0")), b.Create(t, text("v0")), b.Create(t, text("v0"))
	for _, r := range []secrets.Ref{live, deleted, gone} {
		if _, err := s.PutPending(t.Context(), r, token(), text("v1")); err != nil {
			t.Fatal(err)
		}
	}
	rotate(t, s, done, "v1")
	b.fake.Remove(vault, deleted.Name)
	b.fake.Forget(vault, gone.Name)
	b.fake.Forget(vault, done.Name) // its sibling is cleared, and disabled
	// What looks like a sibling and is none.
	b.fake.Put(vault, "somebodys--pending", azurefake.Version{Value: "x"})
	b.fake.Put(vault, "copy", azurefake.Version{Value: "x", Tags: map[string]string{"keyturn-pending-of": gone.Name}})
	b.fake.Put(vault, "odd--pending", azurefake.Version{Value: "x", Tags: map[string]string{"keyturn-pending-of": "../odd"}})

	anyRef := b.fake.Ref(vault, "any")
	got, err := s.Orphans(t.Context(), anyRef)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[secrets.Ref]secrets.Orphan{}
	for _, o := range got {
		ids[o.Ref] = o
	}
	if len(got) != 2 || ids[gone].ID == "" || ids[done].ID == "" {
		t.Fatalf("orphans are %v, expected the siblings of %s and %s", got, gone, done)
	}

	// It is back before it is removed.
	b.fake.Put(vault, done.Name, azurefake.Version{Value: "v0"})
	want(t, "remove the sibling of a secret that is back", s.RemoveOrphan(t.Context(), ids[done]), fault.Conflict, "is there")
	want(t, "remove what is no sibling", s.RemoveOrphan(t.Context(), secrets.Orphan{Ref: gone, ID: "https://x/secrets/copy"}), fault.Invalid)
	want(t, "remove the sibling of a deleted secret",
		s.RemoveOrphan(t.Context(), secrets.Orphan{Ref: deleted, ID: "https://x/secrets/" + pendingName(deleted)}), fault.Conflict, "can be recovered")
	somebodys := b.fake.Ref(vault, "somebodys")
	want(t, "remove somebody's secret",
		s.RemoveOrphan(t.Context(), secrets.Orphan{Ref: somebodys, ID: "https://x/secrets/somebodys--pending"}), fault.Conflict, "not tagged")
	for range 2 {
		if err := s.RemoveOrphan(t.Context(), ids[gone]); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.Orphans(t.Context(), anyRef); err != nil || len(got) != 0 {
		t.Errorf("orphans are %v, %v; expected none", got, err)
	}
	// The secret is made anew: its sibling comes back when it is needed, and
	// what was pending for the old one is not lost.
	b.fake.Put(vault, gone.Name, azurefake.Version{Value: "v0"})
	_, err = s.PutPending(t.Context(), gone, token(), text("v1"))
	want(t, "put pending beside what was recovered", err, fault.Conflict, "is unfinished")
}

// A vault of many secrets is listed page by page, and an outage in the middle
// is no short list.
func TestOrphansOfAFullVault(t *testing.T) {
	b := newBackend(t).(*backend)
	b.fake.SetPageSize(25)
	for i := range 60 {
		tags := map[string]string{"keyturn-pending-of": fmt.Sprintf("gone-%02d", i)}
		b.fake.Put(vault, fmt.Sprintf("gone-%02d--pending", i), azurefake.Version{Value: "x", Tags: tags})
	}
	s := b.open(nil, func(o *azurekv.Options) { o.Client.Retry.MaxRetries = -1 })
	got, err := s.Orphans(t.Context(), b.fake.Ref(vault, "any"))
	if err != nil || len(got) != 60 {
		t.Errorf("%d orphans, %v; expected 60", len(got), err)
	}
	b.fake.FailNext("list", azurefake.Failure{}, azurefake.Failure{Status: 503, Code: "ServiceUnavailable"})
	_, err = s.Orphans(t.Context(), b.fake.Ref(vault, "any"))
	want(t, "orphans with an outage", err, fault.Unavailable)
}
