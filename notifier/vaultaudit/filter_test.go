package vaultaudit

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
)

func TestRelevant(t *testing.T) {
	quietly := func(mount, kind, path string) string {
		return strings.NewReplacer(`"secret/"`, `"`+mount+`"`, `"kv"`, `"`+kind+`"`).Replace(entry(1, "response", "update", path))
	}
	for name, c := range map[string]struct {
		line string
		want bool
	}{
		"trap 36: first write":              {entry(1, "response", "create", "secret/data/x"), true},
		"next write":                        {entry(1, "response", "update", "secret/data/x"), true},
		"patch":                             {entry(1, "response", "patch", "secret/data/x"), true},
		"delete":                            {entry(1, "response", "delete", "secret/data/x"), true},
		"trap 35: request":                  {entry(1, "request", "update", "secret/data/x"), false},
		"trap 35: failed":                   {strings.TrimSuffix(write(1), "}") + `,"error":"1 error occurred"}`, false},
		"an empty error":                    {strings.TrimSuffix(write(1), "}") + `,"error":""}`, true},
		"trap 43: read":                     {read(1), false},
		"list":                              {entry(1, "response", "list", "secret/metadata/"), false},
		"an operation of tomorrow":          {entry(1, "response", "rotate", "secret/data/x"), true},
		"sign-in":                           {quietly("auth/approle/", "approle", "auth/approle/login"), false},
		"a secret id":                       {quietly("auth/approle/", "approle", "auth/approle/role/login/secret-id"), true},
		"encryption":                        {quietly("transit/", "transit", "transit/encrypt/key"), false},
		"rotation of a key":                 {quietly("transit/", "transit", "transit/keys/encrypt/rotate"), true},
		"renewal of a token":                {quietly("auth/token/", "token", "auth/token/renew-self"), false},
		"renewal of a lease":                {quietly("sys/", "system", "sys/leases/renew"), false},
		"revocation":                        {quietly("sys/", "system", "sys/leases/revoke/database/creds/x/1"), true},
		"trap 41: mount with slashes":       {quietly("team/kv/", "kv", "team/kv/data/login"), true},
		"a secret called login":             {entry(1, "response", "update", "secret/login"), true},
		"not JSON":                          {"hello", true},
		"cut":                               {write(1)[:200], true},
		"cut after the operation of a read": {read(1)[:len(read(1))-40], false},
		"nothing":                           {"", true},
		"an array":                          {`[{"type":"request"}]`, true},
		"escapes in between":                {`{"x":"\\\"}{","type":"request"}`, false},
		"nested type":                       {`{"auth":{"type":"request","error":"x"},"type":"response","request":{"data":{"operation":"read"},"operation":"update"}}`, true},
	} {
		t.Run(name, func(t *testing.T) {
			if got := Relevant([]byte(c.line)); got != c.want {
				t.Errorf("%t; expected %t", got, c.want)
			}
		})
	}
	line := []byte(read(1))
	if n := testing.AllocsPerRun(100, func() { Relevant(line) }); n > 0 {
		t.Errorf("%v allocations for a read", n)
	}
}

// A decoder's view of a line: what Relevant must never throw away.
func matters(line []byte) bool {
	var e struct {
		Type    string `json:"type"`
		Error   any    `json:"error"`
		Request struct {
			Operation string `json:"operation"`
			Mount     string `json:"mount_point"`
		} `json:"request"`
	}
	if json.Unmarshal(line, &e) != nil || e.Type != "response" || e.Error != nil && e.Error != "" || e.Request.Mount != "secret/" {
		return false
	}
	switch e.Request.Operation {
	case "create", "update", "patch", "delete":
		return true
	}
	return false
}

func FuzzRelevant(f *testing.F) {
	for _, s := range []string{write(1), read(1), entry(1, "request", "update", "x"), `{"type":"response","request":{"operation":"update"}}`, `{"a":[1,{"b":"\""}],"type":"request"}`, "{", `{"":`} {
		f.Add([]byte(s))
	}
	for _, path := range samples(f) {
		b, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		keep := Relevant(line)
		var top, req map[string]json.RawMessage
		_ = json.Unmarshal(line, &top)
		_ = json.Unmarshal(top["request"], &req)
		// Keys that come twice or in another case mean the last one to a parser;
		// no server writes them.
		once := true
		for _, k := range []string{"type", "error", "request", "operation", "mount_point", "mount_type", "path"} {
			once = once && strings.Count(strings.ToLower(string(line)), k) <= 2
		}
		if !keep && once && matters(line) && bytes.Count(line, []byte(`"type"`)) == 1 && bytes.Count(line, []byte(`"operation"`)) == 1 && bytes.Count(line, []byte(`"error"`)) <= 1 && bytes.Count(line, []byte(`"request"`)) == 1 {
			t.Errorf("thrown away: %s", line)
		}
		out, err := Redact(line)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("error %v", err)
			}
			return
		}
		if !json.Valid(out) || bytes.ContainsRune(out, '\n') {
			t.Errorf("redacted to what is not JSON on one line: %s", out)
		}
		if again, err := Redact(out); err != nil || !bytes.Equal(again, out) {
			t.Errorf("redacted again to %s, %v", again, err)
		}
	})
}

