package triggers

import (
	"context"
	"errors"
	"log/slog"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// A Sweeper retires what is superseded, for a platform's timer. It is safe for
// concurrent use, and may be called at any time and any number of times.
type Sweeper struct {
	runner  *rotators.Runner
	secrets []ref.Ref
	log     *slog.Logger
}

// NewSweeper returns a Sweeper of the secrets of env. It calls nobody. Errors are
// of kind Invalid.
func NewSweeper(env Env, store secrets.Store, log *slog.Logger) (*Sweeper, error) {
	if len(env.Secrets) == 0 {
		return nil, fault.Newf(fault.Invalid, "KEYTURN_SECRETS", "it names no secret; expected the refs of those whose superseded versions are to be retired")
	}
	runner, err := NewRunner(env, store, log)
	if err != nil {
		return nil, err
	}
	return &Sweeper{runner: runner, secrets: env.Secrets, log: log}, nil
}

// Sweep looks at every secret once, and retires what its gate lets go. One that
// fails does not keep the others: the error names all that failed.
func (s *Sweeper) Sweep(ctx context.Context) error {
	var errs []error
	for _, id := range s.secrets {
		r, err := s.runner.Sweep(ctx, id)
		log := s.log.With("secret", id.String(), "version", r.Version)
		switch {
		case err != nil:
			log.ErrorContext(ctx, "not retired", "kind", fault.KindOf(err).String(), "class", string(fault.ClassOf(err)), "err", err)
			errs = append(errs, err)
		case r.Now:
			log.InfoContext(ctx, "retired")
		case r.Overdue:
			log.ErrorContext(ctx, "the gate's hard limit has passed, and it holds", "waiting", r.Waiting)
		case r.Version != "" && !r.Retired:
			log.InfoContext(ctx, "the gate is closed", "waiting", r.Waiting, "next", r.Next)
		}
	}
	return errors.Join(errs...)
}
