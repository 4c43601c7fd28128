package agent_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// settle lets everything that is under way happen.
func settle() {
	synctest.Wait()
	time.Sleep(200 * time.Millisecond)
	synctest.Wait()
}

func TestOnlyWhatMattersIsRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, other, s, b := mustRef(t, testRef), mustRef(t, "nats://kv/other"), newSource(), newBus()
		s.put(r, "one")
		s.put(r, "two")
		start(t, agent.New(s, b, options(t, r)))
		settle()
		event := func(typ events.Type, r ref.Ref, version string) events.Event {
			e := events.New(typ, r, time.Now(), version)
			e.Data.Version, e.Data.Tenant = version, "acme"
			return e
		}
		again, foreign := activated(r, ""), activated(r, "v9")
		foreign.Data.Tenant = "globex"
		for _, c := range []struct {
			name  string
			event events.Event
			reads int
		}{
			{"activated, held", activated(r, "v2"), 0},
			{"activated, without a version", again, 1},
			{"the same again, as after a reconnect", again, 0},
			{"retired, the old one", event(events.VersionRetired, r, "v1"), 0},
			{"disabled, the old one", event(events.VersionDisabled, r, "v1"), 0},
			{"disabled, the held one", event(events.VersionDisabled, r, "v2"), 1},
			{"revoked, the held one", event(events.VersionRevoked, r, "v2"), 1},
			{"destroyed, unknown which", event(events.VersionDestroyed, r, ""), 1},
			{"enabled, the held one", event(events.VersionEnabled, r, "v2"), 0},
			{"changed", event(events.SecretChanged, r, "v2"), 1},
			{"deleted", event(events.SecretDeleted, r, ""), 1},
			{"rotation started", event(events.RotationStarted, r, "v3"), 0},
			{"another secret", activated(other, "v9"), 0},
			{"another tenant", foreign, 0},
		} {
			before := s.count(r)
			b.publish(c.event)
			settle()
			if n := s.count(r) - before; n != c.reads {
				t.Errorf("%s: %d reads; want %d", c.name, n, c.reads)
			}
			time.Sleep(time.Second)
		}
	})
}

// A replay after a reconnect brings what was heard before: nothing is read.
func TestReplayIsNoHerd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, b := mustRef(t, testRef), newSource(), newBus()
		id := s.put(r, "one")
		start(t, agent.New(s, b, options(t, r)))
		settle()
		es := []events.Event{activated(r, ""), activated(r, id)}
		for _, typ := range []events.Type{events.SecretChanged, events.VersionDisabled, events.SecretRestored} {
			es = append(es, events.New(typ, r, time.Now(), "x"))
		}
		for i := range es {
			es[i].Data.Tenant = "acme"
			b.publish(es[i])
		}
		settle()
		before := s.count(r)
		for range 5 {
			for _, e := range es[1:] {
				b.publish(e)
			}
			settle()
		}
		if n := s.count(r) - before; n != 0 {
			t.Errorf("%d reads for a replay; want none", n)
		}
	})
}

func TestReplicaLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, b := mustRef(t, testRef), newSource(), newBus()
		s.put(r, "one")
		c := agent.New(s, b, options(t, r))
		start(t, c)
		settle()
		before := s.count(r)
		id := s.put(r, "two")
		s.set(func(s *source) { s.stale = 3 })
		b.publish(activated(r, id))
		time.Sleep(3 * time.Second)
		if got := held(t, c, r); got != id {
			t.Errorf("held %s; want %s", got, id)
		}
		if n := s.count(r) - before; n != 4 {
			t.Errorf("%d reads; want 3 that lag and one more", n)
		}
		// A version that never comes is asked for a few times, not for ever.
		before = s.count(r)
		b.publish(activated(r, "never"))
		time.Sleep(time.Minute)
		if n := s.count(r) - before; n != 5 {
			t.Errorf("%d reads for a version that never comes; want 5", n)
		}
		// A late notice of an older version is read for once.
		old := activated(r, "v1")
		old.Time = old.Time.Add(-time.Hour)
		before = s.count(r)
		b.publish(old)
		time.Sleep(time.Minute)
		if n := s.count(r) - before; n != 1 || held(t, c, r) != id {
			t.Errorf("%d reads for an older version, holding %s; want 1 and %s", n, held(t, c, r), id)
		}
	})
}

