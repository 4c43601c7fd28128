package tenants

import (
	"context"
	"fmt"
	"strings"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/ref"
)

// An Explanation says whose a secret is, and why.
type Explanation struct {
	Ref    ref.Ref
	Tenant string
	// Rule is the number of the rule that decided, from 1, or 0.
	Rule int
	// Configured reports that the secret itself is configured, so that no rule
	// was looked at.
	Configured bool
	// Quarantined reports that it is of no tenant.
	Quarantined bool
	// Steps are the rules that were looked at, in order.
	Steps []Step
	// Err is why the tenant cannot be told at present.
	Err error
}

// A Step is one rule that was looked at.
type Step struct {
	Rule    int // from 1
	Matched bool
	Why     string
}

// String is the explanation for a terminal, of several lines without a newline
// at the end. It quotes names from the event, escaped.
func (x Explanation) String() string {
	var b strings.Builder
	switch {
	case x.Err != nil:
		_, _ = fmt.Fprintf(&b, "%s: the tenant cannot be told: %v", x.Ref, x.Err)
	case x.Configured:
		_, _ = fmt.Fprintf(&b, "%s: tenant %s, as the secret's own configuration says", x.Ref, x.Tenant)
	case x.Quarantined && x.Rule == 0:
		_, _ = fmt.Fprintf(&b, "%s: tenant %s, since no rule matches", x.Ref, x.Tenant)
	case x.Quarantined:
		_, _ = fmt.Fprintf(&b, "%s: tenant %s, since rule %d captures a name that cannot be a tenant", x.Ref, x.Tenant, x.Rule)
	default:
		_, _ = fmt.Fprintf(&b, "%s: tenant %s, by rule %d", x.Ref, x.Tenant, x.Rule)
	}
	for _, s := range x.Steps {
		verdict := "does not match"
		if s.Matched {
			verdict = "matches"
		}
		_, _ = fmt.Fprintf(&b, "\n  rule %d %s", s.Rule, verdict)
		if s.Why != "" {
			_, _ = fmt.Fprintf(&b, ": %s", s.Why)
		}
	}
	return b.String()
}

// Explain does what [Rules.Tenant] does, and says why. It counts nothing, and
// is slower.
func (t *Rules) Explain(ctx context.Context, e events.Event) Explanation {
	r := canonical(e.Data.Ref)
	x := Explanation{Ref: e.Data.Ref}
	if tenant, ok := t.secrets[r]; ok {
		x.Tenant, x.Configured = tenant, true
		return x
	}
	for i, u := range t.rules {
		tenant, why, ok := u.matchRef(r, true)
		if ok && len(u.tags) > 0 {
			tags, err := t.tags.get(ctx, &t.opts, r)
			if err != nil {
				x.Err = err
				x.Steps = append(x.Steps, Step{Rule: i + 1, Why: "the secret's tags cannot be read"})
				return x
			}
			tenant, why, ok = u.matchTags(tenant, tags, true)
		}
		if !ok {
			x.Steps = append(x.Steps, Step{Rule: i + 1, Why: why})
			continue
		}
		v := t.verdict(i, tenant)
		x.Tenant, x.Rule, x.Quarantined = v.tenant, i+1, v.quarantined
		if v.quarantined {
			why = fmt.Sprintf("it captures %q: %s", tenant, t.badCapture(tenant))
		}
		x.Steps = append(x.Steps, Step{Rule: i + 1, Matched: true, Why: why})
		return x
	}
	x.Tenant, x.Quarantined = t.opts.Quarantine, true
	return x
}
