// Package tenants tells whose a secret is, by rules over its ref and, where a
// provider can be asked, its tags. The first rule that matches wins. What no
// rule matches, and what a rule matches with a name that cannot be a tenant,
// goes to the quarantine: no agent hears it, and it is counted.
//
// Nobody may choose a secret's name so that another tenant hears of it. So a
// pattern can match in one way only, a captured name is taken as it is or not
// at all, and a lookup that fails is an error, never a guess.
package tenants

import (
	"context"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// The defaults of [Options].
const (
	DefaultQuarantine = "quarantine"
	DefaultTagTTL     = 5 * time.Minute
)

// Options of [New]. Only Rules is usual; the zero value of each other field
// means its default.
type Options struct {
	// Rules in order. Without any, every secret that is not in Secrets goes to
	// the quarantine.
	Rules []Rule
	// Quarantine is the tenant of what no rule matches.
	Quarantine string
	// Secrets says whose single secrets are. It wins over the rules. On Azure
	// upper and lower case are the same here too.
	Secrets map[ref.Ref]string
	// Tags returns the tags of a secret. It is called for secrets that a rule
	// with tags could be about, for one secret once at a time, and must be
	// safe for concurrent use. NotFound counts as the tags that were
	// remembered last, or as none. Without it a rule with tags is an error of
	// New.
	Tags func(ctx context.Context, r ref.Ref) (map[string]string, error)
	// TagTTL is how long tags, or that there are none, are remembered. So a
	// secret whose tags change may be of its former tenant for that long.
	TagTTL time.Duration
	// Now is the clock, for tests.
	Now func() time.Time
	// Logger gets a line for the 1st, 2nd, 4th and so on event in quarantine.
	// The default discards.
	Logger *slog.Logger
}

// Rules tells tenants. It is safe for concurrent use.
type Rules struct {
	rules       []*rule
	opts        Options
	secrets     map[ref.Ref]string // by canonical ref
	cache       cache
	tags        tagCache
	quarantined atomic.Uint64
}

// New compiles rules. An error is of kind Invalid and names the rule by its
// number, counted from 1: a field that is no pattern, an unknown provider, a
// tenant that is none, a rule that can never match because of one before, or
// tags without a way to ask for them.
func New(o Options) (*Rules, error) {
	bad := func(i int, format string, args ...any) error {
		return fault.Newf(fault.Invalid, "tenants", "rule %d: "+format, append([]any{i + 1}, args...)...)
	}
	if o.Quarantine == "" {
		o.Quarantine = DefaultQuarantine
	}
	if err := CheckName(o.Quarantine); err != nil {
		return nil, fault.New(fault.Invalid, "tenants: quarantine", err)
	}
	if o.TagTTL <= 0 {
		o.TagTTL = DefaultTagTTL
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	t := &Rules{opts: o, secrets: map[ref.Ref]string{}}
	for r, tenant := range o.Secrets {
		if err := CheckName(tenant); err != nil {
			return nil, fault.New(fault.Invalid, "tenants: secret "+r.String(), err)
		}
		c := canonical(r)
		if other, is := t.secrets[c]; is && other != tenant {
			return nil, fault.Newf(fault.Invalid, "tenants", "secret %s is of two tenants, by two spellings; expected one", c)
		}
		t.secrets[c] = tenant
	}
	for i := range o.Rules {
		u, err := compileRule(&o.Rules[i])
		if err != nil {
			return nil, bad(i, "%v", err)
		}
		if u.any() && i != len(o.Rules)-1 {
			return nil, bad(i, "it has no condition, so no rule after it is ever reached; move it to the end, or give it a condition")
		}
		if len(u.tags) > 0 && o.Tags == nil {
			return nil, bad(i, "it has tags, and there is no way to ask for a secret's tags; use the parts of the ref, or configure the provider")
		}
		for j, before := range t.rules {
			if before.shadows(u) {
				return nil, bad(i, "rule %d matches all that it could match; remove one, or put the narrower one first", j+1)
			}
		}
		t.rules = append(t.rules, u)
	}
	t.cache.max = maxCached
	return t, nil
}

// A verdict is what the rules say of a secret.
type verdict struct {
	tenant string
	rule   int // index, or len(rules)
	// quarantined tells the quarantine from a rule that names it.
	quarantined bool
	// asks says that rule needs tags, and that all before it do not match.
	asks bool
}

// Tenant returns whose e's secret is, the same for each event of a secret as
// long as its tags are. It fits [notifier.Options]. The error is that of
// [Options].Tags or the context's; then the tenant cannot be told at present,
// and the sender should come again.
//
// [notifier.Options]: https://pkg.go.dev/github.com/keyturn/keyturn/notifier#Options
func (t *Rules) Tenant(ctx context.Context, e events.Event) (string, error) {
	r := canonical(e.Data.Ref)
	if tenant, ok := t.secrets[r]; ok {
		return tenant, nil
	}
	v, ok := t.cache.get(r)
	if !ok {
		v = t.first(r, 0)
		t.cache.put(r, v)
	}
	if v.asks {
		tags, err := t.tags.get(ctx, &t.opts, r)
		if err != nil {
			return "", err
		}
		v = t.tagged(r, v.rule, tags)
	}
	if v.quarantined {
		n := t.quarantined.Add(1)
		if n&(n-1) == 0 {
			t.opts.Logger.WarnContext(ctx, "a secret is of no tenant; its event goes to the quarantine", "secret", r.String(), "quarantined", n)
		}
	}
	return v.tenant, nil
}

// canonical is the one spelling of a secret whose name has no case.
func canonical(r ref.Ref) ref.Ref {
	if r.Provider == ref.Azure {
		r.Scope, r.Name = strings.ToLower(r.Scope), strings.ToLower(r.Name)
	}
	return r
}

// Quarantined counts the events whose secret was of no tenant.
func (t *Rules) Quarantined() uint64 { return t.quarantined.Load() }

// first returns what can be said without tags, beginning at rule i.
func (t *Rules) first(r ref.Ref, i int) verdict {
	for ; i < len(t.rules); i++ {
		u := t.rules[i]
		tenant, _, ok := u.matchRef(r, false)
		switch {
		case !ok:
			continue
		case len(u.tags) > 0:
			return verdict{rule: i, asks: true}
		}
		return t.verdict(i, tenant)
	}
	return verdict{tenant: t.opts.Quarantine, rule: i, quarantined: true}
}

// tagged goes on from a rule that needs tags.
func (t *Rules) tagged(r ref.Ref, i int, tags map[string]string) verdict {
	for {
		u := t.rules[i]
		if tenant, _, ok := u.matchRef(r, false); ok {
			if tenant, _, ok = u.matchTags(tenant, tags, false); ok {
				return t.verdict(i, tenant)
			}
		}
		v := t.first(r, i+1)
		if !v.asks {
			return v
		}
		i = v.rule
	}
}

// verdict is the result of rule i, which matched.
func (t *Rules) verdict(i int, captured string) verdict {
	if name := t.rules[i].tenant; name != "" {
		return verdict{tenant: name, rule: i}
	}
	if t.badCapture(captured) != "" {
		return verdict{tenant: t.opts.Quarantine, rule: i, quarantined: true}
	}
	return verdict{tenant: captured, rule: i}
}

// badCapture says why a captured name is no tenant, or "".
func (t *Rules) badCapture(name string) string {
	if name == t.opts.Quarantine {
		return "it is the quarantine's name"
	}
	if err := CheckName(name); err != nil {
		return err.Error()
	}
	return ""
}
