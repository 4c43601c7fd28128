package rotators

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// A Gate says what must hold before a superseded credential is taken out of
// use. All conditions that are set must hold, and Min besides. The zero Gate
// has none: the next rotation retires.
type Gate struct {
	// After is how long the credential stays usable once it is superseded.
	After time.Duration
	// Adopted waits until every live agent has adopted the current version.
	Adopted bool
	// NextRotation waits until the next rotation begins.
	NextRotation bool
	// Manual waits for a person.
	Manual bool

	// Min is kept whatever else holds: nothing but force comes before it.
	Min time.Duration
	// Max is the hard limit: what happens once it has passed, although a
	// condition does not hold, is AtLimit. Zero is no limit.
	Max     time.Duration
	AtLimit AtLimit
}

// AtLimit is what happens when a gate's hard limit has passed.
type AtLimit string

// The choices. The empty one is AtLimitHold.
const (
	AtLimitHold   AtLimit = "hold"   // keep the credential, and raise an alert
	AtLimitRetire AtLimit = "retire" // retire it all the same
)

// IsZero reports whether no condition is set.
func (g Gate) IsZero() bool { return g == Gate{} }

// Validate reports what is wrong with g, or nil. The error is of kind Invalid.
func (g Gate) Validate() error {
	bad := func(format string, args ...any) error {
		return fault.Newf(fault.Invalid, "gate", format, args...)
	}
	switch {
	case g.After < 0 || g.Min < 0 || g.Max < 0:
		return bad("after, min and max are %s, %s and %s; expected no negative time", g.After, g.Min, g.Max)
	case g.Max > 0 && g.Max < max(g.Min, g.After):
		return bad("max is %s and comes before min (%s) or after (%s); raise it", g.Max, g.Min, g.After)
	case g.AtLimit != "" && g.Max == 0:
		return bad("at_limit is %q and there is no limit; set max", g.AtLimit)
	case g.Max > 0 && !g.Adopted && !g.NextRotation && !g.Manual:
		return bad("max is %s and nothing waits longer than after; remove it, or set adopted, next_rotation or manual", g.Max)
	}
	switch g.AtLimit {
	case "", AtLimitHold, AtLimitRetire:
		return nil
	}
	return bad("at_limit is %q; expected %s or %s", g.AtLimit, AtLimitRetire, AtLimitHold)
}

// String says the conditions for people: "after 24h0m0s and adopted, at most 72h0m0s".
func (g Gate) String() string {
	var all []string
	if g.After > 0 {
		all = append(all, "after "+g.After.String())
	}
	if g.Adopted {
		all = append(all, "adopted")
	}
	if g.NextRotation || g.IsZero() {
		all = append(all, "next rotation")
	}
	if g.Manual {
		all = append(all, "manual")
	}
	s := strings.Join(all, " and ")
	if g.Min > 0 {
		s = strings.TrimPrefix(s+", at least "+g.Min.String(), ", ")
	}
	if g.Max > 0 {
		limit := g.AtLimit
		if limit == "" {
			limit = AtLimitHold
		}
		s += fmt.Sprintf(", at most %s, then %s", g.Max, limit)
	}
	return s
}

// An Adoption knows which agents use which version. It is safe for concurrent
// use.
type Adoption interface {
	// Missing names the live agents that have not adopted a version of r;
	// none is nil. An error means that nobody can tell.
	Missing(ctx context.Context, r ref.Ref, version string) ([]string, error)
}

// An occasion is why a gate is asked.
type occasion int

const (
	byTime     occasion = iota // a deadline or a sweep
	byRotation                 // the next rotation is about to begin
	byPerson                   // somebody asked for it
)

// A verdict is a gate's answer.
type verdict struct {
	open    bool
	waiting []string  // what does not hold, for people
	next    time.Time // when it may have changed; zero: not by time alone
	overdue bool      // the hard limit has passed, and the gate holds
}

const (
	// adoptionPoll is when to ask again for the agents that are missing.
	adoptionPoll = time.Minute
	// overdueEvery is how often a gate that holds beyond its limit says so.
	overdueEvery = time.Hour
)

// ask decides. since is when the credential was superseded; a zero one is
// taken for just now. missing answers for Adopted.
func (g Gate) ask(now, since time.Time, why occasion, missing func() ([]string, error)) verdict {
	if since.IsZero() || since.After(now) {
		since = now
	}
	var v verdict
	wait := func(format string, args ...any) { v.waiting = append(v.waiting, fmt.Sprintf(format, args...)) }
	// soonest keeps the earliest time at which asking again makes sense.
	soonest := func(t time.Time) {
		if v.next.IsZero() || t.Before(v.next) {
			v.next = t
		}
	}
	floor := since.Add(g.Min)
	if now.Before(floor) {
		wait("min: until %s", floor.UTC().Format(time.RFC3339))
		v.next = floor
		return v
	}
	if opens := since.Add(g.After); now.Before(opens) {
		wait("after: until %s", opens.UTC().Format(time.RFC3339))
		v.next = opens
		return v
	}
	if (g.NextRotation || g.IsZero()) && why == byTime {
		wait("next rotation: has not begun")
	}
	if g.Manual && why != byPerson {
		wait("manual: keyturn retire has not been given")
	}
	if g.Adopted {
		names, err := missing()
		switch {
		case err != nil:
			wait("adopted: cannot be told: %v", err)
			soonest(now.Add(adoptionPoll))
		case len(names) > 0:
			wait("adopted: %d agents have not, such as %s", len(names), strings.Join(names[:min(len(names), 3)], ", "))
			soonest(now.Add(adoptionPoll))
		}
	}
	if len(v.waiting) == 0 {
		v.open = true
		return v
	}
	if g.Max > 0 {
		limit := since.Add(g.Max)
		switch {
		case now.Before(limit):
			soonest(limit)
		case g.AtLimit == AtLimitRetire:
			return verdict{open: true}
		default:
			v.overdue, v.next = true, now.Add(overdueEvery)
			wait("the hard limit passed at %s", limit.UTC().Format(time.RFC3339))
		}
	}
	return v
}
