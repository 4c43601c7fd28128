package agent

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// A Secret is one secret that a client holds. It is safe for concurrent use.
type Secret struct {
	c   *Client
	ref ref.Ref
	// cur is what is handed out: nil before the first read, and when MaxStale
	// has passed.
	cur  atomic.Pointer[secrets.Version]
	wake chan struct{} // holds one token when the plan has changed

	mu      sync.Mutex       // guards what follows
	held    *secrets.Version // the last good one, even when cur is withdrawn
	revoked string           // id of the version not to hand out again, or ""
	past    []string         // ids of the versions before, the newest last
	back    int              // reads in a row that went back to one of them
	adopted time.Time        // when held was taken over
	readAt  time.Time        // start of the last good read
	landed  time.Time        // end of the last read, good or bad
	fail    failure
	logged  failState // what the log said last
	flight  *flight
	ticket  *ticket
	limit   *rate.Limiter
	stale   *time.Timer
	plan    plan
	regs    []*registration
}

// maxPast is how many versions before the held one are remembered.
const maxPast = 4

// A failure is what went wrong since the last good read.
type failure struct {
	err error // nil if nothing
	n   int   // reads in a row
	at  time.Time
}

// failState is what the log tells apart.
type failState struct {
	bad  bool
	kind fault.Kind
}

func newSecret(c *Client, r ref.Ref) *Secret {
	return &Secret{
		c: c, ref: r, wake: make(chan struct{}, 1),
		limit: rate.NewLimiter(rate.Every(c.opts.InvalidateEvery), c.opts.InvalidateBurst),
	}
}

// Ref names the secret.
func (s *Secret) Ref() ref.Ref { return s.ref }

// Current returns the current version by one atomic load: nil before the
// first good read, and while it is withdrawn by MaxStale or DropRevoked.
func (s *Secret) Current() *secrets.Version { return s.cur.Load() }

// Get is [Client.Current].
func (s *Secret) Get(ctx context.Context) (*secrets.Version, error) {
	if v := s.cur.Load(); v != nil {
		return v, nil
	}
	return s.miss(ctx)
}

// miss reads the store for a caller that has nothing.
func (s *Secret) miss(ctx context.Context) (*secrets.Version, error) {
	if err := ctx.Err(); err != nil {
		return nil, s.gaveUp(err)
	}
	s.mu.Lock()
	if s.flight == nil && s.fail.err != nil && time.Since(s.fail.at) < missGap(s.fail.n) {
		err := s.fail.err
		s.mu.Unlock()
		return nil, err
	}
	s.mu.Unlock()
	return s.read(ctx, CauseMiss)
}

// missGap is for how long the n-th failure in a row answers for the store, so
// that callers who try in a loop do not.
func missGap(n int) time.Duration {
	return min(50*time.Millisecond<<min(n-1, 10), 5*time.Second)
}

// A flight is one read of the store, shared by all who wait for it.
type flight struct {
	done    chan struct{}
	cancel  context.CancelFunc
	cause   Cause
	start   time.Time
	hints   []events.Event // what the read answers
	waiters int            // under Secret.mu
	v       *secrets.Version
	err     error
}

// read returns the outcome of a read of the store, which goes on when ctx
// ends. A read that is under way will do.
func (s *Secret) read(ctx context.Context, cause Cause) (*secrets.Version, error) {
	s.mu.Lock()
	f := s.flight
	if f == nil {
		f = s.launch(ctx, cause)
	}
	return s.join(ctx, f)
}

// readAnew is read for who knows something that a read under way may have
// missed. started, if not nil, is called with s.mu held just before the read
// starts.
func (s *Secret) readAnew(ctx context.Context, cause Cause, started func()) (*secrets.Version, error) {
	if err := ctx.Err(); err != nil {
		return nil, s.gaveUp(err)
	}
	s.mu.Lock()
	for s.flight != nil {
		_, _ = s.join(ctx, s.flight) // not the one that is wanted
		if err := ctx.Err(); err != nil {
			return nil, s.gaveUp(err)
		}
		s.mu.Lock()
	}
	if started != nil {
		started()
	}
	return s.join(ctx, s.launch(ctx, cause))
}

// join unlocks s.mu and waits for f or the end of ctx.
func (s *Secret) join(ctx context.Context, f *flight) (*secrets.Version, error) {
	f.waiters++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		f.waiters--
		s.mu.Unlock()
	}()
	select {
	case <-f.done:
		return f.v, f.err
	case <-ctx.Done():
		return nil, s.gaveUp(ctx.Err())
	}
}

func (s *Secret) gaveUp(err error) error {
	return fault.New(fault.Unavailable, "agent: wait for "+s.ref.String(), err)
}

// launch starts a read. s.mu is held and there is no flight.
func (s *Secret) launch(ctx context.Context, cause Cause) *flight {
	// Values of the context, such as a trace, go along; its end does not.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.c.opts.ReadTimeout)
	f := &flight{done: make(chan struct{}), cancel: cancel, cause: cause, start: time.Now(), hints: s.plan.take()}
	s.flight = f
	go func() {
		defer cancel()
		v, err := s.c.reader.Get(ctx, s.ref, secrets.Current)
		s.land(f, v, err)
	}()
	return f
}

