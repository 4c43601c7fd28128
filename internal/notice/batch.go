package notice

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// MaxDepth bounds how many envelopes and arrays may lie around a notice. The
// deepest that a provider makes is five: the records of a function's call, the
// body of a queue's message, a topic's message in it, and an array at either
// end.
const MaxDepth = 8

// A Batch gathers what the notices of one delivery come to, however its
// envelopes lie in one another. The zero Batch is ready for use by one
// goroutine.
type Batch struct {
	out      []events.Event
	all, bad int
	err      error
	kind     fault.Kind
}

// Add adds what one notice came to.
func (b *Batch) Add(es []events.Event, err error) {
	b.all++
	b.out = append(b.out, es...)
	if err == nil {
		return
	}
	b.bad++
	kind := fault.KindOf(err)
	// What can be read later makes the delivery come again. What is bad for
	// good is then told once more, and what is good has one id.
	if b.err == nil || kind == fault.Unavailable && b.kind != fault.Unavailable {
		b.err, b.kind = err, kind
	}
}

// Result returns the events of the good notices, beside the error about the
// others. The error of a delivery's only notice is returned as it is. It is
// of kind Unavailable if one of the errors is.
func (b *Batch) Result(op string) ([]events.Event, error) {
	switch {
	case b.bad == 0:
		return b.out, nil
	case b.all == 1:
		return b.out, b.err
	}
	return b.out, &fault.Error{
		Kind: b.kind, Op: op, Err: b.err,
		Msg: fmt.Sprintf("%d of %d events in the array cannot be read, the first because", b.bad, b.all),
	}
}

// Members returns the members of the array that raw is; array is false if raw
// is something else. op and expected are for the error, as in [Parse].
func Members(raw []byte, op, expected string) (members []json.RawMessage, array bool, err error) {
	raw = bytes.TrimSpace(raw)
	switch {
	case len(raw) == 0:
		return nil, false, fault.Newf(fault.Invalid, op, "the body is empty; expected %s", expected)
	case raw[0] != '[':
		return nil, false, nil
	}
	if err := json.Unmarshal(raw, &members); err != nil {
		return nil, true, NotJSON(raw, err, op, expected)
	}
	return members, true, nil
}

// TooDeep is the error about a notice inside more than [MaxDepth] envelopes.
func TooDeep(op, expected string) error {
	return fault.Newf(fault.Invalid, op, "more than %d envelopes and arrays lie in one another; expected %s", MaxDepth, expected)
}
