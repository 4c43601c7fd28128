package rotatortest

import (
	"bytes"
	"encoding/json"
	"errors"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

const token = "00000000-0000-4000-8000-000000000001"

// whole is one rotation, looked at after each phase.
func whole(w *world) {
	old := w.must(secrets.Current)
	w.signsIn("the initial value", old.Value)
	p := w.process(nil)
	for i, step := range steps {
		w.step(p, token, step)
		if i == len(steps)-1 {
			break
		}
		cur := w.must(secrets.Current)
		if cur.ID != old.ID || !cur.Value.Equal(old.Value) {
			w.Fatalf("after %s a reader of current gets another version before it is tested", step)
		}
		pend := w.must(secrets.Pending)
		if pend.Value.Equal(old.Value) {
			w.Fatal("pending is what current is")
		}
		set := i >= 1
		switch {
		case set:
			w.signsIn("pending after set", pend.Value)
		case w.tr.Issues:
			w.signsIn("pending, issued in create", pend.Value)
		default:
			w.refused("pending before set", pend.Value)
		}
		if !set || w.tr.CurrentSurvivesSet {
			w.signsIn("current after "+step, cur.Value)
		} else {
			w.refused("current after "+step+", though the strategy has one credential", cur.Value)
		}
	}
	w.settled()
	w.oldAfter(old)
}

// oldAfter checks what became of old after one rotation.
func (w *world) oldAfter(old *secrets.Version) {
	w.Helper()
	if prev := w.must(secrets.Previous); !prev.Value.Equal(old.Value) {
		w.Fatal("previous is not what was current")
	}
	if w.tr.KillsCurrent {
		w.refused("the old value after the rotation", old.Value)
	} else {
		w.signsIn("the old value, for which the overlap is not over", old.Value)
	}
}

// tenInARow shows that nothing builds up at the target.
func tenInARow(w *world) {
	steady := 0
	seen := []secrets.Value{w.must(secrets.Current).Value}
	for i := range 10 {
		w.rotate(w.process(nil), "")
		w.settled()
		now := w.must(secrets.Current).Value
		for _, v := range seen {
			if v.Equal(now) {
				w.Fatal("a credential came back")
			}
		}
		if n := len(seen); n >= 3 {
			w.refused("a credential of three rotations ago", seen[n-3])
		}
		seen = append(seen, now)
		switch live := w.target.Live(w.T); {
		case i < 2:
			steady = live
		case live != steady:
			w.Fatalf("after rotation %d the target honours %d credentials; after the second it honoured %d", i+1, live, steady)
		}
	}
	if got := w.bus.count(events.VersionActivated); got != 10 {
		w.Fatalf("%d versions were announced as current; want 10", got)
	}
}

func createKeeps(w *world) {
	before, ok := object(w.must(secrets.Current).Value)
	if !ok {
		w.Skip("the target's values are not JSON objects")
	}
	in := &crashtest.Injector{}
	p := process{rotator: w.target.Rotator(w.T, in)}
	p.Runner = rotators.NewRunner(w.store, p.rotator, nil)
	w.step(p, token, "createSecret")
	if n := in.Calls(); !w.tr.Issues && n > 0 {
		w.Fatalf("create made %d outward calls though the target issues nothing", n)
	}
	pend := w.must(secrets.Pending)
	if pend.Token != token {
		w.Fatalf("pending is of rotation %q; want %q", pend.Token, token)
	}
	after, ok := object(pend.Value)
	if !ok {
		w.Fatal("pending is not a JSON object, as current is")
	}
	for k := range before {
		if _, ok := after[k]; !ok {
			w.Errorf("create dropped the member %q", k)
		}
	}
	for k, want := range w.unknown() {
		if !bytes.Equal(compact(after[k]), compact(want)) {
			w.Errorf("create changed the member %q, of which it knows nothing", k)
		}
	}
}

func compact(raw json.RawMessage) []byte {
	// A string may be written in more ways than one, a number may not.
	var v any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if d.Decode(&v) != nil {
		return nil
	}
	b, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return b
}

func createRepeated(w *world) {
	w.step(w.process(nil), token, "createSecret")
	first, live := w.must(secrets.Pending), w.target.Live(w.T)
	for range 2 {
		in := &crashtest.Injector{}
		p := process{rotator: w.target.Rotator(w.T, in)}
		p.Runner = rotators.NewRunner(w.store, p.rotator, nil)
		w.step(p, token, "createSecret")
		if n := in.Calls(); n > 0 {
			w.Fatalf("create repeated made %d calls to the target", n)
		}
	}
	if again := w.must(secrets.Pending); again.ID != first.ID || !again.Value.Equal(first.Value) {
		w.Fatal("create repeated changed pending")
	}
	w.live("create repeated", live)
}

// putRacedByTwin: another process with the same token stores first. What it
// stored is the truth, and what this one made is not left alive.
func putRacedByTwin(w *world) {
	want := w.undisturbed()
	var twin *secrets.Version
	slow := w.processOn(&changed{Store: w.store, beforePut: func() {
		w.step(w.process(nil), token, "createSecret")
		twin = w.must(secrets.Pending)
	}}, nil)
	w.step(slow, token, "createSecret")
	if got := w.must(secrets.Pending); !got.Value.Equal(twin.Value) {
		w.Fatal("the slower twin overwrote pending")
	}
	w.rotate(slow, token)
	w.settled()
	if !w.must(secrets.Current).Value.Equal(twin.Value) {
		w.Fatal("current is not what the faster twin stored")
	}
	w.live("after a race of twins", want)
}

// putRacedByOther: another rotation stores first. This one stops, leaves
// nothing alive, and the other goes on.
func putRacedByOther(w *world) {
	want := w.undisturbed()
	const other = "00000000-0000-4000-8000-000000000002"
	slow := w.processOn(&changed{Store: w.store, beforePut: func() { w.step(w.process(nil), other, "createSecret") }}, nil)
	if err := slow.Step(w.Context(), w.id, token, "createSecret"); !fault.Is(err, fault.Conflict) {
		w.Fatalf("create beside another rotation: %v; want an error of kind conflict", err)
	}
	w.rotate(w.process(nil), "")
	w.settled()
	if got := w.must(secrets.Current).Token; got != other {
		w.Fatalf("current is of rotation %s; want that of the faster one", got)
	}
	w.live("after a race of rotations", want)
}

// undisturbed returns how many credentials the target honours after one
// rotation without disturbance, measured on this world by rotating once
// beforehand, so that the next one starts from a steady state.
func (w *world) undisturbed() int {
	w.Helper()
	w.rotate(w.process(nil), "")
	w.rotate(w.process(nil), "")
	return w.target.Live(w.T)
}

func currentIsNoSecret(w *world) {
	if _, ok := object(w.target.Initial()); !ok {
		w.Skip("the target's values are not JSON objects")
	}
	live := w.target.Live(w.T)
	r := w.target.Rotator(w.T, nil)
	for _, raw := range []string{
		`{"password":"` + w.canary + `","key":"` + w.canary, `"` + w.canary + `"`, `["` + w.canary + `"]`, `{}`,
		`{"zz":"` + w.canary + `"}`, w.canary, `{"password":["` + w.canary + `"],"key":["` + w.canary + `"]}`,
	} {
		bad := secrets.NewString(raw)
		good := w.target.Initial()
		_, err := r.Create(w.Context(), rotators.Change{Ref: w.id, Token: token, Current: bad})
		w.invalid(err, "create from a current value that is no secret")
		w.invalid(r.Set(w.Context(), rotators.Change{Ref: w.id, Token: token, Current: good, Pending: bad}), "set of a pending value that is no secret")
		w.invalid(r.Test(w.Context(), rotators.Change{Ref: w.id, Token: token, Current: good, Pending: bad}), "test of a pending value that is no secret")
	}
	w.rec.Check(w.T, w.canary)
	w.live("after refusals", live)
}

func (w *world) invalid(err error, what string) {
	w.Helper()
	w.rec.Record(err)
	if !fault.Is(err, fault.Invalid) {
		// The error could quote the value, which the leak check reports.
		w.Errorf("%s gave kind %s; want invalid", what, fault.KindOf(err))
	}
}

func setRepeated(w *world) {
	p := w.process(nil)
	w.step(p, token, "createSecret")
	w.step(p, token, "setSecret")
	live := w.target.Live(w.T)
	for range 2 {
		w.step(w.process(nil), token, "setSecret")
		w.signsIn("pending after a repeated set", w.must(secrets.Pending).Value)
		w.live("set repeated", live)
	}
	w.step(p, token, "testSecret")
	w.step(p, token, "testSecret")
	w.usable()
}

func foreignPending(w *world) {
	f, ok := w.target.(Foreigner)
	if !ok {
		w.Skip("the target has no pending value that names another target; implement Foreigner if it has")
	}
	in := &crashtest.Injector{}
	p := process{rotator: w.target.Rotator(w.T, in)}
	p.Runner = rotators.NewRunner(w.store, p.rotator, &rotators.Options{Logger: w.rec.Logger()})
	v, err := w.target.Rotator(w.T, nil).Create(w.Context(), rotators.Change{Ref: w.id, Token: token, Current: w.must(secrets.Current).Value})
	if err != nil {
		w.Fatalf("create: %v", err)
	}
	if _, err := w.store.PutPending(w.Context(), w.id, token, f.Foreign(w.T, v)); err != nil {
		w.Fatalf("store pending: %v", err)
	}
	live := w.target.Live(w.T)
	err = p.Step(w.Context(), w.id, token, "setSecret")
	if !fault.Is(err, fault.Invalid) {
		w.Errorf("set gave %v; want an error of kind invalid", err)
	}
	if n := in.Calls(); n > 0 {
		w.Errorf("set made %d outward calls before it refused", n)
	}
	w.live("after the refusal", live)
	w.signsIn("current after the refusal", w.must(secrets.Current).Value)
}

// testProves: test fails as long as pending does not sign in.
func testProves(w *world) {
	p := w.process(nil)
	w.step(p, token, "createSecret")
	if w.tr.Issues {
		// An issued credential signs in from the start; one that was revoked
		// behind our back does not.
		rt, ok := w.target.Rotator(w.T, nil).(rotators.Retirer)
		if !ok {
			w.Fatal("the target issues credentials and its rotator cannot revoke them; expected a Retirer")
		}
		c := rotators.Change{Ref: w.id, Token: "the issuer's administrator", Current: w.must(secrets.Current).Value}
		if err := rt.Retire(w.Context(), c, w.must(secrets.Pending).Value); err != nil {
			w.Fatal(err)
		}
	}
	err := p.Step(w.Context(), w.id, token, "testSecret")
	if !fault.Is(err, fault.Denied) {
		w.Fatalf("test gave %v while pending does not sign in; want an error of kind denied", err)
	}
	if w.tr.Issues {
		return // revoked for good: no set brings it back
	}
	w.signsIn("current after a test that failed", w.must(secrets.Current).Value)
	w.step(p, token, "setSecret")
	w.step(p, token, "testSecret")
}

func finishRepeated(w *world) {
	old := w.must(secrets.Current)
	p := w.process(nil)
	for _, s := range steps {
		w.step(p, token, s)
	}
	now := w.must(secrets.Current)
	if now.Token != token {
		w.Fatalf("current is of rotation %q; want %q", now.Token, token)
	}
	live := w.target.Live(w.T)
	for range 2 {
		w.step(w.process(nil), token, "finishSecret")
		if again := w.must(secrets.Current); again.ID != now.ID || !again.Value.Equal(now.Value) {
			w.Fatal("finish repeated moved current")
		}
	}
	// C04: nor does any other step of a finished rotation.
	for _, s := range steps {
		in := &crashtest.Injector{}
		p := process{rotator: w.target.Rotator(w.T, in)}
		p.Runner = rotators.NewRunner(w.store, p.rotator, nil)
		w.step(p, token, s)
		if n := in.Calls(); n > 0 {
			w.Fatalf("%s of a finished rotation made %d calls to the target", s, n)
		}
	}
	w.settled()
	w.oldAfter(old)
	w.live("finish repeated", live)
	for _, t := range []events.Type{events.VersionActivated, events.RotationSucceeded} {
		if got := w.bus.count(t); got != 1 {
			w.Fatalf("%d events of type %s; want 1", got, t)
		}
	}
}

// holderChanged: somebody moves current between finish's look and its move.
func holderChanged(w *world) {
	times := 0
	p := w.processOn(&changed{Store: w.store, beforePromote: func() error {
		if times++; times == 1 {
			return fault.New(fault.Conflict, "promote", errors.New("the holder of current changed"))
		}
		return nil
	}}, nil)
	w.rotate(p, token)
	w.settled()
	if times != 2 {
		w.Fatalf("finish tried to promote %d times; want 2", times)
	}
}

// tokenAgain: who repeats itself with a token never rotates twice.
func tokenAgain(w *world) {
	w.rotate(w.process(nil), token)
	now, live := w.must(secrets.Current), w.target.Live(w.T)
	w.rotate(w.process(nil), token)
	if again := w.must(secrets.Current); again.ID != now.ID {
		w.Fatal("the same token rotated twice")
	}
	w.live("the same token again", live)
}

// rollsForward: a rotation that stopped after each phase is finished under
// its own token by a later one.
func rollsForward(w *world) {
	for n := 1; n < len(steps); n++ {
		t := rotators.NewToken()
		p := w.process(nil)
		for _, s := range steps[:n] {
			w.step(p, t, s)
		}
		pend := w.must(secrets.Pending)
		res, err := w.process(nil).Rotate(w.Context(), w.id, "")
		if err != nil {
			w.Fatalf("roll forward after %s: %v", steps[n-1], err)
		}
		if !res.Resumed || res.Token != t {
			w.Fatalf("resumed %t under %s; want that of the unfinished rotation, %s", res.Resumed, res.Token, t)
		}
		w.settled()
		if !w.must(secrets.Current).Value.Equal(pend.Value) {
			w.Fatal("current is not what was pending")
		}
	}
}
