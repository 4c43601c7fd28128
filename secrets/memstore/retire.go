package memstore

import (
	"context"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// Disable implements [secrets.Disabler]. The previous version is the only one
// that can be disabled, since an older one is forgotten.
func (s *Store) Disable(ctx context.Context, r ref.Ref, version string) error {
	return s.with(ctx, "disable", r, func(st *staged) error {
		if err := st.checkOld("memstore: disable", r, version); err != nil {
			return err
		}
		if st.previous == nil || st.previous.ID != version {
			return noVersion("memstore: disable", r, version)
		}
		st.disabled, st.held = true, false
		return nil
	})
}

// Enable implements [secrets.Disabler].
func (s *Store) Enable(ctx context.Context, r ref.Ref, version string) error {
	return s.with(ctx, "enable", r, func(st *staged) error {
		switch {
		case st.previous != nil && st.previous.ID == version:
			st.held = st.held || st.disabled
			st.disabled = false
		case st.current.ID == version:
		case st.pending != nil && st.pending.ID == version:
		default:
			return noVersion("memstore: enable", r, version)
		}
		return nil
	})
}

// Destroy implements [secrets.Disabler]: it wipes the value and forgets the
// version, its token included.
func (s *Store) Destroy(ctx context.Context, r ref.Ref, version string) error {
	const op = "memstore: destroy"
	return s.with(ctx, "destroy", r, func(st *staged) error {
		if err := st.checkOld(op, r, version); err != nil {
			return err
		}
		if st.previous == nil || st.previous.ID != version {
			return nil // not there any more
		}
		if !st.disabled {
			return fault.Newf(fault.Conflict, op, "version %s of %s is not disabled; disable it first", version, r)
		}
		st.previous.Value.Wipe()
		st.previous, st.disabled = nil, false
		return nil
	})
}

// checkOld refuses what a reader or a rotation still needs.
func (st *staged) checkOld(op string, r ref.Ref, version string) error {
	switch {
	case version == st.current.ID:
		return fault.Newf(fault.Conflict, op, "version %s of %s is current; only a superseded version can be taken out of use", version, r)
	case st.pending != nil && version == st.pending.ID:
		return fault.Newf(fault.Conflict, op, "version %s of %s is pending; discard rotation %s instead", version, r, st.pending.Token)
	}
	return nil
}

func noVersion(op string, r ref.Ref, version string) error {
	return fault.Newf(fault.NotFound, op, "%s has no version %q; it was superseded and forgotten, or never there", r, version)
}
