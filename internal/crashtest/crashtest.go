// Package crashtest fails every outward call of an operation, one at a time,
// before and after its effect, and lets the caller check that a retry ends as
// if nothing had happened.
package crashtest

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"testing"
)

// ErrInjected is what a failed call returns.
var ErrInjected = errors.New("crashtest: injected failure")

// A Mode says what happens after the injected failure.
type Mode int

// The modes.
const (
	// Die fails every further call until [Injector.Restart]: the process was
	// killed, so it cannot clean up either.
	Die Mode = iota
	// Glitch fails one call only: the process lives and goes on.
	Glitch
)

func (m Mode) String() string {
	if m == Die {
		return "die"
	}
	return "glitch"
}

// An Injector counts outward calls and fails one of them. It is safe for
// concurrent use; the zero value fails nothing.
type Injector struct {
	mu    sync.Mutex
	armed bool
	at    int  // index of the call to fail
	after bool // let it take effect first
	mode  Mode
	n     int
	fired string // name of the failed call
	dead  bool
}

// Call makes one outward call through the injector. A nil Injector calls do.
func (in *Injector) Call(name string, do func() error) error {
	if in == nil {
		return do()
	}
	in.mu.Lock()
	if in.dead {
		in.mu.Unlock()
		return ErrInjected
	}
	hit := in.armed && in.n == in.at
	in.n++
	after := in.after
	if hit {
		in.armed, in.fired = false, name
		// A call that dies before its effect must not let a concurrent one
		// slip through either.
		in.dead = in.mode == Die && !after
	}
	in.mu.Unlock()
	if hit && !after {
		return ErrInjected
	}
	err := do()
	if hit {
		in.mu.Lock()
		in.dead = in.mode == Die
		in.mu.Unlock()
		return ErrInjected
	}
	return err
}

// Restart lets all calls pass again: the process was started anew.
func (in *Injector) Restart() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.dead, in.armed = false, false
}

// Fired returns the name of the call that failed, or "".
func (in *Injector) Fired() string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.fired
}

// Calls returns how many calls were begun.
func (in *Injector) Calls() int {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.n
}

// Run calls scenario once for each outward call that it makes, before and
// after the call's effect, in both modes, each time with a fresh injector,
// until a fault no longer fires: not until the scenario succeeds, since a
// swallowed error would end such a loop early. The scenario performs the
// operation, calls Restart, retries and checks. Run returns how many points
// were failed, prints the number, and fails t if there was none.
func Run(t *testing.T, scenario func(t *testing.T, in *Injector)) int {
	t.Helper()
	return RunModes(t, []Mode{Die, Glitch}, scenario)
}

// SoakEnv is the variable of the environment that asks for every mode where a
// test would else be content with [Die], since each of its calls takes long.
const SoakEnv = "KEYTURN_SOAK"

// Modes returns both modes, or for what is slow Die alone unless the
// environment asks for more.
func Modes(slow bool) []Mode {
	if slow && os.Getenv(SoakEnv) == "" {
		return []Mode{Die}
	}
	return []Mode{Die, Glitch}
}

// RunModes is Run in some of the modes.
func RunModes(t *testing.T, modes []Mode, scenario func(t *testing.T, in *Injector)) int {
	t.Helper()
	points := 0
	for _, mode := range modes {
		for _, after := range []bool{false, true} {
			when := "before"
			if after {
				when = "after"
			}
			for n := 0; ; n++ {
				if n > 10_000 {
					t.Fatal("crashtest: the operation never ends")
				}
				in := &Injector{armed: true, at: n, after: after, mode: mode}
				ok := t.Run(fmt.Sprintf("%s/%s/%03d", mode, when, n), func(t *testing.T) { scenario(t, in) })
				fired := in.Fired()
				if !ok {
					t.Fatalf("crashtest: failed at call %d (%s, %s, %s)", n, fired, when, mode)
				}
				if fired == "" {
					break
				}
				points++
			}
		}
	}
	if points == 0 {
		t.Fatal("crashtest: the operation made no outward call through the injector")
	}
	t.Logf("crash points: %d", points)
	return points
}

// Transport passes each HTTP request through the injector as one call.
func (in *Injector) Transport(rt http.RoundTripper) http.RoundTripper {
	if rt == nil {
		rt = http.DefaultTransport
	}
	return roundTripper(func(req *http.Request) (*http.Response, error) {
		var resp *http.Response
		err := in.Call(req.Method+" "+req.URL.Path+" "+req.Header.Get("X-Amz-Target"), func() (err error) {
			resp, err = rt.RoundTrip(req) //nolint:bodyclose // closed below, or by who gets it
			return err
		})
		if err != nil && resp != nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			resp = nil
		}
		return resp, err
	})
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
