package vaultkv_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/api"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/vaultfake"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
	"github.com/keyturn/keyturn/secrets/storetest"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A target is a Vault, the fake or a real one. Both are set up over HTTP.
type target struct {
	url       string
	transport http.RoundTripper
	fake      *vaultfake.Server // nil for a real one
}

func fake(t *testing.T) *target {
	t.Helper()
	f := vaultfake.New(t)
	return &target{url: f.URL(), transport: f.Transport(), fake: f}
}

// client returns a client that makes each call once and sends through rt.
func (tg *target) client(t *testing.T, token string, rt http.RoundTripper) *api.Client {
	t.Helper()
	c, err := api.NewClient(&api.Config{Address: tg.url, HttpClient: &http.Client{Transport: rt}})
	if err != nil {
		t.Fatal(err)
	}
	c.SetToken(token)
	return c
}

// call makes a request as root and returns the answer's status and its body.
func (tg *target) call(t *testing.T, method, path string, body any, header ...string) (int, map[string]any) {
	t.Helper()
	var b bytes.Buffer
	if body != nil {
		if err := json.NewEncoder(&b).Encode(body); err != nil {
			t.Fatal(err)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), method, tg.url+"/v1/"+path, &b)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", "root")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := (&http.Client{Transport: tg.transport}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	if len(raw) > 0 {
		if err := json.Unmarshal(raw, &out); err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
	}
	return resp.StatusCode, out
}

// must is call for what is to succeed, and returns the data.
func (tg *target) must(t *testing.T, method, path string, body any, header ...string) map[string]any {
	t.Helper()
	status, out := tg.call(t, method, path, body, header...)
	if status >= 300 {
		t.Fatalf("%s %s: status %d, %v", method, path, status, out["errors"])
	}
	data, _ := out["data"].(map[string]any)
	return data
}

type kv = map[string]any

