package integration_test

import (
	"context"
	"crypto/rand"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// A counter is the store as the fleet sees it: it notes when it was read.
type counter struct {
	secrets.Reader
	mu sync.Mutex
	at []time.Time
}

func (c *counter) Get(ctx context.Context, r ref.Ref, st secrets.Stage) (*secrets.Version, error) {
	c.mu.Lock()
	c.at = append(c.at, time.Now())
	c.mu.Unlock()
	return c.Reader.Get(ctx, r, st)
}

func (c *counter) reads() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.at)
}

// since returns the times of the reads after the first n, in order.
func (c *counter) since(n int) []time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := slices.Clone(c.at[n:])
	slices.SortFunc(out, time.Time.Compare)
	return out
}

// A coin is a rotator whose target takes everything.
type coin struct{}

func (coin) Create(context.Context, rotators.Change) (secrets.Value, error) {
	return secrets.NewString(rand.Text()), nil
}
func (coin) Set(context.Context, rotators.Change) error  { return nil }
func (coin) Test(context.Context, rotators.Change) error { return nil }

const (
	fleetSize  = 200
	herdJitter = 2 * time.Second
)

// TestHerd rotates a secret that 200 agents hold, each with a connection of
// its own. Only events bring the new version: polling is off.
func TestHerd(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	b := newBroker(t)
	log := &leaktest.Recorder{}
	bus := openBus(t, b, log)
	store := b.store(t, b.jetStream(t))
	id := natsRef(t, "acme/herd")
	plantSecret(t, store, id, secrets.NewString(rand.Text()))
	seen := &counter{Reader: store}

	var skipped atomic.Int64
	fleet := make([]*agent.Client, fleetSize)
	for i := range fleet {
		fleet[i] = agent.New(seen, natsbus.NewSubscriber(b.Conn(t), nil), &agent.Options{
			Refs: []ref.Ref{id}, Tenant: tenant, Jitter: herdJitter, Poll: -1, Logger: log.Logger(),
			Observe: func(o agent.Observation) {
				if o.Op == agent.OpSkip {
					skipped.Add(1)
				}
			},
		})
		run(t, "an agent", fleet[i].Run)
	}
	holds := func(what string, ok func(agent.Status) bool) {
		t.Helper()
		testenv.Eventually(t, time.Minute, what, func() bool {
			return !slices.ContainsFunc(fleet, func(c *agent.Client) bool { return !ok(c.Status(id)) })
		})
	}
	holds("every agent listening, with a version", func(s agent.Status) bool { return s.Listening && s.Version != "" })
	if n := seen.reads(); n != fleetSize {
		t.Errorf("%d reads at the start; want one for each of %d agents", n, fleetSize)
	}

	before := seen.reads()
	runner := rotators.NewRunner(store, coin{}, &rotators.Options{Publisher: bus, Tenant: tenantOf})
	res, err := runner.Rotate(t.Context(), id, "")
	must(t, err)
	holds("every agent on the new version", func(s agent.Status) bool { return s.Version == res.Version })
	at := seen.since(before)
	if len(at) != fleetSize {
		t.Errorf("%d reads for one rotation; want one for each of %d agents", len(at), fleetSize)
	}
	span, most := at[len(at)-1].Sub(at[0]), busiest(at, herdJitter/10)
	// Evenly spread a tenth of the window has 20 reads. A machine that stalls
	// bunches some, a herd has all.
	if span < herdJitter/2 || most > fleetSize/2 {
		t.Errorf("the reads took %s, up to %d in %s; want them spread over %s", span, most, herdJitter/10, herdJitter)
	}
	t.Logf("one rotation: %d reads by %d agents over %s, at most %d in %s", len(at), fleetSize, span.Round(time.Millisecond), most, herdJitter/10)

	// The same news fifty times: from late routes, with the same id and times
	// of their own. The bus knows it, and no agent hears of it again.
	const notices = 50
	before = seen.reads()
	skipped.Store(0)
	stored := len(storedEvents(t, b.jetStream(t)))
	for i := range notices {
		e := events.New(events.VersionActivated, id, time.Now().Add(time.Duration(i)*time.Second), res.Version)
		e.Data.Version, e.Data.Tenant = res.Version, tenant
		must(t, bus.Publish(t.Context(), e))
	}
	// A read would come within the jitter window.
	time.Sleep(herdJitter + 500*time.Millisecond)
	if n := seen.reads() - before; n != 0 || skipped.Load() != 0 {
		t.Errorf("%d notices of a version that is held caused %d reads and were heard %d times; want neither", notices, n, skipped.Load())
	}
	if n := len(storedEvents(t, b.jetStream(t))) - stored; n != 0 {
		t.Errorf("%d notices of one change were stored as %d more events; want none", notices, n)
	}
}

// busiest is the greatest number of the sorted times within a window.
func busiest(at []time.Time, window time.Duration) (most int) {
	for i, j := 0, 0; j < len(at); j++ {
		for at[j].Sub(at[i]) > window {
			i++
		}
		most = max(most, j-i+1)
	}
	return most
}
