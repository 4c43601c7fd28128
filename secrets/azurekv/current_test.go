package azurekv_test

import (
	"maps"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/secrets"
)

// Ages are told in whole seconds and lists come in the order of random ids:
// what is current and previous must not depend on either.
func TestManyVersionsInOneSecond(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	last := "v0"
	for _, v := range []string{"v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8"} {
		got := rotate(t, s, r, v)
		if c, p := stage(t, s, r, secrets.Current), stage(t, s, r, secrets.Previous); c != v || p != last {
			t.Fatalf("current is %q and previous %q, expected %q and %q", c, p, v, last)
		}
		d, err := s.Describe(t.Context(), r)
		if err != nil || d.Holder(secrets.Current).ID != got.ID || !d.Has(got.Token, secrets.Current) {
			t.Fatalf("described as %+v, %v", d, err)
		}
		last = v
	}
}

// Somebody writes a version by hand: it is current, belongs to no rotation,
// and what was current is previous, even if the tags were taken along.
func TestWrittenByHand(t *testing.T) {
	for name, copied := range map[string]bool{"without tags": false, "with the tags of the version before": true} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t).(*backend)
			r := b.Create(t, text("v0"))
			s := b.open(nil)
			v1 := rotate(t, s, r, "v1")
			b.fake.Advance(time.Minute)
			by := azurefake.Version{Value: "by hand"}
			if copied {
				by.Tags = maps.Clone(newest(b, r).Tags)
			}
			id := b.fake.Put(vault, r.Name, by)
			check := func() {
				t.Helper()
				d, err := s.Describe(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				c, p := d.Holder(secrets.Current), d.Holder(secrets.Previous)
				if c.ID != id || c.Token != "" || p == nil || p.ID != v1.ID || p.Token != v1.Token {
					t.Errorf("current is %+v and previous %+v, expected %s without a token and %s", c, p, id, v1.ID)
				}
			}
			check()
			if err := s.Disable(t.Context(), r, v1.ID); err != nil {
				t.Fatal(err)
			}
			check()
			v2 := rotate(t, s, r, "v2")
			if d, err := s.Describe(t.Context(), r); err != nil || !d.Has(v2.Token, secrets.Current) || d.Holder(secrets.Previous).ID != id {
				t.Errorf("after a rotation the secret is %+v, %v", d, err)
			}
		})
	}
}

// A promotion that was done twice is one: its predecessor is what it
// superseded, not its twin.
func TestTwinsOfOneRotation(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	v1 := rotate(t, s, r, "v1")
	b.fake.Advance(time.Minute)
	twin := b.fake.Put(vault, r.Name, azurefake.Version{Value: "v1", Tags: newest(b, r).Tags})
	again, err := s.Promote(t.Context(), r, v1.Token)
	if err != nil || again.ID != twin {
		t.Errorf("promote again: %+v, %v; expected version %s", again, err, twin)
	}
	if p := stage(t, s, r, secrets.Previous); p != "v0" {
		t.Errorf("previous is %q, expected v0", p)
	}
}

// Whoever manages the tags takes ours away: the version is then one that was
// written by hand, and rotations go on.
func TestTagsTakenAway(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	b.fake.Advance(time.Minute)
	v1 := rotate(t, s, r, "v1")
	b.fake.SetTags(vault, r.Name, v1.ID, map[string]string{"managed": "elsewhere"})
	if c, p := stage(t, s, r, secrets.Current), stage(t, s, r, secrets.Previous); c != "v1" || p != "v0" {
		t.Errorf("current is %q and previous %q", c, p)
	}
	rotate(t, s, r, "v2")
	if c, p := stage(t, s, r, secrets.Current), stage(t, s, r, secrets.Previous); c != "v2" || p != "v1" {
		t.Errorf("current is %q and previous %q", c, p)
	}
}

// If they are taken away in the middle of a promotion, it is still recognized,
// and noted again.
func TestTagsTakenAwayBeforeTheSiblingIsCleared(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	tok := token()
	if _, err := s.PutPending(t.Context(), r, tok, text("v1")); err != nil {
		t.Fatal(err)
	}
	b.fake.Put(vault, r.Name, azurefake.Version{Value: "v1"}) // appended, tags gone
	v, err := s.Promote(t.Context(), r, tok)
	if err != nil {
		t.Fatal(err)
	}
	got := newest(b, r)
	if got.ID != v.ID || got.Tags["keyturn-token"] != tok || got.Tags["keyturn-previous"] == "" || len(b.fake.Versions(vault, r.Name)) != 2 {
		t.Errorf("the newest version is %+v, expected it to be noted as %s", got, tok)
	}
	if p := stage(t, s, r, secrets.Previous); p != "v0" {
		t.Errorf("previous is %q", p)
	}
}

// Whoever disables the newest version locks every plain reader out. That is
// told, and a rotation mends it.
func TestNewestIsDisabled(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	v1 := rotate(t, s, r, "v1")
	b.fake.SetEnabled(vault, r.Name, v1.ID, false)
	_, err := s.Get(t.Context(), r, secrets.Current)
	want(t, "get current", err, fault.Denied, "SecretDisabled", "enable it")
	d, err := s.Describe(t.Context(), r)
	if err != nil || d.Holder(secrets.Current).ID != v1.ID || !d.Holder(secrets.Current).Disabled {
		t.Fatalf("described as %+v, %v; expected %s as current and disabled", d, err, v1.ID)
	}
	if p := stage(t, s, r, secrets.Previous); p != "v0" {
		t.Errorf("previous is %q", p)
	}
	rotate(t, s, r, "v2")
	if c := stage(t, s, r, secrets.Current); c != "v2" {
		t.Errorf("current is %q", c)
	}
	b.fake.SetEnabled(vault, r.Name, newest(b, r).ID, false)
	if err := s.Enable(t.Context(), r, newest(b, r).ID); err != nil {
		t.Errorf("enable the newest version: %v", err)
	}
	if c := stage(t, s, r, secrets.Current); c != "v2" {
		t.Errorf("current is %q", c)
	}
}

// A deleted secret is not there; it is for whoever deleted it to bring back.
func TestDeletedSecret(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	b.fake.Remove(vault, r.Name)
	_, err := s.Get(t.Context(), r, secrets.Current)
	want(t, "get", err, fault.NotFound, "recover it")
	_, err = s.PutPending(t.Context(), r, token(), text("v1"))
	want(t, "put pending", err, fault.NotFound)
	_, err = s.CreateSecret(t.Context(), r, text("v1"))
	want(t, "create", err, fault.Conflict, "keeps its name until it is purged")
	if !b.fake.Deleted(vault, r.Name) {
		t.Error("the main secret was recovered")
	}
}

// The answer of the call that creates is lost: the tag tells that it was ours.
func TestCreateWhoseAnswerWasLost(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.fake.Ref(vault, name())
	s := b.open(nil)
	b.fake.FailNext("set", azurefake.Failure{Status: 500, Code: "InternalServerError", AfterEffect: true})
	v, err := s.CreateSecret(t.Context(), r, text("v0"))
	if err != nil || v.ID != newest(b, r).ID || string(v.Value.Reveal()) != "v0" {
		t.Errorf("created %+v, %v", v, err)
	}
	b.fake.FailNext("set", azurefake.Failure{Status: 500, Code: "InternalServerError"})
	_, err = s.CreateSecret(t.Context(), b.fake.Ref(vault, name()), text("v0"))
	want(t, "create that failed", err, fault.Unavailable)
	_, err = s.CreateSecret(t.Context(), r, text("v1"))
	want(t, "create again", err, fault.Conflict, "exists already")
}
