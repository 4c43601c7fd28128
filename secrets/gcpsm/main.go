package gcpsm

import (
	"context"
	"errors"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/api/iterator"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// Main implements [sibling.Driver]. The secret is read before its newest
// version, so what is noted may be older than that, never newer.
func (d *driver) Main(ctx context.Context, r ref.Ref) (*sibling.Main, error) {
	p, err := d.place(ctx, "gcpsm: describe", r)
	if err != nil {
		return nil, err
	}
	sec, err := p.get(ctx)
	if err != nil {
		return nil, err
	}
	m := &sibling.Main{ID: sec.GetName(), Rev: sec.GetEtag()}
	if next := sec.GetRotation().GetNextRotationTime(); next != nil {
		m.NextRotation = next.AsTime()
	}
	v, err := p.newest(ctx)
	if err != nil || v == nil {
		return m, err
	}
	noted := annotation[marks](sec, annVersions)
	m.Noted = noted.known
	m.Current = tell(v, &noted)
	var before *secretmanagerpb.SecretVersion
	if noted.Current.Version == m.Current.ID {
		before, err = p.noted(ctx, noted.Previous.Version)
	} else {
		before, err = p.before(ctx, m.Current.ID)
	}
	if err != nil {
		return nil, err
	}
	if before != nil {
		m.Previous = tell(before, &noted)
	}
	return m, nil
}

func tell(v *secretmanagerpb.SecretVersion, noted *marks) *sibling.Version {
	id := number(v.GetName())
	disabled := v.GetState() != secretmanagerpb.SecretVersion_ENABLED
	return &sibling.Version{
		ID: id, Token: noted.token(id), Created: v.GetCreateTime().AsTime(),
		Disabled: disabled, Held: !disabled && noted.held(id),
	}
}

// known reports whether a version was noted under token.
func (m *marks) known(token string) bool {
	return token != "" && (m.Current.Token == token || m.Previous.Token == token)
}

// noted describes the version that was noted as superseded, nil if there was
// none or it was destroyed.
func (p place) noted(ctx context.Context, id string) (*secretmanagerpb.SecretVersion, error) {
	if !versionForm.MatchString(id) {
		return nil, nil //nolint:nilnil // none is no error
	}
	v, err := p.info(ctx, id)
	if fault.Is(err, fault.NotFound) || err == nil && v.GetState() == secretmanagerpb.SecretVersion_DESTROYED {
		return nil, nil //nolint:nilnil // none is no error
	}
	return v, err
}

// before finds the newest version before id that was not destroyed, nil if
// there is none among the last maxLook.
func (p place) before(ctx context.Context, id string) (found *secretmanagerpb.SecretVersion, err error) {
	err = p.versions(ctx, func(v *secretmanagerpb.SecretVersion) bool {
		if after(id, number(v.GetName())) && v.GetState() != secretmanagerpb.SecretVersion_DESTROYED {
			found = v
		}
		return found == nil
	})
	if err != nil {
		return nil, err
	}
	return found, nil
}

// maxLook bounds how many versions are looked through.
const maxLook = 2000

// versions tells f of the versions of a secret, the newest first, while it
// returns true.
func (p place) versions(ctx context.Context, f func(*secretmanagerpb.SecretVersion) bool) error {
	_, err := call(ctx, p.d, "gcpsm: list versions of "+p.name(), false, func(ctx context.Context) (bool, error) {
		it := p.c.ListSecretVersions(ctx, &secretmanagerpb.ListSecretVersionsRequest{Parent: p.name(), PageSize: 100})
		for range maxLook {
			v, err := it.Next()
			if errors.Is(err, iterator.Done) {
				return true, nil
			}
			if err != nil || !f(v) {
				return true, err
			}
		}
		return true, nil
	})
	return err
}

// Read implements [sibling.Driver].
func (d *driver) Read(ctx context.Context, r ref.Ref, id string) (secrets.Value, error) {
	const op = "gcpsm: read"
	p, err := d.place(ctx, op, r)
	if err != nil {
		return secrets.Value{}, err
	}
	if !versionForm.MatchString(id) {
		return secrets.Value{}, fault.Newf(fault.NotFound, op, "%s has no version %q; versions are numbers", r, id)
	}
	return p.access(ctx, id)
}
