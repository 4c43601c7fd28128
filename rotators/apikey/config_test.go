package apikey_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/apikey"
	"github.com/keyturn/keyturn/secrets"
)

func noAdmin(context.Context, string) (secrets.Value, error) {
	return secrets.NewString(`{"key":"admin-key"}`), nil
}

// Every mistake in a configuration shows at the start, with what to do.
func TestBadConfigs(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*apikey.Config)
		want string
	}{
		"quotes around an action":   {func(c *apikey.Config) { c.Create.Body = `{"name": "{{.Name}}"}` }, "without quotes"},
		"quotes in a list":          {func(c *apikey.Config) { c.Create.Body = `["{{.Name}}"]` }, "without quotes"},
		"not JSON":                  {func(c *apikey.Config) { c.Create.Body = `name={{.Name}}` }, "not valid JSON"},
		"unknown field":             {func(c *apikey.Config) { c.Create.Body = `{"name": {{.Nickname}}}` }, "Nickname"},
		"unknown var":               {func(c *apikey.Config) { c.Verify.URL += "?x={{.Vars.nothing}}" }, "nothing"},
		"broken template":           {func(c *apikey.Config) { c.Revoke.URL += "{{" }, "revoke: url"},
		"plain http":                {func(c *apikey.Config) { c.Verify.URL = "http://issuer.example/verify" }, "without TLS"},
		"host by value":             {func(c *apikey.Config) { c.Verify.URL = "https://{{.Vars.project}}.example/" }, "the host without template actions"},
		"host by value, half":       {func(c *apikey.Config) { c.Verify.URL = "https://a.example{{.Vars.project}}/" }, "the host without template actions"},
		"credentials in the URL":    {func(c *apikey.Config) { c.Verify.URL = "https://user:pass@issuer.example/" }, "expected https://HOST"},
		"another scheme":            {func(c *apikey.Config) { c.Verify.URL = "ftp://issuer.example/" }, "expected https://HOST"},
		"no URL":                    {func(c *apikey.Config) { c.Revoke.URL = "" }, "revoke: url"},
		"key in a URL":              {func(c *apikey.Config) { c.Verify.URL += "?key={{.Key}}" }, "may not be in a URL"},
		"admin in a URL":            {func(c *apikey.Config) { c.Revoke.URL += "?token={{.Admin}}" }, "may not be in a URL"},
		"admin in verify":           {func(c *apikey.Config) { c.Verify.Headers["X-Admin"] = "{{.Admin}}" }, "Admin"},
		"key in create":             {func(c *apikey.Config) { c.Create.Body = `{"name": {{.Key}}}` }, "Key"},
		"method":                    {func(c *apikey.Config) { c.Revoke.Method = "PURGE" }, "method"},
		"redirect expected":         {func(c *apikey.Config) { c.Verify.Expect = []int{302} }, "302"},
		"header name":               {func(c *apikey.Config) { c.Verify.Headers["X Y"] = "z" }, "X Y"},
		"header with a line break":  {func(c *apikey.Config) { c.Vars["project"] = "a\nb"; c.Verify.Headers["X"] = "{{.Vars.project}}" }, "control characters"},
		"dot segment":               {func(c *apikey.Config) { c.Vars["project"] = ".." }, "dot segment"},
		"content type":              {func(c *apikey.Config) { c.Create.Headers = map[string]string{"Content-Type": "text/xml"} }, "text/xml"},
		"pointer without slash":     {func(c *apikey.Config) { c.Create.Key = "key" }, "does not begin with /"},
		"pointer with a lone tilde": {func(c *apikey.Config) { c.Create.ID = "/a~2" }, "~"},
		"define":                    {func(c *apikey.Config) { c.Create.Body = `{{define "x"}}1{{end}}{"name": {{.Name}}}` }, "define"},
		"disable alone":             {func(c *apikey.Config) { c.Disable = &apikey.Request{URL: "https://issuer.example/x"} }, "both"},
		"enable alone":              {func(c *apikey.Config) { c.Enable = &apikey.Request{URL: "https://issuer.example/x"} }, "both"},
		"key in disable": {func(c *apikey.Config) {
			c.Disable = &apikey.Request{URL: "https://issuer.example/x", Body: `{"k": {{.Key}}}`}
			c.Enable = &apikey.Request{URL: "https://issuer.example/x"}
		}, "disable"},
		"enable without a URL": {func(c *apikey.Config) {
			c.Disable, c.Enable = &apikey.Request{URL: "https://issuer.example/x"}, &apikey.Request{}
		}, "enable: url"},
		"unknown preset":      {func(c *apikey.Config) { *c = apikey.Config{Preset: "nobody"} }, "openai"},
		"preset without vars": {func(c *apikey.Config) { *c = apikey.Config{Preset: "openai"} }, "vars.project"},
		"preset and disable":  {func(c *apikey.Config) { *c = apikey.Config{Preset: "openrouter", Disable: &apikey.Request{}} }, "one or the other"},
		"preset and requests": {func(c *apikey.Config) { c.Preset = "openai" }, "one or the other"},
	} {
		cfg := config("https://issuer.example")
		c.edit(&cfg)
		_, err := apikey.New(cfg, &apikey.Options{Admin: noAdmin})
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want an error of kind invalid with %q", name, err, c.want)
		}
	}
	if _, err := apikey.New(config("https://issuer.example"), nil); !fault.Is(err, fault.Invalid) {
		t.Errorf("no Admin: %v; want an error of kind invalid", err)
	}
	for _, url := range []string{"https://issuer.example", "http://127.0.0.1:1", "http://[::1]:1", "http://localhost"} {
		if _, err := apikey.New(config(url), &apikey.Options{Admin: noAdmin}); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	cfg := config("http://issuer.example")
	cfg.AllowPlaintext = true
	if _, err := apikey.New(cfg, &apikey.Options{Admin: noAdmin}); err != nil {
		t.Errorf("plaintext, allowed: %v", err)
	}
}

