package azurekv

import (
	"context"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// Check implements [secrets.Checker] as far as can be told without writing:
// that secrets can be read and versions listed, and that the next version
// would be accepted. Whether this process may set, update and recover secrets
// shows only when it does, since Key Vault has no call that tells; the log
// says so.
func (s *Store) Check(ctx context.Context, r ref.Ref) error {
	const op = "azurekv: check"
	var missing []string
	note := func(permission string, err error) error {
		if fault.Is(err, fault.Denied) && fault.ClassOf(err) == fault.ClassPermission {
			missing = append(missing, permission)
			return nil
		}
		return err
	}
	cur, _, err := s.d.newest(ctx, op, r)
	if err := note("get (getSecret) on "+r.Name, err); err != nil {
		return err
	}
	if _, err := s.d.versions(ctx, op, r, r.Name); note("list (readMetadata) on "+r.Name, err) != nil {
		return err
	}
	if _, _, err := s.d.Pending(ctx, r); note("get (getSecret) and list (readMetadata) on "+r.Name+sibling.Suffix, err) != nil {
		return err
	}
	if len(missing) > 0 {
		return &fault.Error{
			Kind: fault.Denied, Class: fault.ClassPermission, Op: op,
			Msg: "in vault " + r.ScopePart(0) + " this process lacks " + strings.Join(missing, ", ") + "; a rotation needs get, list, set, update and recover, all of which the role Key Vault Secrets Officer has",
		}
	}
	if _, _, err := s.d.next(op, r, cur); err != nil {
		return err
	}
	s.d.opts.Logger.InfoContext(ctx, "reading was tried; whether this process may set, update and recover secrets shows only when it does", "ref", r.String())
	return nil
}

// Orphans implements [secrets.OrphanFinder]: the siblings in r's vault whose
// main secret was purged, or never was. That of a main secret which was deleted
// and can be recovered is none.
func (s *Store) Orphans(ctx context.Context, r ref.Ref) ([]secrets.Orphan, error) {
	const op = "azurekv: orphans"
	call, cancel, c, err := s.d.begin(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer cancel()
	var all []secrets.Orphan
	pager := c.NewListSecretPropertiesPager(nil)
	for page := 0; pager.More(); page++ {
		if page == maxPages {
			return nil, fault.Newf(fault.Unavailable, op, "the list of secrets of vault %s has no end; stopped after %d pages", r.ScopePart(0), page)
		}
		out, err := pager.NextPage(call)
		if err != nil {
			return nil, classify(call, op, "list the secrets of vault "+r.ScopePart(0), err)
		}
		for _, p := range out.Value {
			if p == nil || p.ID == nil || p.Tags[tagPendingOf] == nil {
				continue
			}
			main := ref.Ref{Provider: r.Provider, Scope: r.Scope, Name: *p.Tags[tagPendingOf]}
			it, err := decode(op, main.Name+sibling.Suffix, p.ID, p.Attributes, p.ContentType, p.Tags)
			if err != nil || s.d.validate(op, main) != nil {
				continue // somebody copied the tag to a secret of another name
			}
			all = append(all, secrets.Orphan{Ref: main, ID: it.id})
		}
	}
	var orphans []secrets.Orphan
	for _, o := range all {
		gone, err := s.d.gone(ctx, op, o.Ref)
		if err != nil {
			return nil, err
		}
		if gone {
			orphans = append(orphans, o)
		}
	}
	return orphans, nil
}

// gone reports whether there is no such secret, and none to recover.
func (d *driver) gone(ctx context.Context, op string, r ref.Ref) (bool, error) {
	all, err := d.versions(ctx, op, r, r.Name)
	if err != nil && !isCode(err, codeNotFound) {
		return false, err
	}
	if len(all) > 0 {
		return false, nil
	}
	ctx, cancel, c, err := d.begin(ctx, op, r)
	if err != nil {
		return false, err
	}
	defer cancel()
	if _, err := c.GetDeletedSecret(ctx, r.Name, nil); err != nil {
		err = classify(ctx, op, "look for the deleted secret "+r.Name+" in vault "+r.ScopePart(0), err)
		if isCode(err, codeNotFound) {
			return true, nil
		}
		return false, err
	}
	return false, nil
}

// RemoveOrphan implements [secrets.OrphanFinder]. The sibling is deleted, not
// purged: its value can be recovered until the vault's retention is over.
func (s *Store) RemoveOrphan(ctx context.Context, o secrets.Orphan) error {
	const op = "azurekv: remove orphan"
	if err := s.d.validate(op, o.Ref); err != nil {
		return err
	}
	name := o.Ref.Name + sibling.Suffix
	if !strings.HasSuffix(o.ID, "/secrets/"+name) {
		return fault.Newf(fault.Invalid, op, "%q is not the sibling of %s; expected what Orphans returned", o.ID, o.Ref)
	}
	gone, err := s.d.gone(ctx, op, o.Ref)
	if err != nil {
		return err
	}
	if !gone {
		return fault.Newf(fault.Conflict, op, "%s is there, or can be recovered; what is pending for it was left alone", o.Ref)
	}
	all, err := s.d.versions(ctx, op, o.Ref, name)
	if isCode(err, codeNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if newest := latest(all); newest != nil && newest.tags[tagPendingOf] != o.Ref.Name {
		return fault.Newf(fault.Conflict, op, "secret %s in vault %s is not tagged as the sibling of %s any more and was left alone", name, o.Ref.ScopePart(0), o.Ref)
	}
	ctx, cancel, c, err := s.d.begin(ctx, op, o.Ref)
	if err != nil {
		return err
	}
	defer cancel()
	if _, err := c.DeleteSecret(ctx, name, nil); err != nil {
		if err = classify(ctx, op, "delete "+name+" in vault "+o.Ref.ScopePart(0), err); !isCode(err, codeNotFound) {
			return err
		}
	}
	return nil
}
