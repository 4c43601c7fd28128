package agent_test

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
)

func onChange(f func(agent.Change)) func(context.Context, agent.Change) {
	return func(_ context.Context, ch agent.Change) { f(ch) }
}

func TestInvalidate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := mustRef(t, testRef), newSource()
		s.put(r, "one")
		c := agent.New(s, nil, options(t, r))
		start(t, c)
		settle()
		// The refusal finds the new version at once.
		id := s.put(r, "two")
		c.Invalidate(r, "v1")
		synctest.Wait()
		if got := held(t, c, r); got != id {
			t.Fatalf("held %s; want %s", got, id)
		}
		// A late refusal of the old version does nothing.
		before := s.count(r)
		for range 100 {
			c.Invalidate(r, "v1")
			c.Invalidate(r, "")
		}
		settle()
		if n := s.count(r) - before; n != 0 {
			t.Errorf("%d reads for late refusals; want none", n)
		}
	})
}

// A key that is dead in the store too is asked for at a limited rate, however
// many requests are refused.
func TestInvalidateIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := mustRef(t, testRef), newSource()
		s.put(r, "dead")
		c := agent.New(s, nil, options(t, r))
		start(t, c)
		settle()
		before := s.count(r)
		for range 60_000 { // for a minute
			c.Invalidate(r, "v1")
			time.Sleep(time.Millisecond)
		}
		n := s.count(r) - before
		if n < 8 || n > 15 {
			t.Errorf("%d reads in a minute; want 3 at once and one every 5 s", n)
		}
		t.Logf("60000 refusals in a minute: %d reads", n)
	})
}

func TestRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := mustRef(t, testRef), newSource()
		s.put(r, "one")
		s.delay = 10 * time.Millisecond
		c := agent.New(s, nil, options(t, r))
		start(t, c)
		settle()
		before := s.count(r)
		id := s.put(r, "two")
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if v, err := c.Refresh(t.Context(), r); err != nil || v.ID != id {
					t.Errorf("got %v, %v; want %s", v, err, id)
				}
			})
		}
		wg.Wait()
		if n := s.count(r) - before; n > 2 {
			t.Errorf("%d reads for 1000 refreshes at once; want 1 or 2", n)
		}
		// Past the burst it waits, and the caller's context bounds that.
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, _ = c.Refresh(ctx, r)
			cancel()
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := c.Refresh(ctx, r); !fault.Is(err, fault.Unavailable) {
			t.Errorf("past the burst: got %v", err)
		}
		s.set(func(s *source) { s.err = fault.Newf(fault.Denied, "source", "not yours") })
		if _, err := c.Refresh(t.Context(), r); !fault.Is(err, fault.Denied) {
			t.Errorf("a store that refuses: got %v", err)
		}
		if got := held(t, c, r); got != id {
			t.Errorf("held %s; want the last good", got)
		}
	})
}

// A read that is under way when something becomes known does not answer it.
func TestRefreshReadsAfterTheCall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := mustRef(t, testRef), newSource()
		s.put(r, "one")
		s.delay = time.Second
		c := agent.New(s, nil, options(t, r))
		go func() { _, _ = c.Current(t.Context(), r) }()
		time.Sleep(500 * time.Millisecond)
		id := s.put(r, "two")
		if v, err := c.Refresh(t.Context(), r); err != nil || v.ID != id {
			t.Errorf("got %v, %v; want %s", v, err, id)
		}
	})
}

// valueError is an error of a store that breaks the rule and quotes a value.
type valueError string

func (e valueError) Error() string { return "cannot parse " + string(e) }

func TestNothingIsPrinted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, b := mustRef(t, testRef), newSource(), newBus()
		canary, second := leaktest.Canary(), leaktest.Canary()
		rec := &leaktest.Recorder{}
		s.put(r, canary)
		o := options(t, r)
		o.Logger = rec.Logger()
		o.Observe = func(o agent.Observation) { rec.Record(o) }
		c := agent.New(s, b, o)
		start(t, c)
		c.OnChange(r, onChange(func(ch agent.Change) {
			rec.Record(ch, &ch)
			panic(string(ch.New.Value.Reveal()))
		}))
		settle()
		v, err := c.Current(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		rec.Record(c, *v, v, c.Secret(r), c.Status(r))
		b.publish(activated(r, s.put(r, second)))
		settle()
		s.set(func(s *source) { s.err = valueError(second) })
		e := events.New(events.SecretChanged, r, time.Now(), "x")
		e.Data.Tenant = "acme"
		b.publish(e)
		settle()
		_, err = c.Refresh(t.Context(), r)
		if err == nil {
			t.Fatal("want an error")
		}
		rec.Record(err, c, c.Status(r))
		rec.Logger().Info("client", "client", c, "secret", c.Secret(r), "status", c.Status(r), "err", err)
		rec.Check(t, canary, second)
	})
}
