package keyissuer_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/keyissuer"
	"github.com/keyturn/keyturn/internal/leaktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const admin = "admin-key-of-the-test"

func start(t *testing.T, o keyissuer.Options) *keyissuer.Server {
	t.Helper()
	o.AdminKey = admin
	s, err := keyissuer.Start(t.Context(), "127.0.0.1:0", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		http.DefaultClient.CloseIdleConnections()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := s.Stop(ctx); err != nil {
			t.Errorf("stop: %v", err)
		}
	})
	return s
}

// do calls the API and returns the status and the decoded body.
func do(t *testing.T, method, url, token, body string) (int, map[string]any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if len(b) > 0 {
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatalf("%s %s answered %d without JSON", method, url, resp.StatusCode)
		}
	}
	return resp.StatusCode, m
}

func TestLifeOfAKey(t *testing.T) {
	s := start(t, keyissuer.Options{})
	keys := s.URL + "/v1/projects/acme/keys"
	status, made := do(t, "POST", keys, admin, `{"name":"first"}`)
	if status != 201 {
		t.Fatalf("create answered %d: %v", status, made)
	}
	key, id := made["key"].(string), made["id"].(string)
	chat := func(key string) int {
		status, _ := do(t, "POST", s.URL+"/v1/chat/completions", key, `{"messages":[{"role":"user","content":"hi"}]}`)
		return status
	}
	if got := chat(key); got != 200 {
		t.Fatalf("a chat with the key answered %d", got)
	}
	if status, v := do(t, "GET", s.URL+"/v1/verify", key, ""); status != 200 || v["id"] != id || v["project"] != "acme" || v["key"] != nil {
		t.Fatalf("verify answered %d: %v", status, v)
	}
	if status, v := do(t, "GET", keys, admin, ""); status != 200 || len(v["data"].([]any)) != 1 || strings.Contains(toJSON(v), key) {
		t.Fatalf("list answered %d", status)
	}
	// Another project neither sees nor revokes it.
	other := s.URL + "/v1/projects/globex/keys"
	if _, v := do(t, "GET", other, admin, ""); len(v["data"].([]any)) != 0 {
		t.Error("another project lists the key")
	}
	if status, _ := do(t, "DELETE", other+"/"+id, admin, ""); status != 404 {
		t.Errorf("another project revokes the key: %d", status)
	}
	if status, _ := do(t, "DELETE", keys+"/"+id, admin, ""); status != 204 {
		t.Fatalf("revoke answered %d", status)
	}
	if status, _ := do(t, "DELETE", keys+"/"+id, admin, ""); status != 404 {
		t.Errorf("revoke again answered %d; want 404", status)
	}
	if got := chat(key); got != 401 {
		t.Errorf("a chat with a revoked key answered %d; want 401", got)
	}
}

func toJSON(v any) string { b, _ := json.Marshal(v); return string(b) }

func TestRefusals(t *testing.T) {
	s := start(t, keyissuer.Options{})
	keys := s.URL + "/v1/projects/acme/keys"
	_, made := do(t, "POST", keys, admin, `{"name":"first"}`)
	key := made["key"].(string)
	for _, c := range []struct {
		name, method, path, token, body string
		want                            int
	}{
		{"no token", "POST", "/v1/projects/acme/keys", "", `{"name":"n"}`, 401},
		{"a key manages keys", "POST", "/v1/projects/acme/keys", key, `{"name":"n"}`, 403},
		{"the admin key chats", "POST", "/v1/chat/completions", admin, `{"messages":[{"content":"x"}]}`, 401},
		{"nearly the key", "GET", "/v1/verify", key[:len(key)-1], "", 401},
		{"no name", "POST", "/v1/projects/acme/keys", admin, `{}`, 400},
		{"control characters", "POST", "/v1/projects/acme/keys", admin, `{"name":"a\nb"}`, 400},
		{"not JSON", "POST", "/v1/projects/acme/keys", admin, `name=x`, 400},
		{"too long", "POST", "/v1/projects/acme/keys", admin, `{"name":"` + strings.Repeat("x", 70<<10) + `"}`, 400},
		{"method", "PUT", "/v1/projects/acme/keys", admin, ``, 405},
		{"method of revoke", "GET", "/v1/projects/acme/keys/key_1", admin, ``, 405},
		{"limit", "GET", "/v1/projects/acme/keys?limit=0", admin, ``, 400},
		{"after", "GET", "/v1/projects/acme/keys?after=nobody", admin, ``, 400},
		{"path", "GET", "/v2/keys", admin, ``, 404},
	} {
		if got, body := do(t, c.method, s.URL+c.path, c.token, c.body); got != c.want {
			t.Errorf("%s: answered %d; want %d", c.name, got, c.want)
		} else if body["error"] == nil {
			t.Errorf("%s: no error in the body", c.name)
		}
	}
}

