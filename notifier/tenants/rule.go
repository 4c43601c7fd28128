package tenants

import (
	"fmt"
	"maps"
	"slices"

	"github.com/keyturn/keyturn/ref"
)

// A Rule gives secrets to a tenant. Every field that is set must match the
// whole of what it is named after; case counts, except on Azure, whose names
// have none. A field is literal text, or a pattern: "*" stands for some text
// without a slash, "**" alone between slashes for one segment or more, and
// "{tenant}" for the tenant's name, in a segment of its own or between literal
// text.
type Rule struct {
	// Tenant is a name, or "{tenant}", which is what a field captured. A
	// tenant that two fields capture must be the same in both.
	Tenant string
	// Provider is aws, gcp, azure, vault or nats. A field that only one
	// provider has implies it.
	Provider string
	// Account and Region are of AWS.
	Account, Region string
	// Project and Location are of GCP. The project is what events call it: the
	// id where its number is configured. A global secret is at "global".
	Project, Location string
	// Vault is the name of the Azure key vault.
	Vault string
	// Cluster, Namespace and Mount are of Vault. The root namespace is "root".
	Cluster, Namespace, Mount string
	// Bucket is of NATS.
	Bucket string
	// Name is the secret's own name, or path.
	Name string
	// Tags must all be on the secret; keys are literal, values patterns.
	Tags map[string]string
}

// A compiled rule.
type rule struct {
	tenant   string // "" where it is captured
	provider ref.Provider
	conds    []cond
	tags     []cond
}

// A cond is one field of a rule.
type cond struct {
	field string
	pattern
	text func(ref.Ref) string // nil for a tag
}

// A field of a rule that is about the ref.
type field struct {
	name     string
	provider ref.Provider // "" for all
	get      func(*Rule) string
	text     func(ref.Ref) string
}

func part(i int) func(ref.Ref) string { return func(r ref.Ref) string { return r.ScopePart(i) } }

func partOr(i int, empty string) func(ref.Ref) string {
	return func(r ref.Ref) string {
		if s := r.ScopePart(i); s != "" {
			return s
		}
		return empty
	}
}

// fields are in the order of cost and use: what differs most comes first.
var fields = []field{
	{"account", ref.AWS, func(r *Rule) string { return r.Account }, part(0)},
	{"region", ref.AWS, func(r *Rule) string { return r.Region }, part(1)},
	{"project", ref.GCP, func(r *Rule) string { return r.Project }, part(0)},
	{"location", ref.GCP, func(r *Rule) string { return r.Location }, partOr(1, "global")},
	{"vault", ref.Azure, func(r *Rule) string { return r.Vault }, part(0)},
	{"cluster", ref.Vault, func(r *Rule) string { return r.Cluster }, part(0)},
	{"namespace", ref.Vault, func(r *Rule) string { return r.Namespace }, partOr(1, "root")},
	{"mount", ref.Vault, func(r *Rule) string { return r.Mount }, part(2)},
	{"bucket", ref.NATS, func(r *Rule) string { return r.Bucket }, part(0)},
	{"name", "", func(r *Rule) string { return r.Name }, func(r ref.Ref) string { return r.Name }},
}

