package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/natslock"
	"github.com/keyturn/keyturn/internal/scheduler"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const limit = 60 * time.Second

func id(name string) ref.Ref { return ref.Ref{Provider: ref.NATS, Scope: "mem", Name: name} }

// target is what all secrets of a test rotate at.
type target struct {
	mu   sync.Mutex
	log  []string // "name create", "name test", ...
	fail func(name string) error
	in   func(name string) // called in set, outside the lock
}

func (g *target) note(c rotators.Change, what string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.log = append(g.log, c.Ref.Name+" "+what)
}

func (g *target) count(entry string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, s := range g.log {
		if s == entry {
			n++
		}
	}
	return n
}

// at is where an entry is in the log, -1 if it is not.
func (g *target) at(entry string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Index(g.log, entry)
}

func (g *target) Create(_ context.Context, c rotators.Change) (secrets.Value, error) {
	g.note(c, "create")
	if f := g.fail; f != nil {
		if err := f(c.Ref.Name); err != nil {
			return secrets.Value{}, err
		}
	}
	return secrets.NewString(rotators.NewToken()), nil
}

func (g *target) Set(_ context.Context, c rotators.Change) error {
	g.note(c, "set")
	if f := g.in; f != nil {
		f(c.Ref.Name)
	}
	return nil
}

func (g *target) Test(_ context.Context, c rotators.Change) error {
	g.note(c, "test")
	return nil
}

func (g *target) Retire(_ context.Context, c rotators.Change, _ secrets.Value) error {
	g.note(c, "retire")
	return nil
}

// world is one server, one store and one target.
type world struct {
	*testing.T
	srv   *testenv.NATSServer
	store *memstore.Store
	g     *target
}

func newWorld(t *testing.T, names ...string) *world {
	t.Helper()
	w := &world{T: t, srv: testenv.NATS(t), store: memstore.New(), g: &target{}}
	for _, n := range names {
		if _, err := w.store.CreateSecret(t.Context(), id(n), secrets.NewString("v0")); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// replica is one process.
type replica struct {
	*scheduler.Scheduler
	bus  *natsbus.Bus
	stop func()
}

// opens is the Open of a job whose store is always there.
func opens(r scheduler.Runner, st secrets.Store) func(context.Context) (scheduler.Runner, secrets.Store, error) {
	return func(context.Context) (scheduler.Runner, secrets.Store, error) { return r, st, nil }
}

// start starts a replica with these jobs; those that say nothing else have a
// runner without a gate.
func (w *world) start(opts *scheduler.Options, jobs ...*scheduler.Job) *replica {
	w.Helper()
	nc := w.srv.Conn(w.T)
	bus, err := natsbus.Open(w.Context(), nc, nil)
	if err != nil {
		w.Fatal(err)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		w.Fatal(err)
	}
	locks, err := natslock.Open(w.Context(), js, nil)
	if err != nil {
		w.Fatal(err)
	}
	for _, j := range jobs {
		if j.Open == nil {
			j.Open = opens(rotators.NewRunner(w.store, w.g, &rotators.Options{Publisher: bus}), w.store)
		}
	}
	s, err := scheduler.New(bus, locks, "test", jobs, opts)
	if err != nil {
		w.Fatal(err)
	}
	if _, err := s.Reconcile(w.Context(), bus); err != nil {
		w.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := bus.RunSchedules(ctx, s.Fire); err != nil {
			w.Errorf("schedules: %v", err)
		}
	})
	r := &replica{Scheduler: s, bus: bus, stop: sync.OnceFunc(func() { cancel(); wg.Wait() })}
	w.Cleanup(r.stop)
	return r
}

// current is the id of the current version.
func (w *world) current(name string) string {
	w.Helper()
	d, err := w.store.Describe(context.Background(), id(name))
	if err != nil {
		w.Fatal(err)
	}
	return d.Holder(secrets.Current).ID
}

// failures returns the reasons of rotation.failed so far.
func (w *world) failures(b *natsbus.Bus) []string {
	w.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var mu sync.Mutex
	var out []string
	ready := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = b.Subscribe(ctx, events.Filter{Types: []events.Type{events.RotationFailed}}, func(_ context.Context, e events.Event) {
			mu.Lock()
			defer mu.Unlock()
			out = append(out, e.Data.Cause+" "+e.Data.Reason)
		}, func() { close(ready) })
	}()
	<-ready
	cancel()
	<-done
	return out
}

