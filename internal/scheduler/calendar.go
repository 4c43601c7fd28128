package scheduler

import (
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// A Calendar says when a rotation may begin: within a window, if there are
// any, and not in a freeze. The zero Calendar allows every time.
type Calendar struct {
	windows []window
	freezes []freeze
	zone    *time.Location
}

// A window is a span of a day of the week, in minutes of the local clock. One
// that ends at or before its start runs into the next day.
type window struct {
	days     [7]bool // by time.Weekday
	from, to int
}

// A freeze is the half-open span [from, to).
type freeze struct{ from, to time.Time }

var weekdays = []string{"sun", "mon", "tue", "wed", "thu", "fri", "sat"}

// ParseCalendar reads windows such as "Mon-Fri 01:00-05:00", "Sat,Sun
// 22:00-02:00" and "02:00-04:00", and freezes such as
// "2026-12-20/2027-01-06", whose last day is frozen too, or
// "2026-12-24T18:00/2026-12-27T06:00". Times are those of zone's clock. The
// error is of kind Invalid.
func ParseCalendar(windows, freezes []string, zone *time.Location) (Calendar, error) {
	if zone == nil {
		zone = time.UTC
	}
	c := Calendar{zone: zone}
	for _, s := range windows {
		w, err := parseWindow(s)
		if err != nil {
			return Calendar{}, err
		}
		c.windows = append(c.windows, w)
	}
	for _, s := range freezes {
		f, err := parseFreeze(s, zone)
		if err != nil {
			return Calendar{}, err
		}
		c.freezes = append(c.freezes, f)
	}
	if len(c.windows) > 0 || len(c.freezes) > 0 {
		if _, ok := c.Next(time.Now()); !ok {
			return Calendar{}, fault.Newf(fault.Invalid, "calendar", "windows %q and freezes %q leave no time within a year; widen them", windows, freezes)
		}
	}
	return c, nil
}

func parseWindow(s string) (window, error) {
	bad := func(why string) error {
		return fault.Newf(fault.Invalid, "window", "%q %s; expected something like \"Mon-Fri 01:00-05:00\"", s, why)
	}
	var w window
	fields := strings.Fields(s)
	switch len(fields) {
	case 1:
		w.days = [7]bool{true, true, true, true, true, true, true}
	case 2:
		for part := range strings.SplitSeq(fields[0], ",") {
			first, last, isRange := strings.Cut(part, "-")
			from := slices.Index(weekdays, strings.ToLower(first))
			to := from
			if isRange {
				to = slices.Index(weekdays, strings.ToLower(last))
			}
			if from < 0 || to < 0 {
				return w, bad("has an unknown day")
			}
			for d := from; ; d = (d + 1) % 7 {
				w.days[d] = true
				if d == to {
					break
				}
			}
		}
	default:
		return w, bad("is no window")
	}
	from, to, ok := strings.Cut(fields[len(fields)-1], "-")
	var okFrom, okTo bool
	w.from, okFrom = minutes(from)
	w.to, okTo = minutes(to)
	if !ok || !okFrom || !okTo || w.from == 24*60 || w.from == w.to {
		return w, bad("has no span of time")
	}
	return w, nil
}

// minutes reads "05:30", and "24:00" for the end of a day.
func minutes(s string) (int, bool) {
	if s == "24:00" {
		return 24 * 60, true
	}
	t, err := time.Parse("15:04", s)
	return t.Hour()*60 + t.Minute(), err == nil
}

func parseFreeze(s string, zone *time.Location) (freeze, error) {
	bad := func(why string) (freeze, error) {
		return freeze{}, fault.Newf(fault.Invalid, "freeze", "%q %s; expected something like \"2026-12-20/2027-01-06\" or \"2026-12-24T18:00/2026-12-27T06:00\"", s, why)
	}
	a, b, ok := strings.Cut(strings.TrimSpace(s), "/")
	if !ok {
		return bad("is no span of time")
	}
	from, _, ok1 := instant(a, zone)
	to, day, ok2 := instant(b, zone)
	if !ok1 || !ok2 {
		return bad("has an unreadable time")
	}
	if day {
		to = to.AddDate(0, 0, 1)
	}
	if !from.Before(to) {
		return bad("ends before it begins")
	}
	return freeze{from, to}, nil
}

// instant reads a day or a time, of zone's clock unless it names an offset.
func instant(s string, zone *time.Location) (t time.Time, day, ok bool) {
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02T15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, zone); err == nil {
			return t, layout == time.DateOnly, true
		}
	}
	return time.Time{}, false, false
}

// Allows reports whether a rotation may begin at t.
func (c Calendar) Allows(t time.Time) bool {
	for _, f := range c.freezes {
		if !t.Before(f.from) && t.Before(f.to) {
			return false
		}
	}
	if len(c.windows) == 0 {
		return true
	}
	local := t.In(c.zone)
	now, day := local.Hour()*60+local.Minute(), int(local.Weekday())
	for _, w := range c.windows {
		if w.from < w.to {
			if w.days[day] && now >= w.from && now < w.to {
				return true
			}
			continue
		}
		// Into the next day: its head belongs to the day before.
		if w.days[day] && now >= w.from || w.days[(day+6)%7] && now < w.to {
			return true
		}
	}
	return false
}

// Closes returns the end of the opening that t is in: the next time at which
// no rotation may begin, or a year later. It is t where t is in none.
func (c Calendar) Closes(t time.Time) time.Time {
	end := t.AddDate(0, 0, horizon)
	if !c.Allows(t) {
		return t
	}
	var closes []time.Time
	for _, f := range c.freezes {
		closes = append(closes, f.from)
	}
	local := t.In(c.zone)
	for d := range horizon {
		for _, w := range c.windows {
			closes = append(closes, time.Date(local.Year(), local.Month(), local.Day()+d, 0, w.to, 0, 0, c.zone))
		}
	}
	slices.SortFunc(closes, time.Time.Compare)
	for _, o := range closes {
		if o.After(t) && o.Before(end) && !c.Allows(o) {
			return o
		}
	}
	return end
}

// horizon bounds the search of Next.
const horizon = 366 // days

// Next returns the first time at or after t at which a rotation may begin,
// and false if there is none within a year.
func (c Calendar) Next(t time.Time) (time.Time, bool) {
	if c.Allows(t) {
		return t, true
	}
	// Only the end of a freeze and the start of a window can open.
	var opens []time.Time
	for _, f := range c.freezes {
		opens = append(opens, f.to)
	}
	local := t.In(c.zone)
	for d := range horizon {
		for _, w := range c.windows {
			// time.Date settles what the clock skips or repeats.
			opens = append(opens, time.Date(local.Year(), local.Month(), local.Day()+d, 0, w.from, 0, 0, c.zone))
		}
	}
	slices.SortFunc(opens, time.Time.Compare)
	for _, o := range opens {
		if !o.Before(t) && o.Before(t.AddDate(0, 0, horizon)) && c.Allows(o) {
			return o, true
		}
	}
	return time.Time{}, false
}
