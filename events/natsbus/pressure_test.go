package natsbus

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
)

// TestPressure: NATS goes away under load that does not stop. Callers beyond
// the bounds are refused at once, the others within the timeout; goroutines
// and memory stay bounded; and when NATS is back, publishing goes on by
// itself.
func TestPressure(t *testing.T) {
	for _, group := range []bool{false, true} {
		t.Run(map[bool]string{false: "singles", true: "grouped"}[group], func(t *testing.T) {
			srv := testenv.NATS(t)
			o := &Options{MaxInFlight: 8, MaxWaiting: 16, PublishTimeout: 500 * time.Millisecond, GroupCommit: group}
			b := open(t, srv.Conn(t), o)
			b.news.least = 2
			publish(t, b, activated("a", "x"))
			srv.Stop()
			before := runtime.NumGoroutine()
			var heap runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&heap)
			const callers = 300
			var mu sync.Mutex
			var quota, other int
			var longest time.Duration
			for range 3 {
				var wg sync.WaitGroup
				for i := range callers {
					wg.Go(func() {
						start := time.Now()
						err := b.Publish(context.Background(), activated(fmt.Sprint("s", i), "x"), activated(fmt.Sprint("t", i), "x"))
						mu.Lock()
						defer mu.Unlock()
						longest = max(longest, time.Since(start))
						switch {
						case !fault.Is(err, fault.Unavailable):
							t.Errorf("%v; expected an error of kind unavailable", err)
						case fault.ClassOf(err) == fault.ClassQuota:
							quota++
						default:
							other++
						}
					})
				}
				wg.Wait()
			}
			if quota < 3*(callers-8-16)/2 || other < 16 {
				t.Errorf("%d refused at once and %d after waiting, of %d", quota, other, 3*callers)
			}
			if longest > limit/2 {
				t.Errorf("a caller waited %s with a timeout of %s", longest, o.PublishTimeout)
			}
			testenv.Eventually(t, limit, "the goroutines of before", func() bool { return runtime.NumGoroutine() <= before+8 })
			was := heap.HeapAlloc
			runtime.GC()
			runtime.ReadMemStats(&heap)
			if heap.HeapAlloc > was+16<<20 {
				t.Errorf("the heap grew from %d to %d bytes", was, heap.HeapAlloc)
			}
			if len(b.news.queue) != 0 || b.gate.used != 0 || len(b.gate.waiting) != 0 {
				t.Errorf("%d queued, %d in flight, %d waiting; expected none", len(b.news.queue), b.gate.used, len(b.gate.waiting))
			}
			srv.Start()
			testenv.Eventually(t, limit, "published again", func() bool { return b.Publish(t.Context(), activated("s1", "x"), activated("b", "y")) == nil })
		})
	}
}

func TestGate(t *testing.T) {
	g := &gate{size: 2, queue: 1}
	n, err := g.enter(t.Context(), 5)
	if n != 2 || err != nil {
		t.Fatalf("%d, %v; expected both places", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := g.enter(ctx, 1)
		left <- err
	}()
	waits := func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.waiting) == 1
	}
	testenv.Eventually(t, limit, "one waits", waits)
	if _, err := g.enter(t.Context(), 1); fault.ClassOf(err) != fault.ClassQuota || !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v; expected unavailable, quota", err)
	}
	cancel()
	if err := <-left; err == nil {
		t.Error("let in")
	}
	go func() {
		n, err := g.enter(context.Background(), 1)
		g.leave(n)
		left <- err
	}()
	testenv.Eventually(t, limit, "another waits", waits)
	g.leave(2)
	if err := <-left; err != nil || g.used != 0 {
		t.Errorf("%v, %d used", err, g.used)
	}
}

// TestSubjectsAreBounded: what is known of subjects is bounded, and to forget it
// changes nothing.
func TestSubjectsAreBounded(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	b.subjects.max = 10
	for range 2 {
		var es []events.Event
		for i := range 50 {
			es = append(es, at(activated(fmt.Sprint("s", i), "x"), time.Hour))
		}
		publish(t, b, es...)
		// Those in use are not dropped: 50 at most, then 10.
		publish(t, b, es[0])
		if n := len(b.subjects.m); n > 10 || b.subjects.lru.Len() != n {
			t.Errorf("%d subjects are known; expected at most 10", n)
		}
	}
	if n := storedIn(t, b, EventStream); n != 50 {
		t.Errorf("%d stored; expected 50", n)
	}
	ids := 0
	for _, s := range b.subjects.m {
		ids += s.kept
	}
	if ids != b.subjects.ids {
		t.Errorf("%d ids counted; expected %d", b.subjects.ids, ids)
	}
}
