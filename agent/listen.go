package agent

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// listen keeps a subscription for refs until ctx is done. What is missed
// while there is none comes by the poll, and by the replay with which the
// next one begins.
func (c *Client) listen(ctx context.Context, refs []ref.Ref, ready func()) {
	f := events.Filter{Tenant: c.opts.Tenant, Refs: refs, Types: eventTypes()}
	var told atomic.Bool // the log says that there are no events
	for wait := minResubscribe; ; wait = min(2*wait, maxResubscribe) {
		var up atomic.Bool
		err := c.sub.Subscribe(ctx, f, c.handle, func() {
			if up.CompareAndSwap(false, true) {
				c.listening.Add(1)
			}
			if told.CompareAndSwap(true, false) {
				c.log.LogAttrs(ctx, levelInfo, "events are heard again")
			}
			ready()
		})
		if up.Load() {
			c.listening.Add(-1)
			wait = minResubscribe
		}
		// Nobody should wait for a subscription that is not there.
		ready()
		if ctx.Err() != nil {
			return
		}
		if told.CompareAndSwap(false, true) {
			c.log.LogAttrs(ctx, levelWarn, "no events are heard; polling until they are", kindAttrs(err)...)
		}
		c.observe(Observation{Op: OpUnsubscribed, Failed: true, Kind: fault.KindOf(err)})
		t := time.NewTimer(spread(wait, 0.5))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// handle gives an event to the secret that it is about.
func (c *Client) handle(_ context.Context, e events.Event) {
	if s := c.lookup(e.Data.Ref); s != nil {
		s.hint(e)
	}
}
