package main

import (
	"context"
	"encoding/json"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/apikey"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
)

// newRotator makes the rotator that s names. Secrets that another one names
// as its authority (masterarn, adminarn) are read from the same store.
func newRotator(s *secretConfig, store secrets.Reader) (rotators.Rotator, error) {
	authority := func(ctx context.Context, name string) (secrets.Value, error) {
		r, err := ref.Parse(name)
		if err != nil {
			return secrets.Value{}, err
		}
		v, err := store.Get(ctx, r, secrets.Current)
		if err != nil {
			return secrets.Value{}, err
		}
		return v.Value, nil
	}
	switch s.Rotator {
	case rotatorPostgresSingle, rotatorPostgresAlternating:
		pool, err := rootCAs(s.Postgres.CAFile)
		if err != nil {
			return nil, err
		}
		opts := &postgres.Options{RootCAs: pool, AllowPlaintext: s.Postgres.AllowPlaintext, ConnectTimeout: s.Postgres.ConnectTimeout}
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
