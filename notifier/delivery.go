// Package notifier receives what clouds say about secrets, and hands it on as
// events: receive, decode, publish, acknowledge, in that order and never in
// another. A [Source] is one way in, one package each; a [Decoder] knows one
// provider's format; the [Notifier] between them is written once.
//
// The rule that everything here serves: an upstream notice is acknowledged
// only after the bus has persisted its events, or after the notice itself has
// been persisted as a dead letter. Our own outage is never the sender's fault.
//
// This package does not import package secrets: nothing on this path can hold
// a value.
package notifier

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// A Delivery is one notice as it came in, not yet understood.
type Delivery struct {
	// Source names the way in, as "webhook" or "sqs". It is a constant of the
	// source or its configuration, never taken from the notice.
	Source string `json:"source"`
	// ID is the transport's own id, the same at each redelivery, or "" where
	// the transport has none.
	ID string `json:"id,omitempty"`
	// Body is the notice. Nobody changes it.
	Body []byte `json:"body"`
	// Attributes are what the transport carries beside the body. A source
	// puts in only those that a decoder needs, and never a credential.
	Attributes map[string]string `json:"attributes,omitempty"`
	// Attempt counts deliveries of this notice from 1; 0 means that the
	// transport does not tell.
	Attempt int `json:"attempt,omitempty"`
	// Received is when this delivery arrived.
	Received time.Time `json:"received"`
}

// Key names the notice across its redeliveries: the transport's id, or else a
// digest of the body. It is a fit message id for a dead letter.
func (d *Delivery) Key() string {
	h := sha256.New()
	id := []byte(d.ID)
	if len(id) == 0 {
		id = d.Body
	}
	_, _ = h.Write([]byte(d.Source + "\x00"))
	_, _ = h.Write(id)
	return hex.EncodeToString(h.Sum(nil)[:20])
}

// A Handler deals with one delivery. Nil means acknowledge it. An error of
// kind Invalid means that it can never work: the source records it where it
// can, and acknowledges it. Any other error means deliver it again later, with
// back-off. A Handler may be called concurrently and again with the same
// delivery, and obeys its context.
type Handler func(ctx context.Context, d Delivery) error

// A Source is one way in.
type Source interface {
	// Run calls h with each delivery, and disposes of it as h's result says,
	// until ctx is done. Then it takes nothing new, lets what is in flight
	// finish within a bound, and returns nil. An error means that the source
	// cannot go on. Run is called once.
	Run(ctx context.Context, h Handler) error
}

// A Decoder turns a delivery into events. It is a pure function: no clock, no
// network. No events and no error means that the notice does not concern us.
// An error of kind Invalid means that the notice cannot be understood, and its
// text names what was expected and found without quoting the notice. Beside
// such an error a decoder may return the events of the rest of a batch: they
// are published, and then the whole notice is parked.
type Decoder func(d Delivery) ([]events.Event, error)

// A DeadLetter is a delivery that can never be handed on, kept so that a
// person can look at it and send it again.
type DeadLetter struct {
	Delivery
	// Reason is for people: bounded, printable, and free of the notice's own
	// text.
	Reason string     `json:"reason"`
	Kind   fault.Kind `json:"kind"`
	// Size is the length of the body as it came in. Body is cut to what a bus
	// can take, so it may be shorter.
	Size int `json:"size"`
	// Redacted says that Body is the notice's [Shape] and that its attributes
	// were left out: it cannot be handed on again.
	Redacted bool      `json:"redacted,omitempty"`
	Parked   time.Time `json:"parked"`
	// Digest is the notice's [Delivery.Key], since that of what is left of the
	// notice may be another.
	Digest string `json:"digest,omitempty"`
}

// Key is that of the notice as it came in.
func (l *DeadLetter) Key() string {
	if l.Digest != "" {
		return l.Digest
	}
	return l.Delivery.Key()
}

// DeadLetters keeps dead letters.
type DeadLetters interface {
	// Park returns nil only after the letter is persisted. It may be repeated
	// with the same delivery, and is safe for concurrent use.
	Park(ctx context.Context, l DeadLetter) error
}
