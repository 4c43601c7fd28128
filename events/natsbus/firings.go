package natsbus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
)

const (
	// ScheduleConsumer is the durable consumer that all replicas share.
	ScheduleConsumer = "keyturn-schedules"

	maxBackoff = 5 * time.Minute
	// maxUnclassified is how often a firing is tried whose handler fails for
	// a reason that nobody classified; that is some eight hours.
	maxUnclassified = 100
	pullWait        = 10 * time.Second
	pullHeartbeat   = 2 * time.Second
)

// A Firing is one time at which a schedule was due.
type Firing struct {
	Name    string
	Payload []byte
	// ID is the same for every delivery of this firing, to whichever replica,
	// and no other firing has it: what makes a handler idempotent.
	ID string
	// Attempt counts deliveries from 1.
	Attempt uint64
}

// RunSchedules calls h with what is due until ctx is done, which it returns as
// nil after the running handlers have ended. Of all replicas that run it one
// gets each firing; of several firings of one name that wait only the latest
// is kept.
//
// A firing is done once h returns nil. An error of kind Invalid drops it. After
// any other error it is due again with back-off from one second to five
// minutes, on any replica, until a newer firing of the name takes its place;
// an unclassified error gives up after 100 attempts. h may take as long as it
// likes. It is called concurrently for different names, and for one name one
// at a time in this process; another replica may get the next firing while
// this one is still at work. A replica that dies may have done its work
// already, so h must be idempotent.
func (b *Bus) RunSchedules(ctx context.Context, h func(ctx context.Context, f Firing) error) error {
	c, err := b.consumer(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	r := &runner{b: b, h: h, busy: map[string]struct{}{}}
	var wg sync.WaitGroup
	for range b.opts.Workers {
		wg.Go(func() { r.work(ctx, c) })
	}
	wg.Wait()
	return nil
}

// consumer creates the durable consumer, or takes the one that is there.
func (b *Bus) consumer(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cfg := jetstream.ConsumerConfig{
		Durable:       ScheduleConsumer,
		Description:   "Keyturn: what is due, for one replica each",
		FilterSubject: duePrefix + ">",
		AckPolicy:     jetstream.AckExplicitPolicy,
		AckWait:       b.opts.AckWait,
		// No MaxDeliver: a gate's deadline must not be forgotten because its
		// target was away for a day. Back-off bounds the work.
		MaxDeliver: -1,
	}
	api := b.opts.api() + "CONSUMER.CREATE." + ScheduleStream + "." + ScheduleConsumer + "." + cfg.FilterSubject
	var c jetstream.Consumer
	err := guarded(ctx, b.nc, []string{api}, func(ctx context.Context) (err error) {
		c, err = b.js.CreateOrUpdateConsumer(ctx, ScheduleStream, cfg)
		return err
	})
	return c, classify("run schedules", err)
}

// A runner is one call of RunSchedules.
type runner struct {
	b *Bus
	h func(ctx context.Context, f Firing) error

	mu   sync.Mutex
	busy map[string]struct{}
}

// work takes one firing at a time; it does not fetch ahead, so that what
// waits is free for every replica.
func (r *runner) work(ctx context.Context, c jetstream.Consumer) {
	log := r.b.opts.Logger
	for wait := minRetry; ctx.Err() == nil; {
		m, err := next(ctx, c)
		switch {
		case err == nil:
			wait = minRetry
			r.fire(ctx, m)
			continue
		case ctx.Err() != nil:
			return
		case errors.Is(err, nats.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
			wait = minRetry // nothing was due
			continue
		}
		if wait == 8*minRetry {
			log.WarnContext(ctx, "schedules cannot be read; trying on", "error", err)
		}
		if !pause(ctx, wait) {
			return
		}
		wait = min(2*wait, maxRetry)
		if isGone(err) && r.b.nc.IsConnected() {
			if again, err := r.b.consumer(ctx); err == nil {
				c = again
			}
		}
	}
}

// next waits for one firing. The heartbeats show early that a server which
// went away has forgotten the request.
func next(ctx context.Context, c jetstream.Consumer) (jetstream.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, pullWait)
	defer cancel()
	return c.Next(jetstream.FetchContext(ctx), jetstream.FetchHeartbeat(pullHeartbeat))
}

// fire handles one firing and disposes of it.
func (r *runner) fire(ctx context.Context, m jetstream.Msg) {
	log := r.b.opts.Logger
	name, ok := unescape(lastValue(m.Headers(), headerName))
	if !ok || name == "" {
		log.WarnContext(ctx, "a message on a due subject is no firing; dropped", "subject", m.Subject())
		r.dispose(ctx, m.TermWithReason("no firing of a schedule"))
		return
	}
	md, err := m.Metadata()
	if err != nil { // not from a consumer, which cannot be
		r.dispose(ctx, m.TermWithReason("no metadata"))
		return
	}
	attempt := md.NumDelivered
	if !r.enter(name) {
		// The one before still runs. Meanwhile a newer one may replace this.
		r.dispose(ctx, m.NakWithDelay(2*time.Second))
		return
	}
	defer r.leave(name)
	stop := r.keepAlive(ctx, m)
	err = r.h(ctx, Firing{
		Name: name, Payload: m.Data(), Attempt: attempt,
		ID: fmt.Sprintf("%s/%d/%d", name, md.Sequence.Stream, md.Timestamp.UnixNano()),
	})
	stop()
	kind := fault.KindOf(err)
	switch {
	case err == nil:
		// The work is done, also when ctx has ended since.
		ackCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		r.dispose(ctx, m.DoubleAck(ackCtx))
	case ctx.Err() != nil:
		r.dispose(ctx, m.NakWithDelay(time.Second)) // another replica takes over
	case kind == fault.Invalid, kind == fault.Unknown && attempt >= maxUnclassified:
		log.ErrorContext(ctx, "a scheduled job can never work; dropped", "schedule", name, "attempt", attempt, "error", err)
		r.dispose(ctx, m.TermWithReason(kind.String()))
	default:
		wait := backoff(attempt)
		log.WarnContext(ctx, "a scheduled job failed; it is due again later", "schedule", name, "attempt", attempt, "wait", wait, "error", err)
		r.dispose(ctx, m.NakWithDelay(wait))
	}
}

// dispose logs what could not be told to the server: it will deliver again.
func (r *runner) dispose(ctx context.Context, err error) {
	if err != nil {
		r.b.opts.Logger.WarnContext(ctx, "a firing could not be acknowledged; it will be delivered again", "error", err)
	}
}

// keepAlive tells the server that m is being worked on, until stop is called.
func (r *runner) keepAlive(ctx context.Context, m jetstream.Msg) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(r.b.opts.AckWait / 3)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if err := m.InProgress(); err != nil {
					r.b.opts.Logger.WarnContext(ctx, "a running job could not be kept alive; another replica may start it", "error", err)
				}
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}

func (r *runner) enter(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, is := r.busy[name]; is {
		return false
	}
	r.busy[name] = struct{}{}
	return true
}

func (r *runner) leave(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.busy, name)
}

func backoff(attempt uint64) time.Duration {
	if attempt > 9 {
		return maxBackoff
	}
	return min(time.Second<<(max(attempt, 1)-1), maxBackoff)
}

func lastValue(h nats.Header, name string) string { return header(&nats.Msg{Header: h}, name) }

func utoa(n uint64) string { return strconv.FormatUint(n, 10) }
