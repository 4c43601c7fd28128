package vaultfake_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/internal/vaultfake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type kv = map[string]any

// A step is one request. Words in braces are what an answer before gave.
type step struct {
	method, path string
	body         any
	token        string // root by default
	header       string // "Name: value"
	save         string // a member of the answer, "auth.client_token"
	status       int
	says         string // in the errors
}

// script is one list of requests. The fake must answer with the status that is
// noted here; a real Vault must answer just as the fake does.
var script = []step{
	{method: "POST", path: "sys/mounts/kv", body: kv{"type": "kv", "options": kv{"version": "2"}}, status: 204},
	{method: "GET", path: "kv/config", status: 200},
	{method: "GET", path: "kv/data/none", status: 404},
	{method: "GET", path: "kv/metadata/none", status: 404},
	{method: "LIST", path: "kv/metadata", status: 404},
	{method: "LIST", path: "kv/metadata/none", status: 404},
	{method: "DELETE", path: "kv/data/none", status: 204},
	{method: "DELETE", path: "kv/metadata/none", status: 204},
	{method: "POST", path: "kv/delete/none", body: kv{"versions": []int{1}}, status: 204},
	{method: "POST", path: "kv/undelete/none", body: kv{"versions": []int{1}}, status: 204},
	{method: "POST", path: "kv/destroy/none", body: kv{"versions": []int{1}}, status: 204},
	{method: "PATCH", path: "kv/metadata/none", body: kv{"custom_metadata": kv{"a": "b"}}, status: 404},
	{method: "PATCH", path: "kv/data/none", body: kv{"data": kv{"a": "b"}}, status: 404},

	// Versions and check-and-set.
	{method: "POST", path: "kv/data/a", body: kv{"options": kv{"cas": 1}, "data": kv{"v": 1}}, status: 400, says: "did not match"},
	{method: "POST", path: "kv/data/a", body: kv{"options": kv{"cas": 0}, "data": kv{"v": 1}}, status: 200},
	{method: "POST", path: "kv/data/a", body: kv{"options": kv{"cas": 0}, "data": kv{"v": 2}}, status: 400, says: "did not match"},
	{method: "PUT", path: "kv/data/a", body: kv{"options": kv{"cas": 1}, "data": kv{"v": 2, "n": json.Number("12345678901234567890")}}, status: 200},
	{method: "PUT", path: "kv/data/a", body: kv{"options": kv{"cas": "x"}, "data": kv{}}, status: 400, says: "check-and-set"},
	{method: "PUT", path: "kv/data/a", body: kv{"options": kv{}}, status: 400, says: "no data"},
	{method: "PUT", path: "kv/data/a/", body: kv{"data": kv{}}, status: 400, says: "ending in '/'"},
	{method: "GET", path: "kv/data/a", status: 200},
	{method: "GET", path: "kv/data/a?version=1", status: 200},
	{method: "GET", path: "kv/data/a?version=9", status: 404},
	{method: "GET", path: "kv/metadata/a", status: 200},
	{method: "PATCH", path: "kv/data/a", body: kv{"options": kv{"cas": 1}, "data": kv{"v": 3}}, status: 400, says: "did not match"},
	{method: "PATCH", path: "kv/data/a", body: kv{"options": kv{"cas": 2}, "data": kv{"v": 3, "n": nil}}, status: 200},
	{method: "GET", path: "kv/metadata/a", status: 200},
	{method: "GET", path: "kv/data/a", status: 200},
	{method: "POST", path: "kv/metadata/a", body: kv{"cas_required": true}, status: 204},
	{method: "POST", path: "kv/data/a", body: kv{"data": kv{"v": 4}}, status: 400, says: "required"},
	{method: "POST", path: "kv/metadata/a", body: kv{"cas_required": false, "max_versions": 2}, status: 204},
	{method: "POST", path: "kv/data/a", body: kv{"data": kv{"v": 4}}, status: 200},
	{method: "GET", path: "kv/data/a?version=1", status: 404},
	{method: "GET", path: "kv/metadata/a", status: 200},

	// Deleting, and what can be undone.
	{method: "POST", path: "kv/delete/a", body: kv{"versions": []int{3}}, status: 204},
	{method: "GET", path: "kv/data/a?version=3", status: 404},
	{method: "GET", path: "kv/metadata/a", status: 200},
	{method: "POST", path: "kv/undelete/a", body: kv{"versions": []int{3}}, status: 204},
	{method: "GET", path: "kv/data/a?version=3", status: 200},
	{method: "POST", path: "kv/destroy/a", body: kv{"versions": []int{3}}, status: 204},
	{method: "POST", path: "kv/undelete/a", body: kv{"versions": []int{3}}, status: 204},
	{method: "GET", path: "kv/data/a?version=3", status: 404},
	{method: "POST", path: "kv/destroy/a", body: kv{}, status: 400, says: "version number"},
	{method: "POST", path: "kv/delete/a", body: kv{}, status: 400, says: "ersion number"},
	{method: "DELETE", path: "kv/data/a", status: 204},
	{method: "GET", path: "kv/data/a", status: 404},
	{method: "PATCH", path: "kv/data/a", body: kv{"data": kv{"v": 3}}, status: 404},
	{method: "POST", path: "kv/data/a", body: kv{"options": kv{"cas": 0}, "data": kv{}}, status: 400, says: "did not match"},

	// Custom metadata.
	{method: "POST", path: "kv/metadata/b", body: kv{"custom_metadata": kv{"a": "1", "b": "2"}}, status: 204},
	{method: "GET", path: "kv/metadata/b", status: 200},
	{method: "GET", path: "kv/data/b", status: 404},
	{method: "POST", path: "kv/data/b", body: kv{"options": kv{"cas": 0}, "data": kv{"x": "y"}}, status: 200},
	{method: "PATCH", path: "kv/metadata/b", body: kv{"custom_metadata": kv{"a": nil, "c": "3", "none": nil}}, status: 204},
	{method: "GET", path: "kv/data/b", status: 200},
	{method: "POST", path: "kv/metadata/b", body: kv{"custom_metadata": kv{"a": strings.Repeat("x", 513)}}, status: 400, says: "512"},
	{method: "PATCH", path: "kv/metadata/b", body: kv{"custom_metadata": kv{strings.Repeat("k", 129): "x"}}, status: 400, says: "128"},
	{method: "PATCH", path: "kv/metadata/b", body: kv{"custom_metadata": kv{"a": ""}}, status: 400, says: "validation failed"},
	{method: "PATCH", path: "kv/metadata/b", body: kv{"custom_metadata": kv{"a": "\n"}}, status: 400, says: "unprintable"},
	{method: "PATCH", path: "kv/metadata/b", body: kv{"custom_metadata": many(65)}, status: 400, says: "64"},
	{method: "PATCH", path: "kv/metadata/b", body: kv{"custom_metadata": many(64)}, status: 204},
	{method: "PATCH", path: "kv/metadata/b", body: kv{"custom_metadata": kv{"one more": "x"}}, status: 204},
	{method: "PATCH", path: "kv/metadata/b", body: kv{"max_versions": 5}, status: 204},
	{method: "GET", path: "kv/metadata/b", status: 200},
	{method: "PATCH", path: "kv/metadata/b", header: "Content-Type: application/json", body: kv{"max_versions": 5}, status: 415},
	{method: "POST", path: "kv/metadata/b", body: kv{}, status: 204},

	// Folders, settings of the mount.
	{method: "POST", path: "kv/data/f/g/h", body: kv{"data": kv{"x": 1}}, status: 200},
	{method: "POST", path: "kv/data/f/i", body: kv{"data": kv{"x": 1}}, status: 200},
	{method: "LIST", path: "kv/metadata", status: 200},
	{method: "LIST", path: "kv/metadata/f", status: 200},
	{method: "GET", path: "kv/metadata/f/?list=true", status: 200},
	{method: "POST", path: "kv/config", body: kv{"max_versions": 3, "delete_version_after": "1h"}, status: 204},
	{method: "GET", path: "kv/config", status: 200},
	{method: "POST", path: "kv/data/f/i", body: kv{"data": kv{"x": 2}}, status: 200},
	{method: "GET", path: "kv/data/f/i", status: 200},
	{method: "DELETE", path: "kv/metadata/f/i", status: 204},
	{method: "GET", path: "kv/metadata/f/i", status: 404},

	// JSON that the listener refuses.
	{method: "POST", path: "kv/data/big", body: kv{"data": kv{"n": json.Number("1e400")}}, status: 500, says: "malformed JSON"},
	{method: "POST", path: "kv/data/big", body: kv{"data": json.RawMessage(`{"a":{"b":1,"b":2}}`)}, status: 500, says: "duplicate key"},
	{method: "POST", path: "kv/data/big", body: kv{"data": json.RawMessage(`{"a":"\ud800"}`)}, status: 500, says: "surrogate pair"},
	{method: "POST", path: "kv/data/big", body: kv{"data": nested(299)}, status: 500, says: "exceeds allowed nesting depth"},
	{method: "POST", path: "kv/data/big", body: kv{"data": kv{"a": make([]int, 10001)}}, status: 500, says: "exceeds allowed element count"},
	{method: "GET", path: "kv/data/big", status: 404},
	{method: "POST", path: "kv/data/big", body: kv{"data": nested(298)}, status: 200},
	{method: "POST", path: "kv/data/big", body: kv{"data": kv{"a": make([]int, 10000)}}, status: 200},
	{method: "POST", path: "kv/data/big", body: kv{"data": json.RawMessage(`{"a":"\\ud800","b":"\ud83d\ude00","c":1e-400}`)}, status: 200},
	{method: "GET", path: "kv/data/big", status: 200},

	// Paths that are none.
	{method: "GET", path: "nothing/here", status: 404, says: "no handler for route"},
	{method: "GET", path: "kv/other/x", status: 404},
	{method: "DELETE", path: "kv/destroy/x", status: 405, says: "unsupported operation"},
	{method: "GET", path: "kv/delete/x", status: 405, says: "unsupported operation"},

	// Tokens and policies.
	{method: "GET", path: "kv/data/b", token: "none", status: 403, says: "permission denied"},
	{method: "GET", path: "kv/data/b", token: "hvs.unknown", status: 403, says: "invalid token"},
	{method: "POST", path: "sys/policies/acl/p", body: kv{"policy": "path \"kv/data/b\" { capabilities = [\"read\"] }\npath \"kv/metadata/f/*\" { capabilities = [\"list\"] }\npath \"kv/data/+/new\" { capabilities = [\"create\"] }"}, status: 204},
	{method: "POST", path: "auth/token/create", body: kv{"policies": []string{"p"}, "ttl": "1h"}, status: 200, save: "auth.client_token"},
	{method: "GET", path: "auth/token/lookup-self", token: "{auth.client_token}", status: 200},
	{method: "GET", path: "kv/data/b", token: "{auth.client_token}", status: 200},
	{method: "GET", path: "kv/data/c", token: "{auth.client_token}", status: 403},
	{method: "POST", path: "kv/data/b", token: "{auth.client_token}", body: kv{"data": kv{}}, status: 403},
	{method: "POST", path: "kv/data/q/new", token: "{auth.client_token}", body: kv{"data": kv{}}, status: 200},
	{method: "POST", path: "kv/data/q/new", token: "{auth.client_token}", body: kv{"data": kv{}}, status: 403},
	{method: "LIST", path: "kv/metadata/f", token: "{auth.client_token}", status: 200},
	{method: "POST", path: "sys/capabilities-self", token: "{auth.client_token}", body: kv{"paths": []string{"kv/data/b", "kv/data/c", "kv/data/q/new", "kv/metadata/f/g"}}, status: 200},
	{method: "POST", path: "sys/capabilities-self", token: "{auth.client_token}", body: kv{"paths": []string{"kv/data/b"}}, status: 200},
	{method: "POST", path: "sys/capabilities-self", body: kv{"paths": []string{"kv/data/b", "x"}}, status: 200},
	{method: "POST", path: "sys/capabilities-self", body: kv{}, status: 400},
	{method: "POST", path: "auth/token/renew-self", token: "{auth.client_token}", body: kv{}, status: 200},
	{method: "POST", path: "auth/token/revoke-self", token: "{auth.client_token}", body: kv{}, status: 204},
	{method: "GET", path: "auth/token/lookup-self", token: "{auth.client_token}", status: 403},
	{method: "POST", path: "auth/token/create", body: kv{"policies": []string{"default"}, "num_uses": 2, "ttl": "1h"}, status: 200, save: "auth.client_token"},
	{method: "GET", path: "auth/token/lookup-self", token: "{auth.client_token}", status: 200},
	{method: "GET", path: "auth/token/lookup-self", token: "{auth.client_token}", status: 200},
	{method: "GET", path: "auth/token/lookup-self", token: "{auth.client_token}", status: 403},
	{method: "POST", path: "auth/token/create", body: kv{"policies": []string{"default"}, "renewable": false, "ttl": "1h"}, status: 200, save: "auth.client_token"},
	{method: "POST", path: "auth/token/renew-self", token: "{auth.client_token}", body: kv{}, status: 400},
	{method: "GET", path: "auth/token/lookup-self", status: 200},

	// AppRole, and a secret id for one use.
	{method: "POST", path: "sys/auth/approle", body: kv{"type": "approle"}, status: 204},
	{method: "GET", path: "auth/approle/role/none/role-id", status: 404},
	{method: "POST", path: "auth/approle/role/r", body: kv{"token_policies": []string{"p"}, "token_ttl": "10m", "secret_id_num_uses": 1, "secret_id_ttl": "5m"}, status: 204},
	{method: "GET", path: "auth/approle/role/r/role-id", status: 200, save: "data.role_id"},
	{method: "POST", path: "auth/approle/role/r/secret-id", body: kv{}, status: 200, save: "data.secret_id"},
	{method: "POST", path: "auth/approle/login", token: "none", body: kv{"role_id": "wrong", "secret_id": "{data.secret_id}"}, status: 400, says: "invalid role or secret ID"},
	{method: "POST", path: "auth/approle/login", token: "none", body: kv{"role_id": "{data.role_id}", "secret_id": "wrong"}, status: 400, says: "invalid role or secret ID"},
	{method: "POST", path: "auth/approle/login", token: "none", body: kv{"role_id": "{data.role_id}"}, status: 400, says: "missing secret_id"},
	{method: "POST", path: "auth/approle/login", token: "none", body: kv{"role_id": "{data.role_id}", "secret_id": "{data.secret_id}"}, status: 200, save: "auth.client_token"},
	{method: "POST", path: "auth/approle/login", token: "none", body: kv{"role_id": "{data.role_id}", "secret_id": "{data.secret_id}"}, status: 400, says: "invalid role or secret ID"},
	{method: "GET", path: "auth/token/lookup-self", token: "{auth.client_token}", status: 200},
	{method: "POST", path: "auth/token/renew-self", token: "{auth.client_token}", body: kv{}, status: 200},

	// Wrapping.
	{method: "POST", path: "auth/approle/role/r/secret-id", body: kv{}, header: "X-Vault-Wrap-TTL: 60s", status: 200, save: "wrap_info.token"},
	{method: "POST", path: "sys/wrapping/lookup", token: "none", body: kv{"token": "{wrap_info.token}"}, status: 200},
	{method: "POST", path: "sys/wrapping/unwrap", token: "{wrap_info.token}", body: kv{}, status: 200, save: "data.secret_id"},
	{method: "POST", path: "sys/wrapping/unwrap", token: "{wrap_info.token}", body: kv{}, status: 400, says: "wrapping token is not valid"},
	{method: "POST", path: "sys/wrapping/lookup", token: "none", body: kv{"token": "{wrap_info.token}"}, status: 400, says: "wrapping token is not valid"},
	{method: "POST", path: "auth/approle/login", token: "none", body: kv{"role_id": "{data.role_id}", "secret_id": "{data.secret_id}"}, status: 200},
	{method: "POST", path: "sys/wrapping/wrap", body: kv{"a": "b"}, header: "X-Vault-Wrap-TTL: 60s", status: 200, save: "wrap_info.token"},
	{method: "POST", path: "sys/wrapping/lookup", token: "none", body: kv{"token": "{wrap_info.token}"}, status: 200},

	// Sealed: the end.
	{method: "POST", path: "sys/seal", body: kv{}, status: 204},
	{method: "GET", path: "kv/data/b", status: 503, says: "sealed"},
	{method: "POST", path: "auth/approle/login", token: "none", body: kv{"role_id": "x"}, status: 503, says: "sealed"},
}

