package main

import (
	"context"
	"encoding/json"
	"log/slog"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/apikey"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
)

// newRotator makes the rotator that s names. authority reads the secret that
// another one names in masterarn or adminarn.
func newRotator(s *secretConfig, authority func(ctx context.Context, name string) (secrets.Value, error), log *slog.Logger) (rotators.Rotator, error) {
	switch s.Rotator {
	case rotatorPostgresSingle, rotatorPostgresAlternating:
		pool, err := rootCAs(s.Postgres.CAFile)
		if err != nil {
			return nil, err
		}
		opts := &postgres.Options{RootCAs: pool, AllowPlaintext: s.Postgres.AllowPlaintext, ConnectTimeout: s.Postgres.ConnectTimeout, Policy: s.Password.policy(), Logger: log}
		if s.Rotator == rotatorPostgresSingle {
			return postgres.NewSingle(opts), nil
		}
		return postgres.NewAlternating(authority, opts), nil
	case rotatorAPIKey:
		b, err := json.Marshal(s.APIKey)
		if err != nil {
			return nil, fault.New(fault.Invalid, "apikey configuration", err)
		}
		c, err := apikey.ParseConfig(b)
		if err != nil {
			return nil, err
		}
		return apikey.New(c, &apikey.Options{Admin: authority})
	}
	return nil, fault.Newf(fault.Invalid, "rotator", "unknown rotator %q", s.Rotator)
}
