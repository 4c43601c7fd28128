package integration_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/natslock"
	"github.com/keyturn/keyturn/internal/scheduler"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
)

// limit is how long a condition is awaited on a machine that is busy.
const limit = 2 * time.Minute

// crew are the agents that a gate waits for.
type crew struct {
	mu      sync.Mutex
	asked   int
	adopted bool
}

// Missing implements [rotators.Adoption].
func (c *crew) Missing(context.Context, ref.Ref, string) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	if c.adopted {
		return nil, nil
	}
	return []string{"agent-7"}, nil
}

func (c *crew) adopt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.adopted = true
}

func (c *crew) wasAsked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.asked > 0
}

// A daemon is what keyturn serve runs for one secret: the notifier behind its
// webhook, the bus, the scheduler, the runner.
type daemon struct {
	t      *testing.T
	p      platform
	db     *database
	trig   trigger
	ref    ref.Ref
	store  secrets.Store
	runner *rotators.Runner
	crew   crew
	js     jetstream.JetStream
	hook   *hook
	log    *leaktest.Recorder
}

// masterNamed reads the authority whose name is what p calls r.
func masterNamed(s secrets.Reader, p platform, r ref.Ref) func(context.Context, string) (secrets.Value, error) {
	return func(ctx context.Context, name string) (secrets.Value, error) {
		if name != p.named(r) {
			return secrets.Value{}, fault.Newf(fault.NotFound, "read", "no secret %s", name)
		}
		v, err := s.Get(ctx, r, secrets.Current)
		if err != nil {
			return secrets.Value{}, err
		}
		return v.Value, nil
	}
}

// pair makes a user, and for alternating ones its master, at the database and
// in the store of p, and the rotator for it. The name is the user's.
func pair(t *testing.T, p platform, s secrets.Store, db *database, name string, alternating bool, o *postgres.Options) (ref.Ref, rotators.Rotator) {
	t.Helper()
	o.RootCAs = db.roots
	master := p.create(t, db.master(t, name+"_master", leaktest.Canary()))
	if !alternating {
		return p.create(t, db.user(t, name, leaktest.Canary(), name+"_master", "")), postgres.NewSingle(o)
	}
	r := p.create(t, db.user(t, name, leaktest.Canary(), name+"_master", p.named(master)))
	return r, postgres.NewAlternating(masterNamed(s, p, master), o)
}

func startDaemon(t *testing.T, name string, newPlatform func(secrets.Locker) platform, b *broker, db *database, alternating bool) *daemon {
	t.Helper()
	d := &daemon{t: t, db: db, log: &leaktest.Recorder{}, js: b.jetStream(t)}
	bus := openBus(t, b, d.log)
	locks, err := natslock.Open(t.Context(), d.js, nil)
	must(t, err)
	d.p = newPlatform(locks)
	d.store = d.p.open(t, nil)
	var rot rotators.Rotator
	d.ref, rot = pair(t, d.p, d.store, db, name, alternating, &postgres.Options{Logger: d.log.Logger()})
	d.runner = rotators.NewRunner(d.store, rot, &rotators.Options{
		Publisher: bus, Tenant: tenantOf, Logger: d.log.Logger(), Gate: rotators.Gate{Adopted: true}, Adoption: &d.crew,
	})
	d.trig = triggerOf(t, d.p, db, bus, d.log)
	d.hook = startNotifierFor(t, bus, d.log, d.trig.decode)
	_ = d.trig.notices(t) // of the secrets' creation
	s, err := scheduler.New(bus, locks, "story", []*scheduler.Job{{
		Ref: d.ref, Tenant: tenant, Gated: true,
		Open: func(context.Context) (scheduler.Runner, secrets.Store, error) { return d.runner, d.store, nil },
	}}, &scheduler.Options{Logger: d.log.Logger(), SweepEvery: time.Second})
	must(t, err)
	_, err = s.Reconcile(t.Context(), bus)
	must(t, err)
	run(t, "the schedules", func(ctx context.Context) error { return bus.RunSchedules(ctx, s.Fire) })
	run(t, "the triggers", func(ctx context.Context) error {
		return bus.Work(ctx, "story", events.Filter{Types: scheduler.Wanted()}, s.Hear)
	})
	return d
}