// A schedule fires once, however many replicas there are.
func TestTwoReplicasFireOnce(t *testing.T) {
	w := newWorld(t, "one")
	job := &scheduler.Job{Ref: id("one"), Spec: natsbus.Spec{At: time.Now().Add(time.Second)}}
	job.Spec = natsbus.Spec{Every: time.Second}
	a := w.start(nil, job)
	b := w.start(nil, job)
	testenv.Eventually(t, limit, "three rotations", func() bool { return w.g.count("one test") >= 3 })
	a.stop()
	b.stop()
	// A firing is stored once, each is one rotation, and a rotation is one
	// create.
	if c, s := w.g.count("one create"), w.g.count("one test"); c != s {
		t.Errorf("%d created, %d tested; expected no rotation that another replica took over", c, s)
	}
	list, err := a.bus.ListSchedules(t.Context())
	if err != nil || len(list) != 1 {
		t.Errorf("schedules %+v, %v", list, err)
	}
}

// Triggers that overlap, by whatever way they come, are one rotation.
func TestTriggersCollapse(t *testing.T) {
	w := newWorld(t, "one")
	working := make(chan struct{}, 16)
	release := make(chan struct{})
	w.g.in = func(string) { working <- struct{}{}; <-release }
	a := w.start(nil, &scheduler.Job{Ref: id("one")})
	b := w.start(nil, &scheduler.Job{Ref: id("one")})
	ask := func(r *replica, occasion string) {
		t.Helper()
		e := events.New(events.RotationRequested, id("one"), time.Now(), occasion)
		if err := r.Hear(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	ask(a, "first")
	<-working
	for i := range 5 { // while the first is at work
		ask(a, fmt.Sprint("more ", i))
		ask(b, "first") // delivered again
	}
	close(release)
	idle := func() bool {
		due, err := a.bus.Due(t.Context(), id("one").String())
		return err == nil && !due
	}
	testenv.Eventually(t, limit, "the queue to drain", idle)
	if n := w.g.count("one create"); n != 1 {
		t.Errorf("%d rotations; expected one", n)
	}
	// What is asked afterwards is another.
	ask(b, "later")
	testenv.Eventually(t, limit, "a second rotation", func() bool { return w.g.count("one test") == 2 && idle() })

	// Others' secrets and other events are left alone.
	foreign := events.New(events.RotationRequested, id("two"), time.Now(), "x")
	changed := events.New(events.SecretChanged, id("one"), time.Now(), "x")
	old := events.New(events.SecretNearExpiry, id("one"), time.Now(), "x")
	old.Data.Version = "superseded"
	if err := errors.Join(a.Hear(t.Context(), foreign), a.Hear(t.Context(), changed), a.Hear(t.Context(), old)); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"one", "two"} {
		if due, err := a.bus.Due(t.Context(), id(name).String()); due || err != nil {
			t.Errorf("%s is due: %t, %v", name, due, err)
		}
	}
}

func request(t *testing.T, r *replica, name string) {
	t.Helper()
	if err := r.Hear(t.Context(), events.New(events.RotationRequested, id(name), time.Now(), rotators.NewToken())); err != nil {
		t.Fatal(err)
	}
}

// Outside its windows a rotation waits for the next one; what was begun is
// finished at any time.
func TestWindows(t *testing.T) {
	w := newWorld(t, "one")
	now := time.Now()
	opens := now.Add(3 * time.Hour).UTC().Truncate(time.Minute)
	cal, err := scheduler.ParseCalendar([]string{fmt.Sprintf("%s-%s", opens.Format("15:04"), opens.Add(time.Hour).Format("15:04"))}, nil, time.UTC)
	if err != nil {
		t.Fatal(err)
	}
	r := w.start(nil, &scheduler.Job{Ref: id("one"), Calendar: cal})
	request(t, r, "one")
	var at time.Time
	testenv.Eventually(t, limit, "the rotation to be put off", func() bool {
		list, err := r.bus.ListSchedules(t.Context())
		if err != nil || len(list) != 1 {
			return false
		}
		at = list[0].Spec.At
		return list[0].Target == id("one").String()
	})
	if !at.Equal(opens) {
		t.Errorf("put off to %s; the window opens at %s", at, opens)
	}
	if n := w.g.count("one create"); n != 0 {
		t.Errorf("%d rotations outside the window", n)
	}
	if _, err := w.store.PutPending(t.Context(), id("one"), rotators.NewToken(), secrets.NewString("half-way")); err != nil {
		t.Fatal(err)
	}
	request(t, r, "one")
	testenv.Eventually(t, limit, "the unfinished rotation to be finished", func() bool { return w.g.count("one test") == 1 })
	if n := w.g.count("one create"); n != 0 {
		t.Errorf("%d rotations outside the window", n)
	}
}

// Jitter moves each secret's rotation by a part of its own.
func TestJitter(t *testing.T) {
	w := newWorld(t, "one")
	jitter := 2 * time.Hour
	off := scheduler.Offset(id("one"), jitter)
	if off <= 2*time.Second || off >= jitter || off != scheduler.Offset(id("one"), jitter) {
		t.Fatalf("offset %s", off)
	}
	seen := map[time.Duration]bool{}
	for i := range 100 {
		seen[scheduler.Offset(id(fmt.Sprint("s", i)), jitter)/(jitter/10)] = true
	}
	if len(seen) != 10 {
		t.Errorf("100 secrets are in %d tenths of the jitter; expected all", len(seen))
	}
	start := time.Now()
	r := w.start(nil, &scheduler.Job{Ref: id("one"), Jitter: jitter, Spec: natsbus.Spec{Every: time.Second}})
	testenv.Eventually(t, limit, "the firing to be put off", func() bool {
		list, err := r.bus.ListSchedules(t.Context())
		if err != nil || len(list) != 2 {
			return false
		}
		at := list[0].Spec.At // "later ..." sorts before "nats://..."
		return at.After(start.Add(off)) && at.Before(time.Now().Add(off+time.Second))
	})
	// Somebody who asks now does not wait.
	request(t, r, "one")
	testenv.Eventually(t, limit, "a rotation", func() bool { return w.g.count("one test") == 1 })
}

// A rotation that fails is tried again, a limited number of times; then it is
// said so, and the next trigger begins anew.
func TestRetries(t *testing.T) {
	w := newWorld(t, "one", "hopeless")
	w.g.fail = func(name string) error {
		if name == "hopeless" {
			return fault.Newf(fault.Invalid, "target", "can never work")
		}
		return &fault.Error{Kind: fault.Denied, Class: fault.ClassPermission, Op: "target"}
	}
	retry := scheduler.Retry{First: 10 * time.Millisecond, Longest: 50 * time.Millisecond, Limit: 3}
	r := w.start(nil, &scheduler.Job{Ref: id("one"), Retry: retry}, &scheduler.Job{Ref: id("hopeless"), Retry: retry})
	request(t, r, "one")
	request(t, r, "hopeless")
	gaveUp := func(reason string) func() bool {
		return func() bool { return slices.Contains(w.failures(r.bus), "scheduler "+reason) }
	}
	testenv.Eventually(t, limit, "one to be given up", gaveUp("gave up after 3 attempts: denied/permission"))
	testenv.Eventually(t, limit, "hopeless to be given up", gaveUp("gave up after 1 attempts: invalid"))
	if n := w.g.count("one create"); n != 3 {
		t.Errorf("%d attempts; expected 3", n)
	}
	w.g.mu.Lock()
	w.g.fail = nil
	w.g.mu.Unlock()
	request(t, r, "one")
	testenv.Eventually(t, limit, "a rotation", func() bool { return w.g.count("one test") == 1 })
}

// A secret waits for the one that it comes after, also while that one is put
// off; and a master does not rotate while a secret that needs it does.
func TestOrder(t *testing.T) {
	w := newWorld(t, "master", "child")
	inChild, goOn := make(chan struct{}), make(chan struct{})
	w.g.in = func(name string) {
		if name == "child" {
			inChild <- struct{}{}
			<-goOn
		}
	}
	first := true
	w.g.fail = func(name string) error {
		if name == "master" && first {
			first = false
			return fault.Newf(fault.Unavailable, "target", "away")
		}
		return nil
	}
	jobs := []*scheduler.Job{
		{Ref: id("master"), Retry: scheduler.Retry{First: time.Second}},
		{Ref: id("child"), After: []ref.Ref{id("master")}},
	}
	r := w.start(nil, jobs...)
	w.start(nil, jobs...) // and a second replica, which is free to do better
	request(t, r, "master")
	testenv.Eventually(t, limit, "the master to be tried", func() bool { return w.g.count("master create") >= 1 })
	request(t, r, "child")
	<-inChild
	if w.g.at("master test") < 0 {
		t.Error("the child was set before the master, which is put off, was done")
	}
	request(t, r, "master")
	// The master is tried, and finds the child at work: it must not begin.
	time.Sleep(500 * time.Millisecond)
	if n := w.g.count("master set"); n != 1 {
		t.Errorf("the master was set %d times while the child was at work; expected once, before", n)
	}
	close(goOn)
	testenv.Eventually(t, limit, "the master's second rotation", func() bool { return w.g.count("master test") == 2 })
	if w.g.count("child test") != 1 {
		t.Error("the child was not finished")
	}
}

func TestOrderWait(t *testing.T) {
	w := newWorld(t, "master", "child")
	if _, err := w.store.PutPending(t.Context(), id("master"), rotators.NewToken(), secrets.NewString("stuck")); err != nil {
		t.Fatal(err)
	}
	r := w.start(&scheduler.Options{OrderWait: time.Millisecond}, &scheduler.Job{Ref: id("master")}, &scheduler.Job{Ref: id("child"), After: []ref.Ref{id("master")}})
	time.Sleep(2 * time.Millisecond)
	request(t, r, "child")
	testenv.Eventually(t, limit, "the child to go on without a master that is stuck", func() bool { return w.g.count("child test") == 1 })
}

func TestCircle(t *testing.T) {
	jobs := []*scheduler.Job{
		{Ref: id("a"), After: []ref.Ref{id("b")}}, {Ref: id("b"), After: []ref.Ref{id("c")}}, {Ref: id("c"), After: []ref.Ref{id("a")}},
	}
	if _, err := scheduler.New(nil, nil, "x", jobs, nil); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "circle") {
		t.Errorf("%v", err)
	}
}

