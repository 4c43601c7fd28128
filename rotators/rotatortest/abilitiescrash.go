package rotatortest

import (
	"context"
	"errors"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// crashAbilities fails every outward call of what the rotator can do besides
// rotating, and repeats it as a fresh process. It returns the number of
// points.
func crashAbilities(t *testing.T, newTarget NewTarget, tr Traits, newStore NewStore) int {
	points := 0
	run := func(name string, f func(*world, *crashtest.Injector)) {
		t.Run(name, func(t *testing.T) {
			points += crashtest.RunModes(t, crashtest.Modes(tr.Slow), func(t *testing.T, in *crashtest.Injector) {
				w := prepared(t, newTarget, tr, newStore)
				f(w, in)
				var canaries []string
				for _, st := range []secrets.Stage{secrets.Current, secrets.Previous} {
					if v := w.get(st); v != nil {
						canaries = append(canaries, w.canaries(v.Value)...)
					}
				}
				w.rec.Check(t, canaries...)
			})
		})
	}
	r := newTarget(t).Rotator(t, nil)
	if _, ok := r.(rotators.Verifier); ok {
		run("Verify", crashVerify)
	}
	if _, ok := r.(rotators.DryRunner); ok {
		run("DryRun", crashDryRun)
	}
	if _, ok := r.(rotators.Retirer); ok {
		run("Retire", crashRetire)
	}
	if _, ok := r.(rotators.Restorer); ok {
		run("Restore", crashRestore)
	}
	if _, ok := r.(rotators.OrphanFinder); ok && tr.Issues {
		t.Run("Orphans", func(t *testing.T) { orphans(newWorld(t, newTarget, tr, newStore)) })
		run("RemoveOrphans", crashRemoveOrphans)
	}
	return points
}

// crashVerify: a call that fails is not taken for a refusal.
func crashVerify(w *world, in *crashtest.Injector) {
	c := w.change()
	err := ability[rotators.Verifier](w, in).Verify(w.Context(), c, c.Current)
	w.rec.Record(err, "verified")
	if fired := in.Fired(); fired != "" && err == nil {
		w.Fatalf("verify says that the value works, though %s failed", fired)
	}
	if fault.Is(err, fault.Denied) && fault.ClassOf(err) == fault.ClassAuth {
		w.Fatalf("a failed call is taken for a refusal: %v", err)
	}
	in.Restart()
	w.noError("verify", ability[rotators.Verifier](w, nil).Verify(w.Context(), c, c.Current))
}

// crashDryRun: what could not be looked at is no success.
func crashDryRun(w *world, in *crashtest.Injector) {
	c := w.change()
	out := w.look(in, c)
	if last := out[len(out)-1]; in.Fired() != "" && last.Err == nil {
		w.Fatalf("all is well, says a dry run, though %s failed", in.Fired())
	}
	in.Restart()
	for _, check := range w.look(nil, c) {
		w.noError(check.What, check.Err)
	}
}

// crashRetire and the two below: whatever failed, the same again ends it, and
// current works all the time.
func crashRetire(w *world, in *crashtest.Injector) {
	c := w.change()
	w.rec.Record(ability[rotators.Retirer](w, in).Retire(w.Context(), c, c.Previous))
	in.Restart()
	w.settled()
	w.noError("retire after a crash", ability[rotators.Retirer](w, nil).Retire(w.Context(), c, c.Previous))
	w.dead("what was retired", c.Previous)
	w.settled()
}

func crashRestore(w *world, in *crashtest.Injector) {
	c := w.change()
	w.noError("retire", ability[rotators.Retirer](w, nil).Retire(w.Context(), c, c.Previous))
	w.rec.Record(ability[rotators.Restorer](w, in).Restore(w.Context(), c, c.Previous))
	in.Restart()
	w.settled()
	w.noError("restore after a crash", ability[rotators.Restorer](w, nil).Restore(w.Context(), c, c.Previous))
	w.signsIn("what was restored", c.Previous)
	w.settled()
}

func crashRemoveOrphans(w *world, in *crashtest.Injector) {
	w.lose(2)
	c := w.change()
	w.rec.Record(ability[rotators.OrphanFinder](w, in).RemoveOrphans(w.Context(), c))
	in.Restart()
	w.settled()
	w.noError("remove orphans after a crash", ability[rotators.OrphanFinder](w, nil).RemoveOrphans(w.Context(), c))
	w.live("after the orphans were removed", w.held())
	w.settled()
}

// lose makes n credentials that no version holds, as processes do that die
// before they store one. Previous is retired first, as by a runner: an issuer
// with two slots has room then.
func (w *world) lose(n int) (lost []secrets.Value) {
	w.Helper()
	c := w.change()
	w.noError("retire", ability[rotators.Retirer](w, nil).Retire(w.Context(), c, c.Previous))
	for range n {
		c.Token = rotators.NewToken()
		v, err := w.target.Rotator(w.T, nil).Create(w.Context(), c)
		w.noError("create", err)
		lost = append(lost, v)
	}
	return lost
}

// held counts the versions that sign in.
func (w *world) held() (n int) {
	w.Helper()
	for _, st := range []secrets.Stage{secrets.Current, secrets.Pending, secrets.Previous} {
		if v := w.get(st); v != nil && w.accepts(v.Value) {
			n++
		}
	}
	return n
}

// orphans are found, all of them and nothing else, and removed. A rotator
// that creates may remove earlier ones by itself.
func orphans(w *world) {
	find := func(what string, want int) {
		w.Helper()
		var ids []string
		w.unchanged("looking for orphans", func() {
			var err error
			ids, err = ability[rotators.OrphanFinder](w, nil).Orphans(w.Context(), w.change())
			w.noError("orphans", err)
		})
		w.rec.Record(ids)
		slices.Sort(ids)
		if n := len(slices.Compact(ids)); n != want || slices.Contains(ids, "") {
			w.Fatalf("%s: found the orphans %q; want %d", what, ids, want)
		}
	}
	remove := func() {
		w.Helper()
		w.noError("remove orphans", ability[rotators.OrphanFinder](w, nil).RemoveOrphans(w.Context(), w.change()))
	}
	find("at first", 0)
	w.unchanged("removing no orphans", remove)
	w.rotate(w.process(nil), "")
	find("beside current and previous", 0)

	lost := w.lose(3)
	if w.target.Live(w.T) == w.held() {
		w.Fatal("a credential that was made and not stored is not alive")
	}
	find("after attempts that died", w.target.Live(w.T)-w.held())
	p := w.process(nil)
	w.step(p, token, "createSecret")
	pend := w.must(secrets.Pending).Value
	find("beside pending", w.target.Live(w.T)-w.held())
	remove()
	find("after they were removed", 0)
	w.live("after the orphans were removed", w.held())
	for _, v := range lost {
		w.refused("an orphan that was removed", v)
	}
	w.signsIn("pending", pend)
	w.signsIn("current", w.must(secrets.Current).Value)
	w.unchanged("removing orphans again", remove)

	gone, cancel := context.WithCancel(w.Context())
	cancel()
	r := ability[rotators.OrphanFinder](w, nil)
	_, err := r.Orphans(gone, w.change())
	if err = errors.Join(err, r.RemoveOrphans(gone, w.change())); err == nil {
		w.Error("orphans were looked for with a context that has ended")
	}
	w.rec.Record(err)
	for _, s := range steps[1:] {
		w.step(p, token, s)
	}
	w.settled()
	w.rec.Check(w.T, w.canaries(pend)...)
}
