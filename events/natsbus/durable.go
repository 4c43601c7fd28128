package natsbus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
)

const (
	maxBackoff = 5 * time.Minute
	// maxBusy is the longest time until what waits for a running job of its
	// name is looked at again.
	maxBusy = 30 * time.Second
	// maxUnclassified is how often a job is tried that fails for a reason that
	// nobody classified; that is some eight hours.
	maxUnclassified = 100
	pullWait        = 10 * time.Second
	pullHeartbeat   = 2 * time.Second
)

// After returns an error that wraps err, with which the handler of
// [Bus.RunSchedules] or [Bus.Work] asks to be called again after d instead of
// after the back-off, whatever the kind of err: a maintenance window opens
// then, or another job is in the way. err may be nil. The server keeps the time,
// over a restart to the second, and any replica may be called; a newer firing
// of the name comes sooner.
func After(d time.Duration, err error) error { return &afterError{wait: max(d, 0), err: err} }

type afterError struct {
	wait time.Duration
	err  error
}

func (e *afterError) Error() string {
	s := "due again after " + e.wait.String()
	if e.err != nil {
		s += ": " + e.err.Error()
	}
	return s
}

func (e *afterError) Unwrap() error { return e.err }

// A durable is a consumer that outlives its processes, as one process takes
// from it. All replicas share it, and each message goes to one of them.
type durable struct {
	b *Bus
	// obtain creates the consumer, or takes the one that is there.
	obtain func(ctx context.Context) (jetstream.Consumer, error)
	// read says what to do about a message. It reports false for one that is
	// nobody's job, which is dropped.
	read func(ctx context.Context, m jetstream.Msg, md *jetstream.MsgMetadata) (job, bool)

	mu   sync.Mutex
	busy map[string]struct{}
}

// A job is what one message asks for.
type job struct {
	name string
	// alone means that this process runs the jobs of the name one at a time.
	alone bool
	do    func(ctx context.Context) error
	// bury is called before a job is dropped that can never work; if it fails
	// the job is not dropped yet. It may be nil.
	bury func(ctx context.Context, why error) error
}

// durableConfig is what the consumers have in common.
func (b *Bus) durableConfig(name, description string) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		Durable:     name,
		Description: description,
		AckPolicy:   jetstream.AckExplicitPolicy,
		AckWait:     b.opts.AckWait,
		// No MaxDeliver: a gate's deadline must not be forgotten because its
		// target was away for a day. Back-off bounds the work.
		MaxDeliver: -1,
		// What waits for its back-off or its window counts as pending. With the
		// server's limit of 1000, as many jobs that wait would hold up all others.
		MaxAckPending: -1,
	}
}

// run works on the consumer's messages until ctx is done, which it returns as
// nil after the running jobs have ended.
func (d *durable) run(ctx context.Context) error {
	c, err := d.obtain(ctx)
	if ctx.Err() != nil {
		return nil
	}
	if err != nil {
		return err
	}
	d.busy = map[string]struct{}{}
	var wg sync.WaitGroup
	for range d.b.opts.Workers {
		wg.Go(func() { d.work(ctx, c) })
	}
	wg.Wait()
	return nil
}

// work takes one message at a time; it does not fetch ahead, so that what
// waits is free for every replica.
func (d *durable) work(ctx context.Context, c jetstream.Consumer) {
	log := d.b.opts.Logger
	for wait := minRetry; ctx.Err() == nil; {
		m, err := next(ctx, c)
		switch {
		case err == nil:
			wait = minRetry
			d.handle(ctx, m)
			continue
		case ctx.Err() != nil:
			return
		case errors.Is(err, nats.ErrTimeout), errors.Is(err, context.DeadlineExceeded):
			wait = minRetry // nothing was due
			continue
		}
		if wait == 8*minRetry {
			log.WarnContext(ctx, "no jobs can be read; trying on", "consumer", c.CachedInfo().Name, "error", err)
		}
		if !pause(ctx, wait) {
			return
		}
		wait = min(2*wait, maxRetry)
		if isGone(err) && d.b.nc.IsConnected() {
			if again, err := d.obtain(ctx); err == nil {
				c = again
			}
		}
	}
}