// nested is an object with n arrays, one in the other.
func nested(n int) json.RawMessage {
	return json.RawMessage(`{"a":` + strings.Repeat("[", n) + strings.Repeat("]", n) + `}`)
}

func many(n int) kv {
	out := kv{}
	for i := range n {
		out[fmt.Sprintf("k%02d", i)] = "v"
	}
	return out
}

// An outcome is what a step gave.
type outcome struct {
	status int
	body   any
	errors string
}

// play sends the script to a server.
func play(t *testing.T, url string, rt http.RoundTripper) []outcome {
	t.Helper()
	saved := map[string]string{}
	fill := func(s string) string {
		for k, v := range saved {
			s = strings.ReplaceAll(s, "{"+k+"}", v)
		}
		return s
	}
	out := make([]outcome, len(script))
	for i, st := range script {
		var body []byte
		if st.body != nil {
			b, err := json.Marshal(st.body)
			if err != nil {
				t.Fatal(err)
			}
			body = []byte(fill(string(b)))
		}
		req, err := http.NewRequestWithContext(t.Context(), st.method, url+"/v1/"+st.path, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		switch token := fill(st.token); token {
		case "":
			req.Header.Set("X-Vault-Token", vaultfake.Root)
		case "none":
		default:
			req.Header.Set("X-Vault-Token", token)
		}
		if st.method == http.MethodPatch {
			req.Header.Set("Content-Type", "application/merge-patch+json")
		}
		if name, value, ok := strings.Cut(st.header, ": "); ok {
			req.Header.Set(name, value)
		}
		resp, err := (&http.Client{Transport: rt}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		out[i].status = resp.StatusCode
		if len(raw) > 0 {
			if err := json.Unmarshal(raw, &out[i].body); err != nil {
				t.Fatalf("step %d, %s %s: %v in %q", i, st.method, st.path, err, raw)
			}
		}
		top, _ := out[i].body.(kv)
		if e, ok := top["errors"]; ok {
			out[i].errors = fmt.Sprint(e)
		}
		if st.save != "" {
			saved[st.save], _ = member(out[i].body, st.save).(string)
		}
	}
	return out
}

func member(v any, path string) any {
	for part := range strings.SplitSeq(path, ".") {
		m, _ := v.(kv)
		v = m[part]
	}
	return v
}

func TestScript(t *testing.T) {
	s := vaultfake.New(t)
	for i, o := range play(t, s.URL(), s.Transport()) {
		st := script[i]
		if o.status != st.status || !strings.Contains(o.errors, st.says) {
			t.Errorf("step %d, %s %s: status %d, errors %q; expected %d, %q", i, st.method, st.path, o.status, o.errors, st.status, st.says)
		}
	}
	if n := len(s.Calls()); n != len(script) {
		t.Errorf("%d calls are told, expected %d", n, len(script))
	}
}
