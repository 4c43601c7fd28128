// Package agent is the client that the agents of a fleet hold: it keeps the
// current version of a few secrets in memory, and hears of a new one by push.
//
// An event is only a hint to read the store again, after a short time that is
// another one for each agent, so that a rotation is no herd. A slow poll is
// the floor for when no event comes. Errors of the store leave the last good
// version in place. When a service refuses the credential, [Client.Invalidate]
// asks for a read, for exactly the version that was refused and at a limited
// rate.
//
// What an agent needs is a [secrets.Reader] and an [events.Subscriber];
// package pgxauth below this one makes a connection pool follow a secret.
package agent

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// Options of [New]. The zero value of each field is its default.
type Options struct {
	// Refs are the secrets to hold; [Client.Watch] adds more.
	Refs []ref.Ref
	// Tenant whose events are heard. "" hears any tenant that the bus lets
	// this connection hear.
	Tenant string
	// Poll is the mean time between reads of a secret when nothing happens,
	// each one 20 % more or less at random: 5 min by default. Negative turns
	// polling off, and with it the promise that a lost event heals by itself.
	Poll time.Duration
	// Jitter is the window in which the agents of a fleet spread the reads
	// that one event causes: 100 ms by default, none if negative. A revoked
	// version is read for at once whatever the window.
	Jitter time.Duration
	// MaxStale, if positive, withdraws a version that no read has confirmed
	// for so long: then Current reads the store and fails if that fails. By
	// default the last good version is handed out for ever, since a
	// credential that may be old serves better than none.
	MaxStale time.Duration
	// DropRevoked withdraws a version at once when an event says that it was
	// revoked, even if the store cannot be read: then Current fails until the
	// store returns another version. By default the revoked version stays in
	// use until there is another, which a read without jitter looks for.
	DropRevoked bool
	// ReadTimeout bounds one read of the store: 30 s by default.
	ReadTimeout time.Duration
	// InvalidateBurst and InvalidateEvery limit the reads that Invalidate and
	// Refresh cause, for each secret: 3 at once, then one every 5 s by
	// default, with up to a fifth more at random.
	InvalidateBurst int
	InvalidateEvery time.Duration
	// Instance names this agent in the fleet and so its place in the jitter
	// window. Random by default.
	Instance string
	// Logger gets changes of state and never a value. slog.Default by default.
	Logger *slog.Logger
	// Observe, if not nil, is told of reads, events and changes, for metrics.
	// It is called from several goroutines and must be quick.
	Observe func(Observation)
}

// The defaults.
const (
	defaultPoll        = 5 * time.Minute
	defaultJitter      = 100 * time.Millisecond
	defaultReadTimeout = 30 * time.Second
	defaultBurst       = 3
	defaultEvery       = 5 * time.Second

	// maxReads is how many secrets are read at a time without anybody
	// waiting for them.
	maxReads = 8
	// readyTimeout is how long the first read waits for the subscription, so
	// that a bus that is away does not keep an agent from its credential.
	readyTimeout = 2 * time.Second
	// A subscription that failed is tried again after these.
	minResubscribe = time.Second
	maxResubscribe = time.Minute
)

// A Client holds the current version of each of its secrets. It is safe for
// concurrent use. Versions are shared by all who ask and must not be changed
// or wiped; the client does not wipe a superseded one either, since somebody
// may be signing in with it.
type Client struct {
	reader secrets.Reader
	sub    events.Subscriber
	opts   Options
	log    *slog.Logger
	slots  chan struct{} // one for each read that nobody waits for

	// watched is replaced as a whole, so that Current needs no lock.
	watched   atomic.Pointer[map[ref.Ref]*Secret]
	listening atomic.Int32 // subscriptions whose replay is through
	subs      atomic.Int32 // subscriptions that should be

	// life ends when Run returns; callbacks get it.
	life context.Context
	end  context.CancelFunc

	mu     sync.Mutex      // guards what follows
	run    context.Context //nolint:containedctx // set while Run runs, for Watch
	ran    bool            // Run was called
	closed bool            // Run has returned or is about to
	bad    error           // the first invalid ref of Options.Refs
	wg     sync.WaitGroup  // everything that Run waits for
}

// New returns a client that reads from r and hears events from s. A nil s
// leaves polling alone. Nothing is read before Run or the first Current.
func New(r secrets.Reader, s events.Subscriber, o *Options) *Client {
	c := &Client{reader: r, sub: s, slots: make(chan struct{}, maxReads)}
	if o != nil {
		c.opts = *o
	}
	c.opts.defaults()
	c.log = c.opts.Logger
	c.life, c.end = context.WithCancel(context.Background())
	c.watched.Store(&map[ref.Ref]*Secret{})
	c.bad = c.Watch(c.opts.Refs...)
	return c
}

