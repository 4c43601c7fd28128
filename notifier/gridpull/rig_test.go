package gridpull

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/internal/gridfake"
	"github.com/keyturn/keyturn/internal/pull"
	"github.com/keyturn/keyturn/internal/pull/pulltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// second is one of the service in these tests.
const second = 20 * time.Millisecond

// A rig is a subscription of the fake.
type rig struct {
	t *testing.T
	s *gridfake.Server
}

func newRig(t *testing.T) *rig {
	return &rig{t, gridfake.New(t, &gridfake.Options{Second: second})}
}

func (r *rig) Send(body string)     { r.s.Publish(body) }
func (r *rig) Left() int            { return r.s.Left() }
func (r *rig) Down(on bool)         { r.s.Down(on) }
func (r *rig) Expire()              {} // locks are short
func (r *rig) Lease() time.Duration { return r.s.Lock() }
func (r *rig) Many() int            { return 3000 }
func (r *rig) MinBytes() int        { return maxMessage }
func (r *rig) Body(name string, n int) string {
	return fmt.Sprintf(`{"specversion":"1.0","type":"t","source":"/s","id":%q,"data":{"pad":%q}}`, name, strings.Repeat(".", max(0, n-100)))
}

func (r *rig) Name(b []byte) string {
	var e struct{ ID string }
	if err := json.Unmarshal(b, &e); err != nil {
		r.t.Error(err)
	}
	return e.ID
}

// options are of a source whose network can be cut.
func (r *rig) options() (Options, func()) {
	rt, cut := pulltest.Network(r.s.Client().Transport)
	o := Options{
		Endpoint: r.s.URL(), Topic: gridfake.Topic, Subscription: gridfake.Subscription, Credential: r.s.Credential(),
		Lock: r.s.Lock(), retry: pull.Backoff{Min: 10 * time.Millisecond, Max: 100 * time.Millisecond},
	}
	o.Client.Transport = &http.Client{Transport: rt}
	return o, cut
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
