package vaultkv_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// An approle is a role whose token has one policy and nothing else.
type approle struct {
	tg               *target
	mount, name, dir string
	method           vaultkv.AppRole
}

func newAppRole(t *testing.T, tg *target, policy string) *approle {
	t.Helper()
	a := &approle{tg: tg, mount: "approle-" + word(), name: "role-" + word(), dir: t.TempDir()}
	tg.must(t, "POST", "sys/auth/"+a.mount, kv{"type": "approle"})
	tg.must(t, "POST", "sys/policies/acl/"+a.name, kv{"policy": policy})
	tg.must(t, "POST", "auth/"+a.mount+"/role/"+a.name, kv{
		"token_policies": []string{a.name}, "token_no_default_policy": true, "token_ttl": "10m", "token_max_ttl": "1h",
		"secret_id_num_uses": 1, "secret_id_ttl": "5m",
	})
	id := tg.must(t, "GET", "auth/"+a.mount+"/role/"+a.name+"/role-id", nil)
	a.method = vaultkv.AppRole{RoleID: id["role_id"].(string), SecretIDFile: filepath.Join(a.dir, "secret-id"), Mount: a.mount, Role: a.name}
	return a
}

// issue writes another secret id to the file, as a supervisor does.
func (a *approle) issue(t *testing.T) string {
	t.Helper()
	id := a.tg.must(t, "POST", "auth/"+a.mount+"/role/"+a.name+"/secret-id", kv{})["secret_id"].(string)
	a.write(t, id)
	return id
}

// wrap writes a wrapping token to the file and returns it.
func (a *approle) wrap(t *testing.T, path string, body kv) string {
	t.Helper()
	status, out := a.tg.call(t, "POST", path, body, "X-Vault-Wrap-TTL", "60s")
	if status != 200 {
		t.Fatalf("wrap %s: status %d", path, status)
	}
	token := out["wrap_info"].(kv)["token"].(string)
	a.write(t, token)
	return token
}

