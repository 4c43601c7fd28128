package rotators

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// A Restoration is what Restore did.
type Restoration struct {
	Ref     ref.Ref
	Version string
	// Alive reports that the target honours the credential again. It is nil if
	// the rotator cannot tell.
	Alive *bool
	// Why says why the target does not honour it, if it does not.
	Why error
}

// Restore undoes Retire: the previous version is readable in the store again,
// and the target honours it where that can be undone, beside the current one.
// What is restored is held: from then on only [Runner.Retire] takes it out of
// use. It may be repeated, and changes nothing where nothing was retired.
func (r *Runner) Restore(ctx context.Context, id ref.Ref) (Restoration, error) {
	out := Restoration{Ref: id}
	unlock, err := r.lock(ctx, id)
	if err != nil {
		return out, err
	}
	defer unlock()
	d, err := r.store.Describe(ctx, id)
	if err != nil {
		return out, fmt.Errorf("describe %s: %w", id, err)
	}
	current, previous := d.Holder(secrets.Current), d.Holder(secrets.Previous)
	if previous == nil || current == nil {
		return out, fault.Newf(fault.NotFound, "restore", "%s has no superseded version; there is nothing to restore", id)
	}
	out.Version = previous.ID
	if p := d.Unfinished(); p != nil {
		// It may be about to replace just this credential.
		return out, fault.Newf(fault.Conflict, "restore", "a rotation of %s (token %s) is unfinished; let it finish, or discard it", id, p.Token)
	}
	if s, ok := r.store.(secrets.Disabler); ok && !previous.Disabled && !previous.Held {
		// It may be about to be retired: what is restored is held, and a store
		// holds what was disabled.
		if err := s.Disable(ctx, id, previous.ID); err != nil {
			return out, fmt.Errorf("hold version %s of %s: %w", previous.ID, id, err)
		}
		previous.Disabled = true
	}
	c, old, err := r.reopen(ctx, id, previous)
	if err != nil {
		return out, err
	}
	c.StillPending = r.stillCurrent(id, current.ID)
	if rs, ok := r.rotator.(Restorer); ok && !r.same(old.Value, c.Current) {
		if err := rs.Restore(ctx, c, old.Value); err != nil && !fault.Is(err, fault.Invalid) {
			return out, fmt.Errorf("restore version %s of %s: %w", previous.ID, id, err)
		} else if err != nil {
			out.Why = err
		}
	}
	if err := r.verifyRestored(ctx, c, old.Value, &out); err != nil {
		return out, err
	}
	e := r.fill(events.New(events.VersionEnabled, id, time.Now(), previous.ID, time.Now().UTC().Format(time.RFC3339)))
	e.Data.Version = previous.ID
	r.announce(ctx, e)
	return out, nil
}

// reopen enables the previous version in the store and reads it.
func (r *Runner) reopen(ctx context.Context, id ref.Ref, previous *secrets.VersionInfo) (Change, *secrets.Version, error) {
	if previous.Disabled {
		s, ok := r.store.(secrets.Disabler)
		if !ok {
			return Change{}, nil, fault.Newf(fault.Invalid, "restore", "the store of %s cannot enable a version", id)
		}
		if err := s.Enable(ctx, id, previous.ID); err != nil {
			return Change{}, nil, fmt.Errorf("enable version %s of %s: %w", previous.ID, id, err)
		}
	}
	now, err := r.store.Get(ctx, id, secrets.Current)
	if err != nil {
		return Change{}, nil, fmt.Errorf("read current of %s: %w", id, err)
	}
	old, err := r.store.Get(ctx, id, secrets.Previous)
	if err != nil {
		return Change{}, nil, fmt.Errorf("read previous of %s: %w", id, err)
	}
	return Change{Ref: id, Token: now.Token, Current: now.Value, Previous: old.Value}, old, nil
}

func (r *Runner) verifyRestored(ctx context.Context, c Change, old secrets.Value, out *Restoration) error {
	v, ok := r.rotator.(Verifier)
	if !ok {
		return nil
	}
	err := v.Verify(ctx, c, old)
	refused := refusesCredential(err)
	if err != nil && !refused && !fault.Is(err, fault.Invalid) {
		return fmt.Errorf("the version is enabled; whether the target honours it is not known: %w", err)
	}
	alive := err == nil
	out.Alive = &alive
	if alive {
		out.Why = nil
	} else {
		out.Why = errors.Join(out.Why, err)
	}
	return nil
}

// Destroy makes the value of a retired version unrecoverable, in the store as
// far as its provider allows, and at a target that has only disabled it. It
// refuses a version that is not disabled. A crash may leave the version
// enabled and held; it then is to be retired and destroyed once more.
func (r *Runner) Destroy(ctx context.Context, id ref.Ref, version string) error {
	s, ok := r.store.(secrets.Disabler)
	if !ok {
		return fault.Newf(fault.Invalid, "destroy", "the store of %s cannot destroy a version", id)
	}
	unlock, err := r.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := r.store.Describe(ctx, id)
	if err != nil {
		return fmt.Errorf("describe %s: %w", id, err)
	}
	h := d.Holder(secrets.Previous)
	switch {
	case h == nil:
		return fault.Newf(fault.NotFound, "destroy", "%s has no superseded version; version %s was destroyed already, or never was", id, version)
	case h.ID != version:
		return fault.Newf(fault.NotFound, "destroy", "version %q is not the superseded version of %s; expected %s", version, id, h.ID)
	case !h.Disabled:
		return fault.Newf(fault.Conflict, "destroy", "version %s of %s is not retired; keyturn retire %s comes first", version, id, id)
	}
	if t, ok := r.rotator.(Destroyer); ok {
		c, old, err := r.reopen(ctx, id, h)
		if err != nil {
			return err
		}
		if err := t.Destroy(ctx, c, old.Value); err != nil {
			return fmt.Errorf("destroy the credential of version %s of %s: %w", version, id, err)
		}
		if err := s.Disable(ctx, id, version); err != nil {
			return fmt.Errorf("disable version %s of %s: %w", version, id, err)
		}
	}
	if err := s.Destroy(ctx, id, version); err != nil {
		return fmt.Errorf("destroy version %s of %s: %w", version, id, err)
	}
	e := r.fill(events.New(events.VersionDestroyed, id, time.Now(), version))
	e.Data.Version = version
	r.announce(ctx, e)
	return nil
}
