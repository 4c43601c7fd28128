package apikey

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/fault"
)

// A preset is an issuer whose API is known.
type presetConfig struct {
	vars  []string // that must be given
	build func() Config
}

var presets = map[string]presetConfig{
	"openai":     {vars: []string{"project", "service_account"}, build: openAI},
	"openrouter": {build: openRouter},
}

// Presets returns the names that Config.Preset may have.
//
//	openai      keys of a service account; vars: project, service_account
//	openrouter  keys of an account, by a provisioning key
//
// OpenAI can only delete a key, so what is retired there is gone; OpenRouter
// disables and enables. Anthropic has no preset: its Admin API lists and
// disables API keys and cannot make one.
func Presets() []string { return slices.Sorted(maps.Keys(presets)) }

func preset(c Config) (Config, error) {
	bad := func(format string, args ...any) (Config, error) {
		return Config{}, fault.Newf(fault.Invalid, "apikey configuration", format, args...)
	}
	p, ok := presets[c.Preset]
	if !ok {
		return bad("preset %q; expected one of: %s", c.Preset, strings.Join(Presets(), ", "))
	}
	if c.Create.URL != "" || c.Verify.URL != "" || c.Revoke.URL != "" || c.Disable != nil || c.Enable != nil || c.List != nil {
		return bad("preset %q together with requests; give one or the other", c.Preset)
	}
	for _, name := range p.vars {
		if c.Vars[name] == "" {
			return bad("preset %q without vars.%s", c.Preset, name)
		}
	}
	out := p.build()
	out.Vars = maps.Clone(c.Vars)
	return out, nil
}

// openAI manages the keys of one service account of a project with an admin
// key. Other keys of the project are seen in the list, for which no filter by
// account exists, and are told apart by name.
// https://platform.openai.com/docs/api-reference/project-service-accounts
// https://platform.openai.com/docs/api-reference/project-api-keys
func openAI() Config {
	const project = "https://api.openai.com/v1/organization/projects/{{.Vars.project}}"
	admin := map[string]string{"Authorization": "Bearer {{.Admin}}"}
	return Config{
		Create: CreateRequest{
			Request: Request{
				URL:     project + "/service_accounts/{{.Vars.service_account}}/api_keys",
				Headers: admin, Body: `{"name": {{.Name}}}`,
			},
			Key: "/value", ID: "/id",
		},
		Verify: Request{
			URL:     "https://api.openai.com/v1/models",
			Headers: map[string]string{"Authorization": "Bearer {{.Key}}"},
		},
		Revoke: Request{URL: project + "/api_keys/{{.ID}}", Headers: admin},
		List: &ListRequest{
			Request: Request{
				// Without owner_project_access some keys may be left out.
				URL:     project + "/api_keys?limit=50&owner_project_access=any{{if .Cursor}}&after={{.Cursor}}{{end}}",
				Headers: admin,
			},
			Next: "/last_id", More: "/has_more",
		},
	}
}

// openRouter manages the keys of an account with a provisioning key. A key is
// named by its hash. The list has the hundred youngest keys, which is where
// orphans are: pages are asked for by a number that its answers do not tell.
// https://openrouter.ai/docs/features/provisioning-api-keys
func openRouter() Config {
	const keys = "https://openrouter.ai/api/v1/keys"
	admin := map[string]string{"Authorization": "Bearer {{.Admin}}"}
	turn := func(disabled string) *Request {
		return &Request{Method: http.MethodPatch, URL: keys + "/{{.ID}}", Headers: admin, Body: `{"disabled": ` + disabled + `}`}
	}
	return Config{
		Create: CreateRequest{
			Request: Request{URL: keys, Headers: admin, Body: `{"name": {{.Name}}}`},
			Key:     "/key", ID: "/data/hash",
		},
		Verify: Request{
			URL:     "https://openrouter.ai/api/v1/key",
			Headers: map[string]string{"Authorization": "Bearer {{.Key}}"},
		},
		Revoke:  Request{URL: keys + "/{{.ID}}", Headers: admin},
		Disable: turn("true"), Enable: turn("false"),
		List: &ListRequest{
			Request: Request{URL: keys + "?include_disabled=true", Headers: admin},
			ID:      "/hash",
		},
	}
}
