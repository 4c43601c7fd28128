package rotators_test

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
)

const (
	tokenA = "aaaaaaaa-0000-4000-8000-000000000000"
	tokenB = "bbbbbbbb-0000-4000-8000-000000000000"
)

var errBoom = &fault.Error{Kind: fault.Denied, Class: fault.ClassAuth, Op: "target", Msg: "refused"}

// target issues numbered credentials and keeps those that are alive.
type target struct {
	mu    sync.Mutex
	n     int
	alive []string
	calls []string
	// before runs at the start of each call, outside the lock.
	before func(ctx context.Context, call string, c rotators.Change) error
}

func (g *target) call(ctx context.Context, name string, c rotators.Change) error {
	g.mu.Lock()
	g.calls = append(g.calls, name)
	before := g.before
	g.mu.Unlock()
	if before != nil {
		return before(ctx, name, c)
	}
	return nil
}

func (g *target) Create(ctx context.Context, c rotators.Change) (secrets.Value, error) {
	if err := g.call(ctx, "create", c); err != nil {
		return secrets.Value{}, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n++
	v := fmt.Sprintf("v%d", g.n)
	g.alive = append(g.alive, v)
	return secrets.NewString(v), nil
}

func (g *target) Set(ctx context.Context, c rotators.Change) error  { return g.call(ctx, "set", c) }
func (g *target) Test(ctx context.Context, c rotators.Change) error { return g.call(ctx, "test", c) }

// retiring is a target whose credentials can be revoked.
type retiring struct{ *target }

func (g retiring) Retire(ctx context.Context, c rotators.Change, old secrets.Value) error {
	if err := g.call(ctx, "retire "+string(old.Reveal()), c); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.alive = slices.DeleteFunc(g.alive, func(v string) bool { return v == string(old.Reveal()) })
	return nil
}

// took returns the calls since the last time.
func (g *target) took() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := strings.Join(g.calls, ", ")
	g.calls = nil
	return s
}

// Store is a store that is no [secrets.Succeeder].
type Store interface {
	secrets.Store
	secrets.Creator
}

// store is a memstore that counts writes and lets a test step in.
type store struct {
	Store
	mu     sync.Mutex
	writes []string
	// What the store's own service would say.
	opened   bool
	begun    string // the token that it labelled pending
	disabled bool
	leftover bool // current still has the stage pending
	// In the way of calls.
	get     func(stage secrets.Stage) error
	put     func(put func() (*secrets.Version, error)) (*secrets.Version, error)
	promote func() error
}

func (s *store) wrote(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.writes = append(s.writes, what)
}

func (s *store) took() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := strings.Join(s.writes, ", ")
	s.writes = nil
	return out
}

func (s *store) Get(ctx context.Context, r ref.Ref, stage secrets.Stage) (*secrets.Version, error) {
	if s.get != nil {
		if err := s.get(stage); err != nil {
			return nil, err
		}
	}
	return s.Store.Get(ctx, r, stage)
}

func (s *store) PutPending(ctx context.Context, r ref.Ref, token string, v secrets.Value) (*secrets.Version, error) {
	s.wrote("put")
	put := func() (*secrets.Version, error) { return s.Store.PutPending(ctx, r, token, v) }
	if hook := s.put; hook != nil {
		s.put = nil
		return hook(put)
	}
	return put()
}

func (s *store) Promote(ctx context.Context, r ref.Ref, token string) (*secrets.Version, error) {
	s.wrote("promote")
	if s.promote != nil {
		if err := s.promote(); err != nil {
			return nil, err
		}
	}
	return s.Store.Promote(ctx, r, token)
}

func (s *store) Discard(ctx context.Context, r ref.Ref, token string) error {
	s.wrote("discard")
	s.leftover = false
	return s.Store.Discard(ctx, r, token)
}

func (s *store) Describe(ctx context.Context, r ref.Ref) (*secrets.Description, error) {
	d, err := s.Store.Describe(ctx, r)
	if err != nil {
		return nil, err
	}
	d.Opened, d.RotationDisabled = s.opened, s.disabled
	if s.begun != "" && d.Holder(secrets.Pending) == nil && !d.Has(s.begun, secrets.Current) {
		d.Versions = append(d.Versions, secrets.VersionInfo{ID: s.begun, Token: s.begun, Stages: []secrets.Stage{secrets.Pending}})
	}
	if h := d.Holder(secrets.Current); s.leftover && h != nil {
		h.Stages = append(h.Stages, secrets.Pending)
	}
	return d, nil
}

