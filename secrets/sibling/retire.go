package sibling

import (
	"context"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// Disable implements [secrets.Disabler].
func (s *Store) Disable(ctx context.Context, r ref.Ref, version string) error {
	const op = "sibling: disable"
	if err := checkVersion(ctx, op, r, version); err != nil {
		return err
	}
	return s.change(ctx, op, r, func(_ context.Context, st *state) (func(context.Context) error, error) {
		defer st.wipe()
		if err := st.checkOld(op, r, version); err != nil {
			return nil, err
		}
		if p := st.main.Previous; p != nil && p.ID == version && p.Disabled {
			return nil, nil
		}
		return func(ctx context.Context) error { return s.d.SetDisabled(ctx, r, version, true) }, nil
	})
}

// Enable implements [secrets.Disabler].
func (s *Store) Enable(ctx context.Context, r ref.Ref, version string) error {
	const op = "sibling: enable"
	if err := checkVersion(ctx, op, r, version); err != nil {
		return err
	}
	return s.change(ctx, op, r, func(_ context.Context, st *state) (func(context.Context) error, error) {
		defer st.wipe()
		switch {
		case st.pending != nil && version == pendingPrefix+st.pending.ID:
			return nil, nil
		case strings.HasPrefix(version, pendingPrefix):
			return nil, fault.Newf(fault.NotFound, op, "%s has no version %s; it was promoted or discarded", r, version)
		}
		for _, v := range []*Version{st.main.Current, st.main.Previous} {
			// A version of which no more than its id is known may be either.
			if v != nil && v.ID == version && !v.Disabled && !v.Created.IsZero() {
				return nil, nil
			}
		}
		return func(ctx context.Context) error { return s.d.SetDisabled(ctx, r, version, false) }, nil
	})
}

// Destroy implements [secrets.Disabler]. How far the value is gone is said by
// the backend's package.
func (s *Store) Destroy(ctx context.Context, r ref.Ref, version string) error {
	const op = "sibling: destroy"
	if err := checkVersion(ctx, op, r, version); err != nil {
		return err
	}
	return s.change(ctx, op, r, func(ctx context.Context, st *state) (func(context.Context) error, error) {
		defer st.wipe()
		if strings.HasPrefix(version, pendingPrefix) && (st.pending == nil || version != pendingPrefix+st.pending.ID) {
			return nil, nil // not there any more
		}
		if err := st.checkOld(op, r, version); err != nil {
			return nil, err
		}
		// What can be read is not disabled, of whatever generation it is.
		v, err := s.d.Read(ctx, r, version)
		v.Wipe()
		switch {
		case err == nil:
			return nil, fault.Newf(fault.Conflict, op, "version %s of %s is not disabled; disable it first", version, r)
		case !fault.Is(err, fault.NotFound):
			return nil, err
		}
		return func(ctx context.Context) error { return s.d.Destroy(ctx, r, version) }, nil
	})
}

// checkOld reports what speaks against taking version out of use: a Conflict
// if somebody may still need it.
func (st *state) checkOld(op string, r ref.Ref, version string) error {
	switch {
	case version == st.currentID():
		return fault.Newf(fault.Conflict, op, "version %s of %s is current; only a superseded version can be taken out of use", version, r)
	case st.pending != nil && version == pendingPrefix+st.pending.ID:
		return fault.Newf(fault.Conflict, op, "version %s of %s is pending; discard rotation %s instead", version, r, st.pending.Token)
	case strings.HasPrefix(version, pendingPrefix):
		return fault.Newf(fault.NotFound, op, "%s has no version %s; it was promoted or discarded", r, version)
	}
	return nil
}

func checkVersion(ctx context.Context, op string, r ref.Ref, version string) error {
	if version == "" {
		return fault.Newf(fault.Invalid, op, "the version is empty; expected the id of a superseded version of %s", r)
	}
	return check(ctx, op, r)
}
