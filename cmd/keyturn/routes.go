package main

import (
	"fmt"
	"log/slog"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/snssig"
	"github.com/keyturn/keyturn/internal/tokenauth"
	"github.com/keyturn/keyturn/notifier/vaultaudit"
	"github.com/keyturn/keyturn/notifier/webhook"
)

// route makes a route of the listener. audits are the sources of audit entries
// by their cluster.
func (r *routeConfig) route(audits map[string]*vaultaudit.Source, log *slog.Logger) (webhook.Route, error) {
	out := webhook.Route{Path: r.Path, Name: r.Name, MaxBody: r.MaxBody, Timeout: r.Timeout}
	switch r.Kind {
	case wayEventBridge:
		out.Kind = webhook.EventBridge{}
	case wayEventGrid:
		out.Kind = webhook.EventGrid{AnonymousHandshake: r.AnonymousHandshake}
	case wayPubSub:
		out.Kind = webhook.PubSub{}
	case waySNS:
		v, err := snssig.New(snssig.Options{Topics: r.Topics, Logger: log})
		if err != nil {
			return out, err
		}
		out.Kind = webhook.SNS{Verifier: v}
	case wayCloudEvents:
		out.Kind = webhook.CloudEvents{}
	case wayVaultAudit:
		src := audits[r.Cluster]
		if src == nil {
			return out, fault.Newf(fault.Invalid, "config", "the route %s is for cluster %.40q; expected a source of kind vaultaudit with the same cluster, which keeps the entries until they are published", r.Path, r.Cluster)
		}
		out.Kind, out.Handler = webhook.VaultAudit{}, src.Handler()
	}
	var err error
	out.Auth, err = r.authenticators(log)
	return out, err
}

// authenticators returns the alternatives of a route.
func (r *routeConfig) authenticators(log *slog.Logger) (out []webhook.Authenticator, err error) {
	add := func(a webhook.Authenticator, err error) error {
		if err == nil {
			out = append(out, a)
		}
		return err
	}
	if keys, err := readKeyFiles(r.APIKeyFiles); err != nil {
		return nil, fmt.Errorf("api_key_files: %w", err)
	} else if len(keys) > 0 {
		if err := add(webhook.APIKey(r.Header, keys...)); err != nil {
			return nil, err
		}
	}
	var logins []webhook.Login
	for _, b := range r.Basic {
		password, err := readKeyFile(b.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("basic.password_file: %w", err)
		}
		logins = append(logins, webhook.Login{User: b.User, Password: password})
	}
	if len(logins) > 0 {
		if err := add(webhook.Basic(logins...)); err != nil {
			return nil, err
		}
	}
	if keys, err := readKeyFiles(r.HMACFiles); err != nil {
		return nil, fmt.Errorf("hmac_key_files: %w", err)
	} else if len(keys) > 0 {
		signed, err := webhook.StandardWebhooks(keys...)
		if err := add(signed, err); err != nil {
			return nil, err
		}
	}
	if c := r.OAuth; c != nil {
		opts, err := tokenOptions(c.CAFile, log)
		if err != nil {
			return nil, fmt.Errorf("oauth.ca_file: %w", err)
		}
		v, err := tokenauth.OAuth(tokenauth.OAuthOptions{
			Issuer: c.Issuer, JWKSURL: c.JWKSURL, Audience: c.Audience, ClientIDs: c.Clients, Scopes: c.Scopes, Options: opts,
		})
		if err := add(v, err); err != nil {
			return nil, err
		}
	}
	if c := r.Entra; c != nil {
		opts, err := tokenOptions(c.CAFile, log)
		if err != nil {
			return nil, fmt.Errorf("entra.ca_file: %w", err)
		}
		v, err := tokenauth.Entra(tokenauth.EntraOptions{
			TenantID: c.TenantID, Audiences: c.Audiences, CallerAppID: c.CallerID, Role: c.Role, Authority: c.Authority, Options: opts,
		})
		if err := add(v, err); err != nil {
			return nil, err
		}
	}
	if c := r.Google; c != nil {
		opts, err := tokenOptions(c.CAFile, log)
		if err != nil {
			return nil, fmt.Errorf("google.ca_file: %w", err)
		}
		v, err := tokenauth.Google(tokenauth.GoogleOptions{Audience: c.Audience, Emails: c.Emails, JWKSURL: c.JWKSURL, Options: opts})
		if err := add(v, err); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// tokenOptions is what all verifiers of tokens have in common. The CA file is
// for an issuer whose certificate the system's authorities did not sign.
func tokenOptions(caFile string, log *slog.Logger) (tokenauth.Options, error) {
	opts := tokenauth.Options{Logger: log}
	if caFile == "" {
		return opts, nil
	}
	var err error
	opts.HTTP, err = clientTrusting(caFile)
	return opts, err
}

// readKeyFiles reads the keys that are valid beside each other while one is
// being rotated.
func readKeyFiles(paths []string) ([]string, error) {
	var out []string
	for _, p := range paths {
		k, err := readKeyFile(p)
		if err != nil {
			return nil, err
		}
		out = append(out, k)
	}
	return out, nil
}
