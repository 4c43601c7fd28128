package rotators_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
)

// able is a target that can do everything. Credentials become alive in Set,
// and "gone" ones are never revived.
type able struct {
	*target
	gone    []string
	orphans []string
}

func (g *able) Create(ctx context.Context, c rotators.Change) (secrets.Value, error) {
	if err := g.call(ctx, "create", c); err != nil {
		return secrets.Value{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
	return secrets.NewString(fmt.Sprintf("v%d", g.n)), nil
}

func (g *able) is(v secrets.Value) bool { return slices.Contains(g.alive, string(v.Reveal())) }

func (g *able) set(v secrets.Value, alive bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alive = slices.DeleteFunc(g.alive, func(s string) bool { return s == string(v.Reveal()) })
	if alive {
		g.alive = append(g.alive, string(v.Reveal()))
	}
}

func (g *able) Set(ctx context.Context, c rotators.Change) error {
	if err := g.call(ctx, "set", c); err != nil {
		return err
	}
	if !slices.Contains(g.gone, string(c.Pending.Reveal())) {
		g.set(c.Pending, true)
	}
	return nil
}

func (g *able) Test(ctx context.Context, c rotators.Change) error {
	if err := g.call(ctx, "test", c); err != nil {
		return err
	}
	return g.look(c.Pending)
}

func (g *able) look(v secrets.Value) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.is(v) {
		return errBoom
	}
	return nil
}

func (g *able) Retire(ctx context.Context, c rotators.Change, old secrets.Value) error {
	if err := g.call(ctx, "retire "+string(old.Reveal()), c); err != nil {
		return err
	}
	g.set(old, false)
	return nil
}

func (g *able) Restore(ctx context.Context, c rotators.Change, old secrets.Value) error {
	if err := g.call(ctx, "restore "+string(old.Reveal()), c); err != nil {
		return err
	}
	if slices.Contains(g.gone, string(old.Reveal())) {
		return fault.Newf(fault.Invalid, "target", "gone for good")
	}
	g.set(old, true)
	return nil
}

func (g *able) Verify(ctx context.Context, c rotators.Change, v secrets.Value) error {
	if err := g.call(ctx, "verify "+string(v.Reveal()), c); err != nil {
		return err
	}
	if strings.HasPrefix(string(v.Reveal()), "elsewhere") {
		return fault.Newf(fault.Invalid, "target", "another target")
	}
	return g.look(v)
}

func (g *able) Orphans(ctx context.Context, c rotators.Change) ([]string, error) {
	return g.orphans, g.call(ctx, "orphans", c)
}

func (g *able) RemoveOrphans(ctx context.Context, c rotators.Change) error {
	g.orphans = nil
	return g.call(ctx, "remove orphans", c)
}

func (g *able) DryRun(ctx context.Context, c rotators.Change) []rotators.Check {
	return []rotators.Check{{What: "sign in", Err: g.look(c.Current)}}
}

// life is a secret whose store and target can do everything.
type life struct {
	*testing.T
	store *memstore.Store
	g     *able
	bus   *bus
	id    ref.Ref
}

func newLife(t *testing.T) *life {
	t.Helper()
	l := &life{T: t, store: memstore.New(), g: &able{target: &target{alive: []string{"v0"}}}, bus: &bus{}}
	l.id = ref.Ref{Provider: ref.NATS, Scope: "mem", Name: "one"}
	if _, err := l.store.CreateSecret(t.Context(), l.id, secrets.NewString("v0")); err != nil {
		t.Fatal(err)
	}
	return l
}

func (l *life) runner(edit ...func(*rotators.Options)) *rotators.Runner {
	o := rotators.Options{Publisher: l.bus}
	for _, e := range edit {
		e(&o)
	}
	return rotators.NewRunner(l.store, l.g, &o)
}

func gate(g rotators.Gate) func(*rotators.Options) {
	return func(o *rotators.Options) { o.Gate = g }
}

func (l *life) rotate(edit ...func(*rotators.Options)) rotators.Result {
	l.Helper()
	res, err := l.runner(edit...).Rotate(l.Context(), l.id, "")
	if err != nil {
		l.Fatal(err)
	}
	l.bus.took()
	l.g.took()
	return res
}

// state is what the stages hold, a disabled previous in parentheses, and who
// is alive at the target.
func (l *life) state() string {
	l.Helper()
	var out []string
	for _, st := range []secrets.Stage{secrets.Current, secrets.Pending, secrets.Previous} {
		v, err := l.store.Get(l.Context(), l.id, st)
		switch {
		case err == nil:
			out = append(out, string(v.Value.Reveal()))
		case !fault.Is(err, fault.NotFound):
			l.Fatal(err)
		default:
			out = append(out, "-")
		}
	}
	d, err := l.store.Describe(l.Context(), l.id)
	if err != nil {
		l.Fatal(err)
	}
	if h := d.Holder(secrets.Previous); h != nil && h.Disabled {
		out = append(out, "disabled")
	} else if h != nil && h.Held {
		out = append(out, "held")
	}
	alive := slices.Sorted(slices.Values(l.g.alive))
	return strings.Join(out, " ") + " | " + strings.Join(alive, " ")
}

func (l *life) want(what, got, want string) {
	l.Helper()
	if got != want {
		l.Errorf("%s: %q; want %q", what, got, want)
	}
}

// agents answers for adoption.
type agents []string

func (a *agents) Missing(context.Context, ref.Ref, string) ([]string, error) { return *a, nil }

func TestSweep(t *testing.T) {
	l := newLife(t)
	missing := agents{"a-1"}
	adopted := func(o *rotators.Options) { o.Gate.Adopted, o.Adoption = true, &missing }
	sweep := func() rotators.Retirement {
		t.Helper()
		got, err := l.runner(adopted).Sweep(t.Context(), l.id)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := sweep(); got.Version != "" || got.Retired {
		t.Errorf("nothing superseded: %+v", got)
	}
	res := l.rotate()
	got := sweep()
	if got.Retired || got.Version != res.Previous || got.Next.IsZero() || len(got.Waiting) != 1 {
		t.Errorf("while an agent is missing: %+v", got)
	}
	l.want("a closed gate", l.state(), "v1 - v0 | v0 v1")
	missing = nil
	if got := sweep(); !got.Now || !got.Retired || !got.Proven || got.Version != res.Previous {
		t.Errorf("once all have adopted: %+v", got)
	}
	l.want("an open gate", l.state(), "v1 - - disabled | v1")
	l.want("events", l.bus.took(), "version.activated, version.retired")
	l.g.took()
	if got := sweep(); got.Now || !got.Retired {
		t.Errorf("again: %+v", got)
	}
	l.want("again: calls", l.g.took(), "")
	l.want("again: events", l.bus.took(), "")
}

// A gate that is closed keeps the next rotation from beginning; one that is
// unfinished keeps the gate closed.
func TestGateAndRotation(t *testing.T) {
	l := newLife(t)
	day := gate(rotators.Gate{After: 24 * time.Hour})
	l.rotate(day)
	_, err := l.runner(day).Rotate(t.Context(), l.id, "")
	n, waits := rotators.IsNotYet(err)
	if !waits || !fault.Is(err, fault.Unavailable) || time.Until(n.Until) < 23*time.Hour {
		t.Errorf("a rotation while the gate is closed: %v", err)
	}
	if err := l.runner(day).Step(t.Context(), l.id, tokenA, "createSecret"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a step while the gate is closed: %v", err)
	}
	l.want("events", l.bus.took(), "")
	l.want("state", l.state(), "v1 - v0 | v0 v1")

	// Force is for a leak.
	res, err := l.runner(day, func(o *rotators.Options) { o.Force = true }).Rotate(t.Context(), l.id, "")
	if err != nil {
		t.Fatal(err)
	}
	l.want("forced", l.state(), "v2 - v1 | v1 v2")
	if res.Previous == "" {
		t.Errorf("%+v", res)
	}

	// Half-way: a sweep waits, whatever the gate says.
	l.g.before = func(_ context.Context, call string, _ rotators.Change) error {
		if call == "test" {
			return errBoom
		}
		return nil
	}
	if _, err := l.runner().Rotate(t.Context(), l.id, tokenA); err == nil {
		t.Fatal("the test phase should fail")
	}
	l.g.before = nil
	got, err := l.runner(gate(rotators.Gate{Min: 1})).Sweep(t.Context(), l.id)
	if err != nil || got.Retired || strings.Join(got.Waiting, "") != "a rotation is unfinished" || got.Next.IsZero() {
		t.Errorf("a sweep while a rotation is unfinished: %+v, %v", got, err)
	}
	if _, err := l.runner().Rotate(t.Context(), l.id, ""); err != nil {
		t.Errorf("an unfinished rotation is finished whatever the gate says: %v", err)
	}
}

func TestMinAge(t *testing.T) {
	l := newLife(t)
	young := func(o *rotators.Options) { o.MinAge = time.Hour }
	_, err := l.runner(young).Rotate(t.Context(), l.id, "")
	if n, ok := rotators.IsNotYet(err); !ok || !strings.Contains(err.Error(), "minimum age") || n.Until.IsZero() {
		t.Errorf("a secret made just now: %v", err)
	}
	l.rotate(young, func(o *rotators.Options) { o.Force = true })
}

// What superseded versions come to by rotating alone.
func TestNextRotationRetires(t *testing.T) {
	l := newLife(t)
	l.rotate()
	l.want("one rotation", l.state(), "v1 - v0 | v0 v1")
	l.rotate()
	l.want("two rotations", l.state(), "v2 - v1 | v1 v2")
	l.rotate(func(o *rotators.Options) { o.KeepPrevious = true })
	l.want("kept", l.state(), "v3 - v2 | v1 v2 v3")
}

func TestRetireByHand(t *testing.T) {
	l := newLife(t)
	min := gate(rotators.Gate{Manual: true, Min: time.Hour})
	l.rotate()
	if _, err := l.runner(min).Retire(t.Context(), l.id, false); err == nil || !strings.Contains(err.Error(), "min: until") {
		t.Errorf("before the least time: %v", err)
	}
	got, err := l.runner(gate(rotators.Gate{Manual: true})).Retire(t.Context(), l.id, false)
	if err != nil || !got.Now {
		t.Errorf("%+v, %v", got, err)
	}
	l.want("state", l.state(), "v1 - - disabled | v1")
	l.rotate()
	if got, err := l.runner(min).Retire(t.Context(), l.id, true); err != nil || !got.Now {
		t.Errorf("forced: %+v, %v", got, err)
	}
}

// What was restored is held: no gate takes it away, and no rotation.
func TestRestore(t *testing.T) {
	l := newLife(t)
	if _, err := l.runner().Restore(t.Context(), l.id); !fault.Is(err, fault.NotFound) {
		t.Errorf("nothing superseded: %v", err)
	}
	res := l.rotate()
	if _, err := l.runner().Retire(t.Context(), l.id, false); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		got, err := l.runner().Restore(t.Context(), l.id)
		if err != nil || got.Version != res.Previous || got.Alive == nil || !*got.Alive {
			t.Errorf("%+v, %v", got, err)
		}
		l.want("state", l.state(), "v1 - v0 held | v0 v1")
	}
	if got, err := l.runner(gate(rotators.Gate{Min: 1})).Sweep(t.Context(), l.id); err != nil || got.Retired || !got.Next.IsZero() {
		t.Errorf("a sweep of what is held: %+v, %v", got, err)
	}
	for _, keep := range []bool{false, true} {
		r := l.runner(func(o *rotators.Options) { o.KeepPrevious = keep })
		if _, err := r.Rotate(t.Context(), l.id, ""); err == nil || !strings.Contains(err.Error(), "held") {
			t.Errorf("a rotation of what is held: %v", err)
		}
	}
	if got, err := l.runner().Retire(t.Context(), l.id, false); err != nil || !got.Now {
		t.Errorf("a person lets go: %+v, %v", got, err)
	}

	// One that was never retired is held all the same.
	l.rotate()
	if _, err := l.runner().Restore(t.Context(), l.id); err != nil {
		t.Fatal(err)
	}
	l.want("restored before it was retired", l.state(), "v2 - v1 held | v1 v2")
	if _, err := l.runner().Retire(t.Context(), l.id, false); err != nil {
		t.Fatal(err)
	}

	l.g.gone = []string{"v1"}
	got, err := l.runner().Restore(t.Context(), l.id)
	if err != nil || got.Alive == nil || *got.Alive || got.Why == nil {
		t.Errorf("gone for good: %+v, %v", got, err)
	}
	l.want("state", l.state(), "v2 - v1 held | v2")
}

func TestProvenDead(t *testing.T) {
	l := newLife(t)
	l.rotate()
	l.g.before = func(_ context.Context, call string, _ rotators.Change) error {
		if strings.HasPrefix(call, "retire") {
			l.g.set(secrets.NewString("v0"), true)
			return errors.New("lost answer")
		}
		return nil
	}
	if _, err := l.runner().Retire(t.Context(), l.id, false); err == nil {
		t.Error("retire failed at the target and is no error")
	}
	// A target that only says that it revoked.
	l.g.before = nil
	lying := &liar{l.g}
	r := rotators.NewRunner(l.store, lying, &rotators.Options{Publisher: l.bus})
	if _, err := r.Retire(t.Context(), l.id, false); err == nil || !strings.Contains(err.Error(), "still signs in") {
		t.Errorf("a credential that still signs in: %v", err)
	}
	l.want("state", l.state(), "v1 - v0 | v0 v1")
	l.want("events", strings.ReplaceAll(l.bus.took(), "version.activated", ""), ", ")
	if _, err := r.Retire(t.Context(), l.id, true); err != nil {
		t.Errorf("forced: %v", err)
	}
	l.want("forced: state", l.state(), "v1 - - disabled | v0 v1")
}

// liar answers Retire with success and does nothing.
type liar struct{ *able }

func (g *liar) Retire(context.Context, rotators.Change, secrets.Value) error { return nil }

func TestOverdue(t *testing.T) {
	l := newLife(t)
	l.rotate()
	hold := gate(rotators.Gate{Manual: true, Max: time.Nanosecond})
	got, err := l.runner(hold).Sweep(t.Context(), l.id)
	if err != nil || got.Retired || !got.Overdue {
		t.Errorf("%+v, %v", got, err)
	}
	if e := l.bus.es; len(e) != 1 || e[0].Type != events.RotationFailed || e[0].Data.Reason != "retire: overdue" {
		t.Errorf("the alert is %+v", e)
	}
	go2 := gate(rotators.Gate{Manual: true, Max: time.Nanosecond, AtLimit: rotators.AtLimitRetire})
	if got, err := l.runner(go2).Sweep(t.Context(), l.id); err != nil || !got.Now {
		t.Errorf("%+v, %v", got, err)
	}
}

// Every outward call of retire, restore and rollback fails once, before and
// after its effect, and a repetition ends as if nothing had happened.
func TestCrashes(t *testing.T) {
	for name, c := range map[string]struct {
		do   func(ctx context.Context, r *rotators.Runner, id ref.Ref) error
		want string
	}{
		"retire": {func(ctx context.Context, r *rotators.Runner, id ref.Ref) error {
			_, err := r.Retire(ctx, id, false)
			return err
		}, "v1 - - disabled | v1"},
		"restore": {func(ctx context.Context, r *rotators.Runner, id ref.Ref) error {
			_, err := r.Restore(ctx, id)
			return err
		}, "v1 - v0 | v0 v1"},
		"rollback": {func(ctx context.Context, r *rotators.Runner, id ref.Ref) error {
			_, err := r.Rollback(ctx, id, false)
			return err
		}, "v0 - v1 | v0 v1"},
	} {
		t.Run(name, func(t *testing.T) {
			crashtest.Run(t, func(t *testing.T, in *crashtest.Injector) {
				l := newLife(t)
				l.rotate()
				if name == "restore" {
					if _, err := l.runner().Retire(t.Context(), l.id, false); err != nil {
						t.Fatal(err)
					}
				}
				want := c.want
				if name == "restore" {
					want = "v1 - v0 held | v0 v1"
				}
				l.g.before = func(context.Context, string, rotators.Change) error {
					return in.Call("target", func() error { return nil })
				}
				l.bus.fail = func(events.Event) error { return in.Call("publish", func() error { return nil }) }
				r := rotators.NewRunner(in.Store(l.store), l.g, &rotators.Options{Publisher: l.bus})
				if err := c.do(t.Context(), r, l.id); err != nil {
					in.Restart()
					if err := c.do(t.Context(), r, l.id); err != nil {
						t.Fatalf("retry after a failure at %q: %v", in.Fired(), err)
					}
				}
				in.Restart()
				l.want("state", l.state(), want)
				if name == "retire" && !strings.Contains(l.bus.took(), "version.retired") {
					t.Error("the retirement was never announced")
				}
			})
		})
	}
}

// A process that stalled before it revokes must not touch what a rollback has
// made current meanwhile, nor work beside a rotation.
func TestStalledRetire(t *testing.T) {
	for name, meanwhile := range map[string]func(l *life) error{
		"rollback": func(l *life) error {
			_, err := l.runner().Rollback(l.Context(), l.id, false)
			return err
		},
		"rotation": func(l *life) error {
			_, err := l.store.PutPending(l.Context(), l.id, tokenA, secrets.NewString("p"))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLife(t)
			l.rotate()
			var once bool
			l.g.before = func(ctx context.Context, call string, c rotators.Change) error {
				if !strings.HasPrefix(call, "retire") || once {
					return nil
				}
				once = true
				if err := c.StillPending(ctx); err != nil {
					t.Errorf("before anything happened: %v", err)
				}
				if err := meanwhile(l); err != nil {
					t.Fatal(err)
				}
				return c.StillPending(ctx)
			}
			if _, err := l.runner().Retire(t.Context(), l.id, false); !fault.Is(err, fault.Conflict) {
				t.Errorf("%v; want a conflict", err)
			}
			if !slices.Contains(l.g.alive, "v0") {
				t.Error("the credential was revoked")
			}
		})
	}
}

