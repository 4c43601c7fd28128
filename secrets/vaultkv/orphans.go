package vaultkv

import (
	"context"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// What a search for orphans may meet: more is an error, not a part of the
// truth.
const (
	maxFolders = 10_000
	maxKeys    = 100_000
)

// Orphans implements [secrets.OrphanFinder]: the marked siblings in r's mount
// whose secret is gone with all its metadata. One whose versions are only
// deleted is not gone. Errors: Denied without list on <mount>/metadata/*;
// Invalid for a mount that is too large to search.
func (s *Store) Orphans(ctx context.Context, r ref.Ref) ([]secrets.Orphan, error) {
	const op = "vaultkv: find orphans"
	p, err := s.d.scope(op, r)
	if err != nil {
		return nil, err
	}
	var found []secrets.Orphan
	keys := 0
	folders := []string{""}
	for i := 0; i < len(folders); i++ {
		listed, err := s.d.list(ctx, op, p.ns, p.mount+"/metadata/"+folders[i])
		if err != nil {
			return nil, err
		}
		here := make(map[string]bool, len(listed))
		for _, k := range listed {
			here[k] = true
			if strings.HasSuffix(k, "/") {
				folders = append(folders, folders[i]+k)
			}
		}
		if keys += len(listed); keys > maxKeys || len(folders) > maxFolders {
			return nil, fault.Newf(fault.Invalid, op, "the mount %s has more than %d keys or %d folders; search it with vault kv list", p.mount, maxKeys, maxFolders)
		}
		for _, k := range listed {
			name, ok := strings.CutSuffix(k, sibling.Suffix)
			if !ok || name == "" || here[name] {
				continue
			}
			o, err := s.orphan(ctx, op, p, r, folders[i]+name)
			if err != nil {
				return nil, err
			}
			if o != nil {
				found = append(found, *o)
			}
		}
	}
	return found, nil
}

// orphan returns the sibling of a secret that is gone, nil if it is a user's.
func (s *Store) orphan(ctx context.Context, op string, p place, r ref.Ref, path string) (*secrets.Orphan, error) {
	p.path = path
	m, err := s.d.metadata(ctx, op, p.sibling())
	if err != nil || m == nil || m.Custom[markKey] != markValue {
		return nil, err
	}
	r.Name = path
	return &secrets.Orphan{Ref: r, ID: p.mount + "/" + p.sibling().path}, nil
}

// RemoveOrphan implements [secrets.OrphanFinder]: the sibling goes with all
// its versions.
func (s *Store) RemoveOrphan(ctx context.Context, o secrets.Orphan) error {
	const op = "vaultkv: remove orphan"
	p, err := s.d.place(op, o.Ref)
	if err != nil {
		return err
	}
	if m, err := s.d.metadata(ctx, op, p); err != nil {
		return err
	} else if m != nil {
		return fault.Newf(fault.Conflict, op, "%s is back; its pending version was left alone", o.Ref)
	}
	p = p.sibling()
	m, err := s.d.metadata(ctx, op, p)
	if err != nil || m == nil {
		return err
	}
	if m.Custom[markKey] != markValue {
		return fault.Newf(fault.Conflict, op, "%s in %s is not marked as Keyturn's, and was left alone", p.path, p.mount)
	}
	return s.d.remove(ctx, op, p.ns, p.api("metadata"))
}
