package azurekv

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// The tags that say whose a version is. No other begins with tagPrefix.
const (
	tagPrefix    = "keyturn-"
	tagToken     = tagPrefix + "token"
	tagPrevious  = tagPrefix + "previous"   // the version that this one superseded
	tagDestroyed = tagPrefix + "destroyed"  // when
	tagHeld      = tagPrefix + "held"       // enabled again after it was disabled
	tagPendingOf = tagPrefix + "pending-of" // on the sibling: whose
	tagAfter     = tagPrefix + "after"      // on the sibling: what was current
	tagCleared   = tagPrefix + "cleared"    // on the sibling: promoted or discarded
	tagMade      = tagPrefix + "made"       // by which call of CreateSecret
)

// An item is one version of a secret, as the service tells it.
type item struct {
	id      string // the full identifier without the version
	version string
	value   *string
	// contentType is nil where there is none.
	contentType *string
	tags        map[string]string
	disabled    bool
	created     time.Time
	expires     *time.Time
}

func (it *item) destroyed() bool { return it.tags[tagDestroyed] != "" }

func (it *item) held() bool { return !it.disabled && it.tags[tagHeld] != "" }

// marked returns the tags with which the version is taken out of use or, held,
// back into it. Both states are written in the one update that changes the
// other attribute. Held takes the place of keyturn-previous, which tells
// nothing any more of a version that is itself superseded, so there is room
// for it. Where a version is full of somebody's own tags it stays unmarked.
func (it *item) marked(held bool) map[string]string {
	tags := maps.Clone(it.tags)
	delete(tags, tagHeld)
	if held {
		if len(tags) >= maxTags {
			delete(tags, tagPrevious)
		}
		if len(tags) < maxTags {
			tags[tagHeld] = "yes"
		}
	}
	return tags
}

// take hands the value on. The string that the client decoded stays in memory
// until it is collected; no client of Azure hands out bytes.
func (it *item) take() secrets.Value {
	if it.value == nil {
		return secrets.Value{}
	}
	v := secrets.NewString(*it.value)
	it.value = nil
	return v
}

// own returns the tags that are not ours.
func (it *item) own() map[string]string {
	out := maps.Clone(it.tags)
	maps.DeleteFunc(out, func(k, _ string) bool { return strings.HasPrefix(k, tagPrefix) })
	return out
}

// decode turns an answer into an item, and refuses one of another secret.
func decode(op, name string, id *azsecrets.ID, a *azsecrets.SecretAttributes, contentType *string, tags map[string]*string) (*item, error) {
	bad := func(why string) error {
		return fault.Newf(fault.Unavailable, op, "the answer about secret %s %s; is the endpoint Key Vault?", name, why)
	}
	if id == nil || a == nil {
		return nil, bad("holds no id or no attributes")
	}
	u, err := url.Parse(string(*id))
	if err != nil {
		return nil, bad("holds a broken id")
	}
	part := strings.Split(strings.Trim(u.Path, "/"), "/")
	if len(part) < 2 || len(part) > 3 || part[0] != "secrets" || !strings.EqualFold(part[1], name) {
		return nil, bad("is about another")
	}
	it := &item{
		id: "https://" + u.Host + "/secrets/" + part[1], contentType: contentType, tags: map[string]string{},
		disabled: a.Enabled != nil && !*a.Enabled, expires: a.Expires,
	}
	if len(part) == 3 {
		it.version = part[2]
	}
	if a.Created != nil {
		it.created = a.Created.UTC()
	}
	for k, v := range tags {
		if v != nil {
			it.tags[k] = *v
		}
	}
	return it, nil
}