func samples(t testing.TB) []string {
	t.Helper()
	paths, err := filepath.Glob("testdata/*.json")
	if err != nil || len(paths) < 20 {
		t.Fatalf("%d samples, %v", len(paths), err)
	}
	return paths
}

// The entries of real servers: what is kept of them says the same.
func TestSamples(t *testing.T) {
	for _, path := range samples(t) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := filepath.Base(path)
		want := strings.Contains(name, ".response.") && !strings.Contains(name, "read.") && !strings.Contains(name, "failed") && !strings.Contains(name, "lease-renew") && !strings.Contains(name, "unsupported")
		if got := Relevant(b); got != want {
			t.Errorf("%s: relevant %t; expected %t", name, got, want)
		}
		out, err := Redact(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		type view struct {
			Type, Time string
			Request    struct {
				ID, Operation, Path string
				Mount               string `json:"mount_point"`
				Kind                string `json:"mount_type"`
				Namespace           struct{ ID, Path string }
			}
			Response *struct {
				Data struct{ Version int }
			}
		}
		var was, is view
		if json.Unmarshal(b, &was) != nil || json.Unmarshal(out, &is) != nil {
			t.Fatalf("%s: %s", name, out)
		}
		wasJSON, _ := json.Marshal(was)
		isJSON, _ := json.Marshal(is)
		if !bytes.Equal(wasJSON, isJSON) {
			t.Errorf("%s: %s became %s", name, wasJSON, isJSON)
		}
		if bytes.Contains(out, []byte("hmac-")) || bytes.Contains(out, []byte("127.0.0.1")) {
			t.Errorf("%s keeps too much: %s", name, out)
		}
	}
}

func TestRedact(t *testing.T) {
	canary := leaktest.Canary()
	for name, c := range map[string]struct{ in, want string }{
		"trap 39: numbers and times": {
			`{"type":"response","request":{"path":"kv1/pin","mount_point":"kv1/","data":{"pin":4711,"version":4711,"versions":[4711],"at":"2026-01-02T03:04:05Z","data":4711}},"response":{"data":{"version":2,"created_time":"2026-01-02T03:04:05Z","pin":4711}}}`,
			`{"request":{"data":{"data":true,"redacted":true,"versions":true},"mount_point":"kv1/","path":"kv1/pin"},"response":{"data":{"version":2}},"type":"response"}`,
		},
		"versions of a destroy": {
			`{"request":{"path":"secret/destroy/a","mount_point":"secret/","data":{"versions":[1, 2]}}}`,
			`{"request":{"data":{"versions":[1,2]},"mount_point":"secret/","path":"secret/destroy/a"}}`,
		},
		"trap 38: versions of Vault": {
			`{"request":{"path":"secret/destroy/a","mount_point":"secret/","data":{"versions":["hmac-sha256:00"]}}}`,
			`{"request":{"data":{"versions":true},"mount_point":"secret/","path":"secret/destroy/a"}}`,
		},
		"an error": {`{"error":"1 error: ` + canary + `","response":{"data":{"version":"` + canary + `"}}}`, `{"error":"redacted","response":{}}`},
		"log_raw": {
			`{"auth":{"client_token":"` + canary + `"},"request":{"client_token":"` + canary + `","headers":{"x":["` + canary + `"]},"data":{"` + canary + `":"` + canary + `","data":null},"namespace":{"id":"n1","path":"team/","x":"` + canary + `"}},"response":{"auth":{"client_token":"` + canary + `"},"secret":{"lease_id":"` + canary + `"},"wrap_info":{"token":"` + canary + `"}}}`,
			`{"request":{"data":{"redacted":true},"namespace":{"id":"n1","path":"team/"}},"response":{}}`,
		},
		"objects in place of text": {`{"type":{"a":"` + canary + `"},"request":{"path":["` + canary + `"]},"time":null}`, `{"request":{},"time":null}`},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Redact([]byte(c.in))
			if err != nil || string(got) != c.want {
				t.Errorf("%s, %v; expected %s", got, err, c.want)
			}
		})
	}
	for _, bad := range []string{canary, `{"a":"` + canary, `["` + canary + `"]`, "null", ""} {
		_, err := Redact([]byte(bad))
		if !fault.Is(err, fault.Invalid) || leaktest.Find([]byte(err.Error()), canary) != "" {
			t.Errorf("%v; expected Invalid without a quotation", err)
		}
	}
}
