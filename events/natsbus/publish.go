package natsbus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// Publish implements [events.Publisher]. The events go out together and
// Publish waits for JetStream's acknowledgement of each. Nothing is sent if
// one of them is invalid; on any other error some may have been stored, and
// all may be sent again: an id that the stream has seen within its duplicate
// window is not stored twice.
//
// Kinds: Invalid for an event that can never be stored, Denied for missing
// rights, Unavailable for a server or stream that does not answer within
// [Options.PublishTimeout]. A connection that is away at the call and comes back
// sooner is waited for.
func (b *Bus) Publish(ctx context.Context, es ...events.Event) error {
	if len(es) == 0 {
		return nil
	}
	now := time.Now().UTC()
	msgs := make([]*nats.Msg, len(es))
	for i, e := range es {
		e.Data.Published = now
		m, err := encode(e)
		if err != nil {
			return err
		}
		m.Header[jetstream.MsgIDHeader] = []string{escape(e.ID)}
		msgs[i] = m
	}
	return b.publish(ctx, "publish", EventStream, msgs)
}

// publish sends msgs and returns nil once the stream has stored all of them.
func (b *Bus) publish(ctx context.Context, op, stream string, msgs []*nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, b.opts.PublishTimeout)
	defer cancel()
	if err := connected(ctx, b.nc); err != nil {
		return classify(op, err)
	}
	// Check all before one is sent; the client checks the size with the headers
	// too, but one by one.
	for _, m := range msgs {
		if limit := b.nc.MaxPayload(); limit > 0 && int64(m.Size()) > limit {
			return &fault.Error{Kind: fault.Invalid, Op: "natsbus: " + op, Msg: "the message is larger than the server takes (max_payload)", Err: nats.ErrMaxPayload}
		}
	}
	before := b.nc.LastError()
	acks := make([]jetstream.PubAckFuture, len(msgs))
	var sent int
	var first error
	for i, m := range msgs {
		m.Header[jetstream.ExpectedStreamHeader] = []string{stream}
		stall := time.Second
		if dl, ok := ctx.Deadline(); ok {
			stall = max(time.Until(dl), time.Millisecond)
		}
		f, err := b.js.PublishMsgAsync(m, jetstream.WithStallWait(stall))
		if err != nil {
			first = err
			break
		}
		acks[i] = f
		sent++
	}
	check := time.NewTicker(refusalCheck)
	defer check.Stop()
	for _, f := range acks[:sent] {
		if err := acked(ctx, f, check.C, func() error { return denied(b.nc, before, f.Msg().Subject) }); err != nil && first == nil {
			first = err
		}
	}
	return classify(op, first)
}

// acked waits for one acknowledgement. A refusal comes beside it, and is
// looked for at each tick.
func acked(ctx context.Context, f jetstream.PubAckFuture, tick <-chan time.Time, refused func() error) error {
	for {
		select {
		case <-f.Ok():
			return nil
		case err := <-f.Err():
			return err
		case <-ctx.Done():
			return ctx.Err()
		case <-tick:
			if err := refused(); err != nil {
				return err
			}
		}
	}
}

// connected waits until nc is connected. Messages for a connection that is
// away would pile up in the client, once for every repetition.
func connected(ctx context.Context, nc *nats.Conn) error {
	if nc.IsConnected() {
		return nil
	}
	up := nc.StatusChanged(nats.CONNECTED, nats.CLOSED)
	defer nc.RemoveStatusListener(up)
	for {
		switch { // the status may have changed before we listened
		case nc.IsConnected():
			return nil
		case nc.IsClosed():
			return nats.ErrConnectionClosed
		}
		select {
		case <-up:
		case <-ctx.Done():
			return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: "natsbus: connect", Msg: "not connected to a NATS server", Err: ctx.Err()}
		}
	}
}
