package azurekv

import (
	"context"
	"crypto/rand"
	"slices"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// Main implements [sibling.Driver]. It costs one read, whose value is dropped,
// and one list of versions, 25 a page.
func (d *driver) Main(ctx context.Context, r ref.Ref) (*sibling.Main, error) {
	const op = "azurekv: describe"
	cur, all, err := d.newest(ctx, op, r)
	if err != nil {
		return nil, err
	}
	if all == nil {
		if all, err = d.versions(ctx, op, r, r.Name); err != nil {
			return nil, err
		}
	}
	noted, err := d.noted(ctx, op, r, cur, all)
	if err != nil {
		return nil, err
	}
	m := &sibling.Main{ID: cur.id, Current: tell(cur)}
	if !noted {
		m.Current.Token = ""
	}
	m.Previous = tell(previous(cur, all, noted))
	m.Noted = func(token string) bool {
		return token != "" && slices.ContainsFunc(all, func(it *item) bool { return it.tags[tagToken] == token })
	}
	return m, nil
}

func tell(it *item) *sibling.Version {
	if it == nil {
		return nil
	}
	return &sibling.Version{ID: it.version, Token: it.tags[tagToken], Created: it.created, Disabled: it.disabled, Held: it.held()}
}

// newest returns the version that a plain read returns, or is refused for
// being disabled. all is the list of versions if it was needed, else nil.
func (d *driver) newest(ctx context.Context, op string, r ref.Ref) (cur *item, all []*item, err error) {
	cur, err = d.get(ctx, op, r, r.Name, "")
	if !isCode(err, codeDisabled) {
		return cur, nil, err
	}
	if all, err = d.versions(ctx, op, r, r.Name); err != nil {
		return nil, nil, err
	}
	disabled := slices.DeleteFunc(slices.Clone(all), func(it *item) bool { return !it.disabled })
	if cur = latest(disabled); cur == nil {
		return nil, nil, &fault.Error{
			Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: op, Msg: "the newest version of " + r.String() + " was enabled or replaced meanwhile; read it again",
		}
	}
	return cur, all, nil
}

// latest returns the newest of some versions. Their age is told in whole
// seconds; of two that were made in one second, one that the other superseded
// is the older. What is left then is decided by the id, so that at least
// everybody tells the same.
func latest(all []*item) *item {
	var out *item
	for _, it := range all {
		switch {
		case out == nil || it.created.After(out.created):
			out = it
		case it.created.Before(out.created) || out.tags[tagPrevious] == it.version:
		case it.tags[tagPrevious] == out.version || it.version > out.version:
			out = it
		}
	}
	return out
}

// previous returns the version that cur superseded, or nil.
func previous(cur *item, all []*item, noted bool) *item {
	if noted {
		if it := find(all, cur.tags[tagPrevious]); it != nil {
			if it.destroyed() {
				return nil
			}
			return it
		}
	}
	return latest(slices.DeleteFunc(slices.Clone(all), func(it *item) bool {
		return it.version == cur.version || it.destroyed() || it.created.After(cur.created) || it.tags[tagPrevious] == cur.version
	}))
}

// noted reports whether the tags of cur were written for it. Whoever makes a
// version by hand may take the tags of the one before along, and then two
// versions have one token. A promotion that was done twice has two as well,
// but of the same value.
func (d *driver) noted(ctx context.Context, op string, r ref.Ref, cur *item, all []*item) (bool, error) {
	if cur.tags[tagToken] == "" {
		return false, nil
	}
	for _, it := range all {
		if it.version == cur.version || it.tags[tagToken] != cur.tags[tagToken] || it.created.After(cur.created) {
			continue
		}
		twin, err := d.get(ctx, op, r, r.Name, it.version)
		switch {
		case isCode(err, codeDisabled):
			return false, nil // taken out of use, which a twin of current is not
		case err != nil:
			return false, err
		}
		a, b := cur.value, twin.value
		if a == nil || !secrets.NewString(*a).Equal(secrets.NewString(*b)) {
			return false, nil
		}
	}
	return true, nil
}

// Read implements [sibling.Driver].
func (d *driver) Read(ctx context.Context, r ref.Ref, id string) (secrets.Value, error) {
	const op = "azurekv: read"
	if err := d.validate(op, r); err != nil {
		return secrets.Value{}, err
	}
	if !versionForm.MatchString(id) {
		return secrets.Value{}, fault.Newf(fault.NotFound, op, "%s has no version %q; expected 32 hexadecimal digits", r, id)
	}
	it, err := d.get(ctx, op, r, r.Name, id)
	if isCode(err, codeDisabled) {
		return secrets.Value{}, fault.Newf(fault.NotFound, op, "version %s of %s is disabled; enable it first", id, r)
	}
	if err != nil {
		return secrets.Value{}, err
	}
	return it.take(), nil
}

// next says what a version that succeeds cur carries, and refuses one that
// the service would refuse: better before the target is touched than after.
func (d *driver) next(op string, r ref.Ref, cur *item) (azsecrets.SetSecretParameters, map[string]string, error) {
	var none azsecrets.SetSecretParameters
	tags := cur.own()
	if n := len(tags); n > maxTags-2 {
		return none, nil, fault.Newf(fault.Invalid, op, "%s has %d tags of its own; expected at most %d, since a version holds %d and two are needed here", r, n, maxTags-2, maxTags)
	}
	exp, err := d.expiry(op, r, cur)
	if err != nil {
		return none, nil, err
	}
	enabled := true
	return azsecrets.SetSecretParameters{ContentType: cur.contentType, SecretAttributes: &azsecrets.SecretAttributes{Enabled: &enabled, Expires: exp}}, tags, nil
}

// Append implements [sibling.Driver]. It looks at the main secret right before
// it writes: a Conflict if that has moved on. Token and predecessor are noted
// by the same call, so there is nothing left to record.
func (d *driver) Append(ctx context.Context, r ref.Ref, m *sibling.Main, p sibling.Pending) (string, error) {
	const op = "azurekv: promote"
	if err := checkToken(op, p.Token); err != nil {
		return "", err
	}
	cur, _, err := d.newest(ctx, op, r)
	if err != nil {
		return "", err
	}
	if m.Current == nil || m.Current.ID != cur.version {
		return "", moved(op, r, cur)
	}
	params, tags, err := d.next(op, r, cur)
	if err != nil {
		return "", err
	}
	tags[tagToken], tags[tagPrevious] = p.Token, cur.version
	params.Tags = pointers(tags)
	made, err := d.set(ctx, op, r, r.Name, p.Value, params)
	if err != nil {
		return "", err
	}
	return made.version, nil
}

func moved(op string, r ref.Ref, cur *item) error {
	return &fault.Error{
		Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: op,
		Msg: "version " + cur.version + " of " + r.String() + " became current meanwhile; read the secret again",
	}
}

// Record implements [sibling.Driver]. Append has noted it, unless somebody took
// the tags away at once.
func (d *driver) Record(ctx context.Context, r ref.Ref, id, token, previous string) error {
	const op = "azurekv: record"
	cur, all, err := d.newest(ctx, op, r)
	if err != nil {
		return err
	}
	if cur.version != id {
		if all == nil {
			if all, err = d.versions(ctx, op, r, r.Name); err != nil {
				return err
			}
		}
		if cur = find(all, id); cur == nil {
			return fault.Newf(fault.NotFound, op, "%s has no version %s", r, id)
		}
	}
	if cur.tags[tagToken] == token && cur.tags[tagPrevious] == previous {
		return nil
	}
	tags := cur.own()
	tags[tagToken], tags[tagPrevious] = token, previous
	return d.update(ctx, op, r, r.Name, id, nil, tags)
}

// SetDisabled implements [sibling.Driver].
func (d *driver) SetDisabled(ctx context.Context, r ref.Ref, id string, disabled bool) error {
	const op = "azurekv: disable"
	all, err := d.versions(ctx, op, r, r.Name)
	if err != nil {
		return err
	}
	it := find(all, id)
	switch {
	case it == nil:
		return fault.Newf(fault.NotFound, op, "%s has no version %q", r, id)
	case it.destroyed():
		return fault.Newf(fault.NotFound, op, "version %s of %s was destroyed", id, r)
	case it.disabled == disabled:
		return nil
	}
	enabled := !disabled
	return d.update(ctx, op, r, r.Name, id, &enabled, it.marked(enabled))
}

// Destroy implements [sibling.Driver] as far as Key Vault allows: the package's
// documentation says how far. The tag takes the place of keyturn-previous, so
// that there is room for it. No update depends on a state: a version that is
// enabled between the look and the update is destroyed.
func (d *driver) Destroy(ctx context.Context, r ref.Ref, id string) error {
	const op = "azurekv: destroy"
	all, err := d.versions(ctx, op, r, r.Name)
	if err != nil {
		return err
	}
	it := find(all, id)
	if it == nil || it.destroyed() {
		return nil
	}
	if !it.disabled {
		return fault.Newf(fault.Conflict, op, "version %s of %s is not disabled; disable it first", id, r)
	}
	tags := it.own()
	if t := it.tags[tagToken]; t != "" {
		tags[tagToken] = t
	}
	tags[tagDestroyed] = time.Now().UTC().Format(time.RFC3339)
	if len(tags) > maxTags {
		return fault.Newf(fault.Invalid, op, "version %s of %s has %d tags; expected at most %d, so that one can be added", id, r, len(it.tags), maxTags-1)
	}
	enabled := false
	return d.update(ctx, op, r, r.Name, id, &enabled, tags)
}

// Create implements [sibling.Driver]. There is no call that makes a secret only
// if there is none, so this one looks first. A tag tells the version that this
// call made from all others when its answer was lost.
func (d *driver) Create(ctx context.Context, r ref.Ref, v secrets.Value) (*sibling.Version, error) {
	const op = "azurekv: create secret"
	if err := d.validate(op, r); err != nil {
		return nil, err
	}
	if err := checkValue(op, v); err != nil {
		return nil, err
	}
	exists := fault.Newf(fault.Conflict, op, "%s exists already and was left as it is", r)
	_, err := d.get(ctx, op, r, r.Name, "")
	switch {
	case err == nil || isCode(err, codeDisabled):
		return nil, exists
	case !fault.Is(err, fault.NotFound):
		return nil, err
	}
	exp, err := d.expiry(op, r, nil)
	if err != nil {
		return nil, err
	}
	mark := rand.Text()
	p := azsecrets.SetSecretParameters{Tags: pointers(map[string]string{tagMade: mark})}
	if exp != nil {
		p.SecretAttributes = &azsecrets.SecretAttributes{Expires: exp}
	}
	made, err := d.set(ctx, op, r, r.Name, v, p)
	if err != nil {
		if k := fault.KindOf(err); k == fault.Invalid || k == fault.Denied || k == fault.Conflict {
			return nil, err
		}
		found, ferr := d.get(ctx, op, r, r.Name, "")
		if ferr != nil || found.tags[tagMade] != mark {
			return nil, err
		}
		made = found
	}
	return tell(made), nil
}
