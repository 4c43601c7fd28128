package natsbus

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/testenv"
)

// TestCatchUpAfterRestart: what was published while a subscriber was cut off
// arrives, on every subscription of its connection, and live events flow
// again. The user's own reconnect handler is called too.
func TestCatchUpAfterRestart(t *testing.T) {
	srv := testenv.NATS(t)
	var reconnects atomic.Int64
	b := open(t, srv.Conn(t), nil)
	publish(t, b, activated("a", "1"), activated("b", "1"))
	// The agent comes back late, after the publisher.
	agent := srv.Conn(t, nats.ReconnectWait(time.Second), nats.ReconnectHandler(func(*nats.Conn) { reconnects.Add(1) }))
	s := NewSubscriber(agent, nil)
	all := hear(t, s, events.Filter{}, nil).wait(t)
	one := hear(t, s, events.Filter{Tenant: "acme", Refs: refs("a"), Types: events.Types()}, nil).wait(t)
	for round := range 3 {
		v := fmt.Sprint("round", round)
		srv.Stop()
		testenv.Eventually(t, limit, "the cut noticed", func() bool { return !agent.IsConnected() && !b.nc.IsConnected() })
		srv.Start()
		testenv.Eventually(t, limit, "published after the restart", func() bool { return b.Publish(t.Context(), activated("a", v)) == nil })
		all.eventually(t, "a", v)
		one.eventually(t, "a", v)
		publish(t, b, activated("a", v+"-live"))
		all.eventually(t, "a", v+"-live")
		one.eventually(t, "a", v+"-live")
	}
	testenv.Eventually(t, limit, "the user's own handler called", func() bool { return reconnects.Load() >= 3 })
}

// TestPublishedWhileAway: the message was stored while the agent had no
// connection at all, so that only the replay can bring it.
func TestPublishedWhileAway(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	block := make(chan struct{})
	agent := srv.Conn(t, nats.CustomReconnectDelay(func(int) time.Duration { <-block; return 0 }))
	h := hear(t, NewSubscriber(agent, nil), events.Filter{Tenant: "acme", Refs: refs("a"), Types: events.Types()}, nil).wait(t)
	srv.Stop()
	testenv.Eventually(t, limit, "the cut noticed", func() bool { return !agent.IsConnected() })
	srv.Start()
	testenv.Eventually(t, limit, "published", func() bool { return b.Publish(t.Context(), activated("a", "away")) == nil })
	if agent.IsConnected() || h.total() != 0 {
		t.Fatal("the agent was not away; the test proves nothing")
	}
	close(block)
	h.eventually(t, "a", "away")
}

// TestSubscribeDuringOutage: a subscriber may start during an outage.
func TestSubscribeDuringOutage(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	publish(t, b, activated("a", "1"))
	agent := srv.Conn(t)
	srv.Stop()
	testenv.Eventually(t, limit, "the cut noticed", func() bool { return !agent.IsConnected() })
	h := hear(t, NewSubscriber(agent, nil), events.Filter{}, nil)
	srv.Start()
	h.wait(t).eventually(t, "a", "1")
}

// TestStreamAppearsLater: with no stream there is no replay yet, but live
// events flow, and the replay follows once there is one.
func TestStreamAppearsLater(t *testing.T) {
	srv := testenv.NATS(t)
	nc := srv.Conn(t)
	h := hear(t, NewSubscriber(nc, nil), events.Filter{Tenant: "acme", Refs: refs("a", "b"), Types: []events.Type{events.VersionActivated}}, nil)
	pub := srv.Conn(t)
	m, err := encode(activated("a", "core"))
	if err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, limit, "a live event without a stream", func() bool {
		return pub.PublishMsg(m) == nil && pub.Flush() == nil && h.count("a", "core") > 0
	})
	select {
	case <-h.ready:
		t.Fatal("ready without a replay")
	default:
	}
	publish(t, open(t, pub, nil), activated("b", "1"))
	h.wait(t)
	if h.count("b", "1") == 0 {
		t.Error("ready before the stored event")
	}
}