// told posts what the platform has said.
func (d *daemon) told() {
	d.t.Helper()
	for _, n := range d.trig.notices(d.t) {
		if code := d.hook.post(d.t, n); code != 200 {
			d.t.Fatalf("a notice was answered %d; want 200\n%s", code, n)
		}
	}
}

// heard returns the versions that events of a type name, in order.
func (d *daemon) heard(typ events.Type) (versions []string) {
	d.t.Helper()
	for _, m := range storedEvents(d.t, d.js) {
		if data := dataOf(d.t, m); data.Ref == d.ref && m.Header.Get("ce-type") == string(typ) {
			versions = append(versions, data.Version)
		}
	}
	return versions
}

// plain is what a plain reader gets.
func (d *daemon) plain() secrets.Value {
	d.t.Helper()
	v, err := d.p.plain(context.Background(), d.ref)
	if err != nil {
		d.t.Fatalf("plain read of %s: %v", d.ref, err)
	}
	return v
}

// holder is the version that holds a stage.
func (d *daemon) holder(stage secrets.Stage) *secrets.VersionInfo {
	d.t.Helper()
	desc, err := d.store.Describe(d.t.Context(), d.ref)
	must(d.t, err)
	h := desc.Holder(stage)
	if h == nil {
		d.t.Fatalf("no version of %s is %s", d.ref, stage)
	}
	return h
}

// wants checks what the database accepts and what the platform says of the
// superseded version.
func (d *daemon) wants(when string, old secrets.Value, signsIn bool, version, state string) {
	d.t.Helper()
	if got := d.db.accepts(d.t, old); got != signsIn {
		d.t.Errorf("%s the database accepts the superseded credential: %t; want %t", when, got, signsIn)
	}
	if got := d.p.state(d.t, d.ref, version); got != state {
		d.t.Errorf("%s the platform says that version %s is %q; want %q", when, version, got, state)
	}
	if !d.db.accepts(d.t, d.plain()) {
		d.t.Errorf("%s what plain readers get does not sign in", when)
	}
}

// same reports whether two values are one credential.
func same(t testing.TB, a, b secrets.Value) bool {
	t.Helper()
	x, err := dbsecret.Parse(a)
	must(t, err)
	y, err := dbsecret.Parse(b)
	must(t, err)
	return x.Username == y.Username && x.Password.Equal(y.Password)
}

// TestStory is the life of a credential, once for each platform: the platform
// asks for a rotation, the old credential lives until its gate opens, is
// switched off, brought back, switched off again, and rolled back to.
func TestStory(t *testing.T) {
	db := newDatabase(t)
	for name := range platforms(nil) {
		for _, alternating := range []bool{true, false} {
			kind := "single"
			if alternating {
				kind = "alternating"
			}
			t.Run(name+"/"+kind, func(t *testing.T) {
				t.Parallel()
				b := newBroker(t)
				newPlatform := func(l secrets.Locker) platform {
					if name == "nats" {
						return newNATS(t, b)
					}
					return platforms(l)[name](t)
				}
				tellStory(startDaemon(t, name+"_"+kind, newPlatform, b, db, alternating), alternating)
			})
		}
	}
}