// bus records what is announced.
type bus struct {
	mu   sync.Mutex
	es   []events.Event
	fail func(e events.Event) error
}

func (b *bus) Publish(ctx context.Context, es ...events.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range es {
		if b.fail != nil {
			if err := b.fail(e); err != nil {
				return err
			}
		}
		b.es = append(b.es, e)
	}
	return nil
}

// took returns the types since the last time, as noun.verb.
func (b *bus) took() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []string
	for _, e := range b.es {
		noun, verb := e.Type.Parts()
		out = append(out, noun+"."+verb)
	}
	b.es = nil
	return strings.Join(out, ", ")
}

// fixture is one secret with the value v0.
type fixture struct {
	*testing.T
	store  *store
	target *target
	bus    *bus
	id     ref.Ref
}

func setUp(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, store: &store{Store: memstore.New()}, target: &target{alive: []string{"v0"}}, bus: &bus{}}
	f.id = f.secret("one")
	return f
}

func (f *fixture) secret(name string) ref.Ref {
	f.Helper()
	id, err := ref.New(ref.NATS, name, "bucket")
	if err != nil {
		f.Fatal(err)
	}
	if _, err := f.store.CreateSecret(f.Context(), id, secrets.NewString("v0")); err != nil {
		f.Fatal(err)
	}
	return id
}

// runner returns a Runner as a process of its own has it.
func (f *fixture) runner(edit ...func(*rotators.Options)) *rotators.Runner {
	o := rotators.Options{Publisher: f.bus, Tenant: func(ref.Ref) string { return "acme" }}
	for _, e := range edit {
		e(&o)
	}
	return rotators.NewRunner(f.store, retiring{f.target}, &o)
}

func (f *fixture) rotate(token string) rotators.Result {
	f.Helper()
	res, err := f.runner().Rotate(f.Context(), f.id, token)
	if err != nil {
		f.Fatal(err)
	}
	return res
}

// value returns what holds stage, "" if nothing does.
func (f *fixture) value(stage secrets.Stage) string {
	f.Helper()
	v, err := f.store.Store.Get(context.Background(), f.id, stage)
	if fault.Is(err, fault.NotFound) {
		return ""
	}
	if err != nil {
		f.Fatal(err)
	}
	return string(v.Value.Reveal())
}

func (f *fixture) want(what, got, want string) {
	f.Helper()
	if got != want {
		f.Errorf("%s: %q; want %q", what, got, want)
	}
}

func (f *fixture) quiet(what string) {
	f.Helper()
	f.want(what+": writes", f.store.took(), "")
	f.want(what+": calls to the target", f.target.took(), "")
}

func (f *fixture) kind(what string, err error, kind fault.Kind, class fault.Class) {
	f.Helper()
	if !fault.Is(err, kind) || fault.ClassOf(err) != class {
		f.Errorf("%s: %v (kind %s, class %q); want %s, %q", what, err, fault.KindOf(err), fault.ClassOf(err), kind, class)
	}
}

var stepNames = []string{"createSecret", "setSecret", "testSecret", "finishSecret"}

func TestRotate(t *testing.T) {
	f := setUp(t)
	var seen []string
	r := f.runner(func(o *rotators.Options) {
		o.Observe = func(p rotators.Progress) {
			seen = append(seen, string(p.Phase))
			if p.Ref != f.id || p.Token != tokenA || p.Err != nil {
				t.Errorf("progress %+v", p)
			}
		}
	})
	f.target.before = func(_ context.Context, call string, c rotators.Change) error {
		got := fmt.Sprintf("%s: %s %s %s", call, c.Current.Reveal(), c.Pending.Reveal(), c.Previous.Reveal())
		want := map[string]string{"create": "create: v0  ", "set": "set: v0 v1 ", "test": "test: v0 v1 "}[call]
		f.want("what the rotator knows", got, want)
		return nil
	}
	res, err := r.Rotate(t.Context(), f.id, tokenA)
	if err != nil {
		t.Fatal(err)
	}
	f.want("calls", f.target.took(), "create, set, test")
	f.want("writes", f.store.took(), "put, promote")
	f.want("phases", strings.Join(seen, ", "), "create, set, test, finish")
	f.want("current", f.value(secrets.Current), "v1")
	f.want("previous", f.value(secrets.Previous), "v0")
	f.want("pending", f.value(secrets.Pending), "")
	cur, err := f.store.Store.Get(t.Context(), f.id, secrets.Current)
	if err != nil {
		t.Fatal(err)
	}
	if res.Token != tokenA || res.Version != cur.ID || res.Previous == "" || res.Resumed {
		t.Errorf("result %+v", res)
	}
	for _, e := range f.bus.es {
		if e.Data.Tenant != "acme" || e.Data.Ref != f.id || e.Data.Cause != "rotator" {
			t.Errorf("event %+v", e)
		}
		if e.Type == events.VersionActivated && (e.Data.Version != res.Version || e.Data.PreviousVersion != res.Previous) {
			t.Errorf("event %+v; want version %s after %s", e, res.Version, res.Previous)
		}
	}
	f.want("events", f.bus.took(), "rotation.started, version.activated, rotation.succeeded")
}