func (o *Options) defaults() {
	if o.Poll == 0 {
		o.Poll = defaultPoll
	}
	if o.MaxStale > 0 && o.Poll > o.MaxStale/2 {
		// A store that works must not let a version go stale between polls.
		o.Poll = o.MaxStale / 2
	}
	if o.Jitter == 0 {
		o.Jitter = defaultJitter
	}
	if o.ReadTimeout <= 0 {
		o.ReadTimeout = defaultReadTimeout
	}
	if o.InvalidateBurst <= 0 {
		o.InvalidateBurst = defaultBurst
	}
	if o.InvalidateEvery <= 0 {
		o.InvalidateEvery = defaultEvery
	}
	if o.Instance == "" {
		o.Instance = rand.Text()
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
}

// Watch adds secrets, before Run or while it runs; one that is held already
// is left as it is. An error is of kind Invalid and names the first ref that
// is none; the others are added.
func (c *Client) Watch(refs ...ref.Ref) error {
	var bad error
	good := make([]ref.Ref, 0, len(refs))
	for _, r := range refs {
		if err := r.Validate(); err != nil {
			if bad == nil {
				bad = err
			}
			continue
		}
		good = append(good, r)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := *c.watched.Load()
	next := maps.Clone(old)
	var added []*Secret
	for _, r := range good {
		if next[r] == nil {
			next[r] = newSecret(c, r)
			added = append(added, next[r])
		}
	}
	if len(added) == 0 {
		return bad
	}
	c.watched.Store(&next)
	if c.run != nil && !c.closed {
		c.begin(c.run, added)
	}
	return bad
}

// lookup returns what is held for r, or nil.
func (c *Client) lookup(r ref.Ref) *Secret { return (*c.watched.Load())[r] }

// Secret returns the handle of r, for who asks often, and watches r if it is
// not watched yet. A ref that is invalid gives a handle that never has a
// version.
func (c *Client) Secret(r ref.Ref) *Secret {
	if s := c.lookup(r); s != nil {
		return s
	}
	if err := c.Watch(r); err != nil {
		return newSecret(c, r)
	}
	return c.lookup(r)
}

// Current returns the version that is current, from memory: no lock and no
// allocation. Before the first good read it reads the store, once for all who
// ask at the time; ctx bounds the wait of this caller, not the shared read.
// When that read fails its error is returned, and for a short time, which
// grows up to 5 s while it goes on failing, to whoever asks next. A ref that
// is not watched is Invalid.
//
// Without Run nothing notices a new version.
func (c *Client) Current(ctx context.Context, r ref.Ref) (*secrets.Version, error) {
	s := c.lookup(r)
	if s == nil {
		return nil, c.unwatched(r)
	}
	return s.Get(ctx)
}

func (c *Client) unwatched(r ref.Ref) error {
	return fault.Newf(fault.Invalid, "agent", "%s is not watched; name it in Options.Refs or call Watch", r)
}

// Run hears events and polls until ctx is done, which it returns as nil after
// everything that it started has ended, callbacks too. It subscribes first,
// then reads what was not read yet, then reads again on events. A
// subscription that fails is tried again, and meanwhile there is the poll. A
// client runs once: a second call is a Conflict, an invalid ref in
// Options.Refs Invalid. After Run, Current keeps answering with what was last
// read.
func (c *Client) Run(ctx context.Context) error {
	c.mu.Lock()
	if c.ran || c.bad != nil {
		err := c.bad
		if err == nil {
			err = fault.Newf(fault.Conflict, "agent", "Run was called before; make a new Client to run again")
		}
		c.mu.Unlock()
		return err
	}
	c.ran = true
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.run = ctx
	all := make([]*Secret, 0, len(*c.watched.Load()))
	for _, s := range *c.watched.Load() {
		all = append(all, s)
	}
	c.begin(ctx, all)
	c.mu.Unlock()

	<-ctx.Done()
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.end()
	c.wg.Wait()
	for _, s := range *c.watched.Load() {
		s.stop()
	}
	return nil
}

// begin subscribes for the given secrets and starts their workers. c.mu is
// held.
func (c *Client) begin(ctx context.Context, ss []*Secret) {
	if len(ss) == 0 {
		// A filter without refs would hear everybody's.
		return
	}
	ready := make(chan struct{})
	if c.sub == nil {
		close(ready)
	} else {
		refs := make([]ref.Ref, len(ss))
		for i, s := range ss {
			refs[i] = s.ref
		}
		c.subs.Add(1)
		c.wg.Go(func() { c.listen(ctx, refs, sync.OnceFunc(func() { close(ready) })) })
	}
	for _, s := range ss {
		c.wg.Go(func() {
			t := time.NewTimer(readyTimeout)
			defer t.Stop()
			select {
			case <-ready:
			case <-t.C:
			case <-ctx.Done():
				return
			}
			s.work(ctx)
		})
	}
}

// track starts f as something that Run waits for, and reports false after
// Run's end.
func (c *Client) track(f func()) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.wg.Go(f)
	return true
}

// Format shows how many secrets there are and nothing of them.
func (c *Client) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "agent client of %d secrets", len(*c.watched.Load()))
}

// LogValue is the same for slog.
func (c *Client) LogValue() slog.Value { return slog.StringValue(fmt.Sprint(c)) }
