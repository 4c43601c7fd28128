package triggers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// patience is how long a platform delivers a notice again at least: Event Grid
// for 24 hours, Pub/Sub for longer. What may begin only later than that is not
// waited for.
const patience = 12 * time.Hour

// A Rotation turns notices into rotations. It is safe for concurrent use.
type Rotation struct {
	env    Env
	store  secrets.Store
	runner *rotators.Runner
	on     events.Type
	log    *slog.Logger
}

// NewRotation returns a Rotation that events of type on start. Errors are of
// kind Invalid.
func NewRotation(env Env, store secrets.Store, on events.Type, log *slog.Logger) (*Rotation, error) {
	runner, err := NewRunner(env, store, log)
	if err != nil {
		return nil, err
	}
	return &Rotation{env: env, store: store, runner: runner, on: on, log: log}, nil
}

// Handle rotates what es ask for. Nil means that the notice is done with: it
// was carried out, concerns something else, or can never be carried out, which
// is logged as an error. An error is returned only where the same notice may
// succeed later.
//
// The event's id is the occasion, and the occasion is the rotation's token: a
// notice that comes again, on another topic or after a crash, is the same
// rotation.
func (t *Rotation) Handle(ctx context.Context, es []events.Event) error {
	var errs []error
	for _, e := range es {
		if e.Type != t.on {
			continue
		}
		log := t.log.With("secret", e.Data.Ref.String(), "event", e.ID, "notice", e.Data.Provider.EventID)
		if len(t.env.Secrets) > 0 && !slices.Contains(t.env.Secrets, e.Data.Ref) {
			log.WarnContext(ctx, "a notice about a secret that is not in KEYTURN_SECRETS; nothing is rotated")
			continue
		}
		if err := t.rotate(ctx, e, log); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (t *Rotation) rotate(ctx context.Context, e events.Event, log *slog.Logger) error {
	id, token := e.Data.Ref, rotators.TokenOf(e.ID)
	young, err := t.tooYoung(ctx, e, token)
	if err == nil && young != "" {
		log.WarnContext(ctx, "not rotated", "why", young)
		return nil
	}
	var res rotators.Result
	if err == nil {
		res, err = t.runner.Rotate(ctx, id, token)
	}
	wait, notYet := rotators.IsNotYet(err)
	switch {
	case err == nil:
		log.InfoContext(ctx, "rotated", "version", res.Version, "previous", res.Previous, "resumed", res.Resumed)
		return nil
	case notYet && (wait.Until.IsZero() || time.Until(wait.Until) > patience):
		log.WarnContext(ctx, "not rotated: the superseded credential may still be in use, for longer than this notice is delivered again", "waiting", wait.Error())
		return nil
	case !fault.Retryable(err):
		log.ErrorContext(ctx, "cannot be rotated; correct what the error names, then start a rotation by hand", "kind", fault.KindOf(err).String(), "err", err)
		return nil
	}
	return fmt.Errorf("rotate %s: %w", id, err)
}

// tooYoung says why e's secret is not to be rotated yet, or "". A notice may
// be the echo of the last rotation: Key Vault asks for the next one as soon as
// a version is made that is valid for no more than 30 days. Such a notice is
// done with, not put off, since the notice would only come true later. A
// rotation that is unfinished is always carried on.
func (t *Rotation) tooYoung(ctx context.Context, e events.Event, token string) (string, error) {
	d, err := t.store.Describe(ctx, e.Data.Ref)
	if err != nil {
		return "", fmt.Errorf("describe %s: %w", e.Data.Ref, err)
	}
	current := d.Holder(secrets.Current)
	if current == nil || d.Has(token, secrets.Current) || d.Holder(secrets.Pending) != nil {
		return "", nil
	}
	// The notice is about a version that has been superseded since.
	if v := e.Data.Version; v != "" && v != current.ID {
		return "the notice is about version " + v + ", and " + current.ID + " is current", nil
	}
	since := current.Since()
	if age := time.Since(since); !since.IsZero() && age < t.env.MinAge {
		return fmt.Sprintf("version %s is %s old, and KEYTURN_MIN_AGE is %s; let a schedule rotate it", current.ID, age.Round(time.Second), t.env.MinAge), nil
	}
	return "", nil
}