// TestSlowHandlerLosesNothing: a handler that is much too slow, with a tiny
// buffer, still hears of the last event of every secret.
func TestSlowHandlerLosesNothing(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	agent := srv.Conn(t, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	s := NewSubscriber(agent, &Options{Buffer: 4})
	release := make(chan struct{})
	h := hear(t, s, events.Filter{Tenant: "acme"}, func(events.Event) { <-release })
	close(release)
	h.wait(t)
	block := make(chan struct{})
	slow := hear(t, s, events.Filter{Tenant: "acme"}, func(events.Event) { <-block }).wait(t)
	const n = 200
	var es []events.Event
	for i := range n {
		es = append(es, activated(fmt.Sprintf("s%03d", i), "1"))
	}
	publish(t, b, es...)
	close(block)
	for i := range n {
		name := fmt.Sprintf("s%03d", i)
		slow.eventually(t, name, "1")
		h.eventually(t, name, "1")
	}
}

// TestHandlerOneAtATime: live and replayed events never call the handler
// together.
func TestHandlerOneAtATime(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	var es []events.Event
	for i := range 300 {
		es = append(es, activated(fmt.Sprintf("old%d", i), "1"))
	}
	publish(t, b, es...)
	var in, most atomic.Int64
	h := hear(t, b, events.Filter{}, func(events.Event) {
		most.Store(max(most.Load(), in.Add(1)))
		runtime.Gosched()
		in.Add(-1)
	})
	for i := range 50 {
		publish(t, b, activated("new", fmt.Sprint(i)))
	}
	h.wait(t)
	h.eventually(t, "new", "49")
	if most.Load() != 1 {
		t.Errorf("%d handlers at once; expected one", most.Load())
	}
}

// TestRepublishedIsHeard: an id that was heard before is heard again when it
// is published again. A rollback makes an old version current once more, under
// the id that its first activation had; to drop it would leave the agent on
// the version that was rolled back.
func TestRepublishedIsHeard(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	h := hear(t, b, events.Filter{Tenant: "acme", Refs: refs("a"), Types: []events.Type{events.VersionActivated}}, nil).wait(t)
	for _, v := range []string{"v1", "v2", "v1"} { // no counter, as on AWS: elsewhere a rollback makes a new version
		publish(t, b, activated("a", v))
	}
	testenv.Eventually(t, limit, "version v1 heard twice", func() bool { return h.count("a", "v1") == 2 })
}

func TestForeignMessagesAreIgnored(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	var log leaktest.Recorder
	nc := srv.Conn(t)
	s := NewSubscriber(nc, &Options{Logger: log.Logger()})
	h := hear(t, s, events.Filter{}, nil).wait(t)
	good, err := encode(activated("a", "1"))
	if err != nil {
		t.Fatal(err)
	}
	canary := leaktest.Canary()
	send := func(m *nats.Msg) {
		t.Helper()
		if err := b.nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
	}
	send(&nats.Msg{Subject: good.Subject, Data: []byte(canary)})
	forged := &nats.Msg{Subject: "keyturn.v1.victim.aws.s.n.version.activated", Header: good.Header, Data: good.Data}
	send(forged)
	newer := &nats.Msg{Subject: good.Subject, Header: nats.Header{}, Data: good.Data}
	for k, v := range good.Header {
		newer.Header[k] = v
	}
	newer.Header["ce-type"] = []string{"dev.keyturn.version.polished.v9"}
	send(newer)
	publish(t, b, activated("a", "2"))
	h.eventually(t, "a", "2")
	// Once more if the Bus had looked at the subject before the server stored
	// what came before.
	if h.total() != h.count("a", "2") || s.Ignored() != 3 {
		t.Errorf("heard %d and ignored %d; expected version 2 only, and 3", h.total(), s.Ignored())
	}
	log.Check(t, canary)
}

func TestConnectionClosedForGood(t *testing.T) {
	srv := testenv.NATS(t)
	open(t, srv.Conn(t), nil)
	nc := srv.Conn(t)
	ready := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- NewSubscriber(nc, nil).Subscribe(context.Background(), events.Filter{}, func(context.Context, events.Event) {}, func() { close(ready) })
	}()
	<-ready
	nc.Close()
	select {
	case err := <-done:
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v; expected an error of kind unavailable", err)
		}
	case <-time.After(limit):
		t.Fatal("Subscribe did not notice that its connection was closed")
	}
	if err := NewSubscriber(nc, nil).Subscribe(context.Background(), events.Filter{}, func(context.Context, events.Event) {}, nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("on a closed connection: %v; expected an error of kind unavailable", err)
	}
}

// TestNothingIsLeft: subscriptions and goroutines end with their context,
// while the connection stays open.
func TestNothingIsLeft(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	publish(t, b, activated("a", "1"))
	nc := srv.Conn(t)
	s := NewSubscriber(nc, nil)
	hear(t, s, events.Filter{}, nil).wait(t)
	subs, routines := nc.NumSubscriptions(), runtime.NumGoroutine()
	var hs []*hearer
	for range 20 {
		hs = append(hs, hear(t, s, events.Filter{Tenant: "acme", Refs: refs("a", "b")}, nil).wait(t))
	}
	for _, h := range hs {
		if err := h.stop(); err != nil {
			t.Error(err)
		}
	}
	testenv.Eventually(t, limit, "the subscriptions and goroutines of before", func() bool {
		return nc.NumSubscriptions() <= subs && runtime.NumGoroutine() <= routines
	})
}

func TestBadFilter(t *testing.T) {
	srv := testenv.NATS(t)
	s := NewSubscriber(srv.Conn(t), nil)
	for what, f := range map[string]events.Filter{
		"type": {Types: []events.Type{"x"}},
		"ref":  {Refs: refs("")},
	} {
		if err := s.Subscribe(t.Context(), f, func(context.Context, events.Event) {}, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; expected an error of kind invalid", what, err)
		}
	}
}

// TestNewConnectionIsNoGap: what is under way when the connection is renewed,
// as with new credentials, is stored once and acknowledged.
func TestNewConnectionIsNoGap(t *testing.T) {
	for name, o := range map[string]*Options{"one by one": {PublishTimeout: limit}, "in batches": {PublishTimeout: limit, GroupCommit: true}} {
		t.Run(name, func(t *testing.T) {
			nc := testenv.NATS(t).Conn(t, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
			b := open(t, nc, o)
			b.news.least = 2
			var stop atomic.Bool
			var n atomic.Int64
			var wg sync.WaitGroup
			for w := range 32 {
				wg.Go(func() {
					for i := 0; !stop.Load(); i++ {
						start := time.Now()
						if err := b.Publish(t.Context(), at(activated(fmt.Sprint("w", w), fmt.Sprint("v", i)), 0)); err != nil || time.Since(start) > limit/2 {
							t.Errorf("%v after %s", err, time.Since(start))
							return
						}
						n.Add(1)
					}
				})
			}
			for range 5 {
				before := n.Load()
				testenv.Eventually(t, limit, "events are published", func() bool { return n.Load() > before+64 || t.Failed() })
				if err := nc.ForceReconnect(); err != nil {
					t.Error(err)
				}
			}
			stop.Store(true)
			wg.Wait()
			ids := map[string]bool{}
			told, _ := everything(t, b)
			for _, e := range told {
				ids[e.ID] = true
			}
			if len(told) != len(ids) {
				t.Errorf("%d events of %d ids", len(told), len(ids))
			}
		})
	}
}
