package natsbus

import (
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/testenv"
)

// TestWarmMemory: what a Bus knows of a subject is not true any more, since the
// stream was changed behind its back.
func TestWarmMemory(t *testing.T) {
	stored := events.Receipt{Stored: 1}
	e, old := at(activated("a", "new"), 0), at(activated("a", "old"), 2*time.Hour)
	for name, c := range map[string]struct {
		lose func(*testing.T, *Bus)
		next events.Event
	}{
		"the last event expired, and an old one comes": {purge, old},
		"an event without a time comes":                {purge, events.Event{}},
		"made anew, and the last event comes again":    {remake, e},
		"made anew, and an older one comes":            {remake, old},
	} {
		t.Run(name, func(t *testing.T) {
			b := open(t, testenv.NATS(t).Conn(t), nil)
			receipt(t, b, stored, e)
			c.lose(t, b)
			next := c.next
			if next.ID == "" {
				next = activated("a", "timeless")
				next.Time = time.Time{}
			}
			testenv.Eventually(t, limit, "the memory is old", func() bool { return time.Since(b.subjects.m[e.Subject()].event.read) > maxTrust })
			receipt(t, b, stored, next)
			if told, late := everything(t, b); len(told) != 1 || len(late) != 0 || told[0].ID != next.ID {
				t.Errorf("%d events and %d late ones; expected the one", len(told), len(late))
			}
		})
	}
}

func purge(t *testing.T, b *Bus) {
	t.Helper()
	s, err := b.js.Stream(t.Context(), EventStream)
	if err == nil {
		err = s.Purge(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// remake is what restoring an old backup does.
func remake(t *testing.T, b *Bus) {
	t.Helper()
	if err := b.js.DeleteStream(t.Context(), EventStream); err != nil {
		t.Fatal(err)
	}
	open(t, b.nc, nil)
}
