package apikey

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
)

// A listed is one key in the issuer's list.
type listed struct {
	id, name string
	created  time.Time // zero if the issuer does not tell
	disabled bool
}

// maxPages bounds the pages of one list.
const maxPages = 100

// keys returns every live key, by id, and the time there: the earlier of the
// issuer's clock and ours, so that a clock that is wrong makes no key look
// old.
func (r *rotator) keys(ctx context.Context, admin string) (map[string]listed, time.Time, error) {
	out := map[string]listed{}
	now := r.now()
	for cursor, page := "", 0; ; page++ {
		if page == maxPages {
			return nil, now, fault.Newf(fault.Invalid, r.list.name(), "more than %d pages; ask for more keys at once, or for those of one project", maxPages)
		}
		a, err := r.do(ctx, r.list, data{adminField: admin, "Cursor": cursor})
		if err != nil {
			return nil, now, err
		}
		// The Date header has whole seconds.
		if there := a.date.Add(time.Second); !a.date.IsZero() && there.Before(now) {
			now = there
		}
		v, ok := r.at.items.find(a.doc)
		items, isList := v.([]any)
		if !ok || !isList {
			return nil, now, fault.Newf(fault.Invalid, r.list.name(), "no array where list.items (%s) points to in the answer of %s", r.cfg.List.Items, r.list.host)
		}
		for _, item := range items {
			k := listed{id: r.at.listID.text(item), name: r.at.listName.text(item)}
			if k.id == "" {
				return nil, now, fault.Newf(fault.Invalid, r.list.name(), "an item without a string where list.id (%s) points to", r.cfg.List.ID)
			}
			created, _ := r.at.listCreated.find(item)
			k.created = parseTime(created)
			disabled, _ := r.at.listDisabled.find(item)
			k.disabled = disabled == true
			out[k.id] = k
		}
		next := ""
		if r.at.next != nil {
			next = r.at.next.text(a.doc)
		}
		if r.at.more != nil {
			if more, _ := r.at.more.find(a.doc); more != true {
				next = ""
			}
		}
		if next == "" || next == cursor {
			return out, now, nil
		}
		cursor = next
	}
}

// parseTime reads RFC 3339 or seconds since 1970; anything else is zero.
func parseTime(v any) time.Time {
	switch v := v.(type) {
	case string:
		t, _ := time.Parse(time.RFC3339Nano, v)
		return t
	case json.Number:
		if f, err := strconv.ParseFloat(v.String(), 64); err == nil && f > 0 && f < 1e11 {
			sec := int64(f)
			return time.Unix(sec, int64((f-float64(sec))*1e9))
		}
	}
	return time.Time{}
}

// finder is what a rotator can do whose issuer lists keys.
type finder struct{ r *rotator }

// Orphans implements [rotators.OrphanFinder]: keys that were made to succeed
// current or previous, are the key of no version of c, and are older than
// Options.OrphanAge. What was made to succeed an older version is not told
// from a version that somebody keeps.
func (f finder) Orphans(ctx context.Context, c rotators.Change) ([]string, error) {
	found, _, err := f.find(ctx, c)
	ids := make([]string, len(found))
	for i, k := range found {
		ids[i] = k.id
	}
	return ids, err
}

// RemoveOrphans implements [rotators.OrphanFinder]. It may be repeated.
func (f finder) RemoveOrphans(ctx context.Context, c rotators.Change) error {
	found, admin, err := f.find(ctx, c)
	if err != nil {
		return err
	}
	for _, k := range found {
		if err := f.r.revokeOrphan(ctx, admin, c, k); err != nil {
			return err
		}
	}
	return nil
}

// find returns the orphans, oldest first.
func (f finder) find(ctx context.Context, c rotators.Change) (found []listed, admin string, err error) {
	r := f.r
	cur, err := parse("orphans", "current", c.Current)
	if err != nil {
		return nil, "", err
	}
	if admin, err = r.admin(ctx, cur); err != nil {
		return nil, "", err
	}
	keys, now, err := r.keys(ctx, admin)
	if err != nil {
		return nil, "", err
	}
	base := keys[cur.id].created
	if prev, err := parse("orphans", "previous", c.Previous); err == nil {
		// After a rollback previous is the younger one.
		if made := keys[prev.id].created; !made.IsZero() && made.Before(base) {
			base = made
		}
	}
	for _, k := range keys {
		if r.maybeOrphan(c, k, cur) && !base.IsZero() && k.created.After(base) && r.old(k, now) {
			found = append(found, k)
		}
	}
	slices.SortFunc(found, func(a, b listed) int {
		return cmp.Or(a.created.Compare(b.created), cmp.Compare(a.id, b.id))
	})
	return found, admin, nil
}

// sweep revokes the orphans among the keys that were made to succeed cur's.
// With a token pending is stored, and other keys of that rotation are orphans
// whatever their age.
func (r *rotator) sweep(ctx context.Context, admin string, c rotators.Change, cur, pend *secret, token string) error {
	if r.list == nil {
		return nil
	}
	keys, now, err := r.keys(ctx, admin)
	if err != nil {
		return err
	}
	base := keys[cur.id].created
	for _, k := range keys {
		switch {
		case !r.maybeOrphan(c, k, cur, pend):
		case token != "" && k.name == tag(c.Ref)+rotation(token):
			err = r.revokeOrphan(ctx, admin, c, k)
		case !base.IsZero() && k.created.After(base) && r.old(k, now):
			err = r.revokeOrphan(ctx, admin, c, k)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// sweepBetween revokes the orphans among the keys that were made to succeed
// old's, up to cur's, which did.
func (r *rotator) sweepBetween(ctx context.Context, admin string, c rotators.Change, old, cur *secret) error {
	if r.list == nil {
		return nil
	}
	keys, now, err := r.keys(ctx, admin)
	if err != nil {
		return err
	}
	from, to := keys[old.id].created, keys[cur.id].created
	if from.IsZero() || to.IsZero() {
		return nil
	}
	for _, k := range keys {
		if r.maybeOrphan(c, k, cur, old) &&
			k.created.After(from) && k.created.Before(to) && r.old(k, now) {
			if err := r.revokeOrphan(ctx, admin, c, k); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *rotator) old(k listed, now time.Time) bool {
	return r.opts.OrphanAge >= 0 && !k.created.IsZero() && now.Sub(k.created) >= r.opts.OrphanAge
}

// maybeOrphan reports whether k was made for c's secret and is the key of no
// version that is known here. A key that is disabled was retired: it is kept
// for whoever restores it.
func (r *rotator) maybeOrphan(c rotators.Change, k listed, versions ...*secret) bool {
	return strings.HasPrefix(k.name, tag(c.Ref)) && !k.disabled && !r.isVersion(c, k.id, versions...)
}

// isVersion reports whether id is the key of a version that c knows, or of one
// of the others given, of which some may be nil.
func (r *rotator) isVersion(c rotators.Change, id string, others ...*secret) bool {
	for _, s := range others {
		if s != nil && s.id == id {
			return true
		}
	}
	if prev, err := parse("sweep", "previous", c.Previous); err == nil && prev.id == id {
		return true
	}
	pend, err := parse("sweep", "pending", c.Pending)
	return err == nil && pend.id == id
}

func (r *rotator) revokeOrphan(ctx context.Context, admin string, c rotators.Change, k listed) error {
	if err := r.revokeID(ctx, admin, k.id); err != nil {
		return err
	}
	r.opts.Logger.InfoContext(ctx, "revoked a key that an interrupted rotation left", "secret", c.Ref.String(), "key_id", k.id, "name", k.name, "created", k.created)
	return nil
}