// store opens a store with the root token.
func (tg *target) store(t *testing.T, opts *vaultkv.Options) *vaultkv.Store {
	t.Helper()
	s, err := vaultkv.New(tg.client(t, "root", tg.transport), opts)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mount mounts an engine of its own and returns a function that names secrets
// in it.
func (tg *target) mount(t *testing.T) (string, func(path string) ref.Ref) {
	t.Helper()
	mount := "kv-" + word()
	tg.must(t, "POST", "sys/mounts/"+mount, kv{"type": "kv", "options": kv{"version": "2"}})
	return mount, func(path string) ref.Ref { return mkref(t, "", mount, path) }
}

func mkref(t *testing.T, ns, mount, path string) ref.Ref {
	t.Helper()
	r, err := ref.New(ref.Vault, path, "main", ns, mount)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func word() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// backend is a target under the suite.
type backend struct {
	*target
	ns, mount string
	retries   int
	logs      leaktest.Recorder
}

func (b *backend) Open(t *testing.T, in *crashtest.Injector) secrets.Store {
	t.Helper()
	rt := b.transport
	if in != nil {
		rt = in.Transport(rt)
	}
	c := b.client(t, "root", rt)
	c.SetMaxRetries(b.retries)
	c.SetMinRetryWait(1)
	c.SetMaxRetryWait(1)
	s, err := vaultkv.New(c, &vaultkv.Options{Cluster: "main", Logger: b.logs.Logger()})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (b *backend) Create(t *testing.T, v secrets.Value) ref.Ref {
	t.Helper()
	r := mkref(t, b.ns, b.mount, "team/"+word())
	if _, err := b.Open(t, nil).(secrets.Creator).CreateSecret(t.Context(), r, v); err != nil {
		t.Fatal(err)
	}
	return r
}

func (*backend) Begin(*testing.T, ref.Ref, string) {}

func (b *backend) Logs() string { return b.logs.String() }

func (*backend) Limits() storetest.Limits { return storetest.Limits{Unfenced: true} }

// Kept tells what is not destroyed. What is deleted is restored for a moment,
// as anybody may who can.
func (b *backend) Kept(t *testing.T, r ref.Ref) (own, pending []secrets.Value) {
	kept := func(path string) (out []secrets.Value) {
		call := func(method, endpoint string, body any) (int, map[string]any) {
			return b.call(t, method, b.mount+"/"+endpoint+"/"+path, body, "X-Vault-Namespace", b.ns)
		}
		status, meta := call("GET", "metadata", nil)
		if status == http.StatusNotFound {
			return nil
		}
		data, _ := meta["data"].(map[string]any)
		all, _ := data["versions"].(map[string]any)
		for n, v := range all {
			info, _ := v.(map[string]any)
			if info["destroyed"] == true {
				continue
			}
			deleted, ids := info["deletion_time"] != "", kv{"versions": []string{n}}
			if deleted {
				call("POST", "undelete", ids)
			}
			_, got := b.call(t, "GET", b.mount+"/data/"+path+"?version="+n, nil, "X-Vault-Namespace", b.ns)
			if deleted {
				call("POST", "delete", ids)
			}
			data, _ := got["data"].(map[string]any)
			data, _ = data["data"].(map[string]any)
			text, _ := data["value"].(string) // all that the suite looks for is text
			out = append(out, secrets.NewString(text))
		}
		return out
	}
	return kept(r.Name), kept(r.Name + sibling.Suffix)
}

// Tag implements [storetest.Tagged]: keys of custom metadata, beside the notes.
func (b *backend) Tag(t *testing.T, r ref.Ref, tags map[string]string) {
	t.Helper()
	path := b.mount + "/metadata/" + r.Name
	old, _ := b.must(t, "GET", path, nil, "X-Vault-Namespace", b.ns)["custom_metadata"].(map[string]any)
	changes := kv{}
	for k := range old {
		if !strings.HasPrefix(k, "keyturn-") {
			changes[k] = nil
		}
	}
	for k, v := range tags {
		changes[k] = v
	}
	b.must(t, "PATCH", path, kv{"custom_metadata": changes}, "X-Vault-Namespace", b.ns)
}

// A clocked backend is a fake one.
type clocked struct{ *backend }

func (c clocked) Advance(d time.Duration) { c.fake.Advance(d) }

// A mount with slashes, in a namespace.
func TestStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Backend {
		tg := fake(t)
		tg.fake.Namespace("admin/team")
		tg.must(t, "POST", "sys/mounts/apps/kv", kv{"type": "kv", "options": kv{"version": "2"}}, "X-Vault-Namespace", "admin/team")
		return clocked{&backend{target: tg, ns: "admin/team", mount: "apps/kv"}}
	})
}

// With retries a failure that happens once is not seen, and a write whose
// answer was lost is repeated by the client, fails its check-and-set, and is
// found done.
func TestStoreWithRetries(t *testing.T) {
	b := &backend{target: fake(t), mount: "secret", retries: 2}
	crashtest.Run(t, func(t *testing.T, in *crashtest.Injector) {
		v0, v1, tok := secrets.NewString("old"), secrets.NewString("new"), word()
		r := b.Create(t, v0)
		s := b.Open(t, in)
		_, err := s.PutPending(t.Context(), r, tok, v1)
		if err == nil {
			_, err = s.Promote(t.Context(), r, tok)
		}
		if err != nil {
			if !strings.Contains(t.Name(), "/die/") {
				t.Fatalf("one failed attempt at %q was not retried: %v", in.Fired(), err)
			}
			in.Restart()
			if _, err := s.PutPending(t.Context(), r, tok, v1); err != nil && !fault.Is(err, fault.Conflict) {
				t.Fatal(err)
			}
			if _, err := s.Promote(t.Context(), r, tok); err != nil {
				t.Fatal(err)
			}
		}
		for stage, want := range map[secrets.Stage]secrets.Value{secrets.Current: v1, secrets.Previous: v0} {
			if got, err := b.Open(t, nil).Get(t.Context(), r, stage); err != nil || !got.Value.Equal(want) {
				t.Errorf("%s is another value: %v", stage, err)
			}
		}
	})
}
