package vaultevents

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

// A run is what one call of Run has.
type run struct {
	*Source
	h notifier.Handler
	// handling is the context of handlers: it goes on after that of Run, for as
	// long as DrainTimeout.
	handling context.Context //nolint:containedctx // of this run
	slots    chan struct{}
	inFlight sync.WaitGroup
	// resyncs asks for a look at all metadata. One that waits is enough for any
	// number that ask.
	resyncs chan struct{}
	// listening counts the subscriptions that are open.
	listening atomic.Int32
	// unsupported says that it was said that there are no notifications.
	unsupported atomic.Bool
	known       memory
}

// Run implements [notifier.Source]. Handlers are called concurrently: up to
// MaxInFlight for notifications, and four more for what a look at the metadata
// finds. It returns nil once ctx is done and the deliveries in flight have
// ended, or after DrainTimeout. Outages, refusals and a Vault without
// notifications are waited for.
func (s *Source) Run(ctx context.Context, h notifier.Handler) error {
	handling, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	r := &run{
		Source: s, h: h, handling: handling, slots: make(chan struct{}, s.o.MaxInFlight), resyncs: make(chan struct{}, 1),
		known: memory{versions: map[string]remembered{}, limit: s.o.MaxSecrets},
	}
	defer s.client.http.CloseIdleConnections()
	ended := make(chan struct{})
	var watch, loops sync.WaitGroup
	watch.Go(func() {
		<-ctx.Done()
		t := time.NewTimer(s.o.DrainTimeout)
		defer t.Stop()
		select {
		case <-ended:
		case <-t.C:
			stop()
		}
	})
	for _, typ := range s.o.Types {
		loops.Go(func() { r.subscribe(ctx, typ) })
	}
	if len(s.o.Mounts) > 0 {
		loops.Go(func() { r.resyncLoop(ctx) })
	}
	loops.Wait()
	r.inFlight.Wait()
	close(ended)
	watch.Wait()
	return nil
}

// deliver hands d to the handler until it is done with it. An error means that
// it was tried often enough, or that there is no time left.
func (r *run) deliver(d notifier.Delivery) error {
	b := backoff{o: &r.o}
	for d.Attempt = 1; ; d.Attempt++ {
		err := r.h(r.handling, d)
		switch {
		case err == nil:
			return nil
		case fault.Is(err, fault.Invalid):
			// The handler keeps what it refuses; here there is nobody to tell.
			r.o.Logger.WarnContext(r.handling, "a notification can never be handed on", "source", r.o.Name, "id", d.ID, "bytes", len(d.Body))
			return nil
		case d.Attempt >= r.o.MaxAttempts || r.handling.Err() != nil || !sleep(r.handling, b.next()):
			return err
		}
	}
}

// resync asks for a look at all metadata.
func (r *run) resync() {
	select {
	case r.resyncs <- struct{}{}:
	default:
	}
}

// A backoff doubles from MinBackoff to MaxBackoff. Each wait is between half
// and all of that, so that a fleet does not come back at one time.
type backoff struct {
	o *Options
	d time.Duration
}

func (b *backoff) next() time.Duration {
	b.d = min(max(2*b.d, b.o.MinBackoff), b.o.MaxBackoff)
	return b.d/2 + rand.N(b.d/2+1) //nolint:gosec // spreads load
}

func (b *backoff) reset() { b.d = 0 }

// around is d, and a fifth of it more or less.
func around(d time.Duration) time.Duration {
	return d - d/5 + rand.N(2*d/5+1) //nolint:gosec // spreads load
}

// sleep reports whether d passed before ctx was done.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
