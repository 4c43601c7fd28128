package rotatortest

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// connectionLost fails each outward call of set alone, before and after its
// effect: set again succeeds, by the same process or another.
func connectionLost(t *testing.T, newTarget NewTarget, tr Traits, newStore NewStore) {
	crashtest.RunModes(t, crashtest.Modes(tr.Slow), func(t *testing.T, in *crashtest.Injector) {
		w := newWorld(t, newTarget, tr, newStore)
		w.step(w.process(nil), token, "createSecret")
		p := process{rotator: w.target.Rotator(t, in)}
		p.Runner = rotators.NewRunner(w.store, p.rotator, nil)
		// One point at least, for a rotator whose set has nothing to do.
		_ = in.Call("the suite's own", func() error { return nil })
		_ = p.Step(t.Context(), w.id, token, "setSecret")
		in.Restart()
		w.usable()
		w.step(p, token, "setSecret")
		w.signsIn("pending after another set", w.must(secrets.Pending).Value)
		w.step(w.process(nil), token, "testSecret")
		w.step(w.process(nil), token, "finishSecret")
		w.settled()
	})
}

// noTimeLeft: with less than the budget a phase is not begun.
func noTimeLeft(w *world) {
	in := &crashtest.Injector{}
	p := process{rotator: w.target.Rotator(w.T, in)}
	p.Runner = rotators.NewRunner(w.store, p.rotator, &rotators.Options{Budget: time.Hour, Logger: w.rec.Logger()})
	for _, step := range steps {
		live, calls := w.target.Live(w.T), in.Calls()
		ctx, cancel := context.WithTimeout(w.Context(), time.Minute)
		err := p.Step(ctx, w.id, token, step)
		cancel()
		if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassTimeout {
			w.Fatalf("%s without time gave %v (kind %s, class %q); want unavailable, timeout", step, err, fault.KindOf(err), fault.ClassOf(err))
		}
		if n := in.Calls() - calls; n > 0 {
			w.Fatalf("%s without time made %d calls to the target", step, n)
		}
		w.live(step+" without time", live)
		w.usable()
		w.step(w.process(nil), token, step)
	}
	w.settled()
}

// cancelled: a context that has ended ends every method, classified, and
// the next attempt succeeds.
func cancelled(w *world) {
	dead, cancel := context.WithCancel(w.Context())
	cancel()
	p := w.process(nil)
	live := w.target.Live(w.T)
	c := rotators.Change{Ref: w.id, Token: token, Current: w.must(secrets.Current).Value}
	if _, err := p.rotator.Create(dead, c); err == nil && w.tr.Issues || err != nil && !fault.Is(err, fault.Unavailable) {
		w.Errorf("create with a context that has ended gave %v (kind %s)", err, fault.KindOf(err))
	}
	w.live("create with a context that has ended", live)
	w.step(p, token, "createSecret")
	c.Pending = w.must(secrets.Pending).Value
	live = w.target.Live(w.T)
	if err := p.rotator.Set(dead, c); err != nil && !fault.Is(err, fault.Unavailable) || err == nil && !w.tr.Issues {
		w.Errorf("set with a context that has ended gave %v (kind %s)", err, fault.KindOf(err))
	}
	w.live("set with a context that has ended", live)
	w.usable()
	if err := p.rotator.Test(dead, c); !fault.Is(err, fault.Unavailable) {
		w.Errorf("test with a context that has ended gave %v (kind %s); want unavailable", err, fault.KindOf(err))
	}
	w.rotate(p, token)
	w.settled()
}

// atOnce: two processes rotate at once. Each may be told that the other was
// faster; nothing else may come of it.
func atOnce(w *world, sameToken bool) {
	const rounds = 4
	w.rotate(w.process(nil), "")
	w.rotate(w.process(nil), "")
	live := w.target.Live(w.T)
	for range rounds {
		before := w.must(secrets.Current)
		tokens := []string{rotators.NewToken(), rotators.NewToken()}
		if sameToken {
			tokens[1] = tokens[0]
		}
		errs := make([]error, 2)
		start := make(chan struct{})
		ps := []process{w.process(nil), w.process(nil)}
		var wg sync.WaitGroup
		for i, p := range ps {
			wg.Go(func() {
				<-start
				_, errs[i] = p.Rotate(w.Context(), w.id, tokens[i])
			})
		}
		close(start)
		wg.Wait()
		if errs[0] != nil && errs[1] != nil && (!contended(errs[0]) || !contended(errs[1])) {
			w.Fatalf("both rotations failed: %v", errors.Join(errs...))
		}
		w.usable()
		// Who was told to come again does, and then all is well.
		for i, p := range ps {
			if errs[i] != nil {
				w.rotate(p, tokens[i])
			}
		}
		w.settled()
		w.live("after two rotations at once", live)
		if now := w.must(secrets.Current); now.Value.Equal(before.Value) {
			w.Fatal("nothing was rotated")
		}
	}
}

// contended reports whether err says that another was at work.
func contended(err error) bool {
	return fault.Is(err, fault.Conflict) || fault.Is(err, fault.NotFound) || fault.ClassOf(err) == fault.ClassConcurrency
}

// noLeak fails every outward call of a rotation and looks for the secret
// values in everything that comes out: errors, logs, events, results, changes.
func noLeak(t *testing.T, newTarget NewTarget, tr Traits, newStore NewStore) {
	crashtest.RunModes(t, crashtest.Modes(tr.Slow), func(t *testing.T, in *crashtest.Injector) {
		w := prepared(t, newTarget, tr, newStore)
		var canaries []string
		note := func() {
			for _, st := range []secrets.Stage{secrets.Current, secrets.Pending, secrets.Previous} {
				if v := w.get(st); v != nil {
					canaries = append(canaries, w.canaries(v.Value)...)
				}
			}
		}
		note()
		p := w.process(in)
		res, err := p.Rotate(t.Context(), w.id, token)
		note()
		w.rec.Record(err, res)
		in.Restart()

		// And what nobody meant to happen: the wrong values, an ended context.
		cur := w.must(secrets.Current).Value
		c := rotators.Change{Ref: w.id, Token: token, Current: cur, Pending: cur, Previous: cur}
		if pend := w.get(secrets.Pending); pend != nil {
			c.Pending = pend.Value
		}
		w.rec.Record(c, p.rotator.Test(t.Context(), c))
		if f, ok := w.target.(Foreigner); ok {
			c.Pending = f.Foreign(t, c.Pending)
			w.rec.Record(p.rotator.Set(t.Context(), c))
		}
		dead, cancel := context.WithCancel(t.Context())
		cancel()
		w.rec.Record(p.rotator.Test(dead, c), p.rotator.Set(dead, c))

		res, err = w.process(nil).Rotate(t.Context(), w.id, token)
		w.rec.Record(err, res)
		note()
		for _, e := range w.bus.all() {
			w.rec.Record(e)
		}
		w.rec.Check(t, canaries...)
	})
}
