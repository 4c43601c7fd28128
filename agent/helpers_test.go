package agent_test

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

func mustRef(t testing.TB, s string) ref.Ref {
	t.Helper()
	r, err := ref.Parse(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A source is a store as an agent sees it: it counts reads, and may be slow,
// broken or behind.
type source struct {
	mu    sync.Mutex
	cur   map[ref.Ref]*secrets.Version
	n     int
	reads map[ref.Ref]int
	log   []time.Time
	err   error
	delay time.Duration
	stale int // that many reads still get the version before
	old   map[ref.Ref]*secrets.Version
}

func newSource() *source {
	return &source{cur: map[ref.Ref]*secrets.Version{}, old: map[ref.Ref]*secrets.Version{}, reads: map[ref.Ref]int{}}
}

func (s *source) Get(ctx context.Context, r ref.Ref, stage secrets.Stage) (*secrets.Version, error) {
	if stage != secrets.Current {
		return nil, fault.Newf(fault.Invalid, "source", "asked for stage %s", stage)
	}
	s.mu.Lock()
	s.reads[r]++
	s.log = append(s.log, time.Now())
	v, err, delay := s.cur[r], s.err, s.delay
	if s.stale > 0 {
		s.stale--
		v = s.old[r]
	}
	s.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, fault.Newf(fault.NotFound, "source", "no such secret")
	}
	c := *v
	return &c, nil
}

// put makes value current and returns its version id.
func (s *source) put(r ref.Ref, value string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	id := "v" + strconv.Itoa(s.n)
	s.old[r] = s.cur[r]
	s.cur[r] = &secrets.Version{ID: id, Value: secrets.NewString(value), Created: time.Now()}
	return id
}

func (s *source) set(f func(s *source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *source) count(r ref.Ref) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads[r]
}

// A bus is a subscriber in memory with the replay that a Subscriber promises.
type bus struct {
	mu   sync.Mutex
	subs map[*sub]struct{}
	last map[string]events.Event // by subject
	err  error                   // what Subscribe returns
	seen int                     // calls of Subscribe
}

type sub struct {
	f  events.Filter
	ch chan events.Event
}

func newBus() *bus { return &bus{subs: map[*sub]struct{}{}, last: map[string]events.Event{}} }

func (s *sub) wants(e events.Event) bool {
	return slices.Contains(s.f.Refs, e.Data.Ref) && slices.Contains(s.f.Types, e.Type) &&
		(s.f.Tenant == "" || s.f.Tenant == e.Data.Tenant)
}

func (b *bus) Subscribe(ctx context.Context, f events.Filter, h events.Handler, ready func()) error {
	b.mu.Lock()
	b.seen++
	if b.err != nil {
		defer b.mu.Unlock()
		return b.err
	}
	s := &sub{f: f, ch: make(chan events.Event, 4096)}
	b.subs[s] = struct{}{}
	for _, e := range b.last {
		if s.wants(e) {
			s.ch <- e
		}
	}
	n := len(s.ch)
	b.mu.Unlock()
	defer func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.subs, s)
	}()
	for {
		if n == 0 && ready != nil {
			ready()
			ready = nil
		}
		select {
		case <-ctx.Done():
			return nil
		case e := <-s.ch:
			n--
			h(ctx, e)
		}
	}
}

func (b *bus) publish(e events.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.Data.Published = time.Now()
	b.last[e.Subject()] = e
	for s := range b.subs {
		if s.wants(e) {
			s.ch <- e
		}
	}
}

func activated(r ref.Ref, version string) events.Event {
	e := events.New(events.VersionActivated, r, time.Now(), version)
	e.Data.Version, e.Data.Tenant = version, "acme"
	return e
}

// start runs c until the test ends and fails it if Run does.
func start(t testing.TB, c *agent.Client) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func options(t testing.TB, refs ...ref.Ref) *agent.Options {
	rec := &leaktest.Recorder{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(rec.String())
		}
	})
	return &agent.Options{Refs: refs, Tenant: "acme", Logger: rec.Logger()}
}