// A gate's deadline is set when a rotation ends, outlives the process, and
// retires.
func TestDeadline(t *testing.T) {
	w := newWorld(t, "one")
	runner := func(g rotators.Gate) scheduler.Runner {
		return rotators.NewRunner(w.store, w.g, &rotators.Options{Gate: g})
	}
	r := w.start(nil, &scheduler.Job{Ref: id("one"), Gated: true, Open: opens(runner(rotators.Gate{After: 3 * time.Second}), w.store)})
	request(t, r, "one")
	testenv.Eventually(t, limit, "a rotation", func() bool { return w.g.count("one test") == 1 })
	deadline := func() bool {
		list, err := r.bus.ListSchedules(t.Context())
		return err == nil && slices.ContainsFunc(list, func(s natsbus.Schedule) bool { return s.Name == "retire "+id("one").String() })
	}
	testenv.Eventually(t, limit, "the deadline", deadline)
	if w.g.count("one retire") != 0 {
		t.Error("retired before the gate opened")
	}
	r.stop() // and another replica comes, with the same configuration
	w.start(nil, &scheduler.Job{Ref: id("one"), Gated: true, Open: opens(runner(rotators.Gate{After: 3 * time.Second}), w.store)})
	testenv.Eventually(t, limit, "the superseded version to be retired", func() bool {
		d, err := w.store.Describe(t.Context(), id("one"))
		return err == nil && d.Holder(secrets.Previous).Disabled
	})
	if n := w.g.count("one retire"); n != 1 {
		t.Errorf("revoked %d times; expected once", n)
	}
}

