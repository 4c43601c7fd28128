package gcpsm

import (
	"context"
	"strings"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/api/iterator"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// maxSiblings bounds how many secrets are looked through for orphans.
const maxSiblings = 10_000

// Orphans implements [secrets.OrphanFinder]: the siblings in the project, or
// the project's location, of r that carry our annotation and whose main secret
// is gone. It needs secretmanager.secrets.list there, and secretmanager.secrets.get
// on the project too: with it on secrets alone, one that is gone is Denied.
func (s *Store) Orphans(ctx context.Context, r ref.Ref) ([]secrets.Orphan, error) {
	const op = "gcpsm: find orphans"
	r.Name = "any" // whatever its name
	p, err := s.d.place(ctx, op, r)
	if err != nil {
		return nil, err
	}
	found, err := p.siblings(ctx)
	if err != nil {
		return nil, err
	}
	var out []secrets.Orphan
	for _, sec := range found {
		p.id = strings.TrimSuffix(number(sec.GetName()), sibling.Suffix)
		_, err := p.get(ctx)
		if err == nil {
			continue
		}
		if !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		r.Name = p.id
		out = append(out, secrets.Orphan{Ref: r, ID: sec.GetName()})
	}
	return out, nil
}

// siblings lists the secrets that are ours, page by page, each a call of its
// own.
func (p place) siblings(ctx context.Context) ([]*secretmanagerpb.Secret, error) {
	var out []*secretmanagerpb.Secret
	token := ""
	for seen := 0; seen < maxSiblings; {
		page, err := call(ctx, p.d, "gcpsm: list secrets of "+p.parent, false, func(ctx context.Context) ([]*secretmanagerpb.Secret, error) {
			it := p.c.ListSecrets(ctx, &secretmanagerpb.ListSecretsRequest{Parent: p.parent, Filter: "name:" + sibling.Suffix})
			var page []*secretmanagerpb.Secret
			next, err := iterator.NewPager(it, 250, token).NextPage(&page)
			token = next
			return page, err
		})
		if err != nil {
			return nil, err
		}
		seen += len(page)
		for _, sec := range page {
			id := number(sec.GetName())
			// The filter knows parts of names only.
			if main, ok := strings.CutSuffix(id, sibling.Suffix); ok && sec.GetAnnotations()[annSecret] == main {
				out = append(out, sec)
			}
		}
		if token == "" {
			return out, nil
		}
	}
	return nil, fault.Newf(fault.Invalid, "gcpsm: find orphans", "there are more than %d secrets in %s with %q in their names; look through them by hand", maxSiblings, p.parent, sibling.Suffix)
}

// RemoveOrphan implements [secrets.OrphanFinder]. The sibling is deleted with
// all its versions, under the etag that it was looked at with.
func (s *Store) RemoveOrphan(ctx context.Context, o secrets.Orphan) error {
	const op = "gcpsm: remove orphan"
	p, err := s.d.place(ctx, op, o.Ref)
	if err != nil {
		return err
	}
	other := p.sibling()
	if number(o.ID) != other.id {
		return fault.Newf(fault.Invalid, op, "%q is not the sibling of %s; expected what Orphans returned", o.ID, o.Ref)
	}
	sec, err := other.get(ctx)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if sec.GetAnnotations()[annSecret] != p.id {
		return fault.Newf(fault.Conflict, op, "%s does not carry the annotation %s, so it is somebody else's; it was left alone", other.name(), annSecret)
	}
	if _, err := p.get(ctx); err == nil {
		return fault.Newf(fault.Conflict, op, "%s is back; its sibling was left alone", o.Ref)
	} else if !fault.Is(err, fault.NotFound) {
		return err
	}
	_, err = call(ctx, s.d, "gcpsm: delete secret "+other.name(), false, func(ctx context.Context) (*emptypb.Empty, error) {
		return &emptypb.Empty{}, other.c.DeleteSecret(ctx, &secretmanagerpb.DeleteSecretRequest{Name: other.name(), Etag: sec.GetEtag()})
	})
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}
