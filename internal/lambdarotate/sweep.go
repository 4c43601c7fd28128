package lambdarotate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/awssm"
)

// SweepEnv is what the environment of the function that retires says.
type SweepEnv struct {
	Env
	// Secrets are the ARNs of those whose superseded versions are retired.
	Secrets []string
	Gate    rotators.Gate
}

// ParseSweepEnv is [ParseEnv] for the function that retires, with
// KEYTURN_SECRETS and KEYTURN_GATE_* besides.
func ParseSweepEnv(environ []string) (SweepEnv, error) {
	base, p := parse(environ)
	e := SweepEnv{Env: base, Gate: p.Gate()}
	for _, arn := range strings.FieldsFunc(p.Get("KEYTURN_SECRETS"), func(r rune) bool { return strings.ContainsRune(", \t\n", r) }) {
		if _, err := ref.FromARN(arn); err != nil {
			p.Note(err)
		}
		e.Secrets = append(e.Secrets, arn)
	}
	if len(e.Secrets) == 0 {
		p.Bad("KEYTURN_SECRETS", "it names no secret; expected the ARNs of those whose superseded versions are to be retired")
	}
	e.Unknown, e.Known = p.Unknown(), p.Known()
	if err := p.Err(); err != nil {
		return SweepEnv{}, err
	}
	return e, nil
}

// A Sweeper is the function that a schedule calls to take superseded versions
// out of use once their gate is open. It is a lambda.Handler, and safe for
// concurrent use.
type Sweeper struct {
	runner  *rotators.Runner
	secrets []string
	log     *slog.Logger
	err     error // why nothing can be served, or nil
}

// NewSweeper makes the clients, as [New] does.
func NewSweeper(ctx context.Context, env SweepEnv, opts *Options) (*Sweeper, error) {
	runner, err := newRunner(ctx, env.Env, opts, func(r *rotators.Options, s *byStrategy) rotators.Rotator {
		r.KeepPrevious, r.Gate = false, env.Gate
		return retirer{s}
	})
	if err != nil {
		return nil, err
	}
	return &Sweeper{runner: runner, secrets: env.Secrets, log: opts.logger()}, nil
}

// RefusingSweep returns a Sweeper that fails every invocation with err, as
// [Refusing] does.
func RefusingSweep(err error, log *slog.Logger) *Sweeper {
	return &Sweeper{err: Refusing(err, log).err, log: log}
}

// Invoke looks at every secret once, whatever the payload says. One that fails
// does not keep the others: the error names all that failed. The answer is
// null.
func (s *Sweeper) Invoke(ctx context.Context, _ []byte) ([]byte, error) {
	if err := s.sweep(ctx); err != nil {
		return nil, lambdaError(err)
	}
	return []byte("null"), nil
}

func (s *Sweeper) sweep(ctx context.Context) (err error) {
	if s.err != nil {
		return s.err
	}
	defer recovered(ctx, s.log, "the secrets of the sweep", &err)
	if d, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, d.Add(-answerTime))
		defer cancel()
	}
	var errs []error
	for _, arn := range s.secrets {
		id, err := ref.FromARN(arn)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if d, ok := ctx.Deadline(); ok && time.Until(d) < budget {
			errs = append(errs, fault.Newf(fault.Unavailable, "retire", "no time is left for %s; raise the function's time-out, or give it fewer secrets", id))
			continue
		}
		r, err := s.runner.Sweep(awssm.WithARN(ctx, arn), id)
		log := s.log.With("secret", id.String(), "version", r.Version)
		switch {
		case err != nil:
			log.ErrorContext(ctx, "not retired", "kind", fault.KindOf(err).String(), "class", string(fault.ClassOf(err)), "err", err)
			errs = append(errs, fmt.Errorf("%s: %w", id, err))
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

// retirer is byStrategy for the function that retires. With alternating users
// the superseded user gets a password that nobody knows; the single user's old
// password died when it was changed.
type retirer struct{ *byStrategy }

var _ rotators.Retirer = retirer{}

func (r retirer) Retire(ctx context.Context, c rotators.Change, old secrets.Value) error {
	if rt, ok := r.of(c).(rotators.Retirer); ok {
		return rt.Retire(ctx, c, old)
	}
	return nil
}

// Verify lets the runner prove that what was retired is dead.
func (r retirer) Verify(ctx context.Context, c rotators.Change, v secrets.Value) error {
	if ver, ok := r.of(c).(rotators.Verifier); ok {
		return ver.Verify(ctx, c, v)
	}
	return fault.Newf(fault.Unknown, "verify", "the rotator cannot tell")
}