// next waits for one message. The heartbeats show early that a server which
// went away has forgotten the request.
func next(ctx context.Context, c jetstream.Consumer) (jetstream.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, pullWait)
	defer cancel()
	return c.Next(jetstream.FetchContext(ctx), jetstream.FetchHeartbeat(pullHeartbeat))
}

// handle does the job of one message, and tells the server what became of it.
func (d *durable) handle(ctx context.Context, m jetstream.Msg) {
	md, err := m.Metadata()
	if err != nil { // not from a consumer, which cannot be
		d.dispose(ctx, m.TermWithReason("no metadata"))
		return
	}
	j, ok := d.read(ctx, m, md)
	if !ok {
		d.dispose(ctx, m.TermWithReason("nobody's job"))
		return
	}
	if j.alone {
		if !d.enter(j.name) {
			// The one before still runs. Meanwhile a newer one may replace this.
			// The wait grows, so that a long job does not use up the attempts.
			d.dispose(ctx, m.NakWithDelay(min(backoff(md.NumDelivered+1), maxBusy)))
			return
		}
		defer d.leave(j.name)
	}
	stop := d.keepAlive(ctx, m)
	err = j.do(ctx)
	stop()
	d.settle(ctx, m, j, md.NumDelivered, err)
}

// settle disposes of a message whose job ended with err.
func (d *durable) settle(ctx context.Context, m jetstream.Msg, j job, attempt uint64, err error) {
	log := d.b.opts.Logger.With("job", j.name, "attempt", attempt)
	// What became of the job is told also when ctx has ended since.
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	kind := fault.KindOf(err)
	var later *afterError
	switch {
	case err == nil:
		d.dispose(ctx, m.DoubleAck(end))
		return
	case errors.As(err, &later):
		log.InfoContext(ctx, "a job is put off", "wait", later.wait, "error", err)
		d.dispose(ctx, m.NakWithDelay(later.wait))
		return
	case ctx.Err() != nil:
		d.dispose(ctx, m.NakWithDelay(time.Second)) // another replica takes over
		return
	case kind == fault.Invalid, kind == fault.Unknown && attempt >= d.b.tries:
		log.ErrorContext(ctx, "a job can never work; dropped", "error", err)
		if j.bury != nil {
			err = j.bury(end, err)
		}
		if j.bury == nil || err == nil {
			d.dispose(ctx, m.TermWithReason(kind.String()))
			return
		}
		err = fmt.Errorf("it could not be parked: %w", err)
	}
	wait := backoff(attempt)
	log.WarnContext(ctx, "a job failed; it is due again later", "wait", wait, "error", err)
	d.dispose(ctx, m.NakWithDelay(wait))
}

// dispose logs what could not be told to the server: it will deliver again.
func (d *durable) dispose(ctx context.Context, err error) {
	if err != nil {
		d.b.opts.Logger.WarnContext(ctx, "a job could not be acknowledged; it will be delivered again", "error", err)
	}
}

// keepAlive tells the server that m is being worked on, until stop is called.
func (d *durable) keepAlive(ctx context.Context, m jetstream.Msg) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(d.b.opts.AckWait / 3)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				if err := m.InProgress(); err != nil {
					d.b.opts.Logger.WarnContext(ctx, "a running job could not be kept alive; another replica may start it", "error", err)
				}
			case <-done:
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}

func (d *durable) enter(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, is := d.busy[name]; is {
		return false
	}
	d.busy[name] = struct{}{}
	return true
}

func (d *durable) leave(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.busy, name)
}

func backoff(attempt uint64) time.Duration {
	if attempt > 9 {
		return maxBackoff
	}
	return min(time.Second<<(max(attempt, 1)-1), maxBackoff)
}

// isGone reports that a consumer or its stream is not there, or that nobody
// answers for it.
func isGone(err error) bool {
	for _, e := range []error{jetstream.ErrConsumerDeleted, jetstream.ErrConsumerNotFound, jetstream.ErrConsumerDoesNotExist, nats.ErrNoResponders} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
