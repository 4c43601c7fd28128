package natsbus

import (
	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
)

// Copy returns e as a message for subject, which is not e's own: with the
// headers and the data of the published one, for a consumer that is to have e
// again. It must not be published where a stream of this package listens. The
// error is of kind Invalid.
func Copy(subject string, e events.Event) (*nats.Msg, error) {
	m, err := encode(e)
	if err != nil {
		return nil, err
	}
	m.Subject = subject
	return m, nil
}
