package pull

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

// inPlace is how an unavailable handler is asked again.
var inPlace = Backoff{Min: 100 * time.Millisecond, Max: 15 * time.Second}

// quietTime without any success makes the next one the end of an outage.
const quietTime = time.Second

// Attempts calls a handler, and keeps calling it while the bus is away. So a
// message is not given back, and counted as delivered once more, for an outage
// of ours: clouds drop a message, or move it to a dead-letter queue, after a
// few deliveries. What waits keeps its place in flight, hence a source whose
// bus is away stops receiving by itself, and goes on by itself: the first
// success wakes all that wait. It is safe for concurrent use.
type Attempts struct {
	Handler notifier.Handler
	// Timeout bounds one call.
	Timeout time.Duration
	// Hold bounds how long one message waits for the bus.
	Hold time.Duration
	Log  *slog.Logger

	mu   sync.Mutex
	last time.Time     // of the last success
	back chan struct{} // closed at a success that ends an outage
}

// Do calls the handler with d until it returns something else than
// Unavailable, or Hold is over, or stop is done. ctx is what the handler gets.
// A panic of the handler is an error of kind Unknown.
func (a *Attempts) Do(ctx, stop context.Context, d notifier.Delivery) error {
	start := time.Now()
	for n := 1; ; n++ {
		back := a.waiting()
		err := a.once(ctx, d)
		if err == nil {
			a.woke()
		}
		if !fault.Is(err, fault.Unavailable) {
			return err
		}
		pause := inPlace.Delay(n)
		if ctx.Err() != nil || stop.Err() != nil || time.Since(start)+pause > a.Hold {
			return err
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-back:
		case <-ctx.Done():
		case <-stop.Done():
		}
		t.Stop()
		if ctx.Err() != nil || stop.Err() != nil {
			return err
		}
	}
}

// waiting returns what is closed when the bus is back.
func (a *Attempts) waiting() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.back == nil {
		a.back = make(chan struct{})
	}
	return a.back
}

// woke records a success. While others succeed all the time, those that wait do
// so for a reason of their own, and keep their back-off.
func (a *Attempts) woke() {
	a.mu.Lock()
	defer a.mu.Unlock()
	quiet := time.Since(a.last) > quietTime
	a.last = time.Now()
	if quiet && a.back != nil {
		close(a.back)
		a.back = nil
	}
}

func (a *Attempts) once(ctx context.Context, d notifier.Delivery) (err error) {
	ctx, cancel := context.WithTimeout(ctx, a.Timeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			// Its text could quote the notice.
			err = fault.Newf(fault.Unknown, "handler", "it panicked with a %s; this is a defect, please report it", fmt.Sprintf("%T", p))
			a.Log.ErrorContext(ctx, "the handler panicked; the message is given back", "source", d.Source, "key", d.Key(), "panic", fmt.Sprintf("%T", p))
		}
	}()
	return a.Handler(ctx, d)
}
