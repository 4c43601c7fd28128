package natsaccounts_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dirlock"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/natsaccounts"
)

func newStore(t *testing.T, form natsaccounts.Form) (*natsaccounts.Store, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a")
	st, err := natsaccounts.Init(dir, "test", form)
	must(t, err)
	return st, dir
}

// walk calls f with each file of a store.
func walk(t *testing.T, dir string, f func(path string, b []byte)) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %04o; expected its owner alone", path, info.Mode().Perm())
		}
		if d.IsDir() {
			return nil
		}
		b, err := os.ReadFile(path)
		f(path, b)
		return err
	}))
}

// TestSecretsStayInTheirFiles: private keys and passwords are below keys and
// creds, and nowhere else; everything is the owner's alone.
func TestSecretsStayInTheirFiles(t *testing.T) {
	for _, form := range []natsaccounts.Form{natsaccounts.Operator, natsaccounts.Config} {
		t.Run(string(form), func(t *testing.T) {
			st, dir := newStore(t, form)
			must(t, st.AddTenant("acme", "", natsaccounts.Limits{}))
			for user, kind := range map[string]natsaccounts.UserKind{"a": natsaccounts.NKey, "b": natsaccounts.Password} {
				if _, err := st.Creds("acme", user, natsaccounts.CredsOptions{Kind: kind}); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				if _, err := st.Rotate("acme", natsaccounts.RotateOptions{Force: true}); err != nil {
					t.Fatal(err)
				}
			}
			var secret []string
			var public bytes.Buffer
			walk(t, dir, func(path string, b []byte) {
				switch filepath.Ext(path) {
				case ".nk", ".password":
					_, s, ok := strings.Cut(strings.TrimSpace(string(b)), ":")
					if !ok {
						s = strings.TrimSpace(string(b))
					}
					secret = append(secret, s)
				case ".creds":
					_, s, _ := strings.Cut(string(b), "SEED-----\n")
					s, _, _ = strings.Cut(s, "\n")
					secret = append(secret, s)
				default:
					_, _ = public.Write(b)
				}
			})
			if len(secret) < 4 || public.Len() == 0 {
				t.Fatalf("%d secrets, %d bytes; nothing is proven", len(secret), public.Len())
			}
			for _, s := range secret {
				if len(s) < 30 {
					t.Errorf("a secret of %d characters", len(s))
				}
				if form := leaktest.Find(public.Bytes(), s); form != "" {
					t.Errorf("a private key or password is outside keys and creds (%s)", form)
				}
			}
		})
	}
}

// TestRemovedKeysAreForgotten: a rotation that is through leaves no private
// key behind.
func TestRemovedKeysAreForgotten(t *testing.T) {
	for _, form := range []natsaccounts.Form{natsaccounts.Operator, natsaccounts.Config} {
		st, dir := newStore(t, form)
		must(t, st.AddTenant("acme", "", natsaccounts.Limits{}))
		if _, err := st.Creds("acme", "a", natsaccounts.CredsOptions{}); err != nil {
			t.Fatal(err)
		}
		count := func() (n int) {
			walk(t, filepath.Join(dir, "keys"), func(string, []byte) { n++ })
			return n
		}
		before := count()
		for _, want := range []natsaccounts.Step{natsaccounts.Added, natsaccounts.Issued, natsaccounts.Waiting} {
			if r, err := st.Rotate("acme", natsaccounts.RotateOptions{}); err != nil || r.Step != want || time.Until(r.Until) < 23*time.Hour {
				t.Fatalf("%s: %+v, %v; expected %s", form, r, err, want)
			}
		}
		if r, err := st.Rotate("acme", natsaccounts.RotateOptions{Force: true}); err != nil || r.Step != natsaccounts.Removed || len(r.Keys) != 1 {
			t.Fatalf("%s: %+v, %v; expected removed", form, r, err)
		}
		if n := count(); n != before {
			t.Errorf("%s: %d private keys after a rotation, %d before", form, n, before)
		}
		s, err := st.State()
		must(t, err)
		if _, under := s.Tenants[0].Leaving(); under {
			t.Errorf("%s: the rotation does not end", form)
		}
	}
}