// get reads a version with its value, the newest one if version is "".
func (d *driver) get(ctx context.Context, op string, r ref.Ref, name, version string) (*item, error) {
	ctx, cancel, c, err := d.begin(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer cancel()
	out, err := c.GetSecret(ctx, name, version, nil)
	if err != nil {
		return nil, classify(ctx, op, "read "+describe(r, name, version), err)
	}
	it, err := decode(op, name, out.ID, out.Attributes, out.ContentType, out.Tags)
	if err != nil {
		return nil, err
	}
	if it.version == "" || version != "" && it.version != version || out.Value == nil {
		return nil, fault.Newf(fault.Unavailable, op, "the answer about %s holds another version or no value; is the endpoint Key Vault?", describe(r, name, version))
	}
	it.value = out.Value
	return it, nil
}

// describe names a version for people.
func describe(r ref.Ref, name, version string) string {
	what := name + " in vault " + r.ScopePart(0)
	if version == "" {
		return "the newest version of " + what
	}
	return "version " + version + " of " + what
}

// maxPages bounds a list: 25 a page at the service.
const maxPages = 2000

// versions lists all versions of a secret, in no order.
func (d *driver) versions(ctx context.Context, op string, r ref.Ref, name string) ([]*item, error) {
	ctx, cancel, c, err := d.begin(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer cancel()
	var all []*item
	pager := c.NewListSecretPropertiesVersionsPager(name, nil)
	for page := 0; pager.More(); page++ {
		if page == maxPages {
			return nil, fault.Newf(fault.Unavailable, op, "the list of versions of %s in vault %s has no end; stopped after %d pages", name, r.ScopePart(0), page)
		}
		out, err := pager.NextPage(ctx)
		if err != nil {
			return nil, classify(ctx, op, "list the versions of "+name+" in vault "+r.ScopePart(0), err)
		}
		for _, p := range out.Value {
			if p == nil {
				continue
			}
			it, err := decode(op, name, p.ID, p.Attributes, p.ContentType, p.Tags)
			if err != nil {
				return nil, err
			}
			if it.version != "" {
				all = append(all, it)
			}
		}
	}
	return all, nil
}

// find returns the version with an id, or nil.
func find(all []*item, version string) *item {
	for _, it := range all {
		if version != "" && it.version == version {
			return it
		}
	}
	return nil
}

// set makes a new version. It is not repeated after an answer that leaves open
// whether it was made, since the repetition would make another one; the caller
// looks, and decides.
func (d *driver) set(ctx context.Context, op string, r ref.Ref, name string, v secrets.Value, p azsecrets.SetSecretParameters) (*item, error) {
	ctx, cancel, c, err := d.begin(ctx, op, r)
	if err != nil {
		return nil, err
	}
	defer cancel()
	once := d.opts.Client.Retry
	once.ShouldRetry = func(resp *http.Response, _ error) bool {
		return resp != nil && resp.StatusCode == http.StatusTooManyRequests
	}
	b := v.Reveal()
	text := string(b)
	clear(b)
	p.Value = &text
	out, err := c.SetSecret(policy.WithRetryOptions(ctx, once), name, p, nil)
	if err != nil {
		return nil, classify(ctx, op, fmt.Sprintf("write a version of %s in vault %s", name, r.ScopePart(0)), err)
	}
	it, err := decode(op, name, out.ID, out.Attributes, out.ContentType, out.Tags)
	if err == nil && it.version == "" {
		err = fault.Newf(fault.Unavailable, op, "the answer about secret %s names no version; is the endpoint Key Vault?", name)
	}
	return it, err
}

// update changes the properties that p names. Tags are replaced as a whole; a
// nil map leaves them.
func (d *driver) update(ctx context.Context, op string, r ref.Ref, name, version string, enabled *bool, tags map[string]string) error {
	ctx, cancel, c, err := d.begin(ctx, op, r)
	if err != nil {
		return err
	}
	defer cancel()
	p := azsecrets.UpdateSecretPropertiesParameters{Tags: pointers(tags)}
	if enabled != nil {
		p.SecretAttributes = &azsecrets.SecretAttributes{Enabled: enabled}
	}
	if _, err := c.UpdateSecretProperties(ctx, name, version, p, nil); err != nil {
		return classify(ctx, op, "update "+describe(r, name, version), err)
	}
	return nil
}

func pointers(tags map[string]string) map[string]*string {
	if tags == nil {
		return nil
	}
	out := make(map[string]*string, len(tags))
	for k, v := range tags {
		out[k] = &v
	}
	return out
}
