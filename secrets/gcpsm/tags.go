package gcpsm

import (
	"context"
	"maps"

	"github.com/keyturn/keyturn/secrets"
)

// Tags implements [secrets.Tagger]: the labels of the secret, in one call that
// needs secretmanager.secrets.get alone. What people call tags on Google Cloud
// are bindings of the resource manager, which a secret does not tell.
// https://cloud.google.com/secret-manager/docs/labels
func (s *Store) Tags(ctx context.Context, r secrets.Ref) (map[string]string, error) {
	p, err := s.d.place(ctx, "gcpsm: tags", r)
	if err != nil {
		return nil, err
	}
	sec, err := p.get(ctx)
	if err != nil {
		return nil, err
	}
	tags := make(map[string]string, len(sec.GetLabels()))
	maps.Copy(tags, sec.GetLabels())
	return tags, nil
}