func TestParseConfig(t *testing.T) {
	want := disabling("https://issuer.example")
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := apikey.ParseConfig(b)
	if err != nil {
		t.Fatal(err)
	}
	if back, _ := json.Marshal(got); string(back) != string(b) {
		t.Errorf("round trip gave %s\nwant %s", back, b)
	}
	for _, s := range []string{``, `[]`, `{"crate":{}}`, `{} {}`, `{"create":{"url":1}}`} {
		if _, err := apikey.ParseConfig([]byte(s)); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; want an error of kind invalid", s, err)
		}
	}
}

// openAI answers as the documentation of the API shows, with state.
type openAI struct {
	t    *testing.T
	keys []map[string]any
	seen []string
}

func (o *openAI) RoundTrip(r *http.Request) (*http.Response, error) {
	o.seen = append(o.seen, r.Method+" "+r.URL.String())
	status, body := 200, any(nil)
	const keys = "/v1/organization/projects/proj_abc/api_keys"
	auth := r.Header.Get("Authorization")
	switch {
	case r.URL.Path == "/v1/models":
		status = 401
		for _, k := range o.keys {
			if auth == "Bearer "+k["value"].(string) {
				status, body = 200, map[string]any{"object": "list", "data": []any{}}
			}
		}
	case auth != "Bearer admin-key":
		status = 401
	case r.Method == http.MethodPost && r.URL.Path == "/v1/organization/projects/proj_abc/service_accounts/svc_acct_abc/api_keys":
		var in struct{ Name string }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Header.Get("Content-Type") != "application/json" {
			o.t.Errorf("create: the body is not JSON: %v", err)
		}
		n := len(o.seen)
		k := map[string]any{"object": "organization.project.service_account.api_key", "id": fmt.Sprintf("key_%d", n), "name": in.Name, "created_at": 1711471533 + n, "value": fmt.Sprintf("sk-%d", n)}
		o.keys = append(o.keys, k)
		body = k
	case r.Method == http.MethodGet && r.URL.Path == keys:
		if r.URL.Query().Get("owner_project_access") != "any" || r.URL.Query().Get("limit") != "50" {
			o.t.Errorf("list: %s", r.URL)
		}
		data := []any{}
		for _, k := range o.keys {
			data = append(data, map[string]any{"object": "organization.project.api_key", "id": k["id"], "name": k["name"], "created_at": k["created_at"]})
		}
		body = map[string]any{"object": "list", "data": data, "has_more": false, "last_id": "key_x"}
	case r.Method == http.MethodDelete && strings.HasPrefix(r.URL.Path, keys+"/"):
		status = 404
		for i, k := range o.keys {
			if r.URL.Path == keys+"/"+k["id"].(string) {
				o.keys = append(o.keys[:i], o.keys[i+1:]...)
				status, body = 200, map[string]any{"object": "organization.project.api_key.deleted", "id": k["id"], "deleted": true}
				break
			}
		}
	default:
		o.t.Errorf("unexpected %s %s", r.Method, r.URL)
		status = 404
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(b)), Request: r,
	}, nil
}

