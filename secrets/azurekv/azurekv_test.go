package azurekv_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/azurekv"
)

const day = 24 * time.Hour

// in returns a time on the wire.
func in(d time.Duration) *int64 {
	t := time.Now().Add(d).Unix()
	return &t
}

func newest(b *backend, r ref.Ref) azurefake.Version {
	all := b.fake.Versions(vault, r.Name)
	return all[len(all)-1]
}

// What the secret carries goes with it, what belongs to one version does not.
func TestCarriedOver(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.fake.Ref(vault, name())
	first := b.fake.Put(vault, r.Name, azurefake.Version{
		Value: "v0", ContentType: "application/json", Tags: map[string]string{"team": "payments", "env": "prod"},
		NotBefore: in(-day), Expires: in(90 * day),
	})
	s := b.open(nil)
	v1 := rotate(t, s, r, "v1")
	v2 := rotate(t, s, r, "v2")

	got := newest(b, r)
	if got.ID != v2.ID || got.Value != "v2" || got.ContentType != "application/json" || !got.Enabled {
		t.Errorf("the newest version is %s of type %q, enabled: %t", got.ID, got.ContentType, got.Enabled)
	}
	wantTags := map[string]string{"team": "payments", "env": "prod", "keyturn-token": v2.Token, "keyturn-previous": v1.ID}
	if fmt.Sprint(got.Tags) != fmt.Sprint(wantTags) {
		t.Errorf("its tags are %v, expected %v", got.Tags, wantTags)
	}
	if got.NotBefore != nil {
		t.Error("a not-before time was carried over")
	}
	// As long as the first one was valid, from now on.
	if got.Expires == nil || *got.Expires < *in(89 * day) || *got.Expires > *in(91 * day) {
		t.Errorf("it expires at %v, expected in 90 days", got.Expires)
	}
	if v := b.fake.Versions(vault, r.Name)[1]; v.Tags["keyturn-previous"] != first {
		t.Errorf("the second version names %q as its predecessor, expected %s", v.Tags["keyturn-previous"], first)
	}
	// A reader that takes all secrets of a tag must not find what is pending.
	for _, v := range b.fake.Versions(vault, pendingName(r)) {
		if v.Tags["team"] != "" || v.ContentType == "application/json" {
			t.Errorf("the sibling carries %v and type %q of the main secret", v.Tags, v.ContentType)
		}
		// But a policy may want every secret to expire.
		if v.Expires == nil {
			t.Error("the sibling never expires, though the main secret does")
		}
	}
}

func TestValidity(t *testing.T) {
	for _, c := range []struct {
		name           string
		old            azurefake.Version
		validity       time.Duration
		short          bool
		least, most    time.Duration // 0 for never
		kind           fault.Kind
		says           string
		makesNearEvent bool
	}{
		{name: "never expires", old: azurefake.Version{}},
		{name: "policy", old: azurefake.Version{}, validity: 60 * day, least: 59 * day, most: 61 * day},
		{name: "policy over the old one's", old: azurefake.Version{Expires: in(400 * day)}, validity: 60 * day, least: 59 * day, most: 61 * day},
		{name: "as long as the old one", old: azurefake.Version{Expires: in(400 * day)}, least: 399 * day, most: 401 * day},
		{name: "short policy", validity: 30 * day, kind: fault.Invalid, says: "480h0m0s"},
		{name: "short as the old one", old: azurefake.Version{Expires: in(7 * day)}, kind: fault.Invalid, says: "SecretNearExpiry"},
		{name: "short and allowed", validity: 30 * day, short: true, least: 29 * day, most: 31 * day, makesNearEvent: true},
		{name: "a day over the limit", validity: 31 * day, least: 30 * day, most: 32 * day},
		{name: "expired when it was made", old: azurefake.Version{Expires: in(-day)}, kind: fault.Invalid, says: "set the store's validity"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBackend(t).(*backend)
			r := b.fake.Ref(vault, name())
			c.old.Value = "v0"
			b.fake.Put(vault, r.Name, c.old)
			s := b.open(nil, func(o *azurekv.Options) { o.Validity, o.ShortValidity = c.validity, c.short })
			near := 0
			b.fake.OnEvent(func(e azurefake.Event) {
				if e.Name == r.Name && strings.HasSuffix(e.Type, "NearExpiry") {
					near++
				}
			})
			if c.kind != fault.Unknown {
				b.fake.ForgetCalls()
				// Before the target has heard of it.
				_, err := s.PutPending(t.Context(), r, token(), text("v1"))
				want(t, "put pending", err, c.kind, c.says)
				if w := b.fake.Writes(); len(w) > 0 {
					t.Errorf("a refused put wrote %v", w)
				}
				return
			}
			rotate(t, s, r, "v1")
			got := newest(b, r)
			switch {
			case c.most == 0 && got.Expires != nil:
				t.Error("the new version expires")
			case c.most > 0 && (got.Expires == nil || *got.Expires < *in(c.least) || *got.Expires > *in(c.most)):
				t.Errorf("the new version expires at %v, expected in %s to %s", got.Expires, c.least, c.most)
			}
			if (near > 0) != c.makesNearEvent {
				t.Errorf("SecretNearExpiry came %d times", near)
			}
		})
	}
}