func TestFullProject(t *testing.T) {
	s := start(t, keyissuer.Options{MaxKeys: 2})
	keys := s.URL + "/v1/projects/acme/keys"
	for _, want := range []int{201, 201, 429} {
		if got, _ := do(t, "POST", keys, admin, `{"name":"n"}`); got != want {
			t.Fatalf("create answered %d; want %d", got, want)
		}
	}
	if got, _ := do(t, "POST", s.URL+"/v1/projects/globex/keys", admin, `{"name":"n"}`); got != 201 {
		t.Errorf("another project is full too: %d", got)
	}
	id := s.Issuer.Keys("acme", "")[0].ID
	if got, _ := do(t, "DELETE", keys+"/"+id, admin, ""); got != 204 {
		t.Fatalf("revoke answered %d", got)
	}
	if got, _ := do(t, "POST", keys, admin, `{"name":"n"}`); got != 201 {
		t.Errorf("create in a freed slot answered %d", got)
	}
}

func TestPages(t *testing.T) {
	s := start(t, keyissuer.Options{})
	for _, n := range []string{"a-1", "b-1", "a-2", "a-3"} {
		if _, _, err := s.Issuer.Create("p", n); err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	after := ""
	for range 5 {
		_, v := do(t, "GET", s.URL+"/v1/projects/p/keys?prefix=a-&limit=2&after="+after, admin, "")
		for _, k := range v["data"].([]any) {
			names = append(names, k.(map[string]any)["name"].(string))
		}
		if v["has_more"] != true {
			break
		}
		after = v["last_id"].(string)
	}
	if got := strings.Join(names, " "); got != "a-1 a-2 a-3" {
		t.Errorf("pages gave %s", got)
	}
}

// Keys outlive the process, and the file holds no key.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "issuer.json")
	first, err := keyissuer.New(keyissuer.Options{AdminKey: admin, File: file})
	if err != nil {
		t.Fatal(err)
	}
	kept, secret, err := first.Create("acme", "kept")
	if err != nil {
		t.Fatal(err)
	}
	gone, goneSecret, err := first.Create("acme", "gone")
	if err != nil {
		t.Fatal(err)
	}
	if ok, err := first.Revoke("acme", gone.ID); !ok || err != nil {
		t.Fatalf("revoke: %t, %v", ok, err)
	}
	leaktest.CheckDir(t, dir, secret, goneSecret, admin)
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode of the file: %v, %v; want 0600", fi.Mode(), err)
	}

	second, err := keyissuer.New(keyissuer.Options{AdminKey: admin, File: file})
	if err != nil {
		t.Fatal(err)
	}
	if k, ok := second.Verify(secret); !ok || k != kept {
		t.Errorf("after a restart the key is %+v, %t; want %+v", k, ok, kept)
	}
	if _, ok := second.Verify(goneSecret); ok {
		t.Error("a revoked key came back with the restart")
	}
}

// What cannot be saved did not happen.
func TestUnwritableFile(t *testing.T) {
	dir := t.TempDir()
	i, err := keyissuer.New(keyissuer.Options{AdminKey: admin, File: filepath.Join(dir, "sub", "issuer.json")})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := i.Create("p", "n"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("create gave %v; want an error of kind unavailable", err)
	}
	if n := len(i.Keys("p", "")); n != 0 {
		t.Errorf("%d keys are live though none was saved", n)
	}
}

func TestBadStart(t *testing.T) {
	file := filepath.Join(t.TempDir(), "issuer.json")
	if err := os.WriteFile(file, []byte(`{"version":1,"keys":[{"id":"x","sha256":"00"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]keyissuer.Options{
		"short admin key": {AdminKey: "short"}, "negative limit": {AdminKey: admin, MaxKeys: -1}, "damaged file": {AdminKey: admin, File: file},
	} {
		if _, err := keyissuer.New(o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s gave %v; want an error of kind invalid", name, err)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	s := start(t, keyissuer.Options{MaxKeys: 20, File: filepath.Join(t.TempDir(), "issuer.json")})
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			k, secret, err := s.Issuer.Create("p", "n")
			if err != nil {
				return
			}
			if _, ok := s.Issuer.Verify(secret); !ok {
				t.Error("a key that was made is refused")
			}
			if ok, err := s.Issuer.Revoke("p", k.ID); !ok || err != nil {
				t.Errorf("revoke: %t, %v", ok, err)
			}
		})
	}
	wg.Wait()
	if n := len(s.Issuer.Keys("p", "")); n != 0 {
		t.Errorf("%d keys are left", n)
	}
}