func tellStory(d *daemon, alternating bool) {
	t, ctx := d.t, d.t.Context()
	first := d.plain()
	live, retired := d.p.states()

	d.trig.ask(t, d.ref)
	d.told()
	testenv.Eventually(t, limit, "the new version in use", func() bool {
		d.told()
		return len(d.heard(events.VersionActivated)) > 0
	})
	second, old, now := d.plain(), d.holder(secrets.Previous).ID, d.holder(secrets.Current).ID
	if got := d.heard(events.VersionActivated); got[0] != now || same(t, first, second) {
		t.Fatalf("version %s was announced; want %s, and that plain readers get it", got[0], now)
	}
	d.wants("after the rotation", first, alternating, old, live)

	testenv.Eventually(t, limit, "the gate asked", d.crew.wasAsked)
	d.wants("while the gate is closed", first, alternating, old, live)
	if _, err := d.runner.Retire(ctx, d.ref, false); !isNotYet(err, "agent-7") {
		t.Errorf("retire while the gate is closed gave %v; want that agent-7 is missing", err)
	}
	d.crew.adopt()
	testenv.Eventually(t, limit, "the superseded version retired", func() bool { return d.p.state(t, d.ref, old) == retired })
	d.wants("once the gate is open", first, false, old, retired)
	if got := d.heard(events.VersionRetired); !slices.Equal(got, []string{old}) {
		t.Errorf("versions %v were said to be retired; want %s once", got, old)
	}

	res, err := d.runner.Restore(ctx, d.ref)
	must(t, err)
	if res.Version != old || res.Alive == nil || *res.Alive != alternating || (res.Why == nil) != alternating {
		t.Errorf("restored %s, alive %v, because %v; want %s, %t", res.Version, res.Alive, res.Why, old, alternating)
	}
	d.wants("after restore", first, alternating, old, live)
	// What somebody wanted back no sweep takes again.
	if got, err := d.runner.Sweep(ctx, d.ref); err != nil || got.Retired || !strings.Contains(strings.Join(got.Waiting, " "), "held") {
		t.Errorf("a sweep after restore gave %+v, %v; want that the version is held", got, err)
	}
	d.wants("after a sweep", first, alternating, old, live)

	again, err := d.runner.Retire(ctx, d.ref, false)
	must(t, err)
	if !again.Retired || !again.Now || !again.Proven || again.Version != old {
		t.Errorf("retired again: %+v; want version %s, now, and seen to be refused", again, old)
	}
	d.wants("retired again", first, false, old, retired)

	back, err := d.runner.Rollback(ctx, d.ref, false)
	must(t, err)
	if !same(t, d.plain(), first) || !d.db.accepts(t, first) {
		t.Error("after rollback plain readers do not get the first credential, or it does not sign in")
	}
	if h := d.holder(secrets.Current); h.ID != back.Version || h.Disabled || back.Previous != now {
		t.Errorf("rolled back to %+v from %s; want version %s, from %s", h, back.Previous, back.Version, now)
	}
	if !alternating && d.db.accepts(t, second) {
		t.Error("after rollback the user's other password still signs in")
	}

	d.log.Record(res, res.Why, again, back, d.runner.DryRun(ctx, d.ref))
	// However many ways the news came by, each version became current once.
	d.told()
	if got := d.heard(events.VersionActivated); !slices.Equal(got, []string{now, back.Version}) {
		t.Errorf("versions %v were announced; want %s and %s, each once", got, now, back.Version)
	}
	if got := d.heard(events.RotationFailed); len(got) > 0 {
		t.Errorf("%d rotations were said to have failed", len(got))
	}
	d.leaksNothing(first, second)
}

// leaksNothing looks for the passwords in the log and on the bus.
func (d *daemon) leaksNothing(values ...secrets.Value) {
	d.t.Helper()
	var passwords []string
	for _, v := range values {
		s, err := dbsecret.Parse(v)
		must(d.t, err)
		passwords = append(passwords, string(s.Password.Reveal()))
	}
	s, err := d.js.Stream(d.t.Context(), natsbus.EventStream)
	must(d.t, err)
	if s.CachedInfo().State.Msgs == 0 {
		d.t.Error("the bus holds nothing, so nothing was searched")
	}
	for _, m := range storedEvents(d.t, d.js) {
		_, _ = d.log.Write(append([]byte(m.Subject+"\n"), m.Data...))
	}
	d.log.Check(d.t, passwords...)
}

func isNotYet(err error, waits string) bool {
	n, ok := rotators.IsNotYet(err)
	return ok && strings.Contains(n.Error(), waits)
}
