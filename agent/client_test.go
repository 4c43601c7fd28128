package agent_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testRef = "nats://kv/app/db"

func held(t testing.TB, c *agent.Client, r ref.Ref) string {
	t.Helper()
	v, err := c.Current(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return v.ID
}

func TestMissesShareOneRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s := mustRef(t, testRef), newSource()
		s.put(r, "one")
		s.delay = time.Second
		c := agent.New(s, nil, options(t, r))
		// One who gives up does not take the read with it.
		short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		go func() {
			_, err := c.Current(short, r)
			if !fault.Is(err, fault.Unavailable) || !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v; want the caller's deadline", err)
			}
		}()
		synctest.Wait()
		var wg sync.WaitGroup
		for range 1000 {
			wg.Go(func() {
				if v, err := c.Current(t.Context(), r); err != nil || v.ID != "v1" {
					t.Errorf("got %v, %v", v, err)
				}
			})
		}
		wg.Wait()
		if n := s.count(r); n != 1 {
			t.Fatalf("%d reads for 1000 misses; want 1", n)
		}
	})
}

func TestPushBurstIsOneRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, s, b := mustRef(t, testRef), newSource(), newBus()
		s.put(r, "one")
		c := agent.New(s, b, options(t, r))
		stop := start(t, c)
		synctest.Wait()
		if got := held(t, c, r); got != "v1" || s.count(r) != 1 {
			t.Fatalf("held %s after %d reads", got, s.count(r))
		}
		for range 100 {
			b.publish(activated(r, s.put(r, "next")))
		}
		time.Sleep(time.Second)
		if got := held(t, c, r); got != "v101" {
			t.Errorf("held %s; want v101", got)
		}
		if n := s.count(r) - 1; n != 1 {
			t.Errorf("%d reads for a burst of 100 events; want 1", n)
		}
		// The same again changes nothing, and neither does an older one.
		before := s.count(r)
		b.publish(activated(r, "v101"))
		time.Sleep(10 * time.Second)
		if n := s.count(r) - before; n != 0 {
			t.Errorf("%d reads for the version held; want none", n)
		}
		stop()
	})
}
