package rotators_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

func TestRollback(t *testing.T) {
	l := newLife(t)
	if _, err := l.runner().Rollback(t.Context(), l.id, false); !fault.Is(err, fault.NotFound) {
		t.Errorf("nothing to go back to: %v", err)
	}
	l.rotate()
	if _, err := l.runner().Retire(t.Context(), l.id, false); err != nil {
		t.Fatal(err)
	}
	l.bus.took()
	res, err := l.runner().Rollback(t.Context(), l.id, false)
	if err != nil {
		t.Fatal(err)
	}
	l.want("rolled back", l.state(), "v0 - v1 | v0 v1")
	l.want("events", l.bus.took(), "rotation.started, version.activated, rotation.succeeded")

	// Whoever repeats it, not knowing that it was done, does not go forward.
	again, err := l.runner().Rollback(t.Context(), l.id, false)
	if err != nil || !again.Already || again.Version != res.Version {
		t.Errorf("repeated: %+v, %v", again, err)
	}
	l.want("repeated", l.state(), "v0 - v1 | v0 v1")
	if _, err := l.runner().Rollback(t.Context(), l.id, true); err != nil {
		t.Fatal(err)
	}
	l.want("undone", l.state(), "v1 - v0 | v0 v1")
	if again, err := l.runner().Rollback(t.Context(), l.id, true); err != nil || !again.Already {
		t.Errorf("undone twice: %+v, %v", again, err)
	}
	l.want("undone twice", l.state(), "v1 - v0 | v0 v1")
	if res, err := l.runner().Rollback(t.Context(), l.id, false); err != nil || res.Already {
		t.Errorf("rolled back once more: %+v, %v", res, err)
	}
	l.want("rolled back once more", l.state(), "v0 - v1 | v0 v1")
	l.rotate()
	l.want("the next rotation", l.state(), "v2 - v0 | v0 v2")
	if _, err := l.runner().Rollback(t.Context(), l.id, true); !fault.Is(err, fault.Invalid) {
		t.Errorf("undo where nothing was rolled back: %v", err)
	}
}

// A rollback that died half-way is rolled forward by whoever comes next.
func TestRollbackResumed(t *testing.T) {
	for name, next := range map[string]func(l *life) error{
		"by rotate": func(l *life) error {
			_, err := l.runner().Rotate(l.Context(), l.id, "")
			return err
		},
		"by rollback": func(l *life) error {
			_, err := l.runner().Rollback(l.Context(), l.id, false)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLife(t)
			l.rotate()
			if _, err := l.runner().Retire(t.Context(), l.id, false); err != nil {
				t.Fatal(err)
			}
			l.g.before = func(_ context.Context, call string, _ rotators.Change) error {
				if strings.HasPrefix(call, "restore") {
					return fault.Newf(fault.Unavailable, "target", "away")
				}
				return nil
			}
			if _, err := l.runner().Rollback(t.Context(), l.id, false); !fault.Is(err, fault.Unavailable) {
				t.Fatalf("%v", err)
			}
			l.want("half-way", l.state(), "v1 v0 v0 held | v1")
			l.g.before = nil
			if err := next(l); err != nil {
				t.Fatal(err)
			}
			l.want("finished", l.state(), "v0 - v1 | v0 v1")
		})
	}
}

func TestRollbackToTheDead(t *testing.T) {
	l := newLife(t)
	l.rotate()
	l.g.gone = []string{"v0"}
	l.g.set(secrets.NewString("v0"), false)
	_, err := l.runner().Rollback(t.Context(), l.id, false)
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "dead at the target") {
		t.Errorf("%v", err)
	}
	l.want("nothing changed", l.state(), "v1 - v0 | v1")
	l.rotate() // and nothing is in the way
}

func TestRollbackBesideAnother(t *testing.T) {
	l := newLife(t)
	l.rotate()
	if _, err := l.store.PutPending(t.Context(), l.id, tokenA, secrets.NewString("other")); err != nil {
		t.Fatal(err)
	}
	if _, err := l.runner().Rollback(t.Context(), l.id, false); !fault.Is(err, fault.Conflict) {
		t.Errorf("%v", err)
	}
	if _, err := l.runner().Restore(t.Context(), l.id); !fault.Is(err, fault.Conflict) {
		t.Errorf("restore: %v", err)
	}
}