func (a *approle) write(t *testing.T, text string) {
	t.Helper()
	if err := os.WriteFile(a.method.SecretIDFile, []byte(text+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// open signs in and returns a store with that token. It ends with t.
func (a *approle) open(t *testing.T) *vaultkv.Store {
	t.Helper()
	c := a.tg.client(t, "", a.tg.transport)
	session, err := vaultkv.SignIn(t.Context(), c, a.method, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Close)
	s, err := vaultkv.New(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// life is all that happens to a secret in two rotations.
func life(t *testing.T, s *vaultkv.Store, r ref.Ref) error {
	t.Helper()
	ctx := t.Context()
	for range 2 {
		tok, late := word(), word()
		_, err := s.PutPending(ctx, r, tok, secrets.NewString(tok))
		if err == nil {
			_, err = s.Promote(ctx, r, tok)
		}
		if err == nil {
			_, err = s.PutPending(ctx, r, late, secrets.NewString(late))
		}
		if err == nil {
			err = s.Discard(ctx, r, late)
		}
		if err != nil {
			return err
		}
		d, err := s.Describe(ctx, r)
		if err != nil {
			return err
		}
		previous := d.Holder(secrets.Previous).ID
		for _, step := range []func() error{
			func() error { return s.Disable(ctx, r, previous) },
			func() error { return s.Enable(ctx, r, previous) },
			func() error { return s.Disable(ctx, r, previous) },
			func() error { return s.Destroy(ctx, r, previous) },
		} {
			if err := step(); err != nil {
				return err
			}
		}
	}
	return nil
}

// testPolicy takes each capability of the policy away: Check names just that
// one, and without it the life of a secret ends early.
func testPolicy(t *testing.T, tg *target) {
	mount, at := tg.mount(t)
	root := tg.store(t, nil)
	policy, err := vaultkv.Policy(mount, "team/db")
	if err != nil {
		t.Fatal(err)
	}
	create(t, root, at("team/db"), "0")
	a := newAppRole(t, tg, policy)
	a.issue(t)
	s := a.open(t)
	if err := s.Check(t.Context(), at("team/db")); err != nil {
		t.Errorf("check: %v", err)
	}
	if err := life(t, s, at("team/db")); err != nil {
		t.Fatal(err)
	}
	create(t, root, at("team/other"), "0")
	_, err = s.Get(t.Context(), at("team/other"), secrets.Current)
	wantErr(t, "another secret", err, fault.Denied)
	wantErr(t, "check another secret", s.Check(t.Context(), at("team/other")), fault.Denied, "update on "+mount+"/destroy/team/other--pending")

	lines := strings.Split(policy, "\n")
	tried := 0
	for i, path := range lines {
		if !strings.HasPrefix(path, `path "`+mount+"/") {
			continue
		}
		path = strings.Split(path, `"`)[1]
		for _, capability := range strings.FieldsFunc(strings.Split(lines[i+1], "[")[1], func(r rune) bool { return strings.ContainsRune(`", ]`, r) }) {
			tried++
			t.Run(fmt.Sprintf("without %s on %s", capability, strings.TrimPrefix(path, mount+"/")), func(t *testing.T) {
				less := append([]string(nil), lines...)
				less[i+1] = strings.Replace(less[i+1], `"`+capability+`"`, `"list"`, 1)
				a := newAppRole(t, tg, strings.Join(less, "\n"))
				a.issue(t)
				s := a.open(t)
				// A secret that was never rotated, so that create counts.
				tg.must(t, "DELETE", mount+"/metadata/team/db", nil)
				tg.must(t, "DELETE", mount+"/metadata/team/db--pending", nil)
				create(t, root, at("team/db"), "0")
				wantErr(t, "check", s.Check(t.Context(), at("team/db")), fault.Denied, "may not: "+capability+" on "+path+";")
				err := life(t, s, at("team/db"))
				if strings.HasSuffix(path, "/config") || capability == "update" && strings.HasSuffix(path, "metadata/team/db--pending") {
					// The one is a precaution, the other for what a crash left.
					if err != nil {
						t.Error(err)
					}
					return
				}
				wantErr(t, "life", err, fault.Denied)
			})
		}
	}
	if tried != 13 {
		t.Errorf("%d capabilities were tried, expected 13", tried)
	}
	for _, bad := range []string{"a*", "a/+/b", `a"b`, "", "a//b", "../sys", "a{{b}}"} {
		_, err := vaultkv.Policy("secret", bad)
		wantErr(t, "policy for "+bad, err, fault.Invalid)
		_, err = vaultkv.Policy(bad, "x")
		wantErr(t, "policy for mount "+bad, err, fault.Invalid)
	}
}

func testAppRole(t *testing.T, tg *target) {
	policy, err := vaultkv.Policy("secret", "x")
	if err != nil {
		t.Fatal(err)
	}
	a := newAppRole(t, tg, policy)
	c := tg.client(t, "", tg.transport)
	_, err = vaultkv.SignIn(t.Context(), c, a.method, nil)
	wantErr(t, "no file", err, fault.NotFound)

	used := a.issue(t)
	s, err := vaultkv.SignIn(t.Context(), c, a.method, nil)
	if err != nil {
		t.Fatal(err)
	}
	token := c.Token()
	if token == "" {
		t.Error("the client has no token")
	}
	_, err = vaultkv.SignIn(t.Context(), tg.client(t, "", tg.transport), a.method, nil)
	wantErr(t, "a secret id that was used", err, fault.Denied, "used up")
	if strings.Contains(err.Error(), used) {
		t.Error("the error quotes the secret id")
	}
	s.Close()
	s.Close()
	if c.Token() != "" {
		t.Error("the client still has the token of a closed session")
	}
	if status, _ := tg.call(t, "GET", "auth/token/lookup-self", nil, "X-Vault-Token", token); status != 403 {
		t.Errorf("the token of a closed session answers %d", status)
	}
	for what, bad := range map[string]vaultkv.AppRole{
		"no role id": {SecretIDFile: "x"}, "no file": {RoleID: "x"}, "no role": {RoleID: "x", SecretIDFile: "y", Wrapped: true},
		"bad mount": {RoleID: "x", SecretIDFile: "y", Mount: "../sys"},
	} {
		_, err := vaultkv.SignIn(t.Context(), c, bad, nil)
		wantErr(t, what, err, fault.Invalid)
	}
	a.write(t, "two words")
	_, err = vaultkv.SignIn(t.Context(), c, a.method, nil)
	wantErr(t, "two words", err, fault.Invalid)
	a.write(t, "something else")
	if err := os.Chmod(a.method.SecretIDFile, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = vaultkv.SignIn(t.Context(), c, a.method, nil)
	wantErr(t, "a file for everybody", err, fault.Denied, "0644")
}

func testWrapped(t *testing.T, tg *target) {
	policy, err := vaultkv.Policy("secret", "x")
	if err != nil {
		t.Fatal(err)
	}
	a := newAppRole(t, tg, policy)
	a.method.Wrapped = true
	path := "auth/" + a.mount + "/role/" + a.name + "/secret-id"
	signIn := func() error {
		s, err := vaultkv.SignIn(t.Context(), tg.client(t, "", tg.transport), a.method, nil)
		if err == nil {
			s.Close()
		}
		return err
	}
	a.wrap(t, path, kv{})
	if err := signIn(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, "a wrapping token that was unwrapped", signIn(), fault.Denied, "somebody else")
	a.write(t, "hvs.nonsense")
	wantErr(t, "no wrapping token", signIn(), fault.Denied)

	// A token that somebody put there instead is left wrapped.
	token := a.wrap(t, "sys/wrapping/wrap", kv{"secret_id": "chosen by somebody"})
	wantErr(t, "a swapped wrapping token", signIn(), fault.Denied, "sys/wrapping/wrap", "expected "+path)
	if status, _ := tg.call(t, "POST", "sys/wrapping/lookup", kv{"token": token}); status != 200 {
		t.Errorf("the swapped token answers %d, expected it to be left as it was", status)
	}
	// What was wrapped at the right place and holds no secret id.
	other := newAppRole(t, tg, policy)
	a.wrap(t, "auth/"+other.mount+"/role/"+other.name+"/secret-id", kv{})
	wantErr(t, "another role's secret id", signIn(), fault.Denied, other.name)
}
