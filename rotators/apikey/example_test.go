package apikey_test

import (
	"context"
	"fmt"

	"github.com/keyturn/keyturn/rotators/apikey"
	"github.com/keyturn/keyturn/secrets"
)

// An issuer of one's own is a few templates. The credential of its
// administrator is in another secret, under the JSON pointer /token.
func ExampleParseConfig() {
	cfg, err := apikey.ParseConfig([]byte(`{
	  "vars": {"team": "search"},
	  "admin": "nats://keyturn/issuer-admin", "admin_key": "/token",
	  "create": {
	    "url": "https://keys.example/teams/{{.Vars.team}}/keys",
	    "headers": {"X-Admin-Token": "{{.Admin}}"},
	    "body": "{\"label\": {{.Name}}}",
	    "key": "/secret/value", "id": "/secret/id"
	  },
	  "verify": {"url": "https://api.example/whoami", "headers": {"X-Api-Key": "{{.Key}}"}},
	  "revoke": {"method": "POST", "url": "https://keys.example/keys/{{.ID}}/disable", "headers": {"X-Admin-Token": "{{.Admin}}"}},
	  "list": {
	    "url": "https://keys.example/teams/{{.Vars.team}}/keys{{if .Cursor}}?page={{.Cursor}}{{end}}",
	    "headers": {"X-Admin-Token": "{{.Admin}}"},
	    "items": "/keys", "name": "/label", "created": "/created", "next": "/next_page"
	  }
	}`))
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = apikey.New(cfg, &apikey.Options{Admin: func(context.Context, string) (secrets.Value, error) {
		return secrets.Value{}, nil // reads the secret that cfg.Admin names
	}})
	fmt.Println(err)
	// Output: <nil>
}