// Each state that a secret can be stuck in is built by hand, named, and mended
// by the one repair that is proposed.
func TestExamine(t *testing.T) {
	pend := func(l *life, v string) {
		l.Helper()
		if _, err := l.store.PutPending(l.Context(), l.id, tokenA, secrets.NewString(v)); err != nil {
			l.Fatal(err)
		}
	}
	dead := func(l *life, v string) { l.g.set(secrets.NewString(v), false) }
	for _, c := range []struct {
		name    string
		build   func(l *life)
		problem rotators.Problem
		repair  string
		after   string // the state after the fix; "" if there is none
	}{
		{"stuck pending", func(l *life) { pend(l, "p") }, rotators.StuckPending, "keyturn rotate", "p - v1 | p v0 v1"},
		{"pending works", func(l *life) {
			pend(l, "p")
			l.g.set(secrets.NewString("p"), true)
		}, rotators.PendingNotPromoted, "keyturn rotate", "p - v1 | p v0 v1"},
		{"pending works and current does not", func(l *life) {
			pend(l, "p")
			l.g.set(secrets.NewString("p"), true)
			dead(l, "v1")
		}, rotators.PendingNotPromoted, "keyturn rotate", "p - v1 | p v0"},
		{"pending for another target", func(l *life) { pend(l, "elsewhere") }, rotators.PendingForeign, "keyturn discard", "v1 - v0 | v0 v1"},
		{"current does not sign in, previous does", func(l *life) { dead(l, "v1") }, rotators.CurrentRefused, "keyturn rollback", "v0 - v1 | v0"},
		{"nothing signs in", func(l *life) {
			dead(l, "v1")
			dead(l, "v0")
		}, rotators.CurrentRefused, "by hand", ""},
		{"orphans", func(l *life) { l.g.orphans = []string{"key-7", "key-8"} }, rotators.OrphanKeys, "--fix", "v1 - v0 | v0 v1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLife(t)
			l.rotate(func(o *rotators.Options) { o.KeepPrevious = true })
			keep := func(o *rotators.Options) { o.KeepPrevious = true }
			if found, err := l.runner(keep).Examine(t.Context(), l.id, 0); err != nil || len(found) != 0 {
				t.Fatalf("sound, and found %+v, %v", found, err)
			}
			c.build(l)
			before := l.state()
			found, err := l.runner(keep).Examine(t.Context(), l.id, 0)
			if err != nil || len(found) != 1 {
				t.Fatalf("found %+v, %v", found, err)
			}
			f := found[0]
			if f.Problem != c.problem || !strings.Contains(f.Repair, c.repair) || f.Ref != l.id || f.Detail == "" {
				t.Errorf("found %+v; want %s, repaired by %s", f, c.problem, c.repair)
			}
			l.want("examining changes nothing", l.state(), before)
			if (f.Fix == nil) != (c.after == "") {
				t.Fatalf("fix is there: %t", f.Fix != nil)
			}
			if f.Fix == nil {
				return
			}
			if err := f.Fix(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.want("mended", l.state(), c.after)
			if found, err := l.runner(keep).Examine(t.Context(), l.id, 0); err != nil || len(found) != 0 {
				t.Errorf("after the repair: %+v, %v", found, err)
			}
		})
	}
}

// A rotation that began a moment ago is under way, and may have left current
// refused for that moment.
func TestExamineUnderWay(t *testing.T) {
	l := newLife(t)
	if _, err := l.store.PutPending(t.Context(), l.id, tokenA, secrets.NewString("p")); err != nil {
		t.Fatal(err)
	}
	l.g.set(secrets.NewString("v0"), false)
	if found, err := l.runner().Examine(t.Context(), l.id, 1<<40); err != nil || len(found) != 0 {
		t.Errorf("%+v, %v", found, err)
	}
}

// A target that does not answer is no finding.
func TestExamineTargetAway(t *testing.T) {
	l := newLife(t)
	l.g.before = func(context.Context, string, rotators.Change) error {
		return fault.Newf(fault.Unavailable, "target", "away")
	}
	if found, err := l.runner().Examine(t.Context(), l.id, 0); !fault.Is(err, fault.Unavailable) || len(found) != 0 {
		t.Errorf("%+v, %v", found, err)
	}
}

// begun is a store whose service opened a rotation that stored nothing.
func TestExamineBegun(t *testing.T) {
	f := setUp(t)
	f.store.begun = tokenA
	found, err := f.runner().Examine(t.Context(), f.id, 0)
	if err != nil || len(found) != 1 || found[0].Problem != rotators.PendingWithoutValue || !strings.Contains(found[0].Repair, "discard") {
		t.Fatalf("%+v, %v", found, err)
	}
	if err := found[0].Fix(t.Context()); err != nil {
		t.Error(err)
	}
	f.want("writes", f.store.took(), "discard")
}

// siblings is a store with bookkeeping.
type siblings struct {
	secrets.Store
	left []secrets.Orphan
}

func (s *siblings) Orphans(context.Context, ref.Ref) ([]secrets.Orphan, error) { return s.left, nil }
func (s *siblings) RemoveOrphan(_ context.Context, o secrets.Orphan) error {
	s.left = nil
	return nil
}

func TestExamineStore(t *testing.T) {
	l := newLife(t)
	if found, err := rotators.ExamineStore(t.Context(), l.store, l.id); err != nil || found != nil {
		t.Errorf("%+v, %v", found, err)
	}
	s := &siblings{l.store, []secrets.Orphan{{Ref: l.id, ID: "one--pending"}}}
	found, err := rotators.ExamineStore(t.Context(), s, l.id)
	if err != nil || len(found) != 1 || found[0].Problem != rotators.OrphanSibling {
		t.Fatalf("%+v, %v", found, err)
	}
	if err := found[0].Fix(t.Context()); err != nil || s.left != nil {
		t.Errorf("%v, left %v", err, s.left)
	}
}

func TestDryRun(t *testing.T) {
	l := newLife(t)
	l.rotate()
	dry := func(edit ...func(*rotators.Options)) string {
		var out []string
		for _, c := range l.runner(edit...).DryRun(t.Context(), l.id) {
			if c.Err != nil {
				out = append(out, fmt.Sprintf("%s: %v", c.What, c.Err))
			}
		}
		return strings.Join(out, "; ")
	}
	l.want("sound", dry(), "")
	l.g.set(secrets.NewString("v1"), false)
	if got := dry(gate(rotators.Gate{Manual: true})); !strings.Contains(got, "not yet: manual") || !strings.Contains(got, "sign in: target: refused") {
		t.Errorf("%q", got)
	}
	l.want("nothing was changed", l.state(), "v1 - v0 | v0")
	l.want("calls", l.g.took(), "")
	l.id.Name = "nothing"
	if got := dry(); !strings.Contains(got, "there is no secret") {
		t.Errorf("%q", got)
	}
}
