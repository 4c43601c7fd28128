package crashtest

import (
	"errors"
	"fmt"
	"testing"
)

// Three calls, of which the first two must be undone by a retry: Run fails
// each before and after its effect in both modes.
func TestRunFailsEveryCall(t *testing.T) {
	seen := map[string]int{}
	points := Run(t, func(t *testing.T, in *Injector) {
		effects := 0
		op := func() error {
			for _, name := range []string{"a", "b", "c"} {
				if err := in.Call(name, func() error { effects++; return nil }); err != nil {
					return err
				}
			}
			return nil
		}
		err := op()
		if fired := in.Fired(); fired != "" {
			if !errors.Is(err, ErrInjected) {
				t.Errorf("got %v; want the injected error", err)
			}
			seen[fmt.Sprintf("%s after %d effects", fired, effects)]++
		}
		in.Restart()
		if err := op(); err != nil {
			t.Errorf("after the restart: %v", err)
		}
	})
	if points != 12 {
		t.Errorf("%d points; want 3 calls, 2 moments, 2 modes: 12", points)
	}
	for _, want := range []string{"a after 0 effects", "a after 1 effects", "b after 1 effects", "b after 2 effects", "c after 2 effects", "c after 3 effects"} {
		if seen[want] != 2 {
			t.Errorf("%s: seen %d times; want once a mode", want, seen[want])
		}
	}
}

// A process that died makes no further call; one that met a glitch does.
func TestModes(t *testing.T) {
	for mode, want := range map[Mode]int{Die: 0, Glitch: 1} {
		in := &Injector{armed: true, mode: mode}
		effects := 0
		do := func() error { effects++; return nil }
		if err := in.Call("first", do); !errors.Is(err, ErrInjected) {
			t.Fatalf("%s: got %v", mode, err)
		}
		_ = in.Call("second", do)
		if effects != want {
			t.Errorf("%s: %d effects after the failure; want %d", mode, effects, want)
		}
	}
}