// C01 to C03, C05, C06: what a store's service did not open is no rotation.
func TestStepLabels(t *testing.T) {
	for _, c := range []struct {
		name  string
		setUp func(*fixture)
		token string
		steps []string
		want  string
	}{
		{"C01 disabled", func(f *fixture) { f.store.disabled, f.store.begun = true, tokenA }, tokenA, stepNames, "not enabled for rotation"},
		{"C03 unknown token", func(f *fixture) { f.store.begun = tokenA }, tokenB, stepNames, "no stage for rotation"},
		{"C03 empty token", func(f *fixture) { f.store.begun = tokenA }, "", stepNames, "no stage for rotation"},
		{"C05 only previous", func(f *fixture) {
			f.rotate(tokenA)
			f.rotate(tokenB)
		}, tokenA, stepNames, "not pending for rotation"},
		{"C06 unknown step", func(f *fixture) { f.store.begun = tokenA }, tokenA, []string{"rollbackSecret", "", "CREATE"}, "is not a step"},
		{"C06 unknown step of an unknown token", func(f *fixture) { f.store.begun = tokenA }, tokenB, []string{"rollbackSecret"}, "no stage for rotation"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := setUp(t)
			f.store.opened = true
			c.setUp(f)
			_, _ = f.store.took(), f.target.took()
			for _, step := range c.steps {
				err := f.runner().Step(t.Context(), f.id, c.token, step)
				f.kind(step, err, fault.Invalid, "")
				if err != nil && !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %v; want %q in it", step, err, c.want)
				}
				f.quiet(step)
			}
		})
	}
}

// C02: a service that says nothing of rotation being enabled has opened it.
func TestStepsOfAnOpenedRotation(t *testing.T) {
	f := setUp(t)
	f.store.opened, f.store.begun = true, tokenA
	for i, want := range []string{"create", "set", "test", ""} {
		if err := f.runner().Step(t.Context(), f.id, tokenA, stepNames[i]); err != nil {
			t.Fatal(err)
		}
		f.want(stepNames[i], f.target.took(), want)
	}
	f.want("current", f.value(secrets.Current), "v1")
	f.want("events", f.bus.took(), "rotation.started, version.activated, rotation.succeeded")
}

// C04: every step of a rotation that is over succeeds and changes nothing,
// one that does not exist too; finish announces once more.
func TestStepOfAFinishedRotation(t *testing.T) {
	for _, opened := range []bool{true, false} {
		f := setUp(t)
		f.rotate(tokenA)
		f.store.opened = opened
		_, _, _ = f.store.took(), f.target.took(), f.bus.took()
		for _, step := range append(slices.Clone(stepNames), "rollbackSecret") {
			if err := f.runner().Step(t.Context(), f.id, tokenA, step); err != nil {
				t.Errorf("%s: %v", step, err)
			}
			want := ""
			if !opened && step == "finishSecret" {
				want = "discard" // of what may be left where no description shows it
			}
			f.want(step+": writes", f.store.took(), want)
			f.want(step+": calls to the target", f.target.took(), "")
		}
		f.want("events", f.bus.took(), "version.activated, rotation.succeeded")
	}
}

