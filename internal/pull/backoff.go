package pull

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// A Backoff doubles a delay from Min to at most Max.
type Backoff struct{ Min, Max time.Duration }

// Delay is how long to wait after the n-th failure in a row, counted from 1.
// It is drawn from the upper half of the step, so that many workers that
// failed together do not come back together. It may be called concurrently.
func (b Backoff) Delay(n int) time.Duration {
	d := b.Min
	for i := 1; i < n && d < b.Max; i++ {
		d *= 2
	}
	d = min(d, b.Max)
	if d < 2 {
		return d
	}
	return d/2 + rand.N(d/2+1)
}

// Sleep waits for d, or less if ctx is done first. It reports whether it slept
// to the end.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// remind is after how long a failure that only a person can end is logged
// again.
const remind = 5 * time.Minute

// An Outage logs that something fails once, and once that it works again.
// Where a person has to act, for permissions or a queue that is not there, it
// says so again every five minutes. It is safe for concurrent use.
type Outage struct {
	log  *slog.Logger
	what string

	mu     sync.Mutex
	since  time.Time // zero while all is well
	logged time.Time
	count  int
}

// NewOutage returns an Outage of what, as "receive".
func NewOutage(log *slog.Logger, what string) *Outage { return &Outage{log: log, what: what} }

// Failed records a failure. err is logged: it must not hold a secret value.
func (o *Outage) Failed(ctx context.Context, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	o.count++
	first := o.since.IsZero()
	if first {
		o.since, o.logged = now, now
	}
	person := fault.Is(err, fault.Denied) || fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid)
	switch {
	case !first && (!person || now.Sub(o.logged) < remind):
		return
	case person:
		o.logged = now
		o.log.ErrorContext(ctx, "the cloud refuses this source; it is tried until somebody repairs the permissions or the configuration",
			"doing", o.what, "kind", fault.KindOf(err).String(), "class", string(fault.ClassOf(err)), "since", o.since, "err", err)
	default:
		o.log.WarnContext(ctx, "the cloud is away; trying again until it is back", "doing", o.what, "class", string(fault.ClassOf(err)), "err", err)
	}
}

// Worked records a success.
func (o *Outage) Worked(ctx context.Context) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.since.IsZero() {
		return
	}
	o.log.InfoContext(ctx, "the cloud is back", "doing", o.what, "away", time.Since(o.since).Round(time.Millisecond), "failures", o.count)
	o.since, o.count = time.Time{}, 0
}

// Down reports whether the last try failed.
func (o *Outage) Down() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.since.IsZero()
}