// land takes over what a read brought. There is one flight of a secret at a
// time, so a later read always has the last word.
func (s *Secret) land(f *flight, v *secrets.Version, err error) {
	now := time.Now()
	if err == nil && v == nil {
		err = fault.Newf(fault.Unknown, "read", "the store returned neither a version nor an error")
	}
	var change *Change
	lagging := false
	s.mu.Lock()
	if err == nil && v.ID == s.revoked && s.revoked != "" {
		err = fault.Newf(fault.Denied, "read", "version %s was revoked and the store still returns it; rotate the secret", v.ID)
	}
	if err != nil {
		err = readError(s.ref, err)
		s.fail = failure{err: err, n: s.fail.n + 1, at: now}
		s.plan.failed(now, f, fault.KindOf(err), s.fail.n)
	} else {
		s.fail = failure{}
		if s.goesBack(f, v) {
			s.plan.keep(f.hints)
			s.plan.want(now.Add(lagDelay(s.back)), CauseRetry)
			s.back++
			lagging = true
		} else {
			s.readAt = f.start
			lagging = s.plan.read(now, f, v, s.held)
			change = s.adopt(now, f, v)
			s.back = 0
		}
	}
	s.landed = now
	s.plan.landed(now)
	s.flight = nil
	f.v, f.err = s.held, err
	if err != nil {
		f.v = nil
	}
	state := failState{bad: err != nil, kind: fault.KindOf(err)}
	said := s.logged
	s.logged = state
	s.mu.Unlock()
	s.poke()

	s.c.logRead(s, said, state, err)
	if lagging {
		s.c.log.LogAttrs(context.Background(), levelDebug, "the store seems to lag; it is read again", s.attr())
	}
	o := Observation{Op: OpRead, Ref: s.ref, Cause: f.cause, Duration: now.Sub(f.start)}
	if err != nil {
		o.Failed, o.Kind = true, state.kind
	} else {
		o.Version = v.ID
	}
	s.c.observe(o)
	if change != nil {
		s.c.log.LogAttrs(context.Background(), levelInfo, "new version", s.attr(), versionAttr(change.New))
		s.c.observe(Observation{Op: OpAdopt, Ref: s.ref, Cause: f.cause, Version: v.ID, Lag: change.Lag})
	}
	// Last, so that who was woken finds everything done.
	close(f.done)
}

// adopt makes v the version that is handed out and tells the callbacks, if it
// is another one. s.mu is held.
func (s *Secret) adopt(now time.Time, f *flight, v *secrets.Version) *Change {
	s.rearm(f.start)
	// A store that numbers versions begins anew when a secret is made anew,
	// so one id may come to mean another value.
	if s.held != nil && s.held.ID == v.ID && s.held.Value.Equal(v.Value) {
		s.cur.Store(s.held)
		return nil
	}
	ch := Change{Ref: s.ref, Old: s.held, New: v}
	if s.held != nil {
		s.past = append(s.past, s.held.ID)
		s.past = s.past[max(0, len(s.past)-maxPast):]
	}
	if e := announced(f, v.ID); e != nil {
		ch.Event = e
		if p := e.Data.Published; !p.IsZero() {
			ch.Lag = max(now.Sub(p), 0)
		}
	}
	s.held, s.adopted, s.revoked = v, now, ""
	s.cur.Store(v)
	s.tell(ch)
	return &ch
}

// goesBack reports whether v is what a replica of the store returns that has
// not heard of the held version yet: one that was held before, and no event
// tells that it is current again. After a few such reads it is the truth, as
// when somebody moved the label by hand. s.mu is held.
func (s *Secret) goesBack(f *flight, v *secrets.Version) bool {
	if s.held == nil || s.held.ID == v.ID || s.back >= lagTries || !slices.Contains(s.past, v.ID) {
		return false
	}
	if s.cur.Load() == nil {
		return false // the held version is withdrawn; anything is better
	}
	return !slices.ContainsFunc(f.hints, func(e events.Event) bool {
		return announces(&e, v.ID) && !occurrenceOf(&e).before(s.plan.newest)
	})
}

// drop withdraws the version that e revokes, if that is asked for and it is
// held. An event that enables it again takes that back; the next read hands
// it out. s.mu is held.
func (s *Secret) drop(e *events.Event) {
	if !s.c.opts.DropRevoked || s.held == nil || e.Data.Version != s.held.ID {
		return
	}
	switch e.Type {
	case events.VersionRevoked:
		s.revoked = s.held.ID
		s.cur.Store(nil)
	case events.VersionEnabled:
		s.revoked = ""
	}
}

// rearm starts the time after which the version is withdrawn. s.mu is held.
func (s *Secret) rearm(read time.Time) {
	limit := s.c.opts.MaxStale
	if limit <= 0 {
		return
	}
	if s.stale != nil {
		s.stale.Stop()
	}
	s.stale = time.AfterFunc(limit-time.Since(read), func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		// A read may have landed while this waited for the lock.
		if !s.readAt.After(read) {
			s.cur.Store(nil)
		}
	})
}

// stop ends what Run's end leaves: a read that nobody waits for.
func (s *Secret) stop() {
	s.mu.Lock()
	f := s.flight
	if f == nil || f.waiters > 0 {
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	f.cancel()
	<-f.done
}

// readError is what callers get for a failed read. The text of an error that
// no leaf of ours has made could quote a value, so only its kind is kept.
func readError(r ref.Ref, err error) error {
	return fault.New(fault.KindOf(err), "agent: read "+r.String(), safe(err))
}

// Format shows the ref only.
func (s *Secret) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "secret %s", s.ref) }
