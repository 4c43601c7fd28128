package apikey_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/apikey"
	"github.com/keyturn/keyturn/rotators/rotatortest"
	"github.com/keyturn/keyturn/secrets"
)

// disabling is config of an issuer that disables and enables keys.
func disabling(url string) apikey.Config {
	c := config(url)
	admin := map[string]string{"Authorization": "Bearer {{.Admin}}"}
	key := url + "/v1/projects/{{.Vars.project}}/keys/{{.ID}}"
	c.Disable = &apikey.Request{URL: key + "/disable", Headers: admin}
	c.Enable = &apikey.Request{URL: key + "/enable", Headers: admin}
	return c
}

// Fingerprint is all that the issuer tells.
func (tg *target) Fingerprint(*testing.T) string { return fmt.Sprint(tg.issuer.Keys("acme", "")) }

// Breaks are what a dry run finds before a rotation does.
func (tg *target) Breaks() []rotatortest.Break {
	one := func(name string, do func(*testing.T, doc) secrets.Value, kind fault.Kind, class fault.Class) rotatortest.Break {
		return rotatortest.Break{Name: name, Kind: kind, Class: class, Do: func(t *testing.T, v secrets.Value) secrets.Value { return do(t, read(t, v)) }}
	}
	same := func(d doc) secrets.Value { return value(d.ID, d.Key, d.AdminARN) }
	return []rotatortest.Break{
		one("Key", func(_ *testing.T, d doc) secrets.Value { return value(d.ID, "sk-another", d.AdminARN) }, fault.Denied, fault.ClassAuth),
		one("KeyWithLineBreak", func(_ *testing.T, d doc) secrets.Value { return value(d.ID, "sk\r\nX-Evil: 1", d.AdminARN) }, fault.Invalid, ""),
		one("Disabled", func(t *testing.T, d doc) secrets.Value {
			if ok, err := tg.issuer.Disable("acme", d.ID); !ok || err != nil {
				t.Fatal(ok, err)
			}
			return same(d)
		}, fault.Denied, fault.ClassAuth),
		one("NoSecret", func(*testing.T, doc) secrets.Value { return secrets.NewString(`{"key":"x"}`) }, fault.Invalid, ""),
		one("Down", func(_ *testing.T, d doc) secrets.Value { tg.srv.Close(); return same(d) }, fault.Unavailable, fault.ClassNetwork),
		one("NoAdminNamed", func(_ *testing.T, d doc) secrets.Value { return value(d.ID, d.Key, "") }, fault.Invalid, ""),
		one("AdminUnreadable", func(_ *testing.T, d doc) secrets.Value { return value(d.ID, d.Key, "nats://nobody/knows") }, fault.NotFound, ""),
		one("AdminRefused", func(_ *testing.T, d doc) secrets.Value { tg.admin += "x"; return same(d) }, fault.Denied, fault.ClassAuth),
		one("AdminWithLineBreak", func(_ *testing.T, d doc) secrets.Value { tg.admin += `\r\nX-Evil: 1`; return same(d) }, fault.Invalid, ""),
		one("OfAnotherProject", func(t *testing.T, d doc) secrets.Value {
			k, key, err := tg.issuer.Create("globex", "made by hand")
			if err != nil {
				t.Fatal(err)
			}
			return value(k.ID, key, d.AdminARN)
		}, fault.Invalid, ""),
	}
}

// What a rotator can do is what its configuration has requests for.
func TestAbilitiesByConfiguration(t *testing.T) {
	for name, c := range map[string]struct {
		config           apikey.Config
		restores, orphan bool
	}{
		"list":         {config("https://issuer.example"), false, true},
		"list, switch": {disabling("https://issuer.example"), true, true},
		"switch":       {without(disabling("https://issuer.example")), true, false},
		"none":         {without(config("https://issuer.example")), false, false},
	} {
		r, err := apikey.New(c.config, &apikey.Options{Admin: noAdmin})
		if err != nil {
			t.Fatal(err)
		}
		_, retires := r.(rotators.Retirer)
		_, verifies := r.(rotators.Verifier)
		_, tries := r.(rotators.DryRunner)
		_, restores := r.(rotators.Restorer)
		_, destroys := r.(rotators.Destroyer)
		_, finds := r.(rotators.OrphanFinder)
		if !retires || !verifies || !tries || restores != c.restores || destroys != c.restores || finds != c.orphan {
			t.Errorf("%s: retires %t, verifies %t, dry-runs %t, restores %t, destroys %t, finds orphans %t", name, retires, verifies, tries, restores, destroys, finds)
		}
	}
}

func without(c apikey.Config) apikey.Config {
	c.List = nil
	return c
}