// The loop that a short validity makes, and that a minimum age ends.
func TestNearExpiryLoop(t *testing.T) {
	for validity, want := range map[time.Duration]time.Duration{0: 0, -day: 0, 31 * day: 0, 30 * day: 20 * day, 3 * day: 2 * day} {
		minAge, loops := azurekv.NearExpiryLoop(validity)
		if minAge != want || loops != (want > 0) {
			t.Errorf("%s: minimum age %s, loops: %t; expected %s", validity, minAge, loops, want)
		}
	}
	const validity, limit = 30 * day, 10
	for name, guarded := range map[string]bool{"without a minimum age": false, "with it": true} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(t).(*backend)
			r := b.Create(t, text("v0"))
			s := b.open(nil, func(o *azurekv.Options) { o.Validity, o.ShortValidity = validity, true })
			asked := make(chan struct{}, 2*limit)
			b.fake.OnEvent(func(e azurefake.Event) {
				if e.Name == r.Name && strings.HasSuffix(e.Type, "NearExpiry") {
					asked <- struct{}{}
				}
			})
			asked <- struct{}{}
			rotations := 0
			for len(asked) > 0 && rotations < limit {
				<-asked
				d, err := s.Describe(t.Context(), r)
				if err != nil {
					t.Fatal(err)
				}
				minAge, _ := azurekv.NearExpiryLoop(validity)
				if guarded && rotations > 0 && time.Since(d.Holder(secrets.Current).Activated) < minAge {
					continue
				}
				rotations++
				rotate(t, s, r, fmt.Sprint("v", rotations))
			}
			if guarded != (rotations == 1) {
				t.Errorf("one event led to %d rotations", rotations)
			}
		})
	}
}

func TestNames(t *testing.T) {
	b := newBackend(t).(*backend)
	s := b.open(nil)
	for text, says := range map[string]string{
		"azure://kv-agents/DbPassword":                       "write azure://kv-agents/DbPassword as azure://kv-agents/dbpassword",
		"azure://KV-Agents/db":                               "as azure://kv-agents/db",
		"azure://kv-agents/" + strings.Repeat("a", 119):      "at most 118",
		"azure://kv-agents/db--pending":                      "another secret",
		"azure://kv-agents/db_1":                             "letters, digits and hyphens",
		"azure://kv-agents/db%2E%2E":                         "letters, digits and hyphens",
		"azure://kv/db":                                      "is not the name of a vault",
		"azure://evil.example%23/db":                         "is not the name of a vault",
		"azure://" + strings.Repeat("k", 25) + "/db":         "is not the name of a vault",
		"gcp://project/db":                                   "not a secret of Azure",
		"nats://keyturn/db":                                  "not a secret of Azure",
		"azure://kv-agents/" + strings.Repeat("a", 4<<10):    "at most 118",
		"azure://kv-agents/d%C3%A9j%C3%A0":                   "letters, digits and hyphens",
		"azure://kv-agents/db%0Aversions":                    "letters, digits and hyphens",
		"azure://kv-agents/" + strings.Repeat("A", 10) + "-": "upper from lower case",
	} {
		r, err := ref.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		for what, err := range map[string]error{
			"get":      err2(s.Get(t.Context(), r, secrets.Current)),
			"describe": err2(s.Describe(t.Context(), r)),
			"create":   err2(s.CreateSecret(t.Context(), r, secrets.NewString("x"))),
			"disable":  s.Disable(t.Context(), r, strings.Repeat("0", 32)),
			"check":    s.Check(t.Context(), r),
		} {
			if what == "get" || what == "check" {
				want(t, what+" "+text, err, fault.Invalid, says)
			} else {
				want(t, what+" "+text, err, fault.Invalid)
			}
		}
	}
	if c := b.fake.Calls(); len(c) > 0 {
		t.Errorf("refs that cannot be led to requests: %v", c)
	}
	// The longest name has room for its sibling.
	long := b.fake.Ref(vault, strings.Repeat("x", 118))
	b.fake.Put(vault, long.Name, azurefake.Version{Value: "v0"})
	rotate(t, s, long, "v1")
	// A name that was first written in other letters is found.
	b.fake.Put(vault, "DbPassword", azurefake.Version{Value: "v0"})
	mixed := azurekv.Canonical(b.fake.Ref(vault, "DbPassword"))
	rotate(t, s, mixed, "v1")
	if got := newest(b, mixed); got.Value != "v1" {
		t.Errorf("DbPassword is %q, expected what was promoted under %s", got.Value, mixed)
	}
	if other := b.fake.Ref(vault, "x"); azurekv.Canonical(other) != other {
		t.Error("a canonical ref was changed")
	}
	aws := ref.Ref{Provider: ref.AWS, Scope: "1/r", Name: "Db"}
	if azurekv.Canonical(aws) != aws {
		t.Error("the ref of another provider was changed")
	}
}