func TestOpenAIPreset(t *testing.T) {
	o := &openAI{t: t, keys: []map[string]any{{"id": "key_0", "name": "by hand", "created_at": 1711471000, "value": "sk-0"}}}
	cfg, err := apikey.ParseConfig([]byte(`{"preset":"openai","vars":{"project":"proj_abc","service_account":"svc_acct_abc"}}`))
	if err != nil {
		t.Fatal(err)
	}
	r, err := apikey.New(cfg, &apikey.Options{Admin: noAdmin, Transport: o})
	if err != nil {
		t.Fatal(err)
	}
	s, id := newStore(t, value("key_0", "sk-0", adminRef))
	for range 3 {
		if _, err := rotators.NewRunner(s, r, nil).Rotate(t.Context(), id, ""); err != nil {
			t.Fatal(err)
		}
	}
	if len(o.keys) != 2 || strings.Contains(fmt.Sprint(o.keys), "key_0") {
		t.Errorf("%d keys are alive after three rotations; want current and previous", len(o.keys))
	}
}

// openRouter answers as the documentation of the API shows, with state.
type openRouter struct {
	t    *testing.T
	keys []map[string]any
}

func (o *openRouter) RoundTrip(r *http.Request) (*http.Response, error) {
	status, body := 200, any(nil)
	const keys = "/api/v1/keys"
	auth := r.Header.Get("Authorization")
	at := slices.IndexFunc(o.keys, func(k map[string]any) bool { return r.URL.Path == keys+"/"+k["hash"].(string) })
	var in struct {
		Name     string
		Disabled *bool
	}
	if r.Method == http.MethodPost || r.Method == http.MethodPatch {
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.Header.Get("Content-Type") != "application/json" {
			o.t.Errorf("%s: the body is not JSON: %v", r.Method, err)
		}
	}
	switch {
	case r.URL.Path == "/api/v1/key":
		status = 401
		for _, k := range o.keys {
			if auth == "Bearer sk-or-"+k["hash"].(string) && k["disabled"] == false {
				status, body = 200, map[string]any{"data": map[string]any{"label": "sk-or-..."}}
			}
		}
	case auth != "Bearer admin-key":
		status = 401
	case r.Method == http.MethodPost && r.URL.Path == keys:
		n := len(o.keys)
		k := map[string]any{"hash": fmt.Sprintf("hash%d", n), "name": in.Name, "disabled": false, "created_at": fmt.Sprintf("2026-02-19T20:52:%02d.363244+00:00", n)}
		o.keys = append(o.keys, k)
		status, body = 201, map[string]any{"data": k, "key": "sk-or-" + k["hash"].(string)}
	case r.Method == http.MethodGet && r.URL.Path == keys:
		body = map[string]any{"data": o.keys}
	case at < 0:
		status = 404
	case r.Method == http.MethodPatch && in.Disabled != nil:
		o.keys[at]["disabled"] = *in.Disabled
		body = map[string]any{"data": o.keys[at]}
	case r.Method == http.MethodDelete:
		o.keys = slices.Delete(o.keys, at, at+1)
		body = map[string]any{"deleted": true}
	default:
		o.t.Errorf("unexpected %s %s", r.Method, r.URL)
	}
	b, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: status, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(bytes.NewReader(b)), Request: r,
	}, nil
}

func TestOpenRouterPreset(t *testing.T) {
	o := &openRouter{t: t, keys: []map[string]any{{"hash": "hash0", "name": "by hand", "disabled": false, "created_at": "2026-02-19T20:52:00.363244+00:00"}}}
	r, err := apikey.New(apikey.Config{Preset: "openrouter"}, &apikey.Options{Admin: noAdmin, Transport: o})
	if err != nil {
		t.Fatal(err)
	}
	first := value("hash0", "sk-or-hash0", adminRef)
	s, id := newStore(t, first)
	for range 2 {
		if _, err := rotators.NewRunner(s, r, nil).Rotate(t.Context(), id, ""); err != nil {
			t.Fatal(err)
		}
	}
	if len(o.keys) != 3 || o.keys[0]["disabled"] != true || o.keys[1]["disabled"] != false {
		t.Errorf("after two rotations the keys are %v; want the first disabled", o.keys)
	}
	cur, err := s.Get(t.Context(), id, secrets.Current)
	if err != nil {
		t.Fatal(err)
	}
	c := rotators.Change{Ref: id, Current: cur.Value}
	if err := r.(rotators.Restorer).Restore(t.Context(), c, first); err != nil || o.keys[0]["disabled"] != false {
		t.Errorf("restore: %v", err)
	}
	if err := r.(rotators.Destroyer).Destroy(t.Context(), c, first); err != nil || len(o.keys) != 2 {
		t.Errorf("destroy: %v; %d keys are left", err, len(o.keys))
	}
	for _, check := range r.(rotators.DryRunner).DryRun(t.Context(), c) {
		if check.Err != nil {
			t.Errorf("%s: %v", check.What, check.Err)
		}
	}
}
