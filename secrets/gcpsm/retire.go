package gcpsm

import (
	"context"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// SetDisabled implements [sibling.Driver]. Enabling a version whose destruction
// was scheduled cancels that.
func (d *driver) SetDisabled(ctx context.Context, r ref.Ref, id string, disabled bool) error {
	op, verb, want := "gcpsm: enable", "enable", secretmanagerpb.SecretVersion_ENABLED
	if disabled {
		op, verb, want = "gcpsm: disable", "disable", secretmanagerpb.SecretVersion_DISABLED
	}
	p, err := d.old(ctx, op, r, id, disabled)
	if err != nil {
		return err
	}
	return p.transition(ctx, verb, id, func(v *secretmanagerpb.SecretVersion) (bool, error) {
		if v == nil || v.GetState() == secretmanagerpb.SecretVersion_DESTROYED {
			return false, fault.Newf(fault.NotFound, op, "version %s of %s is not there, or was destroyed; only a new version can replace it", id, r)
		}
		if v.GetState() == want {
			return true, nil
		}
		if disabled {
			return false, nil
		}
		// Noted before it is done: a version that is noted and still disabled
		// is not held, but one that is enabled and not noted would be retired
		// again.
		return false, d.hold(ctx, p, id)
	}, func(ctx context.Context, etag string) (*secretmanagerpb.SecretVersion, error) {
		if disabled {
			return p.c.DisableSecretVersion(ctx, &secretmanagerpb.DisableSecretVersionRequest{Name: p.version(id), Etag: etag})
		}
		return p.c.EnableSecretVersion(ctx, &secretmanagerpb.EnableSecretVersionRequest{Name: p.version(id), Etag: etag})
	})
}

// hold notes that a version was enabled again.
func (d *driver) hold(ctx context.Context, p place, id string) error {
	for try := 0; ; try++ {
		sec, err := p.get(ctx)
		if err != nil {
			return err
		}
		m := annotation[marks](sec, annVersions)
		if m.held(id) {
			return nil
		}
		m.hold(id)
		annotate(sec, annVersions, m)
		_, err = p.update(ctx, sec, "annotations")
		if !isCode(err, codes.FailedPrecondition) && !isCode(err, codes.Aborted) || try == recordTries {
			return err
		}
	}
}

// Destroy implements [sibling.Driver]. A version that is enabled is a Conflict,
// up to the moment of its destruction, which is under the version's etag:
// somebody may have enabled it since it was looked at.
func (d *driver) Destroy(ctx context.Context, r ref.Ref, id string) error {
	const op = "gcpsm: destroy"
	p, err := d.old(ctx, op, r, id, true)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return p.destroy(ctx, id, func(v *secretmanagerpb.SecretVersion) error {
		if v.GetState() == secretmanagerpb.SecretVersion_ENABLED {
			return fault.Newf(fault.Conflict, op, "version %s of %s is not disabled; disable it first", id, r)
		}
		return nil
	})
}

// old finds a version, which must not be the newest if it is to be taken away:
// every reader of `latest` would fail. Once superseded it never is the newest
// again, so the look cannot be outdated.
func (d *driver) old(ctx context.Context, op string, r ref.Ref, id string, away bool) (place, error) {
	p, err := d.place(ctx, op, r)
	if err != nil {
		return place{}, err
	}
	if !versionForm.MatchString(id) {
		return place{}, fault.Newf(fault.NotFound, op, "%s has no version %q; versions are numbers", r, id)
	}
	if !away {
		return p, nil
	}
	newest, err := p.newest(ctx)
	if err != nil {
		return place{}, err
	}
	if idOf(newest) == id {
		return place{}, fault.Newf(fault.Conflict, op, "version %s of %s is the newest, which every plain reader gets; it was left alone", id, r)
	}
	return p, nil
}
