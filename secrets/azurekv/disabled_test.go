package azurekv_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/azurekv"
)

// pend stores a pending version and returns its id in the sibling.
func pend(t *testing.T, s *azurekv.Store, r ref.Ref, tok, value string) string {
	t.Helper()
	v, err := s.PutPending(t.Context(), r, tok, text(value))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimPrefix(v.ID, "pending/")
}

// A pending version that somebody disabled is not taken for one that was
// cleared: it may be live at the target.
func TestDisabledPending(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	for _, v := range []string{"v1", "v2", "v3"} { // cleared versions, on some pages
		rotate(t, s, r, v)
	}
	tok := token()
	id := pend(t, s, r, tok, "live")
	b.fake.SetEnabled(vault, pendingName(r), id, false)
	b.fake.ForgetCalls()
	at := "az keyvault secret set-attributes --vault-name " + vault + " --name " + pendingName(r) + " --version " + id
	for what, f := range map[string]func() error{
		"get":         func() error { _, err := s.Get(t.Context(), r, secrets.Pending); return err },
		"describe":    func() error { _, err := s.Describe(t.Context(), r); return err },
		"put pending": func() error { _, err := s.PutPending(t.Context(), r, token(), text("x")); return err },
		"put again":   func() error { _, err := s.PutPending(t.Context(), r, tok, text("live")); return err },
		"promote":     func() error { _, err := s.Promote(t.Context(), r, tok); return err },
		"discard":     func() error { return s.Discard(t.Context(), r, tok) },
		"check":       func() error { return s.Check(t.Context(), r) },
	} {
		want(t, what, f(), fault.Conflict, tok, at+" --enabled true", at+" --tags keyturn-pending-of="+r.Name+" keyturn-cleared=by-hand")
	}
	if w := b.fake.Writes(); len(w) > 0 {
		t.Errorf("beside a disabled pending version there were %v", w)
	}
	if got := stage(t, s, r, secrets.Current); got != "v3" {
		t.Errorf("current is %q", got)
	}

	// Enabled, as the error says, it goes on.
	b.fake.SetEnabled(vault, pendingName(r), id, true)
	if v, err := s.Promote(t.Context(), r, tok); err != nil || !v.Value.Equal(text("live")) {
		t.Errorf("promote what was enabled: %v", err)
	}
	// Discarded, as the error says, the next one begins.
	tok = token()
	id = pend(t, s, r, tok, "not live")
	b.fake.SetEnabled(vault, pendingName(r), id, false)
	b.fake.SetTags(vault, pendingName(r), id, map[string]string{"keyturn-pending-of": r.Name, "keyturn-cleared": "by-hand"})
	if err := s.Discard(t.Context(), r, tok); err != nil {
		t.Errorf("discard what was discarded by hand: %v", err)
	}
	rotate(t, s, r, "v4")
}

// A disabled secret of somebody's in the sibling's place is not written to,
// and one that was made beforehand is empty, enabled or not.
func TestDisabledSibling(t *testing.T) {
	b := newBackend(t).(*backend)
	r, pre := b.Create(t, text("v0")), b.Create(t, text("v0"))
	s := b.open(nil)
	mine := b.fake.Put(vault, pendingName(r), azurefake.Version{Value: "somebody's"})
	b.fake.SetEnabled(vault, pendingName(r), mine, false)
	_, err := s.PutPending(t.Context(), r, token(), text("v1"))
	want(t, "put pending", err, fault.Conflict, "is not the sibling of", "rename one of them")
	if all := b.fake.Versions(vault, pendingName(r)); len(all) != 1 {
		t.Errorf("somebody's secret has %d versions", len(all))
	}
	empty := b.fake.Put(vault, pendingName(pre), azurefake.Version{Value: "-", Tags: map[string]string{"keyturn-pending-of": pre.Name}})
	b.fake.SetEnabled(vault, pendingName(pre), empty, false)
	rotate(t, s, pre, "v1")
}

// A deleted sibling with a disabled pending version comes back, and is not
// overwritten.
func TestDeletedDisabledPending(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	id := pend(t, s, r, "t1", "live")
	b.fake.SetEnabled(vault, pendingName(r), id, false)
	b.fake.Remove(vault, pendingName(r))
	_, err := s.PutPending(t.Context(), r, "t2", text("x"))
	want(t, "put pending", err, fault.Conflict, "t1", "--enabled true")
	if all := b.fake.Versions(vault, pendingName(r)); len(all) != 1 || all[0].Value != "live" {
		t.Errorf("the sibling is %+v", all)
	}
}

// What changes between the look at the newest version and the list of all.
func TestDisabledPendingMeanwhile(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	rotate(t, s, r, "v1")
	id := pend(t, s, r, "t1", "live")
	b.fake.SetEnabled(vault, pendingName(r), id, false)
	// hooked returns a store that lists the sibling's versions after f.
	hooked := func(f func()) *azurekv.Store {
		n := 1
		return b.open(nil, func(o *azurekv.Options) {
			o.Client.Transport = &http.Client{Transport: nth{b.fake.Transport(), func(q *http.Request) bool {
				return strings.HasSuffix(q.URL.Path, "/"+pendingName(r)+"/versions")
			}, &n, f}}
		})
	}
	_, err := hooked(func() { b.fake.SetEnabled(vault, pendingName(r), id, true) }).Get(t.Context(), r, secrets.Pending)
	want(t, "one that was enabled meanwhile", err, fault.Conflict, "read it again")
	if got := stage(t, s, r, secrets.Pending); got != "live" {
		t.Errorf("pending is %q", got)
	}
	// What a twin left, enabled, before the newest one: it was overwritten.
	if err := s.Discard(t.Context(), r, "t1"); err != nil {
		t.Fatal(err)
	}
	b.fake.Put(vault, pendingName(r), azurefake.Version{Value: "twin's", Tags: map[string]string{"keyturn-pending-of": r.Name, "keyturn-token": "twin"}})
	cleared := b.fake.Put(vault, pendingName(r), azurefake.Version{Value: "x", Tags: map[string]string{"keyturn-pending-of": r.Name, "keyturn-cleared": "now"}})
	b.fake.SetEnabled(vault, pendingName(r), cleared, false)
	if got := stage(t, s, r, secrets.Pending); got != "" {
		t.Errorf("pending is %q", got)
	}
	rotate(t, s, r, "v2")
	// The list fails: nobody knows.
	b.fake.Deny(azurefake.List)
	_, err = s.Get(t.Context(), r, secrets.Pending)
	want(t, "without list", err, fault.Denied)
	b.fake.Allow(azurefake.List)
}
