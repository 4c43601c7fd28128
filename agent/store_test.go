package agent_test

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

func TestRunOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := mustRef(t, testRef), newSource()
		s.put(r, "one")
		c := agent.New(s, nil, options(t, r))
		stop := start(t, c)
		settle()
		if err := c.Run(t.Context()); !fault.Is(err, fault.Conflict) {
			t.Errorf("a second Run: got %v", err)
		}
		stop()
		if got := held(t, c, r); got != "v1" {
			t.Errorf("held %s after Run", got)
		}
		s.put(r, "two")
		if v, err := c.Refresh(t.Context(), r); err != nil || v.ID != "v2" {
			t.Errorf("Refresh after Run: %v, %v", v, err)
		}
		if err := agent.New(s, nil, options(t, ref.Ref{})).Run(t.Context()); !fault.Is(err, fault.Invalid) {
			t.Errorf("an invalid ref: got %v", err)
		}
	})
}

func TestOnChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, b := mustRef(t, testRef), newSource(), newBus()
		s.put(r, "one")
		c := agent.New(s, b, options(t, r))
		var mu sync.Mutex
		var got []string
		var evs int
		var lag time.Duration
		note := func(name string) func(agent.Change) {
			return func(ch agent.Change) {
				mu.Lock()
				defer mu.Unlock()
				old := "-"
				if ch.Old != nil {
					old = ch.Old.ID
				}
				got = append(got, name+":"+old+">"+ch.New.ID)
				if ch.Event != nil && name == "a" {
					evs++
					lag = ch.Lag
				}
			}
		}
		take := func() string {
			mu.Lock()
			defer mu.Unlock()
			s := strings.Join(got, " ")
			got = nil
			return s
		}
		c.OnChange(r, onChange(note("a")))
		start(t, c)
		settle()
		if s := take(); s != "a:->v1" {
			t.Errorf("first version: %q", s)
		}
		unregister := c.OnChange(r, onChange(note("b")))
		synctest.Wait()
		if s := take(); s != "b:->v1" {
			t.Errorf("late registration: %q", s)
		}
		unregister()
		unregister()
		c.OnChange(r, onChange(func(ch agent.Change) { panic(ch.New.Value) }))
		for range 3 {
			b.publish(activated(r, s.put(r, "next")))
			settle()
		}
		if s := take(); s != "a:v1>v2 a:v2>v3 a:v3>v4" {
			t.Errorf("changes: %q", s)
		}
		if evs != 3 || lag <= 0 || lag > 200*time.Millisecond {
			t.Errorf("%d changes with an event, the last with a lag of %s", evs, lag)
		}
		s.put(r, "polled")
		time.Sleep(7 * time.Minute)
		if s := take(); s != "a:v4>v5" || evs != 3 {
			t.Errorf("by poll: %q with %d events", s, evs)
		}
	})
}

// Errors leave the last good version, are told once for each change of state,
// and heal.
func TestStoreErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, b := mustRef(t, testRef), newSource(), newBus()
		s.put(r, "one")
		o := options(t, r)
		o.Poll = time.Minute
		c := agent.New(s, b, o)
		start(t, c)
		settle()
		for _, k := range []fault.Kind{fault.NotFound, fault.Denied, fault.Unavailable} {
			s.set(func(s *source) { s.err = fault.Newf(k, "source", "broken") })
			time.Sleep(10 * time.Minute)
			st := c.Status(r)
			if st.Version != "v1" || st.Kind != k || st.Failures < 5 || st.Age < 9*time.Minute || held(t, c, r) != "v1" {
				t.Errorf("%v: %+v", k, st)
			}
		}
		s.set(func(s *source) { s.err = errors.New("who knows") })
		id := s.put(r, "two")
		b.publish(activated(r, id))
		time.Sleep(5 * time.Second)
		s.set(func(s *source) { s.err = nil })
		time.Sleep(73 * time.Second)
		st := c.Status(r)
		if st.Version != id || st.Failures != 0 || st.Kind != fault.Unknown {
			t.Errorf("healed: %+v", st)
		}
	})
}

func TestFailingMissesAreNoLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := mustRef(t, testRef), newSource()
		c := agent.New(s, nil, options(t, r))
		for range 1000 {
			if _, err := c.Current(t.Context(), r); !fault.Is(err, fault.NotFound) {
				t.Fatalf("got %v", err)
			}
			time.Sleep(time.Millisecond)
		}
		if n := s.count(r); n > 6 {
			t.Errorf("%d reads in a second of failing misses; want at most 6", n)
		}
		s.put(r, "one")
		time.Sleep(5 * time.Second)
		if got := held(t, c, r); got != "v1" {
			t.Errorf("held %s", got)
		}
	})
}

func TestMaxStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := mustRef(t, testRef), newSource()
		s.put(r, "one")
		o := options(t, r)
		o.MaxStale = time.Minute
		c := agent.New(s, nil, o)
		start(t, c)
		var changes atomic.Int32
		c.OnChange(r, onChange(func(agent.Change) { changes.Add(1) }))
		settle()
		// A store that works keeps it fresh.
		time.Sleep(10 * time.Minute)
		if c.Secret(r).Current() == nil {
			t.Error("withdrawn although the store works")
		}
		s.set(func(s *source) { s.err = fault.Newf(fault.Unavailable, "source", "away") })
		time.Sleep(20 * time.Second)
		if c.Secret(r).Current() == nil {
			t.Error("withdrawn too early")
		}
		time.Sleep(45 * time.Second)
		if _, err := c.Current(t.Context(), r); !fault.Is(err, fault.Unavailable) || !c.Status(r).Withdrawn {
			t.Errorf("stale: got %v, %+v", err, c.Status(r))
		}
		s.set(func(s *source) { s.err = nil })
		time.Sleep(time.Minute)
		if got := held(t, c, r); got != "v1" || c.Status(r).Withdrawn || changes.Load() != 1 {
			t.Errorf("healed: held %s, %d changes, %+v", got, changes.Load(), c.Status(r))
		}
	})
}

// A store that counts versions begins anew when a secret is made anew.
func TestSameIDOtherValue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := mustRef(t, testRef), newSource()
		s.put(r, "one")
		c := agent.New(s, nil, options(t, r))
		first, err := c.Current(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		s.set(func(s *source) { s.cur[r] = &secrets.Version{ID: "v1", Value: secrets.NewString("other")} })
		again, err := c.Refresh(t.Context(), r)
		if err != nil || again == first || string(again.Value.Reveal()) != "other" {
			t.Errorf("got %v, %v", again, err)
		}
	})
}

func TestDropRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, b := mustRef(t, testRef), newSource(), newBus()
		s.put(r, "one")
		o := options(t, r)
		o.DropRevoked = true
		c := agent.New(s, b, o)
		start(t, c)
		settle()
		tell := func(typ events.Type, version string) {
			e := events.New(typ, r, time.Now(), version)
			e.Data.Version, e.Data.Tenant = version, "acme"
			b.publish(e)
			settle()
		}
		tell(events.VersionRevoked, "v0")
		if held(t, c, r) != "v1" {
			t.Error("another version's revocation withdrew this one")
		}
		s.set(func(s *source) { s.err = fault.Newf(fault.Unavailable, "source", "away") })
		tell(events.VersionRevoked, "v1")
		if _, err := c.Current(t.Context(), r); !fault.Is(err, fault.Unavailable) || !c.Status(r).Withdrawn {
			t.Errorf("store away: got %v", err)
		}
		s.set(func(s *source) { s.err = nil })
		time.Sleep(time.Minute)
		if _, err := c.Current(t.Context(), r); !fault.Is(err, fault.Denied) {
			t.Errorf("store still has it: got %v", err)
		}
		tell(events.VersionEnabled, "v1")
		time.Sleep(10 * time.Second)
		if got := held(t, c, r); got != "v1" {
			t.Errorf("enabled again: held %s", got)
		}
		id := s.put(r, "two")
		tell(events.VersionRevoked, "v1")
		if got := held(t, c, r); got != id {
			t.Errorf("replaced: held %s", got)
		}
	})
}

// A replica that is behind does not take an agent back to an older version;
// an event or the store's insistence does.
func TestNotBackwards(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, b := mustRef(t, testRef), newSource(), newBus()
		s.put(r, "one")
		c := agent.New(s, b, options(t, r))
		start(t, c)
		settle()
		var changes atomic.Int32
		c.OnChange(r, onChange(func(agent.Change) { changes.Add(1) }))
		b.publish(activated(r, s.put(r, "two")))
		settle()
		s.set(func(s *source) { s.stale = 2 })
		e := events.New(events.SecretChanged, r, time.Now(), "label")
		e.Data.Tenant = "acme"
		b.publish(e)
		time.Sleep(10 * time.Second)
		if got := held(t, c, r); got != "v2" || changes.Load() != 2 {
			t.Errorf("held %s after %d changes; want v2 after 2", got, changes.Load())
		}
		// Somebody moves the label back by hand, and nobody tells.
		s.set(func(s *source) { s.cur[r] = s.old[r] })
		if _, err := c.Refresh(t.Context(), r); err != nil {
			t.Error(err)
		}
		time.Sleep(6 * time.Second)
		if got := held(t, c, r); got != "v1" || changes.Load() != 3 {
			t.Errorf("held %s after %d changes; want v1 after 3", got, changes.Load())
		}
		// Forth and back again, announced: no doubt.
		b.publish(activated(r, s.put(r, "three")))
		settle()
		s.set(func(s *source) { s.cur[r] = s.old[r] })
		b.publish(activated(r, "v1"))
		settle()
		if got := held(t, c, r); got != "v1" {
			t.Errorf("held %s; want v1 as announced", got)
		}
	})
}
