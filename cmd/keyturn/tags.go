package main

import (
	"context"
	"log/slog"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier/tenants"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// tags asks a secret's own store for its tags.
func (s *stores) tags(ctx context.Context, r ref.Ref) (map[string]string, error) {
	none := func() error { return fault.Newf(fault.NotFound, "tags", "secrets at %s have no tags", r.Provider) }
	if r.Provider == ref.NATS { // no store is opened to learn that
		return nil, none()
	}
	st, err := s.of(ctx, r)
	if err != nil {
		return nil, err
	}
	t, ok := st.(secrets.Tagger)
	if !ok {
		return nil, none()
	}
	return t.Tags(ctx, r)
}

// newTenants returns how the notifier tells whose a secret is: by the rules,
// or where there are none as the secrets and notifier.tenant say.
func newTenants(cfg *config, tags secretTags, log *slog.Logger) (func(context.Context, events.Event) (string, error), error) {
	own := map[ref.Ref]string{}
	for i := range cfg.Secrets {
		if s := &cfg.Secrets[i]; s.Tenant != "" {
			own[s.ref] = s.Tenant
		}
	}
	if len(cfg.Tenants.Rules) == 0 {
		return func(_ context.Context, e events.Event) (string, error) {
			if tenant, ok := own[e.Data.Ref]; ok {
				return tenant, nil
			}
			return cfg.Notifier.Tenant, nil
		}, nil
	}
	rules, err := cfg.Tenants.rules(own, tags, log)
	if err != nil {
		return nil, err
	}
	return rules.Tenant, nil
}

// quarantine is the tenant of what no rule matches.
func (t *tenantsConfig) quarantine() string {
	if t.Quarantine != "" {
		return t.Quarantine
	}
	return tenants.DefaultQuarantine
}
