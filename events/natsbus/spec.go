package natsbus

import (
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// A Spec says when a schedule fires. Exactly one of Every, At and Cron is set.
// The server keeps the clock, so a schedule fires while every replica is down,
// and is then due when one comes back.
type Spec struct {
	// Every is a period of at least one second, counted from when the
	// schedule was set.
	Every time.Duration
	// At fires once, at once if it is in the past; then the schedule is gone.
	At time.Time
	// Cron has six fields: second, minute, hour, day of month, month, day of
	// week. @hourly, @daily, @weekly, @monthly and @yearly are known too.
	Cron string
	// TimeZone is an IANA name for Cron, as "Europe/Berlin"; "" is UTC. The
	// server must know it.
	TimeZone string
}

// pattern returns the Nats-Schedule header of s. The server checks cron
// expressions and time zones.
func (s Spec) pattern() (string, error) {
	bad := func(format string, args ...any) (string, error) {
		return "", fault.Newf(fault.Invalid, "natsbus: schedule", format, args...)
	}
	set := 0
	for _, is := range []bool{s.Every != 0, !s.At.IsZero(), s.Cron != ""} {
		if is {
			set++
		}
	}
	switch {
	case set != 1:
		return bad("%d of Every, At and Cron are set; expected one", set)
	case s.TimeZone != "" && s.Cron == "":
		return bad("a time zone is only for Cron; give At as an instant")
	case s.Every != 0:
		if s.Every < time.Second {
			return bad("Every is %s; expected at least 1s", s.Every)
		}
		return "@every " + s.Every.String(), nil
	case !s.At.IsZero():
		return "@at " + s.At.UTC().Format(time.RFC3339Nano), nil
	}
	cron := strings.Join(strings.Fields(s.Cron), " ")
	if !strings.HasPrefix(cron, "@") && strings.Count(cron, " ") != 5 {
		return bad("the cron expression %.80q has %d fields; expected six: second, minute, hour, day of month, month, day of week", s.Cron, len(strings.Fields(s.Cron)))
	}
	if strings.HasPrefix(cron, "@every") || strings.HasPrefix(cron, "@at") {
		return bad("the cron expression is %.80q; use Every or At", s.Cron)
	}
	return cron, nil
}

// parseSpec is the inverse of pattern.
func parseSpec(pattern, zone string) (Spec, bool) {
	if d, ok := strings.CutPrefix(pattern, "@every "); ok {
		every, err := time.ParseDuration(d)
		return Spec{Every: every}, err == nil
	}
	if at, ok := strings.CutPrefix(pattern, "@at "); ok {
		t, err := time.Parse(time.RFC3339Nano, at)
		return Spec{At: t}, err == nil
	}
	return Spec{Cron: pattern, TimeZone: zone}, pattern != ""
}