// Destroy ends for good what Retire only disabled, spares what is in use, and
// survives a crash at every call.
func TestDestroy(t *testing.T) {
	crashtest.Run(t, func(t *testing.T, in *crashtest.Injector) {
		tg := newIssuer(t, time.Nanosecond, 0)
		tg.config = disabling
		r := tg.Rotator(t, nil)
		c := change(t, tg.initial, secrets.Value{})
		next := must2(t, r.Create, c)
		c = change(t, next, secrets.Value{})
		old := tg.initial
		if err := r.(rotators.Retirer).Retire(t.Context(), c, old); err != nil || !tg.has(read(t, old).ID) || tg.Live(t) != 1 {
			t.Fatalf("retire: %v; want the key disabled and there", err)
		}
		_ = tg.Rotator(t, in).(rotators.Destroyer).Destroy(t.Context(), c, old)
		in.Restart()
		d := r.(rotators.Destroyer)
		for _, v := range []secrets.Value{old, old, next, secrets.NewString(`{}`)} {
			if err := d.Destroy(t.Context(), c, v); err != nil {
				t.Fatal(err)
			}
		}
		if tg.has(read(t, old).ID) || !tg.has(read(t, next).ID) {
			t.Fatal("want the superseded key gone and the current one there")
		}
		if err := r.(rotators.Restorer).Restore(t.Context(), c, old); !fault.Is(err, fault.Invalid) {
			t.Fatalf("restore of a key that is gone: %v; want invalid", err)
		}
		if err := r.(rotators.Retirer).Retire(t.Context(), c, old); err != nil {
			t.Fatalf("retire of a key that is gone: %v; want success", err)
		}
	})
}

// A key that is disabled was a version, and is kept for whoever restores it,
// even where its age makes it look like an orphan: after a rollback.
func TestDisabledIsNoOrphan(t *testing.T) {
	tg := newIssuer(t, time.Nanosecond, 0)
	tg.config = disabling
	r := tg.Rotator(t, nil)
	c := change(t, tg.initial, secrets.Value{})
	retired := must2(t, r.Create, c) // was current until the rollback to initial
	if err := r.(rotators.Retirer).Retire(t.Context(), c, retired); err != nil {
		t.Fatal(err)
	}
	c.Token = "22222222-2222-4222-8222-222222222222"
	orphan := read(t, must2(t, r.Create, c))
	c.Token = "33333333-3333-4333-8333-333333333333"
	f := r.(rotators.OrphanFinder)
	if ids, err := f.Orphans(t.Context(), c); err != nil || !slices.Equal(ids, []string{orphan.ID}) {
		t.Fatalf("orphans are %q, %v; want %q", ids, err, orphan.ID)
	}
	c.Pending = must2(t, r.Create, c) // sweeps too
	if err := r.Set(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c.Current, c.Previous, c.Pending = c.Pending, c.Current, secrets.Value{}
	if err := r.(rotators.Retirer).Retire(t.Context(), c, c.Previous); err != nil {
		t.Fatal(err)
	}
	if err := f.RemoveOrphans(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if tg.has(orphan.ID) || !tg.has(read(t, retired).ID) || !tg.has(read(t, tg.initial).ID) {
		t.Error("want the orphan gone and both disabled keys there")
	}
	if err := r.(rotators.Restorer).Restore(t.Context(), c, retired); err != nil {
		t.Errorf("restore: %v", err)
	}
}

// A young key may be about to be stored.
func TestYoungIsNoOrphan(t *testing.T) {
	tg := newIssuer(t, 0, 0)
	r := tg.Rotator(t, nil)
	c := change(t, tg.initial, secrets.Value{})
	young := read(t, must2(t, r.Create, c))
	f := r.(rotators.OrphanFinder)
	if ids, err := f.Orphans(t.Context(), c); err != nil || len(ids) != 0 {
		t.Errorf("orphans are %q, %v; want none", ids, err)
	}
	if err := f.RemoveOrphans(t.Context(), c); err != nil || !tg.has(young.ID) {
		t.Errorf("%v; a key that a process may be about to store was removed", err)
	}
}

// A full issuer cannot have another key enabled, and says so.
func TestRestoreAtFullIssuer(t *testing.T) {
	tg := newIssuer(t, 0, 2)
	tg.config = disabling
	r := tg.Rotator(t, nil)
	c := change(t, must2(t, r.Create, change(t, tg.initial, secrets.Value{})), secrets.Value{})
	if err := r.(rotators.Retirer).Retire(t.Context(), c, tg.initial); err != nil {
		t.Fatal(err)
	}
	if _, _, err := tg.issuer.Create("acme", "another"); err != nil {
		t.Fatal(err)
	}
	err := r.(rotators.Restorer).Restore(t.Context(), c, tg.initial)
	if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassQuota {
		t.Errorf("got %v; want unavailable, quota", err)
	}
}
