package azurekv_test

import (
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/azurekv"
)

// What was promoted or discarded cannot be read any more, and the sibling is
// not deleted: its name would be blocked.
func TestSiblingIsClearedNotDeleted(t *testing.T) {
	b := newBackend(t).(*backend)
	b.fake.SetPurgeProtection(vault, true)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	rotate(t, s, r, "v1")
	tok := token()
	if _, err := s.PutPending(t.Context(), r, tok, text("dropped")); err != nil {
		t.Fatal(err)
	}
	if err := s.Discard(t.Context(), r, tok); err != nil {
		t.Fatal(err)
	}
	rotate(t, s, r, "v2")
	if d := b.fake.Calls("delete", "purge", "recover"); len(d) > 0 || b.fake.Deleted(vault, pendingName(r)) {
		t.Errorf("the sibling was deleted: %v", d)
	}
	all := b.fake.Versions(vault, pendingName(r))
	if len(all) != 3 {
		t.Errorf("the sibling has %d versions, expected 3", len(all))
	}
	for _, v := range all {
		if v.Enabled || v.Tags["keyturn-cleared"] == "" || v.Tags["keyturn-token"] != "" {
			t.Errorf("version %s of the sibling is %+v, expected it to be cleared", v.ID, v)
		}
	}
	// Enabled again by somebody, it still is no pending version.
	b.fake.SetEnabled(vault, pendingName(r), all[2].ID, true)
	if got := stage(t, s, r, secrets.Pending); got != "" {
		t.Errorf("a cleared version is pending again: %q", got)
	}
	rotate(t, s, r, "v3")
}

// A sibling that somebody deleted comes back when it is needed, however long
// the service takes over it.
func TestDeletedSibling(t *testing.T) {
	for name, lag := range map[string]int{"at once": 0, "after a while": 3} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t).(*backend)
			b.fake.SetPurgeProtection(vault, true)
			r := b.Create(t, text("v0"))
			s := b.open(nil)
			rotate(t, s, r, "v1")
			b.fake.SetLag(lag)
			b.fake.Remove(vault, pendingName(r))
			rotate(t, s, r, "v2")
			if c, p := stage(t, s, r, secrets.Current), stage(t, s, r, secrets.Previous); c != "v2" || p != "v1" {
				t.Errorf("current is %q and previous %q", c, p)
			}
		})
	}
}

// One that was deleted while a rotation was pending may hold the only trace of
// a live credential: it is brought back, not overwritten.
func TestDeletedSiblingHeldAPendingVersion(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	tok := token()
	if _, err := s.PutPending(t.Context(), r, tok, text("v1")); err != nil {
		t.Fatal(err)
	}
	b.fake.SetLag(2)
	b.fake.Remove(vault, pendingName(r))
	_, err := s.PutPending(t.Context(), r, token(), text("another's"))
	want(t, "put pending of another rotation", err, fault.Conflict, tok)
	b.fake.Remove(vault, pendingName(r))
	v, err := s.PutPending(t.Context(), r, tok, text("another value"))
	if err != nil || string(v.Value.Reveal()) != "v1" {
		t.Errorf("put pending again: %+v, %v; expected the value that was stored first", v, err)
	}
}

func TestRecoveryThatFails(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	rotate(t, b.open(nil), r, "v1")
	b.fake.Remove(vault, pendingName(r))

	b.fake.Deny(azurefake.Recover)
	_, err := b.open(nil).PutPending(t.Context(), r, token(), text("v2"))
	want(t, "put pending without the permission", err, fault.Denied, "recover/action", "recover the deleted secret "+pendingName(r))
	b.fake.Allow(azurefake.Recover)

	// It never comes back: the wait ends.
	b.fake.SetLag(1 << 20)
	s := b.open(nil, func(o *azurekv.Options) { o.RecoveryWait = 50 * time.Millisecond })
	_, err = s.PutPending(t.Context(), r, token(), text("v2"))
	want(t, "put pending beside a recovery without end", err, fault.Unavailable, "not back yet")
	if fault.ClassOf(err) != fault.ClassTimeout {
		t.Errorf("the error's class is %q", fault.ClassOf(err))
	}
}

// Two secrets of somebody's may be named so that one looks like the sibling of
// the other.
func TestForeignSibling(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	b.fake.Put(vault, pendingName(r), azurefake.Version{Value: "somebody's"})
	s := b.open(nil)
	_, err := s.PutPending(t.Context(), r, token(), text("v1"))
	want(t, "put pending", err, fault.Conflict, "is not the sibling of", "rename one of them")
	if all := b.fake.Versions(vault, pendingName(r)); len(all) != 1 || !all[0].Enabled {
		t.Errorf("somebody's secret was changed: %+v", all)
	}
	if got := stage(t, s, r, secrets.Current); got != "v0" {
		t.Errorf("current is %q", got)
	}
	// Made beforehand and tagged, it is one: where roles are given by secret.
	pre := b.Create(t, text("v0"))
	b.fake.Put(vault, pendingName(pre), azurefake.Version{Value: "-", Tags: map[string]string{"keyturn-pending-of": pre.Name}})
	rotate(t, s, pre, "v1")
}

// Main is looked at once more before anything is written.
func TestMovedMeanwhile(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	d, err := s.Describe(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	b.fake.Put(vault, r.Name, azurefake.Version{Value: "by hand"})
	_, err = s.PutPendingAfter(t.Context(), r, token(), d.Holder(secrets.Current).ID, text("v1"))
	want(t, "put pending after a version that is gone", err, fault.Conflict)
	if all := b.fake.Versions(vault, pendingName(r)); len(all) > 0 {
		t.Errorf("a refused put wrote %d versions", len(all))
	}
}

func TestTokens(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	_, err := s.PutPending(t.Context(), r, strings.Repeat("t", 257), text("v1"))
	want(t, "put pending with a long token", err, fault.Invalid, "256")
	_, err = s.PutPending(t.Context(), r, "\xff", text("v1"))
	want(t, "put pending with a broken token", err, fault.Invalid, "UTF-8")
	longest := strings.Repeat("t", 256)
	if _, err := s.PutPending(t.Context(), r, longest, text("v1")); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Promote(t.Context(), r, longest); err != nil || v.Token != longest {
		t.Errorf("promote with the longest token: %v", err)
	}
}
