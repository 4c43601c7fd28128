package awssm

import (
	"context"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// Disable implements [secrets.Disabler]. AWS disables no version: what can be
// taken is its label. [Retired] is put on the version first, so that it always
// has one, since the service deletes versions that have none, and AWSPREVIOUS
// is taken away then. Who asks for AWSPREVIOUS finds nothing; who may ask for
// the version's id or for Retired still can, unless the policy allows them
// AWSCURRENT alone (secretsmanager:VersionStage). What ends the credential is
// its revocation at the target.
//
// EventBridge reports the move of Retired, which who goes by AWSCURRENT leaves
// alone. A version that was disabled and then superseded once more keeps
// Retired until the next Disable moves it; it is NotFound here.
func (s *Store) Disable(ctx context.Context, r secrets.Ref, version string) error {
	const op = "awssm: disable"
	return s.relabel(ctx, op, r, func(ctx context.Context, st *state) (done bool, err error) {
		switch {
		case st.has(version, labelCurrent), st.has(version, labelPending):
			return false, fault.Newf(fault.Conflict, op, "version %s of %s is current or pending; only a superseded one can be disabled", version, r)
		case st.has(version, labelPrevious):
		case version != "" && st.retired() == version:
			return true, nil
		default:
			return false, fault.Newf(fault.NotFound, op, "%s has no version %q with a stage; it was superseded or destroyed since, or the id is wrong", r, version)
		}
		if st.has(version, Claim) {
			// Left by its rotation. Alone on a version it means a put that was
			// interrupted, see recover.
			if err := s.move(ctx, op, r, Claim, "", version); err != nil && !isCode(err, codeParameter) {
				return false, err
			}
		}
		if !st.has(version, Retired) {
			if err := s.move(ctx, op, r, Retired, version, st.holder(Retired)); err != nil {
				return false, err
			}
		}
		if id := st.holder(Held); id != version {
			s.drop(ctx, op, r, st, Held, id) // of a generation that is over
		}
		return true, s.move(ctx, op, r, labelPrevious, "", version)
	})
}

// Enable implements [secrets.Disabler]. [Held] is put on the version, and then
// AWSPREVIOUS back, only if nobody has it: a version that was superseded once
// more since is NotFound. Retired stays where it is: taken away here, it could
// be missing when a Disable at the same time takes AWSPREVIOUS, and the
// version would have no label. So it is Held, and not Retired, that tells a
// version which was enabled again from one whose Disable was interrupted.
func (s *Store) Enable(ctx context.Context, r secrets.Ref, version string) error {
	const op = "awssm: enable"
	return s.relabel(ctx, op, r, func(ctx context.Context, st *state) (done bool, err error) {
		switch holder := st.holder(labelPrevious); {
		case st.has(version, labelCurrent), st.has(version, labelPending), st.has(version, labelPrevious):
			return true, nil
		case !st.has(version, Retired):
			return false, fault.Newf(fault.NotFound, op, "no label of %s is on version %q; it was superseded or destroyed since, or the id is wrong", r, version)
		case holder != "":
			return false, fault.Newf(fault.NotFound, op, "version %s of %s was superseded since; AWSPREVIOUS is on version %s", version, r, holder)
		}
		if !st.has(version, Held) {
			if err := s.move(ctx, op, r, Held, version, st.holder(Held)); err != nil {
				return false, err
			}
		}
		return true, s.move(ctx, op, r, labelPrevious, version, "")
	})
}

// Destroy implements [secrets.Disabler]. It takes the last label away, which
// makes the version deprecated, and that is all that AWS allows: nobody can
// delete a version. The service does so itself once there are more than 100,
// and none that is younger than a day. Until then who may ask for the
// version's id can read it.
// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_PutSecretValue.html
func (s *Store) Destroy(ctx context.Context, r secrets.Ref, version string) error {
	const op = "awssm: destroy"
	return s.relabel(ctx, op, r, func(ctx context.Context, st *state) (done bool, err error) {
		switch {
		case st.has(version, labelCurrent), st.has(version, labelPending), st.has(version, labelPrevious):
			return false, fault.Newf(fault.Conflict, op, "version %s of %s is not disabled; disable it first, and destroy it when nobody misses it", version, r)
		case st.has(version, Held):
			return false, s.move(ctx, op, r, Held, "", version)
		case st.has(version, Retired):
			// Look once more: an Enable at the same time would have it readable.
			return false, s.move(ctx, op, r, Retired, "", version)
		}
		return true, nil
	})
}

// relabel calls f with the labels as they are until it is done. A move that
// was refused because somebody else moved the label is looked at again.
func (s *Store) relabel(ctx context.Context, op string, r ref.Ref, f func(context.Context, *state) (done bool, err error)) error {
	ctx, cancel, err := s.begin(ctx, op, r)
	if err != nil {
		return err
	}
	defer cancel()
	for range looks {
		st, err := s.look(ctx, op, r)
		if err != nil {
			return err
		}
		done, err := f(ctx, st)
		if err != nil && !isCode(err, codeParameter) {
			return err
		}
		if done && err == nil {
			return nil
		}
	}
	return busy(op, r)
}