// A revoked version skips the jitter; the reads of other events are spread
// over the window.
func TestJitter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const fleet = 200
		r, s, b := mustRef(t, testRef), newSource(), newBus()
		s.put(r, "one")
		for i := range fleet {
			o := options(t, r)
			o.Jitter, o.Instance = 10*time.Second, fmt.Sprintf("agent-%d", i)
			start(t, agent.New(s, b, o))
		}
		settle()
		s.set(func(s *source) { s.log = nil })
		b.publish(activated(r, s.put(r, "two")))
		from := time.Now()
		time.Sleep(11 * time.Second)
		var tenth [10]int
		s.set(func(s *source) {
			for _, at := range s.log {
				tenth[min(int(at.Sub(from)/time.Second), 9)]++
			}
			if len(s.log) != fleet {
				t.Errorf("%d reads; want one for each of %d agents", len(s.log), fleet)
			}
			s.log = nil
		})
		for i, n := range tenth {
			// 20 are expected; 4 or fewer happen once in ten thousand runs, and
			// the names are fixed.
			if n < 5 || n > 50 {
				t.Errorf("%d reads in second %d; want them evenly spread: %v", n, i, tenth)
			}
		}
		e := events.New(events.VersionRevoked, r, time.Now(), "v2")
		e.Data.Version, e.Data.Tenant = "v2", "acme"
		s.put(r, "three")
		b.publish(e)
		synctest.Wait()
		if n := s.count(r); n != 3*fleet {
			t.Errorf("%d reads at once for a revoked version; want %d", n-2*fleet, fleet)
		}
	})
}

func TestPollIsTheFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, b := mustRef(t, testRef), newSource(), newBus()
		s.put(r, "one")
		o := options(t, r)
		o.Poll = time.Minute
		c := agent.New(s, b, o)
		start(t, c)
		settle()
		id := s.put(r, "two") // and nobody tells
		time.Sleep(73 * time.Second)
		if got := held(t, c, r); got != id {
			t.Errorf("held %s after the poll; want %s", got, id)
		}
		before := s.count(r)
		time.Sleep(time.Hour)
		if n := s.count(r) - before; n < 50 || n > 75 {
			t.Errorf("%d polls in an hour; want about 60", n)
		}
	})
}

func TestSubscriptionIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, b := mustRef(t, testRef), newSource(), newBus()
		s.put(r, "one")
		b.err = fault.Newf(fault.Denied, "bus", "not yours")
		o := options(t, r)
		c := agent.New(s, b, o)
		start(t, c)
		settle()
		if held(t, c, r) != "v1" || c.Status(r).Listening {
			t.Errorf("without events: %+v", c.Status(r))
		}
		time.Sleep(10 * time.Minute)
		b.mu.Lock()
		if b.seen < 8 || b.seen > 40 {
			t.Errorf("%d tries to subscribe in 10 min", b.seen)
		}
		b.err = nil
		b.mu.Unlock()
		// The event comes while nobody listens; the replay brings it.
		id := s.put(r, "two")
		b.publish(activated(r, id))
		time.Sleep(100 * time.Second)
		if held(t, c, r) != id || !c.Status(r).Listening {
			t.Errorf("after the bus is back: %+v", c.Status(r))
		}
	})
}

func TestWatchLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, b := mustRef(t, testRef), newSource(), newBus()
		c := agent.New(s, b, options(t))
		start(t, c)
		settle()
		if b.seen != 0 {
			t.Error("a client without secrets subscribed to everything")
		}
		if _, err := c.Current(t.Context(), r); !fault.Is(err, fault.Invalid) {
			t.Errorf("not watched: got %v", err)
		}
		if err := c.Watch(ref.Ref{}, r); !fault.Is(err, fault.Invalid) {
			t.Errorf("a zero ref: got %v", err)
		}
		settle()
		s.put(r, "one")
		settle()
		h := c.Secret(r)
		if v := h.Current(); v != nil {
			t.Errorf("a secret that was not there is held as %s", v.ID)
		}
		time.Sleep(10 * time.Second)
		if got := held(t, c, r); got != "v1" {
			t.Errorf("held %s", got)
		}
		id := s.put(r, "two")
		b.publish(activated(r, id))
		settle()
		if v := h.Current(); v == nil || v.ID != id {
			t.Errorf("held %v; want %s by push", v, id)
		}
	})
}