// C25: pending is still on current. Its service removes it; without one
// finish does, and so does a repeated Rotate.
func TestLeftover(t *testing.T) {
	f := setUp(t)
	f.rotate(tokenA)
	_ = f.store.took()
	step := func() {
		f.Helper()
		if err := f.runner().Step(t.Context(), f.id, tokenA, "finishSecret"); err != nil {
			t.Fatal(err)
		}
	}
	f.store.opened, f.store.leftover = true, true
	step()
	f.want("writes, with a service", f.store.took(), "")
	f.store.opened = false
	step()
	f.want("writes of finish", f.store.took(), "discard")
	f.store.leftover = true
	f.rotate(tokenA)
	f.want("writes of Rotate", f.store.took(), "discard")
}

// C09: only "there is none" means make one.
func TestUnreadablePending(t *testing.T) {
	for _, kind := range []fault.Kind{fault.Denied, fault.Unavailable, fault.Unknown} {
		f := setUp(t)
		f.store.get = func(s secrets.Stage) error {
			if s == secrets.Pending {
				return fault.New(kind, "get", errors.New("no"))
			}
			return nil
		}
		f.kind("step", f.runner().Step(t.Context(), f.id, tokenA, "createSecret"), kind, "")
		f.quiet("step")
		_, err := f.runner().Rotate(t.Context(), f.id, tokenA)
		f.kind("rotate", err, kind, "")
		f.quiet("rotate")
	}
}

