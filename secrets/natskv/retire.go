package natskv

import (
	"context"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// Disable implements [secrets.Disabler]. The version stays in the entry, and
// the flag is sealed along with it: who may write to the bucket cannot take
// the flag away without the key. The next promotion drops the version as it
// drops any previous one.
func (s *Store) Disable(ctx context.Context, r ref.Ref, version string) error {
	return s.setDisabled(ctx, "natskv: disable", r, version, true)
}

// Enable implements [secrets.Disabler]. A version that was superseded once
// more since is gone: NotFound.
func (s *Store) Enable(ctx context.Context, r ref.Ref, version string) error {
	return s.setDisabled(ctx, "natskv: enable", r, version, false)
}

func (s *Store) setDisabled(ctx context.Context, op string, r ref.Ref, version string, disabled bool) error {
	return s.change(ctx, op, r, func(rec *record) (bool, error) {
		switch {
		case rec.Current.is(version) || rec.Pending.is(version):
			if !disabled {
				return false, nil // never was
			}
			return false, inUse(op, r, version)
		case !rec.Previous.is(version):
			return false, fault.Newf(fault.NotFound, op, "%s has no version %q; it was superseded or destroyed since, or the id is wrong", r, version)
		case rec.Previous.Disabled == disabled:
			return false, nil
		}
		moved, err := s.keys.move(op, r, secrets.Previous, secrets.Previous, rec.Previous, standing{Disabled: disabled, Held: !disabled})
		if err != nil {
			return false, err
		}
		rec.Previous = moved
		return true, nil
	})
}

// Destroy implements [secrets.Disabler]. The sealed value leaves the entry,
// and its token is forgotten. The server gives the bytes on its disk back when
// it compacts the file, and a backup keeps them; they open with the sealing
// key only.
func (s *Store) Destroy(ctx context.Context, r ref.Ref, version string) error {
	const op = "natskv: destroy"
	return s.change(ctx, op, r, func(rec *record) (bool, error) {
		switch {
		case rec.Current.is(version) || rec.Pending.is(version):
			return false, inUse(op, r, version)
		case !rec.Previous.is(version):
			return false, nil
		case !rec.Previous.Disabled:
			return false, fault.Newf(fault.Conflict, op, "version %s of %s is not disabled; disable it first, and destroy it when nobody misses it", version, r)
		}
		rec.Previous = nil
		return true, nil
	})
}

func inUse(op string, r ref.Ref, version string) error {
	return fault.Newf(fault.Conflict, op, "version %s of %s is current or pending; only a superseded one can be taken out of use", version, r)
}
