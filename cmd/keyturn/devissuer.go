package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/keyturn/keyturn/internal/keyissuer"
	"github.com/keyturn/keyturn/secrets"
)

// A demoIssuer stands for an LLM provider.
type demoIssuer struct {
	url, admin string
	issuer     *keyissuer.Issuer
}

func startIssuer(ctx context.Context, w *world) (*demoIssuer, error) {
	admin, err := w.secretFile("issuer-admin.key")
	if err != nil {
		return nil, err
	}
	s, err := keyissuer.Start(ctx, fmt.Sprintf("127.0.0.1:%d", w.ports.Issuer), keyissuer.Options{AdminKey: admin, File: w.path("issuer.json")})
	if err != nil {
		if errors.Is(err, syscall.EADDRINUSE) {
			err = fmt.Errorf("%w; stop what has the port, or delete %s to choose others", err, w.path("ports.json"))
		}
		return nil, err
	}
	w.onClose(func() error {
		sctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		return s.Stop(sctx)
	})
	return &demoIssuer{url: s.URL, admin: admin, issuer: s.Issuer}, nil
}

// seed makes the first key of each project whose secret is not there yet. A
// key that an interrupted seed made without storing it is revoked first.
func (d *demoIssuer) seed(ctx context.Context, store seedStore, bothTenants bool) error {
	err := ensureSecret(ctx, store, refAdmin, func() (secrets.Value, error) {
		b, err := json.Marshal(map[string]string{"key": d.admin})
		return secrets.NewValue(b), err
	})
	if err != nil {
		return err
	}
	projects := map[string]string{"acme": refAcmeLLM}
	if bothTenants {
		projects["globex"] = refGlobLLM
	}
	for project, name := range projects {
		err := ensureSecret(ctx, store, name, func() (secrets.Value, error) {
			for _, k := range d.issuer.Keys(project, "") {
				if _, err := d.issuer.Revoke(project, k.ID); err != nil {
					return secrets.Value{}, err
				}
			}
			k, key, err := d.issuer.Create(project, "first")
			if err != nil {
				return secrets.Value{}, err
			}
			b, err := json.Marshal(map[string]string{"key": key, "id": k.ID, "project": project, "adminarn": refAdmin})
			return secrets.NewValue(b), err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// config says to the apikey rotator how this issuer is spoken to. Any other
// issuer is a configuration like this one.
func (d *demoIssuer) config(project string) map[string]any {
	admin := map[string]any{"Authorization": "Bearer {{.Admin}}"}
	keys := d.url + "/v1/projects/{{.Vars.project}}/keys"
	return map[string]any{
		"vars":   map[string]any{"project": project},
		"create": map[string]any{"url": keys, "headers": admin, "body": `{"name": {{.Name}}}`},
		"verify": map[string]any{"url": d.url + "/v1/verify", "headers": map[string]any{"Authorization": "Bearer {{.Key}}"}},
		"revoke": map[string]any{"url": keys + "/{{.ID}}", "headers": admin},
		"list": map[string]any{
			"url":     keys + "?limit=100{{if .Cursor}}&after={{.Cursor}}{{end}}",
			"headers": admin, "next": "/last_id", "more": "/has_more",
		},
	}
}
