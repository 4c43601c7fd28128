package vaultkv_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// The clock of Vault may be ahead of ours or behind, and need not be told.
func TestServersClock(t *testing.T) {
	for what, ahead := range map[string]time.Duration{
		"the same": 0, "a bit ahead": 30 * time.Second, "a bit behind": -30 * time.Second, "far ahead": 2 * time.Hour, "far behind": -2 * time.Hour,
	} {
		for _, date := range []string{"told", "not told", "garbage"} {
			t.Run(what+", "+date, func(t *testing.T) {
				tg := fake(t)
				tg.fake.Advance(ahead)
				told := func(h http.Header) {
					switch date {
					case "not told":
						h.Del("Date")
					case "garbage":
						h.Set("Date", "yesterday")
					}
				}
				testClock(t, tg, told)
			})
		}
	}
}

func testClock(t *testing.T, tg *target, told func(http.Header)) {
	mount, at := tg.mount(t)
	s, err := vaultkv.New(tg.client(t, "root", roundTrip(func(q *http.Request) (*http.Response, error) {
		resp, err := tg.transport.RoundTrip(q)
		if err == nil {
			told(resp.Header)
		}
		return resp, err
	})), nil)
	if err != nil {
		t.Fatal(err)
	}
	r := at("db")
	create(t, s, r, "0")
	put(t, s, r, "1")
	// wants compares what is told of the previous version with what a plain
	// reader sees.
	wants := func(when string, disabled bool) {
		t.Helper()
		d, err := s.Describe(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		if v := d.Holder(secrets.Previous); v.Disabled != disabled {
			t.Errorf("%s: told as disabled %v, expected %v", when, v.Disabled, disabled)
		}
		_, err = s.Get(t.Context(), r, secrets.Previous)
		status, _ := tg.call(t, "GET", mount+"/data/db?version=1", nil)
		if (err != nil) != disabled || (status != 200) != disabled {
			t.Errorf("%s: get says %v, and Vault %d; expected disabled %v", when, err, status, disabled)
		}
	}
	do := func(what string, f func() error) {
		t.Helper()
		if err := f(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	disable := func() error { return s.Disable(t.Context(), r, "1") }
	enable := func() error { return s.Enable(t.Context(), r, "1") }
	wants("at first", false)
	do("disable", disable)
	wants("disabled", true)
	do("enable", enable)
	wants("enabled", false)
	do("disable again", disable)
	tg.fake.Advance(time.Hour)
	wants("disabled long ago", true)
	do("enable after an hour", enable)
	wants("enabled after an hour", false)

	// A deletion that is to come disables nothing, and is no reason not to.
	tg.must(t, "POST", mount+"/config", kv{"delete_version_after": "90m"})
	do("disable once more", disable)
	do("enable for a while", enable)
	wants("to be deleted", false)
	tg.fake.Advance(89*time.Minute + 30*time.Second)
	wants("soon to be deleted", false)
	do("disable what is to be deleted", disable)
	wants("disabled before its time", true)
	do("enable before its time", enable)
	tg.fake.Advance(91 * time.Minute)
	wants("deleted by its time", true)
	do("enable what its time took", enable)
	wants("enabled anew", false)
}
