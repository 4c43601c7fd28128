package pull

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestBackoff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := Backoff{Min: time.Duration(rapid.Int64Range(1, 1e9).Draw(t, "min"))}
		b.Max = b.Min * time.Duration(rapid.Int64Range(1, 1e4).Draw(t, "times"))
		n := rapid.IntRange(0, 200).Draw(t, "n")
		if d := b.Delay(n); d < b.Min/2 || d > b.Max {
			t.Fatalf("the delay after %d failures is %s, expected %s to %s", n, d, b.Min/2, b.Max)
		}
	})
}

// TestGate: the bounds hold whoever takes and gives, and nobody waits for ever.
func TestGate(t *testing.T) {
	const count, bytes, each = 7, 100, 20
	g := newGate(count, bytes)
	var wg sync.WaitGroup
	var over atomic.Bool
	for range 16 {
		wg.Go(func() {
			for range 200 {
				n := g.take(t.Context(), 3, each)
				if c, b := g.used(); n < 1 || n > 3 || c > count || b > bytes {
					over.Store(true)
				}
				g.give(n, n*each)
			}
		})
	}
	wg.Wait()
	if c, b := g.used(); over.Load() || c != 0 || b != 0 {
		t.Errorf("over the bound: %t; %d messages of %d bytes are left", over.Load(), c, b)
	}
	ctx, cancel := context.WithCancel(t.Context())
	g.take(ctx, count, 1)
	cancel()
	if n := g.take(ctx, 1, 1); n != 0 {
		t.Error("took room after the end")
	}
}

// TestBackOfTheBusWakesAll: who waits for the bus goes on at once when another
// finds it back, and not after the rest of a long pause.
func TestBackOfTheBusWakesAll(t *testing.T) {
	var back atomic.Bool
	var calls atomic.Int64
	a := &Attempts{
		Timeout: time.Second, Hold: time.Hour, Log: slog.New(slog.DiscardHandler),
		Handler: func(context.Context, notifier.Delivery) error {
			calls.Add(1)
			if back.Load() {
				return nil
			}
			return fault.New(fault.Unavailable, "publish", nil)
		},
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if err := a.Do(t.Context(), t.Context(), notifier.Delivery{}); err != nil {
				t.Error(err)
			}
		})
	}
	testenv.Eventually(t, 10*time.Second, "pauses to be long", func() bool { return calls.Load() > 45 })
	back.Store(true)
	start := time.Now()
	if err := a.Do(t.Context(), t.Context(), notifier.Delivery{}); err != nil {
		t.Error(err)
	}
	wg.Wait()
	if took := time.Since(start); took > time.Second {
		t.Errorf("those that waited went on after %s, expected at once", took)
	}
}

// TestHoldEnds: a message does not wait for ever, nor after the end.
func TestHoldEnds(t *testing.T) {
	away := func(context.Context, notifier.Delivery) error { return fault.New(fault.Unavailable, "publish", nil) }
	a := &Attempts{Timeout: time.Second, Hold: 200 * time.Millisecond, Log: slog.New(slog.DiscardHandler), Handler: away}
	if err := a.Do(t.Context(), t.Context(), notifier.Delivery{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v, expected Unavailable", err)
	}
	stop, end := context.WithCancel(t.Context())
	a = &Attempts{Timeout: time.Second, Hold: time.Hour, Log: slog.New(slog.DiscardHandler), Handler: func(ctx context.Context, d notifier.Delivery) error {
		end()
		return away(ctx, d)
	}}
	if err := a.Do(t.Context(), stop, notifier.Delivery{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("got %v, expected Unavailable", err)
	}
}
