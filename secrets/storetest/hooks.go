package storetest

import (
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// Clocked is a [Backend] whose service has a clock that can be put forward, so
// that a pending version gets old before it is promoted.
type Clocked interface {
	Advance(d time.Duration)
}

// Raw is a [Backend] that can tell what its service keeps, past any store. What
// a promotion, a discard or a destruction should have removed is looked for
// there.
type Raw interface {
	// Kept returns the values that a person with every permission can still
	// get: those of the secret's own versions, and those that are kept
	// elsewhere while they are pending. A provider that cannot remove a value
	// is asked for no more than it can do, such as to refuse a read.
	Kept(t *testing.T, r ref.Ref) (own, pending []secrets.Value)
}

// hooks names what b lets the suite look at besides, for the log.
func hooks(b Backend) string {
	var has, lacks []string
	_, clocked := b.(Clocked)
	_, raw := b.(Raw)
	_, logged := b.(Logged)
	_, tagged := b.(Tagged)
	for _, c := range []struct {
		name string
		has  bool
	}{{"Clocked", clocked}, {"Raw", raw}, {"Logged", logged}, {"Tagged", tagged}} {
		if c.has {
			has = append(has, c.name)
		} else {
			lacks = append(lacks, c.name)
		}
	}
	return "has [" + strings.Join(has, " ") + "], lacks [" + strings.Join(lacks, " ") + "]"
}

// wantCleared fails t if a value is kept as pending by a service that can tell:
// nobody would look for it there any more.
func wantCleared(t *testing.T, b Backend, r ref.Ref, after string) {
	t.Helper()
	raw, ok := b.(Raw)
	if !ok {
		return
	}
	if _, pending := raw.Kept(t, r); len(pending) > 0 {
		t.Errorf("after %s, %d values are still kept where they were pending, expected none", after, len(pending))
	}
}

// wantDestroyed fails t if the service can tell and still keeps v, or has lost
// the current value.
func wantDestroyed(t *testing.T, b Backend, r ref.Ref, v, current secrets.Value) {
	t.Helper()
	raw, ok := b.(Raw)
	if !ok {
		return
	}
	own, pending := raw.Kept(t, r)
	found := false
	for _, k := range append(own, pending...) {
		found = found || k.Equal(current)
		if k.Equal(v) {
			t.Error("a value is still kept after it was destroyed")
		}
	}
	if !found {
		t.Error("the current value is not kept; does the hook look at the right place?")
	}
}
