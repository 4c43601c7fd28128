package sqs

import (
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/internal/pull"
	"github.com/keyturn/keyturn/internal/pull/pulltest"
	"github.com/keyturn/keyturn/internal/sqsfake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// second is one of the service in these tests.
const second = 20 * time.Millisecond

// A rig is a queue of the fake.
type rig struct {
	t *testing.T
	s *sqsfake.Server
	q *sqsfake.Queue
}

func newRig(t *testing.T) *rig {
	s := sqsfake.New(t, &sqsfake.Options{Second: second})
	return &rig{t, s, s.Queue("keyturn", sqsfake.Spec{})}
}

func (r *rig) Send(body string)               { r.q.Send(body, "") }
func (r *rig) Left() int                      { a, b := r.q.Depth(); return a + b }
func (r *rig) Down(on bool)                   { r.s.Down(on) }
func (r *rig) Expire()                        {} // leases are short
func (r *rig) Lease() time.Duration           { return 50 * second }
func (r *rig) Many() int                      { return 2000 }
func (r *rig) MinBytes() int                  { return maxMessage }
func (r *rig) Body(name string, n int) string { return pulltest.Plain(name, n) }
func (r *rig) Name(b []byte) string           { return pulltest.PlainName(b) }

// options are of a source whose network can be cut.
func (r *rig) options() (Options, func()) {
	c := r.s.Config()
	rt, cut := pulltest.Network(c.HTTPClient.(*http.Client).Transport)
	c.HTTPClient = &http.Client{Transport: rt}
	return Options{
		Config: &c, QueueURL: r.q.URL(), Lease: r.Lease(), second: second,
		retry: pull.Backoff{Min: 10 * time.Millisecond, Max: 100 * time.Millisecond},
		again: pull.Backoff{Min: 4 * second, Max: 20 * second},
	}, cut
}

func (r *rig) New(s pulltest.Settings) pulltest.Instance {
	o, cut := r.options()
	o.MaxInFlight, o.MaxBytes, o.Hold, o.Drain, o.Timeout, o.Logger = s.MaxInFlight, s.MaxBytes, s.Hold, s.Drain, s.Timeout, s.Log
	src := pulltest.Make(r.t, New, o)
	return pulltest.Instance{Source: src, Stats: src.Stats, Cut: cut}
}

func TestSource(t *testing.T) {
	pulltest.Run(t, func(t *testing.T) pulltest.Rig { return newRig(t) })
}
