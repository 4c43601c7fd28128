//go:build realvault

package vault

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/vaultfake/realvault"
)

// What a real Vault writes into its audit log is what the samples say: each
// change is an event, and nothing else is.
func TestRealAuditLog(t *testing.T) {
	v := realvault.Start(t)
	log := filepath.Join(t.TempDir(), "audit.log")
	do := func(method, path, body string) {
		t.Helper()
		req, err := http.NewRequestWithContext(context.Background(), method, v.URL+"/v1/"+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Vault-Token", realvault.Root)
		if method == http.MethodPatch {
			req.Header.Set("Content-Type", "application/merge-patch+json")
		}
		resp, err := (&http.Client{Transport: v.Transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode >= 500 {
			t.Fatalf("%s %s: %s", method, path, resp.Status)
		}
	}
	do("POST", "sys/audit/file", `{"type":"file","options":{"file_path":"`+log+`"}}`)
	do("POST", "sys/mounts/team/v1", `{"type":"kv","options":{"version":"1"}}`)
	do("POST", "secret/data/data", `{"data":{"n":918273645}}`)
	do("GET", "secret/data/data", "")
	do("PATCH", "secret/data/data", `{"data":{"x":"y"}}`)
	do("POST", "secret/data/data", `{"options":{"cas":9},"data":{}}`) // fails
	do("POST", "secret/delete/data", `{"versions":[1]}`)
	do("POST", "secret/undelete/data", `{"versions":[1]}`)
	do("POST", "secret/destroy/data", `{"versions":[1]}`)
	do("PATCH", "secret/metadata/data", `{"custom_metadata":{"a":"b"}}`)
	do("DELETE", "secret/data/data", "")
	do("DELETE", "secret/metadata/data", "")
	do("POST", "secret/data/data--pending", `{"data":{}}`)
	do("POST", "secret/config", `{"max_versions":9}`)
	do("POST", "secret/nowhere", `{"a":"b"}`) // of version 1 only
	do("POST", "team/v1/data/x", `{"a":"b"}`)
	do("POST", "team/v1/data/x", `{"a":"c"}`)
	do("POST", "team/v1/metadata/x", `{"a":"c"}`)
	do("DELETE", "team/v1/y", "")
	body, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	es, err := decode(body)
	const want = "version.activated /secret/data 1; version.activated /secret/data 2; version.disabled /secret/data; version.enabled /secret/data; version.destroyed /secret/data; " +
		"secret.changed /secret/data; version.disabled /secret/data; secret.deleted /secret/data; " +
		"version.activated /team%2Fv1/data/x; version.activated /team%2Fv1/data/x; version.activated /team%2Fv1/metadata/x; secret.deleted /team%2Fv1/y"
	if got := short(es, err); got != want {
		t.Errorf("got      %s\nexpected %s\n%v", got, want, err)
	}
	if len(es) > 0 && es[0].ID != events.New(events.VersionActivated, es[0].Data.Ref, received, "1").ID {
		t.Error("the first write has another id than its announcement")
	}
	// The early look and the full parse agree on every line.
	for line := range bytes.Lines(body) {
		line = bytes.TrimSpace(line)
		if wide, err := decode(pretty(t, line)); irrelevant(line) && (err != nil || len(wide) > 0) {
			t.Errorf("an entry that means %s is taken for one that means nothing", short(wide, err))
		}
	}
}
