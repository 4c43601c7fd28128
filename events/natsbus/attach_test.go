package natsbus

import (
	"errors"
	"strings"
	"testing"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
)

// A Bus that is attached makes no stream, says that they are missing, and works
// once another has made them.
func TestAttach(t *testing.T) {
	srv := testenv.NATS(t)
	nc := srv.Conn(t)
	b, err := Attach(nc, nil)
	if err != nil {
		t.Fatal(err)
	}
	letter := notifier.DeadLetter{Delivery: notifier.Delivery{Source: "s", Body: []byte("x")}, Kind: fault.Invalid}
	if err := b.Publish(t.Context(), activated("db", "v1")); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "stream") {
		t.Errorf("publish: %v; expected Unavailable that says so", err)
	}
	if err := b.Park(t.Context(), letter); !fault.Is(err, fault.Unavailable) {
		t.Errorf("park: %v; expected Unavailable", err)
	}
	if _, err := b.js.Stream(t.Context(), EventStream); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("%v; expected no stream", err)
	}
	open(t, srv.Conn(t), nil)
	if r, err := b.PublishReceipt(t.Context(), activated("db", "v1")); err != nil || r != (events.Receipt{Stored: 1}) {
		t.Errorf("%+v, %v", r, err)
	}
	if err := b.Park(t.Context(), letter); err != nil {
		t.Error(err)
	}
}