func TestRollForward(t *testing.T) {
	f := setUp(t)
	for _, s := range stepNames[:2] {
		if err := f.runner().Step(t.Context(), f.id, tokenA, s); err != nil {
			t.Fatal(err)
		}
	}
	f.kind("another rotation's create", f.runner().Step(t.Context(), f.id, tokenB, "createSecret"), fault.Conflict, "")
	f.kind("another rotation's set", f.runner().Step(t.Context(), f.id, tokenB, "setSecret"), fault.Conflict, "")
	f.want("calls", f.target.took(), "create, set")
	res := f.rotate(tokenB)
	if !res.Resumed || res.Token != tokenA {
		t.Errorf("result %+v; want rotation %s resumed", res, tokenA)
	}
	f.want("calls", f.target.took(), "set, test")
	f.want("current", f.value(secrets.Current), "v1")
	if res := f.rotate(tokenA); res.Resumed || res.Token != tokenA || res.Version == "" {
		t.Errorf("the same token again: %+v", res)
	}
	f.want("the same token again", f.target.took(), "")
	if res := f.rotate(""); !regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`).MatchString(res.Token) {
		t.Errorf("made-up token %q is no UUID", res.Token)
	}
}

func TestBudget(t *testing.T) {
	f := setUp(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var progress []rotators.Progress
	tight := f.runner(func(o *rotators.Options) {
		o.Budget = time.Hour
		o.Observe = func(p rotators.Progress) { progress = append(progress, p) }
	})
	_, err := tight.Rotate(ctx, f.id, tokenA)
	f.kind("no time left", err, fault.Unavailable, fault.ClassTimeout)
	f.quiet("no time left")
	f.want("events", f.bus.took(), "rotation.started, rotation.failed")
	if len(progress) != 1 || progress[0].Err == nil {
		t.Errorf("progress %+v; want one phase that failed", progress)
	}
	if _, err := tight.Rotate(t.Context(), f.id, tokenA); err != nil {
		t.Errorf("without a deadline: %v", err)
	}
}

// A phase that hangs ends at its own limit, and the failure is announced
// though the caller's time is over.
func TestHangingTarget(t *testing.T) {
	f := setUp(t)
	f.target.before = func(ctx context.Context, call string, _ rotators.Change) error {
		if call != "set" {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}
	_, err := f.runner(func(o *rotators.Options) { o.PhaseTimeout = 20 * time.Millisecond }).Rotate(t.Context(), f.id, tokenA)
	f.kind("its own limit", err, fault.Unavailable, fault.ClassTimeout)
	_ = f.bus.took()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = f.runner(func(o *rotators.Options) { o.Budget = time.Nanosecond }).Rotate(ctx, f.id, tokenA)
	f.kind("the caller's limit", err, fault.Unavailable, fault.ClassTimeout)
	f.want("events", f.bus.took(), "rotation.started, rotation.failed")
	f.want("current", f.value(secrets.Current), "v0")
	f.target.before = nil
	f.rotate(tokenA)
	f.want("current", f.value(secrets.Current), "v1")
}

func TestFailureIsAnnounced(t *testing.T) {
	for phase, want := range map[string]string{"create": "create: denied/auth", "set": "set: denied/auth", "test": "test: denied/auth", "finish": "finish: conflict"} {
		f := setUp(t)
		f.target.before = func(_ context.Context, call string, _ rotators.Change) error {
			if call == phase {
				return errBoom
			}
			return nil
		}
		if phase == "finish" {
			f.store.promote = func() error { return fault.New(fault.Conflict, "promote", nil) }
		}
		var failed error
		_, err := f.runner(func(o *rotators.Options) {
			o.Observe = func(p rotators.Progress) {
				if p.Err != nil {
					failed = p.Err
					f.want("failed phase", string(p.Phase), phase)
				}
			}
		}).Rotate(t.Context(), f.id, tokenA)
		if err == nil || !errors.Is(err, failed) {
			t.Errorf("%s: %v; want what the observer got, %v", phase, err, failed)
		}
		last := f.bus.es[len(f.bus.es)-1]
		if last.Type != events.RotationFailed || last.Data.Reason != want {
			t.Errorf("%s: announced %s with reason %q; want %q", phase, last.Type, last.Data.Reason, want)
		}
		f.want("current", f.value(secrets.Current), "v0")
		if phase == "finish" {
			f.want("promotions tried", f.store.took(), "put, promote, promote, promote")
		}
	}
}

// An announcement that nobody depends on may fail; that of finish may not, and
// is repeated with the same ids.
func TestAnnouncements(t *testing.T) {
	f := setUp(t)
	f.bus.fail = func(e events.Event) error {
		if e.Type == events.RotationStarted || e.Type == events.VersionRetired {
			return errors.New("bus is away")
		}
		return nil
	}
	f.rotate(tokenA)
	first := slices.Clone(f.bus.es)
	f.rotate(tokenA)
	again := f.bus.es[len(first):]
	if len(first) != 2 || len(again) != 2 || first[0].ID != again[0].ID || first[1].ID != again[1].ID {
		t.Errorf("announced %v, then %v; want the same two ids", first, again)
	}
	f.bus.fail = func(e events.Event) error {
		if e.Type == events.VersionActivated && e.ID != first[0].ID {
			return errors.New("bus is away")
		}
		return nil
	}
	_ = f.bus.took()
	if _, err := f.runner().Rotate(t.Context(), f.id, tokenB); err == nil {
		t.Error("a finish that was not announced succeeded")
	}
	f.want("current all the same", f.value(secrets.Current), "v2")
	if err := f.runner().Step(t.Context(), f.id, tokenB, "finishSecret"); err == nil {
		t.Error("a repeated finish that was not announced succeeded")
	}
	// Nor does another rotation retire what the fleet still holds, as long as
	// nobody could be told what is current.
	_ = f.target.took()
	if _, err := f.runner().Rotate(t.Context(), f.id, ""); err == nil {
		t.Error("a rotation began though the one before it was not announced")
	}
	f.want("calls meanwhile", f.target.took(), "")
	f.bus.fail = nil
	_ = f.bus.took()
	f.rotate(tokenB)
	f.want("events", f.bus.took(), "version.activated, rotation.succeeded")
}

// One secret's rotations queue up, two secrets' do not.
func TestLocks(t *testing.T) {
	f := setUp(t)
	other := f.secret("two")
	in := make(chan ref.Ref)
	goOn := make(chan struct{})
	f.target.before = func(_ context.Context, call string, c rotators.Change) error {
		if call == "create" {
			in <- c.Ref
			<-goOn
		}
		return nil
	}
	r := f.runner()
	var wg sync.WaitGroup
	rotate := func(id ref.Ref) {
		wg.Go(func() {
			if _, err := r.Rotate(t.Context(), id, ""); err != nil {
				t.Errorf("rotate: %v", err)
			}
		})
	}
	rotate(f.id)
	if got := <-in; got != f.id {
		t.Fatalf("%s is rotated", got)
	}
	// The first is held inside; another secret gets in all the same.
	rotate(other)
	if got := <-in; got != other {
		t.Fatalf("%s is rotated", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := r.Rotate(ctx, f.id, "")
	f.kind("waiting for the first", err, fault.Unavailable, fault.ClassConcurrency)
	if err := r.Step(ctx, f.id, tokenA, "createSecret"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("step while the first is at work: %v", err)
	}
	if _, err := r.Retire(ctx, f.id, false); !fault.Is(err, fault.Unavailable) {
		t.Errorf("retire while the first is at work: %v", err)
	}
	rotate(f.id)
	close(goOn)
	if got := <-in; got != f.id {
		t.Fatalf("%s is rotated", got)
	}
	wg.Wait()
	if f.target.n != 3 {
		t.Errorf("%d credentials were made; want 3", f.target.n)
	}
}

// The credential that a rotation superseded is retired by the next one, before
// it makes another, or by Retire.
func TestRetire(t *testing.T) {
	f := setUp(t)
	f.rotate("")
	f.want("calls of the first rotation", f.target.took(), "create, set, test")
	_ = f.bus.took()
	f.rotate("")
	f.want("calls of the second", f.target.took(), "retire v0, create, set, test")
	f.want("events", f.bus.took(), "rotation.started, version.activated, version.retired, version.activated, rotation.succeeded")

	if _, err := f.runner().Retire(t.Context(), f.id, false); err != nil {
		t.Fatal(err)
	}
	f.want("calls of Retire", f.target.took(), "retire v1")
	f.want("alive", strings.Join(f.target.alive, " "), "v2")

	keep := f.runner(func(o *rotators.Options) { o.KeepPrevious = true })
	if _, err := keep.Rotate(t.Context(), f.id, ""); err != nil {
		t.Fatal(err)
	}
	f.want("calls with KeepPrevious", f.target.took(), "create, set, test")

	// A target that is away stops the rotation before it makes anything.
	f.target.before = func(_ context.Context, call string, _ rotators.Change) error {
		if strings.HasPrefix(call, "retire") {
			return errBoom
		}
		return nil
	}
	_, err := f.runner().Rotate(t.Context(), f.id, "")
	f.kind("retire refused", err, fault.Denied, fault.ClassAuth)
	f.want("calls", f.target.took(), "retire v2")
	f.target.before = nil

	// A rotator that cannot retire is success.
	if _, err := rotators.NewRunner(f.store, f.target, nil).Retire(t.Context(), f.id, false); err != nil {
		t.Error(err)
	}
}

// A previous version with the value of current is not retired: that would
// kill current.
func TestRetireSparesARestoredValue(t *testing.T) {
	f := setUp(t)
	if _, err := f.store.PutPending(t.Context(), f.id, tokenA, secrets.NewString("v0")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.store.Promote(t.Context(), f.id, tokenA); err != nil {
		t.Fatal(err)
	}
	if _, err := f.runner().Retire(t.Context(), f.id, false); err != nil {
		t.Fatal(err)
	}
	f.rotate(tokenB)
	f.want("calls", f.target.took(), "create, set, test")
}

// Another rotation runs as a whole between what create read and what it
// stores. Its pending would succeed what is not current any more.
func TestCurrentMovedDuringCreate(t *testing.T) {
	f := setUp(t)
	f.store.put = func(put func() (*secrets.Version, error)) (*secrets.Version, error) {
		f.rotate(tokenB)
		return put()
	}
	_, err := f.runner().Rotate(t.Context(), f.id, tokenA)
	f.kind("rotate", err, fault.Conflict, fault.ClassConcurrency)
	f.want("pending", f.value(secrets.Pending), "")
	f.want("current", f.value(secrets.Current), "v2")
	f.want("alive", strings.Join(f.target.alive, " "), "v0 v2")
	f.rotate(tokenA)
	f.want("current after coming again", f.value(secrets.Current), "v3")
}

// The same with a store that binds pending to current: it is refused before
// anybody could go on with it, so there is nothing to take back.
func TestPendingIsBoundToCurrent(t *testing.T) {
	f := setUp(t)
	f.target.before = func(_ context.Context, call string, c rotators.Change) error {
		if call == "create" && c.Token == tokenA {
			f.rotate(tokenB)
		}
		return nil
	}
	// The inner store: a memstore, as it is.
	r := rotators.NewRunner(f.store.Store, f.target, nil)
	_, err := r.Rotate(t.Context(), f.id, tokenA)
	f.kind("rotate", err, fault.Conflict, "")
	f.want("pending", f.value(secrets.Pending), "")
	f.want("writes", f.store.took(), "put, promote") // of the other one alone
	f.target.before = nil
	f.rotate(tokenA)
	f.want("pending after coming again", f.value(secrets.Pending), "")
}

// Another rotation ends between the decision to rotate and create. What it
// superseded a moment ago is not retired.
func TestCurrentMovedBeforeCreate(t *testing.T) {
	for _, c := range []struct {
		token string
		kind  fault.Kind
	}{{tokenB, fault.Conflict}, {tokenA, fault.Unknown}} {
		f := setUp(t)
		f.rotate("")
		once := false
		f.bus.fail = func(e events.Event) error {
			if e.Type == events.RotationStarted && !once {
				once = true
				twin := rotators.NewRunner(f.store, retiring{f.target}, nil)
				if _, err := twin.Rotate(t.Context(), f.id, c.token); err != nil {
					t.Error(err)
				}
			}
			return nil
		}
		_, err := f.runner().Rotate(t.Context(), f.id, tokenA)
		if c.kind == fault.Unknown && err != nil || c.kind != fault.Unknown && !fault.Is(err, c.kind) {
			t.Errorf("beside rotation %s: %v", c.token, err)
		}
		f.want("alive", strings.Join(f.target.alive, " "), "v1 v2")
		f.want("current", f.value(secrets.Current), "v2")
	}
}

// A store's client that repeats a call by itself may hear of its own success
// as a conflict. What is stored is not revoked.
func TestConflictWithItself(t *testing.T) {
	for _, promote := range []bool{false, true} {
		f := setUp(t)
		f.store.put = func(put func() (*secrets.Version, error)) (*secrets.Version, error) {
			if _, err := put(); err != nil {
				t.Error(err)
			}
			if promote {
				if _, err := f.store.Store.Promote(t.Context(), f.id, tokenA); err != nil {
					t.Error(err)
				}
			}
			return nil, fault.New(fault.Conflict, "put", errors.New("exists"))
		}
		_, err := f.runner().Rotate(t.Context(), f.id, tokenA)
		f.kind("rotate", err, fault.Conflict, "")
		f.want("alive", strings.Join(f.target.alive, " "), "v0 v1")
		f.rotate(tokenA)
		f.want("current", f.value(secrets.Current), "v1")
	}
}

func TestMissingSecret(t *testing.T) {
	f := setUp(t)
	id, err := ref.New(ref.NATS, "nothing", "bucket")
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.runner().Rotate(t.Context(), id, "")
	f.kind("rotate", err, fault.NotFound, "")
	f.kind("step", f.runner().Step(t.Context(), id, tokenA, "createSecret"), fault.NotFound, "")
	_, err = f.runner().Retire(t.Context(), id, false)
	f.kind("retire", err, fault.NotFound, "")
	f.quiet("a secret that does not exist")
}

func TestParsePhase(t *testing.T) {
	for _, p := range rotators.Phases() {
		for _, s := range []string{string(p), string(p) + "Secret", string(p) + "_secret"} {
			if got, err := rotators.ParsePhase(s); got != p || err != nil {
				t.Errorf("%q is %q, %v; want %q", s, got, err, p)
			}
		}
	}
	for _, s := range []string{"", "Secret", "create Secret", "createsecret", "createSecretSecret", "create_secretSecret"} {
		if got, err := rotators.ParsePhase(s); !fault.Is(err, fault.Invalid) {
			t.Errorf("%q is %q, %v; want an error of kind invalid", s, got, err)
		}
	}
}

// One occasion is one rotation, however often it comes.
func TestTokenOf(t *testing.T) {
	a := rotators.TokenOf("schedule/1")
	if a != rotators.TokenOf("schedule/1") || a == rotators.TokenOf("schedule/2") {
		t.Error("tokens do not follow the occasion")
	}
	if len(a) != 36 || a[14] != '8' || !strings.ContainsRune("89ab", rune(a[19])) {
		t.Errorf("%q has not the form of a UUID of version 8", a)
	}
}

// A process that stalled is told so under the target's lock.
func TestStillPending(t *testing.T) {
	f := setUp(t)
	var stale func(context.Context) error
	f.target.before = func(_ context.Context, call string, c rotators.Change) error {
		if call == "set" && stale == nil {
			stale = c.StillPending
			if err := stale(t.Context()); err != nil {
				t.Errorf("while it is pending: %v", err)
			}
		}
		return nil
	}
	f.rotate("")
	err := stale(t.Context())
	f.kind("after the rotation", err, fault.Conflict, fault.ClassConcurrency)
	f.rotate("")
	f.kind("after another", stale(t.Context()), fault.Conflict, fault.ClassConcurrency)
}
