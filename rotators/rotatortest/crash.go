package rotatortest

import (
	"testing"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// Crash fails every outward call of a rotation, of the store, the target and
// the bus alike, before and after its effect, as a process that dies and as
// one that goes on, and checks that a later attempt by a fresh process ends as
// if nothing had happened. Three later attempts are tried: Rotate with the
// same token, Rotate with a new one, and the four steps from createSecret with
// the same token, as the service of AWS does; for a slow target only the first,
// unless crashtest.SoakEnv is set. Then it fails every outward call
// of what else the rotator can do: retire, restore, remove orphans, verify, dry
// run. It returns the number of points and prints it.
//
// A rotator that removes what an interrupted create left only once it is old
// must be configured with an age of nearly nothing here.
func Crash(t *testing.T, newTarget NewTarget, tr Traits, newStore NewStore) int {
	points := 0
	for _, c := range []struct {
		name   string
		first  func(*world, process) error
		second func(*world, process) error
	}{
		{"SameToken", rotateAs(crashToken), rotateAs(crashToken)},
		{"NewToken", rotateAs(crashToken), rotateAs(nextToken)},
		{"Steps", stepsAs(crashToken), stepsAs(crashToken)},
	} {
		if len(crashtest.Modes(tr.Slow)) == 1 && c.name != "SameToken" {
			continue // for a soak
		}
		t.Run(c.name, func(t *testing.T) {
			calm := prepared(t, newTarget, tr, newStore)
			if err := c.first(calm, calm.process(nil)); err != nil {
				t.Fatalf("without a crash: %v", err)
			}
			calm.settled()
			want := calm.target.Live(t)
			points += crashtest.RunModes(t, crashtest.Modes(tr.Slow), func(t *testing.T, in *crashtest.Injector) {
				w := prepared(t, newTarget, tr, newStore)
				survive(w, in, c.first, c.second, want)
			})
		})
	}
	points += crashAbilities(t, newTarget, tr, newStore)
	t.Logf("crash points: %d", points)
	return points
}

const (
	warmToken  = "00000000-0000-4000-8000-00000000000a"
	crashToken = "00000000-0000-4000-8000-00000000000b"
	nextToken  = "00000000-0000-4000-8000-00000000000c"
)

func rotateAs(token string) func(*world, process) error {
	return func(w *world, p process) error {
		_, err := p.Rotate(w.Context(), w.id, token)
		return err
	}
}

func stepsAs(token string) func(*world, process) error {
	return func(w *world, p process) error {
		for _, step := range steps {
			if err := p.Step(w.Context(), w.id, token, step); err != nil {
				return err
			}
		}
		return nil
	}
}

var steps = []string{"createSecret", "setSecret", "testSecret", "finishSecret"}

// prepared returns a world in which, if the rotator retires, there is
// something to retire.
func prepared(t *testing.T, newTarget NewTarget, tr Traits, newStore NewStore) *world {
	t.Helper()
	w := newWorld(t, newTarget, tr, newStore)
	p := w.process(nil)
	if _, ok := p.rotator.(rotators.Retirer); ok {
		w.rotate(p, warmToken)
	}
	return w
}

// survive performs first with a failure, second without, and checks.
func survive(w *world, in *crashtest.Injector, first, second func(*world, process) error, want int) {
	w.Helper()
	before := w.must(secrets.Current)
	activated := w.bus.count(events.VersionActivated)
	failed := first(w, w.process(in))
	in.Restart()

	// Whoever reads now, before anybody repairs anything, can work.
	w.usable()
	if err := second(w, w.process(nil)); err != nil {
		w.Fatalf("the attempt after the crash at %q (which gave: %v): %v", in.Fired(), failed, err)
	}
	w.settled()
	w.live("after the crash and another attempt", want)

	now := w.must(secrets.Current)
	if now.Value.Equal(before.Value) {
		w.Fatal("nothing was rotated")
	}
	rotations := 1
	if now.Token != crashToken {
		if now.Token != nextToken {
			w.Fatalf("current is of rotation %s; want %s or %s", now.Token, crashToken, nextToken)
		}
		// The first attempt ended after its promotion, or before it left
		// anything; then it counts as none.
		if prev := w.must(secrets.Previous); prev.Token == crashToken {
			rotations = 2
		}
	} else if prev := w.must(secrets.Previous); !prev.Value.Equal(before.Value) {
		w.Fatal("previous is not what was current before")
	}
	if w.tr.KillsCurrent {
		w.refused("what was current before", before.Value)
	} else if rotations == 1 {
		w.signsIn("what was current before", before.Value)
	}
	// One id for each promoted version, however often it was announced. Only
	// one that was superseded before anybody repeated its finish may be
	// missing: who heard of its successor needs it no more.
	if got := w.bus.count(events.VersionActivated) - activated; got < 1 || got > rotations {
		w.Fatalf("%d versions were announced as current; want %d", got, rotations)
	}
}
