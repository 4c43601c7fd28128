package natsbus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
)

// readyTimeout bounds Ready where the context does not.
const readyTimeout = 2 * time.Second

// Ready returns nil if NATS is connected, and the streams of events and dead
// letters answer and have a leader. Else the error says what is missing, at once if
// there is no connection, and within two seconds if nobody answers. It is of
// kind Unavailable; of kind Denied if the right to read the state of a stream
// is missing ($JS.API.STREAM.INFO.<stream>).
func (b *Bus) Ready(ctx context.Context) error {
	const op = "natsbus: ready"
	if !b.nc.IsConnected() {
		return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: op, Msg: "not connected to a NATS server (" + b.nc.Status().String() + ")", Err: nats.ErrDisconnected}
	}
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	for _, stream := range []string{EventStream, DeadLetterStream} {
		var info *jetstream.StreamInfo
		err := guarded(ctx, b.nc, []string{b.opts.api() + "STREAM.INFO." + stream}, func(ctx context.Context) error {
			s, err := b.js.Stream(ctx, stream)
			if err == nil {
				info = s.CachedInfo()
			}
			return err
		})
		switch {
		case fault.Is(classify(op, err), fault.Denied):
			return classify("ready", err)
		case err != nil:
			return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassOf(classify("ready", err)), Op: op, Msg: "stream " + stream + " does not answer; it is missing, or has no leader", Err: err}
		case info.Cluster != nil && info.Cluster.Leader == "":
			return fault.Newf(fault.Unavailable, op, "stream %s has no leader: fewer than half of its replicas are up", stream)
		}
	}
	return nil
}
