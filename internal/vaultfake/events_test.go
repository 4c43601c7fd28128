package vaultfake_test

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/google/go-cmp/cmp"

	"github.com/keyturn/keyturn/internal/vaultfake"
)

// write sends one request as root and returns its status.
func write(t *testing.T, s *vaultfake.Server, method, path, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL()+"/v1/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vault-Token", vaultfake.Root)
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := (&http.Client{Transport: s.Transport()}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

func subscribe(t *testing.T, s *vaultfake.Server, what, token string) (*websocket.Conn, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, s.URL()+"/v1/sys/events/subscribe/"+what+"?json=true", &websocket.DialOptions{ //nolint:bodyclose // closed by Dial
		HTTPClient: &http.Client{Transport: s.Transport()}, HTTPHeader: http.Header{"X-Vault-Token": {token}},
	})
	if err == nil {
		t.Cleanup(func() { _ = conn.CloseNow() })
	}
	if resp == nil {
		t.Fatal(err)
	}
	return conn, resp.StatusCode
}

// form is a notification with its values taken away, but for those that tell
// its type.
func form(t *testing.T, b []byte) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	var strip func(v any) any
	strip = func(v any) any {
		m, ok := v.(map[string]any)
		if !ok {
			return "a " + map[bool]string{true: "text", false: "value"}[isText(v)]
		}
		delete(m, "vault_index") // of the Enterprise edition
		for k, x := range m {
			switch k {
			case "event_type", "operation", "type", "modified", "specversion", "datacontentype", "plugin", "mount_class":
			default:
				m[k] = strip(x)
			}
		}
		return m
	}
	return strip(v).(map[string]any)
}

func isText(v any) bool { _, ok := v.(string); return ok }

// What is told of a change has the form of what a real server was heard to
// say.
func TestNotificationsAreReal(t *testing.T) {
	s := vaultfake.New(t)
	if _, status := subscribe(t, s, "*", vaultfake.Root); status != http.StatusNotFound {
		t.Errorf("the community edition answers %d; expected 404", status)
	}
	s.Enterprise(true)
	if _, status := subscribe(t, s, "*", "nobody"); status != http.StatusForbidden {
		t.Errorf("a stranger is answered %d; expected 403", status)
	}
	conn, _ := subscribe(t, s, "*", vaultfake.Root)
	next := func() []byte {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, b, err := conn.Read(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	for _, c := range [][4]string{
		{"POST", "secret/data/a", `{"data":{"x":"y"}}`, "kv-v2.data-write"},
		{"PATCH", "secret/data/a", `{"data":{"x":"z"}}`, "kv-v2.data-patch"},
		{"POST", "secret/delete/a", `{"versions":[1]}`, "kv-v2.delete"},
		{"POST", "secret/undelete/a", `{"versions":[1]}`, "kv-v2.undelete"},
		{"POST", "secret/destroy/a", `{"versions":[1]}`, "kv-v2.destroy"},
		{"DELETE", "secret/data/a", "", "kv-v2.data-delete"},
		{"POST", "secret/metadata/a", `{"max_versions":3}`, "kv-v2.metadata-write"},
		{"DELETE", "secret/metadata/a", "", "kv-v2.metadata-delete"},
	} {
		if status := write(t, s, c[0], c[1], c[2]); status >= 300 {
			t.Fatalf("%s %s: %d", c[0], c[1], status)
		}
		want, err := os.ReadFile("../../events/vault/testdata/notices/event." + c[3] + ".json")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(form(t, want), form(t, next())); d != "" {
			t.Errorf("%s differs (-real +fake):\n%s", c[3], d)
		}
	}
	s.RotateStatic("", "database/", "r")
	pair, err := os.ReadFile("../../events/vault/testdata/notices/event.automatic-rotation-pair.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(pair)) {
		if d := cmp.Diff(form(t, []byte(line)), form(t, next())); d != "" {
			t.Errorf("a rotation differs (-real +fake):\n%s", d)
		}
	}
	// Of what failed, or is not there, nothing is told.
	write(t, s, "POST", "secret/data/a", `{"options":{"cas":7},"data":{}}`)
	write(t, s, "POST", "secret/delete/none", `{"versions":[1]}`)
	s.SendFrame([]byte("forged"))
	if got := string(next()); got != "forged" {
		t.Errorf("heard %s", got)
	}
	s.CutEvents()
	if _, _, err := conn.Read(t.Context()); err == nil || s.Subscriptions() != 0 {
		t.Errorf("the subscription goes on")
	}
}
