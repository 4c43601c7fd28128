package vaultkv

import (
	"context"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// Tags implements [secrets.Tagger]: the custom metadata of the secret, without
// the notes that are kept there. It is one read of <mount>/metadata/<path>, and
// needs no permission on the data. A secret whose versions are all deleted
// still tells its tags.
// https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2#read-secret-metadata
func (s *Store) Tags(ctx context.Context, r ref.Ref) (map[string]string, error) {
	const op = "vaultkv: tags"
	p, err := s.d.place(op, r)
	if err != nil {
		return nil, err
	}
	m, err := s.d.metadata(ctx, op, p)
	if err != nil {
		return nil, err
	}
	if m == nil {
		return nil, fault.Newf(fault.NotFound, op, "there is no secret %s; create it, or correct the ref", r)
	}
	tags := make(map[string]string, len(m.Custom))
	for k, v := range m.Custom {
		if _, ours := noted(k); !ours {
			tags[k] = v
		}
	}
	return tags, nil
}