// compileRule checks one rule.
func compileRule(in *Rule) (*rule, error) {
	out := &rule{provider: ref.Provider(in.Provider)}
	switch out.provider {
	case "", ref.AWS, ref.GCP, ref.Azure, ref.Vault, ref.NATS:
	default:
		return nil, fmt.Errorf("provider %q is unknown; expected aws, gcp, azure, vault or nats", in.Provider)
	}
	for _, f := range fields {
		if f.get(in) == "" || f.provider == "" {
			continue
		}
		if out.provider != "" && out.provider != f.provider {
			return nil, fmt.Errorf("%s is a field of %s, and the rule is about %s; make it two rules", f.name, f.provider, out.provider)
		}
		out.provider = f.provider
	}
	captures := false
	for _, f := range fields {
		text := f.get(in)
		if text == "" {
			continue
		}
		p, err := compile(text, out.provider == ref.Azure)
		if err != nil {
			return nil, fmt.Errorf("%s %w", f.name, err)
		}
		captures = captures || p.captures()
		out.conds = append(out.conds, cond{f.name, p, f.text})
	}
	for _, key := range slices.Sorted(maps.Keys(in.Tags)) {
		p, err := compile(in.Tags[key], false)
		if err != nil {
			return nil, fmt.Errorf("tag %q: %w", key, err)
		}
		if key == "" || in.Tags[key] == "" {
			return nil, fmt.Errorf("a tag has no key or no value; expected both, and * for any value")
		}
		captures = captures || p.captures()
		out.tags = append(out.tags, cond{field: key, pattern: p})
	}
	switch {
	case in.Tenant == capture && !captures:
		return nil, fmt.Errorf("tenant is %s, and no field captures it; put %s into one", capture, capture)
	case in.Tenant == capture:
	case captures:
		return nil, fmt.Errorf("a field has %s, and tenant does not; expected tenant: \"%s\", or * in the field", capture, capture)
	default:
		if err := CheckName(in.Tenant); err != nil {
			return nil, fmt.Errorf("tenant: %w", err)
		}
		out.tenant = in.Tenant
	}
	return out, nil
}

// any reports whether the rule has no condition.
func (u *rule) any() bool { return u.provider == "" && len(u.conds) == 0 && len(u.tags) == 0 }

// shadows reports whether every secret of other is u's already: each of u's
// conditions is one of other's too.
func (u *rule) shadows(other *rule) bool {
	if u.provider != "" && u.provider != other.provider {
		return false
	}
	has := func(in []cond, c cond) bool {
		return slices.ContainsFunc(in, func(o cond) bool { return o.field == c.field && o.pattern.text == c.pattern.text })
	}
	for _, c := range u.conds {
		if !has(other.conds, c) {
			return false
		}
	}
	for _, c := range u.tags {
		if !has(other.tags, c) {
			return false
		}
	}
	return true
}

// matchRef matches all but the tags. why says what does not match, and is only
// made where explain is set.
func (u *rule) matchRef(r ref.Ref, explain bool) (tenant, why string, ok bool) {
	if u.provider != "" && u.provider != r.Provider {
		if explain {
			why = fmt.Sprintf("provider is %s, not %s", r.Provider, u.provider)
		}
		return "", why, false
	}
	for i := range u.conds {
		c := &u.conds[i]
		// Of Azure it is in lower case, for a rule that is not about Azure
		// alone too.
		text := c.text(r)
		got, fits := c.match(text)
		if tenant, why, fits = join(c, text, tenant, got, fits, explain); !fits {
			return "", why, false
		}
	}
	return tenant, "", true
}

// matchTags matches the tags; tenant is what matchRef captured.
func (u *rule) matchTags(tenant string, tags map[string]string, explain bool) (_, why string, ok bool) {
	for i := range u.tags {
		c := &u.tags[i]
		text, is := tags[c.field]
		if !is {
			if explain {
				why = fmt.Sprintf("there is no tag %q", c.field)
			}
			return "", why, false
		}
		got, fits := c.match(text)
		if tenant, why, fits = join(c, text, tenant, got, fits, explain); !fits {
			return "", why, false
		}
	}
	return tenant, "", true
}

// join adds what one field captured to what those before did.
func join(c *cond, text, had, got string, fits, explain bool) (tenant, why string, ok bool) {
	switch {
	case !fits:
		if explain {
			kind := c.field
			if c.text == nil {
				kind = fmt.Sprintf("tag %q", c.field)
			}
			why = fmt.Sprintf("%s %q does not match %q", kind, text, c.pattern.text)
		}
		return "", why, false
	case got == "":
		return had, "", true
	case had != "" && had != got:
		if explain {
			why = fmt.Sprintf("%s captures tenant %q, and a field before it %q", c.field, got, had)
		}
		return "", why, false
	}
	return got, "", true
}
