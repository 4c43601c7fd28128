package triggers

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/apikey"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
)

// budget is the least time in which a phase is begun: one connection that
// takes as long as it may.
const budget = 5 * time.Second

// NewRunner makes the runner that env asks for, of the secrets in store. It
// calls nobody. Nothing is announced: the store's own notice of the new version
// does that, and has the same id. Errors are of kind Invalid.
func NewRunner(env Env, store secrets.Store, log *slog.Logger) (*rotators.Runner, error) {
	rotator, err := newRotator(env, store, log)
	if err != nil {
		return nil, err
	}
	for _, name := range env.Unknown {
		log.Warn("environment variable means nothing to this function", "name", name)
	}
	return rotators.NewRunner(store, rotator, &rotators.Options{Logger: log, Budget: budget, Gate: env.Gate}), nil
}

func newRotator(env Env, store secrets.Reader, log *slog.Logger) (rotators.Rotator, error) {
	a := authority{env: env, store: store}
	switch env.Rotator {
	case PostgresSingle, PostgresAlternating:
		opts := &postgres.Options{RootCAs: env.RootCAs, AllowPlaintext: env.AllowPlaintext, Policy: env.Policy, Logger: log}
		if env.Rotator == PostgresSingle {
			return postgres.NewSingle(opts), nil
		}
		return postgres.NewAlternating(a.value, opts), nil
	case APIKey:
		return apikey.New(env.Issuer, &apikey.Options{Admin: a.value, Logger: log})
	}
	return nil, fault.Newf(fault.Invalid, "rotator", "unknown rotator %q", env.Rotator)
}

// An authority reads the secret that another one names in masterarn or
// adminarn: whose user may change others, or may make keys. The member has the
// name that the secrets of AWS give it; here it holds a ref.
type authority struct {
	env   Env
	store secrets.Reader
}

func (a authority) value(ctx context.Context, name string) (secrets.Value, error) {
	const op = "read the authority's secret"
	r, err := ref.Parse(name)
	switch {
	case err != nil:
		// The text is a part of a secret: it is not quoted.
		return secrets.Value{}, fault.Newf(fault.Invalid, op, "masterarn or adminarn is not a ref; expected %s://...", a.env.provider)
	case r.Provider != a.env.provider:
		return secrets.Value{}, fault.Newf(fault.Invalid, op, "it is kept in another cloud (%s); expected a secret of this function's, %s://...", r.Provider, a.env.provider)
	}
	r = canonical(r)
	if !a.env.Master.IsZero() && r != a.env.Master {
		return secrets.Value{}, fault.Newf(fault.Invalid, op, "the secret names %s, and KEYTURN_MASTER allows only %s", r, a.env.Master)
	}
	v, err := a.store.Get(ctx, r, secrets.Current)
	if err != nil {
		return secrets.Value{}, fmt.Errorf("%s %s: %w", op, r, err)
	}
	return v.Value, nil
}
