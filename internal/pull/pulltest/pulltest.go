// Package pulltest is the suite that every source passes that pulls, each
// against its own cloud.
package pulltest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/pull"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
)

// Settings are what a test asks of a source; zero values are for the Rig to
// choose.
type Settings struct {
	MaxInFlight, MaxBytes int
	Hold, Drain, Timeout  time.Duration
	Log                   *slog.Logger
}

// An Instance is one source as a process of its own would be.
type Instance struct {
	notifier.Source
	Stats func() pull.Stats
	// Cut takes the network away from this instance alone, for good: with it
	// the process can tell the cloud nothing more, as if it had been killed.
	Cut func()
}

// A Rig is a cloud with one empty subscription.
type Rig interface {
	// Send puts a message into the subscription.
	Send(body string)
	// Left is how many messages are not acknowledged.
	Left() int
	// New makes a source of the subscription. What is given back is to be
	// delivered again within a second.
	New(Settings) Instance
	// Down takes the cloud away from everybody, and brings it back.
	Down(bool)
	// Expire ends the leases that nobody extends, or waits until they end.
	Expire()
	// Lease is how long a lease lasts, or 0 if that is too long for a test.
	Lease() time.Duration
	// Many is how many messages the cloud delivers in a second or two.
	Many() int
	// MinBytes is the least of Settings.MaxBytes.
	MinBytes() int
	// Body makes a body of about n bytes that carries name.
	Body(name string, n int) string
	// Name reads it back.
	Name(body []byte) string
}

// Plain is a body of which no format is asked.
func Plain(name string, n int) string {
	return name + ";" + strings.Repeat(".", max(0, n-len(name)-1))
}

// PlainName is the name in a body made by Plain.
func PlainName(body []byte) string {
	name, _, _ := strings.Cut(string(body), ";")
	return name
}

// A Ledger records what became of messages.
type Ledger struct {
	mu    sync.Mutex
	calls map[string]int
	done  map[string]int
	now   int
	bytes int
	// Peak and PeakBytes are the most that was inside the handler at a time.
	Peak, PeakBytes int
}

// NewLedger returns an empty Ledger.
func NewLedger() *Ledger { return &Ledger{calls: map[string]int{}, done: map[string]int{}} }

// Begin records a call, and returns the how many-th it is for the name.
func (l *Ledger) Begin(name string, bytes int) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.calls[name]++
	l.now++
	l.bytes += bytes
	l.Peak, l.PeakBytes = max(l.Peak, l.now), max(l.PeakBytes, l.bytes)
	return l.calls[name]
}

// End records the end of a call.
func (l *Ledger) End(name string, bytes int, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now--
	l.bytes -= bytes
	if ok {
		l.done[name]++
	}
}

// Done is how many different messages were handled.
func (l *Ledger) Done() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.done)
}

// Calls is how often the handler was called.
func (l *Ledger) Calls() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.calls {
		n += c
	}
	return n
}

// CallsOf is how often the handler was called with the name.
func (l *Ledger) CallsOf(name string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.calls[name]
}

// Missing returns which of n messages made by SendAll were never handled.
func (l *Ledger) Missing(n int) (out []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range n {
		if l.done[name(i)] == 0 {
			out = append(out, name(i))
		}
	}
	return out
}

func name(i int) string { return fmt.Sprintf("m-%05d", i) }

// SendAll sends n messages of a size.
func SendAll(r Rig, n, size int) {
	for i := range n {
		r.Send(r.Body(name(i), size))
	}
}

// Start runs a source until stop is called, which waits for the end, or until
// t ends.
func Start(t testing.TB, s notifier.Source, h notifier.Handler) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, h) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-ended:
				if err != nil {
					t.Errorf("Run returned %v, expected nil", err)
				}
			case <-time.After(20 * time.Second):
				t.Error("Run did not return within 20 s")
			}
		})
	}
	t.Cleanup(stop)
	return stop
}

// Make returns what newSource makes of options that are right.
func Make[Options, Source any](t testing.TB, newSource func(Options) (Source, error), o Options) Source {
	t.Helper()
	s, err := newSource(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Network reaches the cloud through rt until it is cut, which is for good. An
// answer that is on its way by then does not arrive.
func Network(rt http.RoundTripper) (network http.RoundTripper, cut func()) {
	n := &severable{rt: rt}
	return n, func() { n.cut.Store(true) }
}

type severable struct {
	rt  http.RoundTripper
	cut atomic.Bool
}

func (n *severable) RoundTrip(r *http.Request) (*http.Response, error) {
	if n.cut.Load() {
		return nil, errors.New("no network")
	}
	resp, err := n.rt.RoundTrip(r)
	if err == nil && n.cut.Load() {
		_ = resp.Body.Close()
		return nil, errors.New("no network")
	}
	return resp, err
}

// limit is how long a test waits for what should happen.
const limit = 20 * time.Second

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	testenv.Eventually(t, limit, what, cond)
}
