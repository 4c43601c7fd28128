package azurekv

import (
	"context"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// Tags implements [secrets.Tagger]. In Key Vault a version has tags; those of
// the newest are the secret's, disabled or not. Key Vault hands out the newest
// version together with its value, so the list of versions is asked instead,
// which has none: it needs permission to list (Key Vault Reader), and one call
// for each 25 versions. Keys that begin with keyturn- are never told.
// https://learn.microsoft.com/rest/api/keyvault/secrets/get-secret-versions/get-secret-versions
func (s *Store) Tags(ctx context.Context, r ref.Ref) (map[string]string, error) {
	const op = "azurekv: tags"
	if err := s.d.validate(op, r); err != nil {
		return nil, err
	}
	all, err := s.d.versions(ctx, op, r, r.Name)
	if err != nil {
		return nil, err
	}
	cur := latest(all)
	if cur == nil {
		return nil, fault.Newf(fault.NotFound, op, "there is no version of %s", r)
	}
	return cur.own(), nil
}
