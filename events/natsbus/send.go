package natsbus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
)

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
			return tooLarge(op)
		}
		m.Header[jetstream.ExpectedStreamHeader] = []string{stream}
	}
	var first error
	b.send(ctx, msgs, func(_ int, r outcome) {
		if r.err != nil && first == nil {
			first = r.err
		}
	})
	return classify(op, first)
}

// outcome says what became of one message.
type outcome struct {
	seq       uint64
	duplicate bool
	err       error
}

// send sends msgs one by one without waiting in between, and calls done with
// what became of each, in their order.
func (b *Bus) send(ctx context.Context, msgs []*nats.Msg, done func(i int, r outcome)) {
	before := b.nc.LastError()
	acks := make([]jetstream.PubAckFuture, 0, len(msgs))
	var failed error
	for _, m := range msgs {
		stall := time.Second
		if dl, ok := ctx.Deadline(); ok {
			stall = max(time.Until(dl), time.Millisecond)
		}
		f, err := b.js.PublishMsgAsync(m, jetstream.WithStallWait(stall))
		if err != nil {
			failed = err
			break
		}
		acks = append(acks, f)
	}
	check := time.NewTicker(refusalCheck)
	defer check.Stop()
	for i := range msgs {
		if i >= len(acks) {
			done(i, outcome{err: failed})
			continue
		}
		ack, err := acked(ctx, acks[i], check.C, func() error { return denied(b.nc, before, acks[i].Msg().Subject) })
		if err != nil {
			done(i, outcome{err: err})
			continue
		}
		done(i, outcome{seq: ack.Sequence, duplicate: ack.Duplicate})
	}
}

// acked waits for one acknowledgement. A refusal comes beside it, and is
// looked for at each tick.
func acked(ctx context.Context, f jetstream.PubAckFuture, tick <-chan time.Time, refused func() error) (*jetstream.PubAck, error) {
	for {
		select {
		case ack := <-f.Ok():
			return ack, nil
		case err := <-f.Err():
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick:
			if err := refused(); err != nil {
				return nil, err
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
