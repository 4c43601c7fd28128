package scheduler

import (
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
)

func berlin(t *testing.T) *time.Location {
	t.Helper()
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	return zone
}

func TestCalendar(t *testing.T) {
	zone := berlin(t)
	at := func(s string) time.Time {
		t.Helper()
		v, err := time.ParseInLocation("2006-01-02T15:04", s, zone)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	for _, c := range []struct {
		name             string
		windows, freezes []string
		now, next        string // the same where now is allowed
	}{
		{"no limits", nil, nil, "2026-06-01T12:00", "2026-06-01T12:00"},
		{"every night, before", []string{"02:00-04:00"}, nil, "2026-06-01T01:59", "2026-06-01T02:00"},
		{"every night, at its start", []string{"02:00-04:00"}, nil, "2026-06-01T02:00", "2026-06-01T02:00"},
		{"every night, last minute", []string{"02:00-04:00"}, nil, "2026-06-01T03:59", "2026-06-01T03:59"},
		{"every night, at its end", []string{"02:00-04:00"}, nil, "2026-06-01T04:00", "2026-06-02T02:00"},
		{"weekdays on a Saturday", []string{"Mon-Fri 01:00-05:00"}, nil, "2026-06-06T02:00", "2026-06-08T01:00"},
		{"a week that wraps", []string{"Sat-Mon 01:00-05:00"}, nil, "2026-06-09T02:00", "2026-06-13T01:00"},
		{"single days", []string{"tue,thu 10:00-11:00"}, nil, "2026-06-02T11:00", "2026-06-04T10:00"},
		{"over midnight, its head", []string{"Fri 22:00-02:00"}, nil, "2026-06-05T23:00", "2026-06-05T23:00"},
		{"over midnight, its tail", []string{"Fri 22:00-02:00"}, nil, "2026-06-06T01:59", "2026-06-06T01:59"},
		{"over midnight, another day's tail", []string{"Fri 22:00-02:00"}, nil, "2026-06-05T01:00", "2026-06-05T22:00"},
		{"to the end of the day", []string{"20:00-24:00"}, nil, "2026-06-05T23:59", "2026-06-05T23:59"},
		{"of two windows the nearer", []string{"Mon 03:00-04:00", "Sun 03:00-04:00"}, nil, "2026-06-06T12:00", "2026-06-07T03:00"},
		{"a freeze by days holds its last day", nil, []string{"2026-12-20/2027-01-06"}, "2027-01-06T23:59", "2027-01-07T00:00"},
		{"a freeze by days, before", nil, []string{"2026-12-20/2027-01-06"}, "2026-12-19T23:59", "2026-12-19T23:59"},
		{"a freeze by times", nil, []string{"2026-12-24T18:00/2026-12-27T06:00"}, "2026-12-24T18:00", "2026-12-27T06:00"},
		{"a freeze with an offset", nil, []string{"2026-06-01T10:00:00Z/2026-06-01T11:00:00Z"}, "2026-06-01T12:30", "2026-06-01T13:00"},
		{"a freeze that ends outside the window", []string{"02:00-04:00"}, []string{"2026-06-01T00:00/2026-06-01T05:00"}, "2026-06-01T02:30", "2026-06-02T02:00"},
		{"a freeze that ends inside the window", []string{"02:00-04:00"}, []string{"2026-06-01T00:00/2026-06-01T03:00"}, "2026-06-01T02:30", "2026-06-01T03:00"},
		{"freezes that follow one another", nil, []string{"2026-06-01/2026-06-02", "2026-06-03/2026-06-04"}, "2026-06-01T12:00", "2026-06-05T00:00"},
		// On 29 March 2026 the clock goes from 02:00 to 03:00, on 25 October
		// from 03:00 to 02:00.
		{"a window that the clock skips", []string{"02:00-02:30"}, nil, "2026-03-29T01:00", "2026-03-30T02:00"},
		{"a window that the clock repeats", []string{"02:00-03:00"}, nil, "2026-10-25T01:00", "2026-10-25T02:00"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cal, err := ParseCalendar(c.windows, c.freezes, zone)
			if err != nil {
				t.Fatal(err)
			}
			now, want := at(c.now), at(c.next)
			got, ok := cal.Next(now)
			if !ok || !got.Equal(want) {
				t.Errorf("next is %s, %t; want %s", got.In(zone), ok, want)
			}
			if allows := cal.Allows(now); allows != want.Equal(now) {
				t.Errorf("%s is allowed: %t", now, allows)
			}
		})
	}
}

func TestCalendarErrors(t *testing.T) {
	for _, c := range []struct {
		windows, freezes []string
		want             string
	}{
		{[]string{"always"}, nil, "no span of time"},
		{[]string{"Mon Tue 01:00-02:00"}, nil, "is no window"},
		{[]string{"Mun 01:00-02:00"}, nil, "unknown day"},
		{[]string{"Mon- 01:00-02:00"}, nil, "unknown day"},
		{[]string{"01:00-25:00"}, nil, "no span"},
		{[]string{"01:00-01:00"}, nil, "no span"},
		{[]string{"24:00-02:00"}, nil, "no span"},
		{[]string{""}, nil, "is no window"},
		{nil, []string{"2026-12-20"}, "no span of time"},
		{nil, []string{"2026-13-20/2026-12-21"}, "unreadable"},
		{nil, []string{"2026-12-21/2026-12-19"}, "ends before it begins"},
		{nil, []string{"2020-01-01/2999-01-01"}, "leave no time within a year"},
	} {
		_, err := ParseCalendar(c.windows, c.freezes, nil)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q, %q: %v; want Invalid with %q in it", c.windows, c.freezes, err, c.want)
		}
	}
}
