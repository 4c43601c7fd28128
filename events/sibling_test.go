package events_test

import (
	"testing"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// The event path may not import package secrets, so the suffix is written
// twice; this is where the two meet.
func TestSiblingSuffixIsTheStores(t *testing.T) {
	if events.SiblingSuffix != sibling.Suffix {
		t.Fatalf("decoders drop %q, stores write %q", events.SiblingSuffix, sibling.Suffix)
	}
	for name, want := range map[string]bool{
		"payments" + sibling.Suffix: true, "payments": false, "payments--pending-2": false,
		sibling.Suffix: false, "": false, "payments-pending": false,
	} {
		if got := events.IsSibling(name); got != want {
			t.Errorf("IsSibling(%q) is %t", name, got)
		}
	}
}
