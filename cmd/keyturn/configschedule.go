package main

import (
	"strings"
	"time"

	"github.com/robfig/cron/v3"

	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
)

// parseSchedule reads the schedule of a secret. The server checks cron
// expressions and time zones.
func parseSchedule(text, zone string) (natsbus.Spec, error) {
	bad := func(why string) error {
		return fault.Newf(fault.Invalid, "schedule", "%q %s; expected \"@every 24h\", @daily, or a cron expression of five or six fields", text, why)
	}
	text = strings.TrimSpace(text)
	if text == "" {
		return natsbus.Spec{}, nil
	}
	if period, ok := strings.CutPrefix(text, "@every "); ok {
		d, err := time.ParseDuration(strings.TrimSpace(period))
		if err != nil || d < time.Second {
			return natsbus.Spec{}, bad("is not a period of one second or more")
		}
		if zone != "" {
			return natsbus.Spec{}, bad("has a time zone, which only cron takes")
		}
		return natsbus.Spec{Every: d}, nil
	}
	// JetStream checks it too, but later, and without a word of which it was.
	check := func(spec natsbus.Spec) (natsbus.Spec, error) {
		if _, err := cronParser.Parse(spec.Cron); err != nil {
			return natsbus.Spec{}, bad("is no cron expression (" + err.Error() + ")")
		}
		return spec, nil
	}
	switch fields := strings.Fields(text); {
	case len(fields) == 1 && strings.HasPrefix(text, "@") && text != "@at":
		return check(natsbus.Spec{Cron: text, TimeZone: zone})
	case len(fields) == 5: // as crontab(5) has it: at second 0
		return check(natsbus.Spec{Cron: "0 " + strings.Join(fields, " "), TimeZone: zone})
	case len(fields) == 6:
		return check(natsbus.Spec{Cron: strings.Join(fields, " "), TimeZone: zone})
	}
	return natsbus.Spec{}, bad("is no schedule")
}

// cronParser reads what JetStream reads.
var cronParser = cron.NewParser(cron.Second | cron.Minute | cron.Hour | cron.Dom | cron.Month | cron.Dow | cron.Descriptor)

// nextFiring tells when a schedule fires after t, and false where it cannot
// be told. set is when the schedule was set, from which a period counts.
func nextFiring(spec natsbus.Spec, set, t time.Time) (time.Time, bool) {
	switch {
	case spec.Every > 0 && !set.IsZero():
		n := t.Sub(set)/spec.Every + 1
		return set.Add(n * spec.Every), true
	case spec.Cron != "":
		zone, err := time.LoadLocation(spec.TimeZone)
		if err != nil {
			return time.Time{}, false
		}
		s, err := cronParser.Parse(spec.Cron)
		if err != nil {
			return time.Time{}, false
		}
		return s.Next(t.In(zone)), true
	}
	return time.Time{}, false
}

// shortestPeriod is the least time between two firings, as far as the next
// ones tell; zero if it cannot be told.
func shortestPeriod(spec natsbus.Spec) time.Duration {
	if spec.Every > 0 {
		return spec.Every
	}
	var least time.Duration
	last, ok := nextFiring(spec, time.Time{}, time.Now())
	for range 16 {
		if !ok {
			return 0
		}
		var next time.Time
		if next, ok = nextFiring(spec, time.Time{}, last); ok {
			if d := next.Sub(last); least == 0 || d < least {
				least = d
			}
			last = next
		}
	}
	return least
}
