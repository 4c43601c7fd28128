package natsbus

import (
	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/fault"
)

// Attach returns a Bus on nc without looking at the streams: it creates,
// changes and verifies none, and sends nothing. It is for a process that shall
// have the rights of [Bus.PublishReceipt] and [Bus.Park] alone, while another
// has opened the streams by [Open]. Where they are missing, publishing is
// refused with an error of kind Unavailable that says so. opts may be nil; what
// it says of streams does not matter. The error is of kind Invalid.
//
// Parking needs the right to publish on keyturn.deadletter.>.
func Attach(nc *nats.Conn, opts *Options) (*Bus, error) {
	o := opts.withDefaults()
	js, err := newJetStream(nc, o)
	if err != nil {
		return nil, fault.New(fault.Invalid, "natsbus: attach", err)
	}
	return newBus(nc, js, o), nil
}