// What can never be revoked is told to who retires, and retired with force.
func TestRevocationInvalid(t *testing.T) {
	l := newLife(t)
	l.rotate()
	l.g.before = func(_ context.Context, call string, _ rotators.Change) error {
		if strings.HasPrefix(call, "retire") {
			return fault.Newf(fault.Invalid, "target", "another server")
		}
		return nil
	}
	if _, err := l.runner().Retire(t.Context(), l.id, false); !fault.Is(err, fault.Invalid) {
		t.Errorf("by hand: %v; want to be told", err)
	}
	if got, err := l.runner().Retire(t.Context(), l.id, true); err != nil || !got.Now || got.Proven {
		t.Errorf("forced: %+v, %v", got, err)
	}
}

// destroyer can remove what it has disabled.
type destroyer struct{ *able }

func (g destroyer) Destroy(ctx context.Context, c rotators.Change, old secrets.Value) error {
	return g.call(ctx, "destroy "+string(old.Reveal()), c)
}

func TestDestroy(t *testing.T) {
	l := newLife(t)
	res := l.rotate()
	r := rotators.NewRunner(l.store, destroyer{l.g}, &rotators.Options{Publisher: l.bus})
	if err := r.Destroy(t.Context(), l.id, res.Previous); !fault.Is(err, fault.Conflict) {
		t.Errorf("a version in use: %v", err)
	}
	for _, id := range []string{"nope", res.Version, ""} {
		if err := r.Destroy(t.Context(), l.id, id); !fault.Is(err, fault.NotFound) {
			t.Errorf("version %q: %v", id, err)
		}
	}
	l.want("calls so far", l.g.took(), "")
	if _, err := r.Retire(t.Context(), l.id, false); err != nil {
		t.Fatal(err)
	}
	l.g.took()
	l.bus.took()
	if err := r.Destroy(t.Context(), l.id, res.Previous); err != nil {
		t.Fatal(err)
	}
	l.want("calls", l.g.took(), "destroy v0")
	l.want("events", l.bus.took(), "version.destroyed")
	l.want("state", l.state(), "v1 - - | v1")
	if _, err := r.Restore(t.Context(), l.id); !fault.Is(err, fault.NotFound) {
		t.Errorf("restore what was destroyed: %v", err)
	}
}
