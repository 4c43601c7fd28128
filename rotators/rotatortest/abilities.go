package rotatortest

import (
	"context"
	"encoding/json"
	"fmt"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// A Fingerprinter is a Target that can tell whether anything of it changed:
// two fingerprints are equal only if nothing did. They are compared and never
// printed.
type Fingerprinter interface {
	Fingerprint(t *testing.T) string
}

// A Breaker is a Target that can be broken in ways that a dry run has to
// find.
type Breaker interface {
	Breaks() []Break
}

// A Break is one way.
type Break struct {
	Name string
	// Do breaks the target and returns what is current then.
	Do func(t *testing.T, current secrets.Value) secrets.Value
	// Kind and Class are those of the error that tells.
	Kind  fault.Kind
	Class fault.Class
}

// A named is one case.
type named struct {
	name string
	f    func(*world)
}

// abilities returns the cases of what r can do besides rotating.
func abilities(r rotators.Rotator) (out []named) {
	if _, ok := r.(rotators.Verifier); ok {
		out = append(out, named{"Verify", verify}, named{"VerifyRefusesWhatItCannotTell", verifyInvalid})
	}
	if _, ok := r.(rotators.Retirer); ok {
		out = append(out, named{"Retire", retire}, named{"RetireSparesWhatIsUsed", retireSpares}, named{"RetireOfWhatWasNeverSet", retireUnset})
	}
	if _, ok := r.(rotators.Restorer); ok {
		out = append(out, named{"Restore", restore}, named{"RestoreBesideCurrent", restoreBeside})
	}
	if _, ok := r.(rotators.DryRunner); ok {
		out = append(out, named{"DryRun", dryRun})
	}
	return out
}

// ability returns the target's rotator, as a fresh process has it, as A.
func ability[A any](w *world, in *crashtest.Injector) A {
	w.Helper()
	a, ok := w.target.Rotator(w.T, in).(A)
	if !ok {
		w.Fatal("the rotator can do less than another of the same target could")
	}
	return a
}

// change is what a runner knows now.
func (w *world) change() rotators.Change {
	w.Helper()
	c := rotators.Change{Ref: w.id, Token: token, Current: w.must(secrets.Current).Value}
	if v := w.get(secrets.Pending); v != nil {
		c.Pending = v.Value
	}
	if v := w.get(secrets.Previous); v != nil {
		c.Previous = v.Value
	}
	return c
}

// unchanged fails the test if f changes the target.
func (w *world) unchanged(what string, f func()) {
	w.Helper()
	state := func() string {
		if p, ok := w.target.(Fingerprinter); ok {
			return p.Fingerprint(w.T)
		}
		return fmt.Sprint(w.target.Live(w.T))
	}
	before := state()
	f()
	if state() != before {
		w.Fatalf("%s changed the target", what)
	}
}

// stalled calls f as a process does that stood still, while others rotated,
// until right before the change: it must not be made.
func (w *world) stalled(what string, c rotators.Change, f func(rotators.Change) error) {
	w.Helper()
	c.StillPending = func(context.Context) error {
		return fault.Newf(fault.Conflict, "store", "another process was here")
	}
	w.unchanged(what+" by a process that stalled", func() {
		err := f(c)
		w.rec.Record(err)
		if !fault.Is(err, fault.Conflict) {
			w.Fatalf("%s by a process that stalled: %v; want the conflict", what, err)
		}
	})
}

func (w *world) noError(what string, err error) {
	w.Helper()
	w.rec.Record(err)
	if err != nil {
		w.Fatalf("%s: %v", what, err)
	}
}

// dead checks that v is refused, and that a Verifier says just that.
func (w *world) dead(what string, v secrets.Value) {
	w.Helper()
	w.refused(what, v)
	if r, ok := w.target.Rotator(w.T, nil).(rotators.Verifier); ok {
		w.deniedAuth(what, r.Verify(w.Context(), w.change(), v))
	}
}

func (w *world) deniedAuth(what string, err error) {
	w.Helper()
	w.rec.Record(err)
	if !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassAuth {
		w.Fatalf("verify of %s gave %v (kind %s, class %q); want denied, auth", what, err, fault.KindOf(err), fault.ClassOf(err))
	}
}

// edited returns v as somebody saves it who adds a note.
func edited(v secrets.Value) secrets.Value {
	m, ok := object(v)
	if !ok {
		return v
	}
	m["zz_edited"] = json.RawMessage(`"by hand"`)
	b, err := json.Marshal(m)
	if err != nil {
		return v
	}
	return secrets.NewValue(b)
}

// verify follows a rotation: whether a value works is told at each phase.
func verify(w *world) {
	ask := func(what string, v secrets.Value, works bool) {
		w.Helper()
		var err error
		w.unchanged("verify", func() { err = ability[rotators.Verifier](w, nil).Verify(w.Context(), w.change(), v) })
		if works {
			w.noError("verify of "+what, err)
		} else {
			w.deniedAuth(what, err)
		}
	}
	old := w.must(secrets.Current).Value
	ask("current", old, true)
	p := w.process(nil)
	for i, step := range steps {
		w.step(p, token, step)
		if pend := w.get(secrets.Pending); pend != nil {
			ask("pending after "+step, pend.Value, i >= 1 || w.tr.Issues)
		}
		ask("current after "+step, w.must(secrets.Current).Value, i < 1 || i == len(steps)-1 || w.tr.CurrentSurvivesSet)
	}
	ask("what was current before", old, !w.tr.KillsCurrent)
	w.rec.Check(w.T, append(w.canaries(old), w.canaries(w.must(secrets.Current).Value)...)...)
}

func verifyInvalid(w *world) {
	c := w.change()
	in := &crashtest.Injector{}
	v := ability[rotators.Verifier](w, in)
	if f, ok := w.target.(Foreigner); ok {
		w.invalid(v.Verify(w.Context(), c, f.Foreign(w.T, c.Current)), "verify of a value that names another target")
	}
	if _, ok := object(c.Current); ok {
		for _, raw := range []string{w.canary, `"` + w.canary + `"`, `{}`, `{"password":"` + w.canary + `","key":"` + w.canary} {
			bad := secrets.NewString(raw)
			w.invalid(v.Verify(w.Context(), c, bad), "verify of a value that is no secret")
			w.invalid(v.Verify(w.Context(), rotators.Change{Ref: w.id, Current: bad}, c.Current), "verify beside a current value that is no secret")
		}
	}
	if n := in.Calls(); n > 0 {
		w.Errorf("verify made %d outward calls before it refused", n)
	}
	gone, cancel := context.WithCancel(w.Context())
	cancel()
	if err := v.Verify(gone, c, c.Current); !fault.Is(err, fault.Unavailable) {
		w.Errorf("verify with a context that has ended gave %v (kind %s); want unavailable", err, fault.KindOf(err))
	}
	w.rec.Check(w.T, w.canaries(c.Current)...)
}

// retire makes the superseded value useless and leaves current alone, however
// often.
func retire(w *world) {
	old := w.must(secrets.Current).Value
	w.rotate(w.process(nil), "")
	c := w.change()
	w.stalled("retire", c, func(c rotators.Change) error {
		return ability[rotators.Retirer](w, nil).Retire(w.Context(), c, old)
	})
	w.noError("retire", ability[rotators.Retirer](w, nil).Retire(w.Context(), c, old))
	w.dead("what was retired", old)
	w.settled()
	w.unchanged("retire repeated", func() {
		for range 2 {
			w.noError("retire again", ability[rotators.Retirer](w, nil).Retire(w.Context(), c, old))
		}
	})
	w.settled()
	// A retired credential is no obstacle to the rotations that follow.
	for range 2 {
		w.rotate(w.process(nil), "")
		w.settled()
	}
	w.rec.Check(w.T, append(w.canaries(old), w.canaries(c.Current)...)...)
}

// retireSpares asks for what is in use to be retired, by its value and by one
// that somebody edited.
func retireSpares(w *world) {
	w.rotate(w.process(nil), "")
	p := w.process(nil)
	try := func(names ...string) {
		w.Helper()
		c := w.change()
		values := map[string]secrets.Value{"current": c.Current, "pending": c.Pending}
		w.unchanged("retire of what is in use", func() {
			for _, name := range names {
				for _, v := range []secrets.Value{values[name], edited(values[name])} {
					w.noError("retire of "+name, ability[rotators.Retirer](w, nil).Retire(w.Context(), c, v))
				}
			}
		})
		for _, name := range names {
			w.signsIn(name, values[name])
		}
	}
	try("current")
	w.step(p, token, "createSecret")
	w.step(p, token, "setSecret")
	try("current", "pending")
	w.step(p, token, "testSecret")
	w.step(p, token, "finishSecret")
	w.settled()
}

// retireUnset retires what was made and never set, as a runner does whose
// rotation was overtaken.
func retireUnset(w *world) {
	w.rotate(w.process(nil), "")
	live := w.target.Live(w.T)
	c := w.change()
	v, err := w.target.Rotator(w.T, nil).Create(w.Context(), c)
	w.noError("create", err)
	drop := func() { w.noError("retire", ability[rotators.Retirer](w, nil).Retire(w.Context(), c, v)) }
	if w.tr.Issues {
		drop()
	} else {
		w.unchanged("retire of what was never set", drop)
	}
	w.dead("what was never stored", v)
	w.live("after what was never stored was retired", live)
	w.settled()
	w.signsIn("previous", c.Previous)
}

// restore undoes retire, beside current.
func restore(w *world) {
	old := w.must(secrets.Current).Value
	w.rotate(w.process(nil), "")
	c := w.change()
	for range 2 {
		w.noError("retire", ability[rotators.Restorer](w, nil).(rotators.Retirer).Retire(w.Context(), c, old))
		w.dead("what was retired", old)
		w.stalled("restore", c, func(c rotators.Change) error {
			return ability[rotators.Restorer](w, nil).Restore(w.Context(), c, old)
		})
		w.noError("restore", ability[rotators.Restorer](w, nil).Restore(w.Context(), c, old))
		w.signsIn("what was restored", old)
		w.settled()
	}
	w.unchanged("restore of what is honoured", func() {
		for _, v := range []secrets.Value{old, edited(old), c.Current} {
			w.noError("restore of what is honoured", ability[rotators.Restorer](w, nil).Restore(w.Context(), c, v))
		}
	})
	for range 2 {
		w.rotate(w.process(nil), "")
		w.settled()
	}
	w.rec.Check(w.T, append(w.canaries(old), w.canaries(c.Current)...)...)
}

// restoreBeside restores what was superseded three rotations ago. It may be
// gone for good; whatever comes of it, current keeps working.
func restoreBeside(w *world) {
	var seen []secrets.Value
	for range 3 {
		seen = append(seen, w.must(secrets.Current).Value)
		w.rotate(w.process(nil), "")
	}
	c := w.change()
	for _, v := range append(seen, secrets.NewString(w.canary)) {
		err := ability[rotators.Restorer](w, nil).Restore(w.Context(), c, v)
		w.rec.Record(err)
		switch {
		case err == nil:
			w.signsIn("what was restored", v)
		case !fault.Is(err, fault.Invalid):
			w.Fatalf("restore gave %v (kind %s); want success or invalid", err, fault.KindOf(err))
		}
		w.settled()
	}
	w.rec.Check(w.T, w.canary)
}

// dryRun finds nothing before and after a rotation, and each thing that the
// target can break.
func dryRun(w *world) {
	healthy := func(w *world) {
		w.Helper()
		for _, c := range w.look(nil, w.change()) {
			if c.Err != nil {
				w.Fatalf("%s: %v; want success", c.What, c.Err)
			}
		}
	}
	healthy(w)
	w.rotate(w.process(nil), "")
	healthy(w)
	b, ok := w.target.(Breaker)
	if !ok {
		return
	}
	for i, br := range b.Breaks() {
		w.Run(br.Name, func(t *testing.T) {
			w := w.fresh(t)
			healthy(w)
			c := w.change()
			c.Current = w.target.(Breaker).Breaks()[i].Do(t, c.Current)
			found := w.look(nil, c)
			last := found[len(found)-1]
			if fault.KindOf(last.Err) != br.Kind || fault.ClassOf(last.Err) != br.Class {
				w.Errorf("%s: %v (kind %s, class %q); want %s, %q", last.What, last.Err, fault.KindOf(last.Err), fault.ClassOf(last.Err), br.Kind, br.Class)
			}
			w.rec.Check(t, w.canaries(w.must(secrets.Current).Value)...)
		})
	}
}

// look runs a dry run and checks its form: something was looked at, nothing
// was changed, and nothing follows what failed.
func (w *world) look(in *crashtest.Injector, c rotators.Change) (out []rotators.Check) {
	w.Helper()
	w.unchanged("a dry run", func() { out = ability[rotators.DryRunner](w, in).DryRun(w.Context(), c) })
	if len(out) == 0 {
		w.Fatal("a dry run checked nothing")
	}
	for i, c := range out {
		w.rec.Record(c, c.Err)
		if c.What == "" {
			w.Error("a check does not say what it is of")
		}
		if c.Err != nil && i < len(out)-1 {
			w.Errorf("%s: %v; a dry run went on after it", c.What, c.Err)
		}
	}
	return out
}
