package natsbus

import (
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
)

func TestOlder(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	const skew = time.Minute
	event := func(typ events.Type, version string, ago time.Duration) *events.Event {
		e := events.Event{Type: typ, Time: now.Add(-ago)}
		e.Data.Version = version
		return &e
	}
	act := func(version string, ago time.Duration) *events.Event {
		return event(events.VersionActivated, version, ago)
	}
	none := act("", 0)
	none.Time = time.Time{}
	for name, c := range map[string]struct {
		before []*events.Event
		e      *events.Event
		want   bool
	}{
		"nothing before":                             {nil, act("1", 48*time.Hour), false},
		"trap 11: an old notice of an archive":       {[]*events.Event{act("b", time.Hour)}, act("a", 2*time.Hour), true},
		"newer":                                      {[]*events.Event{act("b", time.Hour)}, act("a", 0), false},
		"whole seconds":                              {[]*events.Event{act("b", 10*time.Second)}, act("a", 11*time.Second), false},
		"just within the tolerance":                  {[]*events.Event{act("b", time.Hour)}, act("a", time.Hour+skew), false},
		"just beyond":                                {[]*events.Event{act("b", time.Hour)}, act("a", time.Hour+skew+1), true},
		"trap 47: a larger version":                  {[]*events.Event{act("2", time.Minute)}, act("3", 0), false},
		"a larger version by a slow clock":           {[]*events.Event{act("2", time.Minute)}, act("3", time.Hour), false},
		"trap 47: a smaller version":                 {[]*events.Event{act("10", time.Minute)}, act("9", 2*time.Minute), true},
		"a smaller version within the tolerance":     {[]*events.Event{act("10", time.Minute)}, act("9", 30*time.Second), true},
		"a secret made anew":                         {[]*events.Event{act("10", 2*time.Minute)}, act("1", 0), false},
		"the same version, later":                    {[]*events.Event{act("2", time.Hour)}, act("2", 0), false},
		"the same version, much earlier":             {[]*events.Event{act("2", time.Hour)}, act("2", 3*time.Hour), true},
		"one version does not count":                 {[]*events.Event{act("2", time.Hour)}, act("0b", 0), false},
		"a leading zero does not count":              {[]*events.Event{act("2", time.Hour)}, act("01", time.Hour), false},
		"32 digits are no counter":                   {[]*events.Event{act("22222222222222222222222222222222", 0)}, act("11111111111111111111111111111111", 0), false},
		"version 2 is disabled after 3":              {[]*events.Event{event(events.VersionDisabled, "3", 2*time.Second)}, event(events.VersionDisabled, "2", time.Second), false},
		"an old disabling":                           {[]*events.Event{event(events.VersionDisabled, "3", time.Hour)}, event(events.VersionDisabled, "4", 2*time.Hour), true},
		"no time":                                    {[]*events.Event{act("b", 0)}, none, false},
		"small steps do not add up":                  {[]*events.Event{act("a", time.Hour), act("b", time.Hour+skew)}, act("c", time.Hour+2*skew), true},
		"a clock of next year makes nobody late":     {[]*events.Event{act("a", -365*24*time.Hour)}, act("b", 30*time.Second), false},
		"a version without a number does not forget": {[]*events.Event{act("5", time.Hour), act("x", time.Hour)}, act("4", time.Hour), true},
	} {
		t.Run(name, func(t *testing.T) {
			var n newest
			for _, e := range c.before {
				n = n.with(e, now, skew)
				// What the last message says is all that is known.
				h := nats.Header{}
				n.write(h, e)
				if n = readNewest(h, e, now); n.older(c.before[0], 365*24*time.Hour) {
					t.Fatal("the first one is older by more than a year")
				}
			}
			if got := n.older(c.e, skew); got != c.want {
				t.Errorf("older is %t after %+v; expected %t", got, n, c.want)
			}
		})
	}
}

// TestClockSetBack: the clock of the process is set back by an hour, so all
// times are in the future: what is newer by the providers' clocks is not late.
func TestClockSetBack(t *testing.T) {
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	act := func(version string, at time.Time) *events.Event {
		e := events.Event{Type: events.VersionActivated, Time: at}
		e.Data.Version = version
		return &e
	}
	for name, c := range map[string]struct {
		last, next string
		after      time.Duration
		want       bool
	}{
		"newer":                     {"a", "b", 10 * time.Minute, false},
		"older":                     {"a", "b", -10 * time.Minute, true},
		"a secret made anew":        {"7", "1", 10 * time.Minute, false},
		"a larger version":          {"7", "8", 10 * time.Minute, false},
		"a smaller version, before": {"7", "6", -10 * time.Minute, true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newest{}.with(act(c.last, now), now, time.Minute)
			next := act(c.next, now.Add(c.after))
			if got := n.older(next, time.Minute); got != c.want {
				t.Errorf("older is %t; expected %t", got, c.want)
			}
			if n = n.with(next, now.Add(-time.Hour), time.Minute); n.at.Before(now) {
				t.Errorf("the newest is of %s; expected %s at least", n.at, now)
			}
		})
	}
}