// A sweep makes good a deadline that nobody set.
func TestSweepSetsWhatWasLost(t *testing.T) {
	w := newWorld(t, "one", "two")
	gated := func(name string) *scheduler.Job {
		return &scheduler.Job{Ref: id(name), Gated: true, Open: opens(rotators.NewRunner(w.store, w.g, &rotators.Options{Gate: rotators.Gate{Min: time.Millisecond}}), w.store)}
	}
	for _, n := range []string{"one", "two"} { // by a process that died then
		if _, err := rotators.NewRunner(w.store, w.g, nil).Rotate(t.Context(), id(n), ""); err != nil {
			t.Fatal(err)
		}
	}
	w.start(&scheduler.Options{SweepEvery: time.Second}, gated("one"), gated("two"))
	testenv.Eventually(t, limit, "both to be retired", func() bool { return w.g.count("one retire") == 1 && w.g.count("two retire") == 1 })
}

// A rotation that its gate keeps waiting comes when the gate opens; where no
// time opens it, that is said.
func TestClosedGate(t *testing.T) {
	w := newWorld(t, "one", "manual")
	runner := func(g rotators.Gate) scheduler.Runner {
		return rotators.NewRunner(w.store, w.g, &rotators.Options{Gate: g})
	}
	for _, n := range []string{"one", "manual"} {
		if _, err := rotators.NewRunner(w.store, w.g, nil).Rotate(t.Context(), id(n), ""); err != nil {
			t.Fatal(err)
		}
	}
	r := w.start(nil,
		&scheduler.Job{Ref: id("one"), Gated: true, Open: opens(runner(rotators.Gate{After: 3 * time.Second}), w.store)},
		&scheduler.Job{Ref: id("manual"), Gated: true, Open: opens(runner(rotators.Gate{Manual: true}), w.store)})
	request(t, r, "one")
	request(t, r, "manual")
	testenv.Eventually(t, limit, "the rotation once the gate opened", func() bool { return w.g.count("one test") == 2 })
	testenv.Eventually(t, limit, "the one that waits for a person to say so", func() bool {
		return slices.ContainsFunc(w.failures(r.bus), func(s string) bool { return strings.HasPrefix(s, "scheduler not yet: manual") })
	})
	if n := w.g.count("manual create"); n != 1 {
		t.Errorf("%d rotations; expected none while its gate is closed", n-1)
	}
}

// A firing for a secret that this process does not know is given back.
func TestForeignFiring(t *testing.T) {
	w := newWorld(t, "one")
	r := w.start(nil, &scheduler.Job{Ref: id("one")})
	for _, name := range []string{id("two").String(), "retire " + id("two").String()} {
		if err := r.Fire(t.Context(), natsbus.Firing{Name: name, ID: "x"}); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := r.Fire(t.Context(), natsbus.Firing{Name: "garbage", ID: "x"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("garbage: %v", err)
	}
	if w.current("one") == "" {
		t.Error("no current version")
	}
}