// TestCredsCarryNoRights: a tenant's users have those of the signing key, and
// the lifetime that was asked for, after a rotation too.
func TestCredsCarryNoRights(t *testing.T) {
	st, _ := newStore(t, natsaccounts.Operator)
	must(t, st.AddTenant("acme", "", natsaccounts.Limits{Connections: 7}))
	read := func(file string) *jwt.UserClaims {
		b, err := os.ReadFile(file)
		must(t, err)
		text, err := jwt.ParseDecoratedJWT(b)
		must(t, err)
		uc, err := jwt.DecodeUserClaims(text)
		must(t, err)
		return uc
	}
	file, err := st.Creds("acme", "a", natsaccounts.CredsOptions{TTL: time.Hour})
	must(t, err)
	first := read(file)
	for range 2 {
		if _, err := st.Rotate("acme", natsaccounts.RotateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	second := read(file)
	if first.Subject == second.Subject || first.Issuer == second.Issuer || first.IssuerAccount != second.IssuerAccount {
		t.Error("a rotation keeps the user's or the signing key, or changes the account")
	}
	for _, uc := range []*jwt.UserClaims{first, second} {
		if left := time.Until(time.Unix(uc.Expires, 0)); !uc.HasEmptyPermissions() || left < 50*time.Minute || left > time.Hour {
			t.Errorf("rights of its own: %t, valid for %s", !uc.HasEmptyPermissions(), left)
		}
	}
	b := bundle(t, st)
	for _, a := range b.Accounts {
		ac, err := jwt.DecodeAccountClaims(a.JWT)
		must(t, err)
		if a.Name == "acme" && (ac.Limits.IsJSEnabled() || ac.Limits.Conn != 7 || ac.Limits.LeafNodeConn != 0 || !ac.Limits.DisallowBearer || len(ac.SigningKeys) != 2) {
			t.Errorf("the tenant's limits are %+v with %d signing keys", ac.Limits, len(ac.SigningKeys))
		}
		if a.Name == natsaccounts.Platform && !ac.Limits.IsJSEnabled() {
			t.Error("the platform has no JetStream")
		}
	}
	if !strings.Contains(b.MemoryConfig(), "resolver: MEMORY") {
		t.Error("no memory resolver")
	}
}

func TestStoreRefusals(t *testing.T) {
	st, dir := newStore(t, natsaccounts.Operator)
	must(t, st.AddTenant("acme", "nobody", natsaccounts.Limits{}))
	one := func(_ any, err error) error { return err }
	for name, c := range map[string]struct {
		err  error
		want fault.Kind
	}{
		"init twice":        {one(natsaccounts.Init(dir, "x", natsaccounts.Operator)), fault.Conflict},
		"unknown form":      {one(natsaccounts.Init(t.TempDir(), "x", "yaml")), fault.Invalid},
		"nothing there":     {one(natsaccounts.Open(t.TempDir())), fault.NotFound},
		"tenant twice":      {st.AddTenant("acme", "nobody", natsaccounts.Limits{}), fault.Conflict},
		"quarantine":        {st.AddTenant("nobody", "nobody", natsaccounts.Limits{}), fault.Invalid},
		"platform":          {st.AddTenant("keyturn", "nobody", natsaccounts.Limits{}), fault.Invalid},
		"path as a tenant":  {st.AddTenant("../x", "nobody", natsaccounts.Limits{}), fault.Invalid},
		"wildcard":          {st.AddTenant("*", "nobody", natsaccounts.Limits{}), fault.Invalid},
		"path as a user":    {one(st.Creds("acme", "../../x", natsaccounts.CredsOptions{})), fault.Invalid},
		"user of none":      {one(st.Creds("globex", "a", natsaccounts.CredsOptions{})), fault.NotFound},
		"rotate none":       {one(st.Rotate("globex", natsaccounts.RotateOptions{})), fault.NotFound},
		"negative grace":    {one(st.Rotate("acme", natsaccounts.RotateOptions{Grace: -1})), fault.Invalid},
		"no such key":       {one(st.Key("ABC")), fault.NotFound},
		"no plain accounts": {func() error { s, _ := st.State(); return one(s.PlainConfig()) }(), fault.Invalid},
	} {
		if !fault.Is(c.err, c.want) {
			t.Errorf("%s: %v; expected %s", name, c.err, c.want)
		}
	}
	// Two commands at once: the second fails, and says how to go on. What one
	// that was killed has left is in nobody's way.
	l, err := dirlock.Take(filepath.Join(dir, "lock"))
	must(t, err)
	if err := st.AddTenant("b", "", natsaccounts.Limits{}); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "repeat") {
		t.Errorf("%v; expected a conflict", err)
	}
	must(t, l.Close())
	half := filepath.Join(dir, "keys", ".tmp-1")
	must(t, os.WriteFile(half, []byte("SU"), 0o600))
	must(t, st.AddTenant("b", "", natsaccounts.Limits{}))
	if _, err := os.Stat(half); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a key of a killed command: %v; expected it to be removed", err)
	}
	// Others can read it.
	must(t, os.Chmod(dir, 0o755))
	if _, err := natsaccounts.Open(dir); !fault.Is(err, fault.Denied) {
		t.Errorf("%v; expected denied", err)
	}
	must(t, os.Chmod(dir, 0o700))
	if _, err := natsaccounts.Open(dir); err != nil {
		t.Error(err)
	}
	// A key that is damaged is not quoted.
	canary := leaktest.Canary()
	must(t, os.WriteFile(filepath.Join(dir, "keys", "X.nk"), []byte(canary), 0o600))
	if _, err := st.Key("X"); !fault.Is(err, fault.Invalid) || errors.Unwrap(err) != nil || strings.Contains(err.Error(), canary) {
		t.Errorf("%v", err)
	}
}

// TestClockBehind: JWTs with a time before the last change are not made, since
// a server could hold older ones for the newer.
func TestClockBehind(t *testing.T) {
	st, dir := newStore(t, natsaccounts.Operator)
	must(t, st.AddTenant("acme", "", natsaccounts.Limits{}))
	path := filepath.Join(dir, "state.json")
	b, err := os.ReadFile(path)
	must(t, err)
	var m map[string]any
	must(t, json.Unmarshal(b, &m))
	m["saved"] = time.Now().Add(time.Hour)
	b, err = json.Marshal(m)
	must(t, err)
	must(t, os.WriteFile(path, b, 0o600))
	s, err := st.State()
	must(t, err)
	if _, err := s.Bundle(st.Key); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "clock") {
		t.Errorf("%v; expected the clock to be behind", err)
	}
	if file, err := st.Creds("acme", "a", natsaccounts.CredsOptions{}); !fault.Is(err, fault.Unavailable) || file != "" {
		t.Errorf("%q, %v; expected the clock to be behind", file, err)
	}
}
