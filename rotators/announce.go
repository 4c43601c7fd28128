package rotators

import (
	"context"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// announceFinish says that version is current. It is a part of finish: an
// announcement that fails is an error, the caller repeats the phase, and the
// ids make the repetition harmless.
func (r *Runner) announceFinish(ctx context.Context, id ref.Ref, token, version, previous string) error {
	if r.opts.Publisher == nil {
		return nil
	}
	done := r.event(events.RotationSucceeded, id, token)
	done.Data.Version, done.Data.PreviousVersion = version, previous
	if err := r.opts.Publisher.Publish(ctx, r.activated(id, version, previous), done); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	return nil
}

// announceAgain says once more which version is current, before the one that
// it superseded is retired: whoever finished the last rotation may have died
// before it told anybody, and then the fleet still holds what is about to be
// revoked. The id is that of the first announcement, so the bus stores it once.
func (r *Runner) announceAgain(ctx context.Context, c Change, version string) error {
	if _, ok := r.rotator.(Retirer); !ok || c.Previous.IsZero() || r.opts.Publisher == nil {
		return nil
	}
	if err := r.opts.Publisher.Publish(ctx, r.activated(c.Ref, version, "")); err != nil {
		return fmt.Errorf("announce the current version before the previous one is retired: %w", err)
	}
	return nil
}

// activated is the event that version is current.
func (r *Runner) activated(id ref.Ref, version, previous string) events.Event {
	e := r.fill(events.New(events.VersionActivated, id, time.Now(), version))
	e.Data.Version, e.Data.PreviousVersion = version, previous
	return e
}

func (r *Runner) announceFailure(ctx context.Context, id ref.Ref, token string, p Phase, err error) {
	now := time.Now()
	e := r.fill(events.New(events.RotationFailed, id, now, token, string(p), now.UTC().Format(time.RFC3339Nano)))
	e.Data.Reason = string(p) + ": " + fault.KindOf(err).String()
	if c := fault.ClassOf(err); c != "" {
		e.Data.Reason += "/" + string(c)
	}
	// The rotation may have failed because its deadline passed; whoever
	// watches must hear of it all the same.
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	r.announce(actx, e)
}

// announce publishes what nobody depends on; a failure is logged.
func (r *Runner) announce(ctx context.Context, e events.Event) {
	if r.opts.Publisher == nil {
		return
	}
	if err := r.opts.Publisher.Publish(ctx, e); err != nil {
		r.opts.Logger.WarnContext(ctx, "announcement failed", "secret", e.Data.Ref.String(), "event", string(e.Type), "err", err)
	}
}

func (r *Runner) event(t events.Type, id ref.Ref, token string) events.Event {
	return r.fill(events.New(t, id, time.Now(), token))
}

func (r *Runner) fill(e events.Event) events.Event {
	e.Data.Tenant, e.Data.Cause = r.opts.Tenant(e.Data.Ref), "rotator"
	return e
}