func err2[T any](_ T, err error) error { return err }

// A version holds 15 tags, two of which are ours: one too many is noticed
// before the target is touched.
func TestTooManyTags(t *testing.T) {
	for n, ok := range map[int]bool{13: true, 14: false} {
		b := newBackend(t).(*backend)
		r := b.fake.Ref(vault, name())
		tags := map[string]string{}
		for i := range n {
			tags[fmt.Sprint("tag", i)] = "x"
		}
		b.fake.Put(vault, r.Name, azurefake.Version{Value: "v0", Tags: tags})
		s := b.open(nil)
		if ok {
			rotate(t, s, r, "v1")
			first := b.fake.Versions(vault, r.Name)[0].ID
			rotate(t, s, r, "v2")
			second := b.fake.Versions(vault, r.Name)[1].ID
			for _, id := range []string{first, second} {
				if err := s.Disable(t.Context(), r, id); err != nil {
					t.Fatal(err)
				}
				if err := s.Destroy(t.Context(), r, id); err != nil {
					t.Errorf("destroy with %d tags: %v", n, err)
				}
			}
			continue
		}
		_, err := s.PutPending(t.Context(), r, token(), text("v1"))
		want(t, "put pending", err, fault.Invalid, "has 14 tags")
		want(t, "check", s.Check(t.Context(), r), fault.Invalid, "has 14 tags")
		if len(b.fake.Versions(vault, pendingName(r))) > 0 {
			t.Error("a refused put wrote to the sibling")
		}
	}
}

// Key Vault keeps the value of a destroyed version; what is promised is that
// it is not enabled again here.
func TestDestroyLeavesTheValue(t *testing.T) {
	b := newBackend(t).(*backend)
	r := b.Create(t, text("v0"))
	s := b.open(nil)
	first := b.fake.Versions(vault, r.Name)[0].ID
	v1 := rotate(t, s, r, "v1")
	want(t, "destroy what is not disabled", s.Destroy(t.Context(), r, first), fault.Conflict)
	for range 2 {
		if err := s.Disable(t.Context(), r, first); err != nil {
			t.Fatal(err)
		}
	}
	if got := stage(t, s, r, secrets.Previous); got != "" {
		t.Error("a disabled version was read")
	}
	if err := s.Enable(t.Context(), r, first); err != nil {
		t.Fatal(err)
	}
	if got := stage(t, s, r, secrets.Previous); got != "v0" {
		t.Errorf("previous is %q after it was enabled again", got)
	}
	if err := s.Disable(t.Context(), r, first); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Destroy(t.Context(), r, first); err != nil {
			t.Fatal(err)
		}
	}
	want(t, "enable what was destroyed", s.Enable(t.Context(), r, first), fault.NotFound, "was destroyed")
	d, err := s.Describe(t.Context(), r)
	if err != nil || d.Holder(secrets.Previous) != nil {
		t.Errorf("described as %+v, %v; expected no previous version", d, err)
	}
	v := b.fake.Versions(vault, r.Name)[0]
	if v.Enabled || v.Tags["keyturn-destroyed"] == "" || v.Value != "v0" {
		t.Errorf("the destroyed version is %+v", v)
	}
	want(t, "disable current", s.Disable(t.Context(), r, v1.ID), fault.Conflict)
	want(t, "enable what is not there", s.Enable(t.Context(), r, strings.Repeat("0", 32)), fault.NotFound)
	if err := s.Destroy(t.Context(), r, "no-version"); err != nil {
		t.Errorf("destroy of what is not there: %v", err)
	}
}
