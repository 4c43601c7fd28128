package gcpsm

import (
	"context"
	"slices"
	"strings"

	"cloud.google.com/go/iam/apiv1/iampb"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// What a rotation does to the two secrets.
// https://cloud.google.com/secret-manager/docs/access-control
var (
	mainPermissions = []string{
		"secretmanager.secrets.get", "secretmanager.secrets.update",
		"secretmanager.versions.access", "secretmanager.versions.add", "secretmanager.versions.destroy",
		"secretmanager.versions.disable", "secretmanager.versions.enable",
		"secretmanager.versions.get", "secretmanager.versions.list",
	}
	siblingPermissions = []string{
		"secretmanager.secrets.get", "secretmanager.secrets.update",
		"secretmanager.versions.access", "secretmanager.versions.add", "secretmanager.versions.destroy",
		"secretmanager.versions.get", "secretmanager.versions.list",
	}
)

// Check implements [secrets.Checker]. Of a sibling that the service says is not
// there yet, nothing can be said: secretmanager.secrets.create is a permission
// on the project, for which this service does not answer, and so are the others
// until there is a secret. One that is denied is Denied, as it would be when
// something is rotated, whether it is there or not.
func (s *Store) Check(ctx context.Context, r ref.Ref) error {
	const op = "gcpsm: check"
	p, err := s.d.place(ctx, op, r)
	if err != nil {
		return err
	}
	missing, err := p.missing(ctx, mainPermissions)
	if err != nil {
		return err
	}
	// Without any permission the secret may as well not exist.
	if !slices.Contains(missing, mainPermissions[0]) || len(missing) == len(mainPermissions) {
		if _, err := p.get(ctx); err != nil && !fault.Is(err, fault.Denied) {
			return err
		}
	}
	lacks := tellMissing(p, missing)
	if other := p.sibling(); !slices.Contains(missing, mainPermissions[0]) {
		if _, err := other.get(ctx); !fault.Is(err, fault.NotFound) {
			missing, err := other.missing(ctx, siblingPermissions)
			if err != nil {
				return err
			}
			if len(missing) == len(siblingPermissions) {
				lacks = append(lacks, "all that a rotation needs on "+other.name()+", if it is there at all; it can be made before")
			} else {
				lacks = append(lacks, tellMissing(other, missing)...)
			}
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	return &fault.Error{
		Kind: fault.Denied, Class: fault.ClassPermission, Op: op,
		Msg: "these permissions are missing; grant them: " + strings.Join(lacks, ", "),
	}
}

func tellMissing(p place, permissions []string) []string {
	var out []string
	for _, m := range permissions {
		out = append(out, m+" on "+p.name())
	}
	return out
}

// missing returns which of the permissions the caller does not have. All of
// them are missing on a secret that does not exist.
func (p place) missing(ctx context.Context, permissions []string) ([]string, error) {
	resp, err := call(ctx, p.d, "gcpsm: test permissions on "+p.name(), false, func(ctx context.Context) (*iampb.TestIamPermissionsResponse, error) {
		return p.c.TestIamPermissions(ctx, &iampb.TestIamPermissionsRequest{Resource: p.name(), Permissions: permissions})
	})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(permissions), func(m string) bool { return slices.Contains(resp.GetPermissions(), m) }), nil
}
