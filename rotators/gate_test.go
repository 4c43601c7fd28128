package rotators

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
)

func TestGateAsk(t *testing.T) {
	const h = time.Hour
	now := time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	nobody := func() ([]string, error) { return nil, nil }
	two := func() ([]string, error) { return []string{"a-1", "a-2"}, nil }
	unknown := func() ([]string, error) { return nil, errors.New("no fleet") }
	for _, c := range []struct {
		name    string
		gate    Gate
		age     time.Duration // since it was superseded
		why     occasion
		missing func() ([]string, error)

		open    bool
		next    time.Duration // from now; 0: not by time alone
		waiting string
		overdue bool
	}{
		{"zero waits for the next rotation", Gate{}, 1000 * h, byTime, nobody, false, 0, "next rotation", false},
		{"zero opens for it", Gate{}, 0, byRotation, nobody, true, 0, "", false},
		{"zero opens for a person", Gate{}, 0, byPerson, nobody, true, 0, "", false},
		{"after, early", Gate{After: 24 * h}, 23 * h, byTime, nobody, false, h, "after: until 2026-06-01T13:00:00Z", false},
		{"after binds a rotation too", Gate{After: 24 * h}, 23 * h, byRotation, nobody, false, h, "after", false},
		{"after binds a person too", Gate{After: 24 * h}, 23 * h, byPerson, nobody, false, h, "after", false},
		{"after, on the instant", Gate{After: 24 * h}, 24 * h, byTime, nobody, true, 0, "", false},
		{"an unknown time is just now", Gate{After: h}, -1, byTime, nobody, false, h, "after", false},
		{"adopted by all", Gate{Adopted: true}, h, byTime, nobody, true, 0, "", false},
		{"adopted not by all", Gate{Adopted: true}, h, byTime, two, false, adoptionPoll, "2 agents have not, such as a-1, a-2", false},
		{"adopted, nobody can tell", Gate{Adopted: true}, h, byTime, unknown, false, adoptionPoll, "cannot be told: no fleet", false},
		{"both, time short", Gate{After: 2 * h, Adopted: true}, h, byTime, nobody, false, h, "after", false},
		{"both, agents short", Gate{After: 2 * h, Adopted: true}, 3 * h, byTime, two, false, adoptionPoll, "adopted", false},
		{"both hold", Gate{After: 2 * h, Adopted: true}, 3 * h, byTime, nobody, true, 0, "", false},
		{"min keeps all adopted closed", Gate{Adopted: true, Min: 2 * h}, h, byTime, nobody, false, h, "min", false},
		{"min keeps a person out", Gate{Manual: true, Min: 2 * h}, h, byPerson, nobody, false, h, "min", false},
		{"manual, by time", Gate{Manual: true}, 1000 * h, byTime, nobody, false, 0, "manual", false},
		{"manual, by rotation", Gate{Manual: true}, 1000 * h, byRotation, nobody, false, 0, "manual", false},
		{"manual, by a person", Gate{Manual: true}, h, byPerson, nobody, true, 0, "", false},
		{"next rotation and adopted", Gate{NextRotation: true, Adopted: true}, h, byRotation, two, false, adoptionPoll, "adopted", false},
		{"limit ahead", Gate{Manual: true, Max: 3 * h}, h, byTime, nobody, false, 2 * h, "manual", false},
		{"limit passed, hold", Gate{Manual: true, Max: 3 * h}, 4 * h, byTime, nobody, false, h, "hard limit passed at 2026-06-01T11:00:00Z", true},
		{"limit passed, retire", Gate{Manual: true, Max: 3 * h, AtLimit: AtLimitRetire}, 4 * h, byTime, nobody, true, 0, "", false},
		{"limit nearer than the next poll", Gate{Adopted: true, Max: h + time.Second}, h, byTime, two, false, time.Second, "adopted", false},
		{"limit passed, agents missing", Gate{Adopted: true, Max: h}, 2 * h, byTime, two, false, h, "hard limit", true},
		{"limit passed and all adopted", Gate{Adopted: true, Max: h}, 2 * h, byTime, nobody, true, 0, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			since := now.Add(-c.age)
			if c.age < 0 {
				since = time.Time{}
			}
			v := c.gate.ask(now, since, c.why, c.missing)
			var next time.Duration
			if !v.next.IsZero() {
				next = v.next.Sub(now)
			}
			if v.open != c.open || next != c.next || v.overdue != c.overdue {
				t.Errorf("%+v; want open %t, next in %s, overdue %t", v, c.open, c.next, c.overdue)
			}
			if got := strings.Join(v.waiting, "; "); !strings.Contains(got, c.waiting) || c.open && got != "" {
				t.Errorf("waiting for %q; want %q in it", got, c.waiting)
			}
		})
	}
}

func TestGateValidate(t *testing.T) {
	const h = time.Hour
	for name, c := range map[string]struct {
		gate Gate
		want string
	}{
		"zero":                    {Gate{}, ""},
		"all":                     {Gate{After: h, Adopted: true, NextRotation: true, Manual: true, Min: h, Max: 2 * h, AtLimit: AtLimitRetire}, ""},
		"negative":                {Gate{After: -1}, "no negative time"},
		"limit before the time":   {Gate{After: 2 * h, Adopted: true, Max: h}, "raise it"},
		"limit before min":        {Gate{Min: 2 * h, Adopted: true, Max: h}, "raise it"},
		"limit of nothing":        {Gate{After: h, Max: 2 * h}, "nothing waits longer"},
		"what to do without when": {Gate{Adopted: true, AtLimit: AtLimitHold}, "set max"},
		"unknown":                 {Gate{Adopted: true, Max: h, AtLimit: "explode"}, "expected retire or hold"},
	} {
		err := c.gate.Validate()
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		} else if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want Invalid with %q in it", name, err, c.want)
		}
	}
}

func TestGateString(t *testing.T) {
	for want, g := range map[string]Gate{
		"next rotation":                     {},
		"after 24h0m0s and adopted":         {After: 24 * time.Hour, Adopted: true},
		"at least 1h0m0s":                   {Min: time.Hour},
		"manual, at most 2h0m0s, then hold": {Manual: true, Max: 2 * time.Hour},
		"next rotation, at least 1m0s, at most 2h0m0s, then retire": {NextRotation: true, Min: time.Minute, Max: 2 * time.Hour, AtLimit: AtLimitRetire},
	} {
		if got := g.String(); got != want {
			t.Errorf("%+v reads %q; want %q", g, got, want)
		}
	}
}
