package natsbus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
)

func fire(t testing.TB, b *Bus, name, id, payload string) {
	t.Helper()
	if err := b.Fire(t.Context(), name, id, []byte(payload)); err != nil {
		t.Fatal(err)
	}
}

// takeAll runs the schedules and returns what fires until n firings are done.
func takeAll(t testing.TB, b *Bus, n int) []Firing {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	var mu sync.Mutex
	var got []Firing
	if err := b.RunSchedules(ctx, func(_ context.Context, f Firing) error {
		mu.Lock()
		defer mu.Unlock()
		if got = append(got, f); len(got) == n {
			cancel()
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if len(got) != n {
		t.Fatalf("%d firings; expected %d: %+v", len(got), n, got)
	}
	return got
}

// TestTarget: what a schedule fires has its target's name, and of the firings
// of one name, whatever they come from, the latest waits.
func TestTarget(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	ctx := t.Context()
	set(t, b, "x", Spec{Every: time.Hour}, "regular")
	before := time.Now()
	if err := b.ScheduleFor(ctx, "later x", "x", Spec{At: before}, []byte("later")); err != nil {
		t.Fatal(err)
	}
	list, err := b.ListSchedules(ctx)
	if err != nil || len(list) != 2 || list[0].Name != "later x" || list[0].Target != "x" || list[1].Target != "x" {
		t.Fatalf("%+v, %v; expected two schedules with target x", list, err)
	}
	due := func() *stored {
		m, err := b.lastOf(ctx, duePrefix+"x")
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	testenv.Eventually(t, limit, "the one-shot due under x", func() bool { return due() != nil })
	if list, err = b.ListSchedules(ctx); err != nil || len(list) != 1 {
		t.Errorf("%+v, %v; expected that the one-shot is gone", list, err)
	}
	fire(t, b, "x", "", "outside")
	got := takeAll(t, b, 1)[0]
	if got.Name != "x" || string(got.Payload) != "outside" || got.Attempt != 1 {
		t.Errorf("%+v; expected the latest", got)
	}
	if got.At.Before(before.Add(-time.Second)) || got.At.After(time.Now().Add(time.Second)) {
		t.Errorf("stored at %s; expected now", got.At)
	}
	// The other way about.
	fire(t, b, "x", "", "outside")
	if err := b.ScheduleFor(ctx, "later x", "x", Spec{At: time.Now()}, []byte("later")); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, limit, "the one-shot in place of the other", func() bool { m := due(); return m != nil && string(m.msg.Data) == "later" })
	got = takeAll(t, b, 1)[0]
	if got.Name != "x" || string(got.Payload) != "later" {
		t.Errorf("%+v; expected the one-shot's", got)
	}
	if n := storedIn(t, b, ScheduleStream); n != 1 {
		t.Errorf("%d messages left; expected the regular schedule", n)
	}
}

// TestUnscheduleTarget: a schedule takes its own firing along from under its
// target's name, and no other.
func TestUnscheduleTarget(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	set(t, b, "x", Spec{Every: time.Hour}, "")
	if err := b.ScheduleFor(t.Context(), "y", "x", Spec{Every: time.Second}, nil); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, limit, "a firing", func() bool { return storedIn(t, b, ScheduleStream) == 3 })
	for _, name := range []string{"y", "y", "never there"} {
		if err := b.Unschedule(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if n := storedIn(t, b, ScheduleStream); n != 1 {
			t.Fatalf("%d messages left; expected the schedule x", n)
		}
	}
	fire(t, b, "x", "", "")
	if err := b.Unschedule(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if n := storedIn(t, b, ScheduleStream); n != 1 {
		t.Errorf("%d messages left; expected the firing from outside", n)
	}
}

// TestFireOnce: a trigger that is delivered twice is one firing: while it
// waits, when it is done, and when the window has forgotten it, by its id.
func TestFireOnce(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	var wg sync.WaitGroup
	for range 4 {
		bus := open(t, srv.Conn(t), nil)
		wg.Go(func() {
			if err := bus.Fire(context.Background(), "x", "trigger/1", nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := lastSeq(t, b); n != 1 {
		t.Errorf("%d written; expected one", n)
	}
	fire(t, b, "y", "trigger/1", "") // the same trigger for another name
	first := takeAll(t, b, 2)
	fire(t, b, "x", "trigger/1", "")
	idleConsumer(t, b)
	if n := lastSeq(t, b); n != 2 {
		t.Errorf("%d written; expected two", n)
	}
	// The server forgets ids as the window goes by, and those of firings that
	// are done when it restarts.
	srv.Stop()
	srv.Start()
	testenv.Eventually(t, limit, "fired after the restart", func() bool { return b.Fire(t.Context(), "x", "trigger/1", nil) == nil })
	if n := lastSeq(t, b); n != 3 {
		t.Errorf("%d written; expected three", n)
	}
	again := takeAll(t, b, 1)[0]
	fire(t, b, "x", "trigger/2", "")
	other := takeAll(t, b, 1)[0]
	fire(t, b, "x", "", "")
	none := takeAll(t, b, 1)[0]
	ids := map[string]string{}
	for _, f := range first {
		ids[f.Name] = f.ID
	}
	if again.ID != ids["x"] {
		t.Errorf("ids %q and %q of one trigger; expected the same", again.ID, ids["x"])
	}
	all := []string{ids["x"], ids["y"], other.ID, none.ID}
	slices.Sort(all)
	if len(slices.Compact(all)) != 4 {
		t.Errorf("ids %q; expected four", all)
	}
}

// TestFiringIDsDiffer: no name and id give another's.
func TestFiringIDsDiffer(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	pairs := [][2]string{{"a", "b/by-c"}, {"a/by-b", "c"}, {"a", "b%2Fby-c"}, {"a/by-b%2Fby-c", ""}, {"a", "é ü\n"}, {"a é", "%"}}
	seen := map[string]string{}
	for _, p := range pairs {
		fire(t, b, p[0], p[1], "")
		f := takeAll(t, b, 1)[0]
		if f.Name != p[0] {
			t.Errorf("fired as %q; expected %q", f.Name, p[0])
		}
		if other, is := seen[f.ID]; is {
			t.Errorf("%q and %s have the id %q", p, other, f.ID)
		}
		seen[f.ID] = fmt.Sprintf("%q", p)
	}
}

// TestLongNames: names of 1024 bytes that are all escaped, as a name, target,
// owner; two that differ in the last byte are two.
func TestLongNames(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	long := strings.Repeat("é", maxName/2-1)
	a, z, owner, target := long+"aa", long+"az", long+"oo", long+"tt"
	reconcile(t, b, owner, []Schedule{{Name: a, Target: target, Spec: Spec{Every: time.Hour}}, {Name: z, Target: target, Spec: Spec{Every: time.Hour}}}, Reconciled{Set: 2})
	list, err := b.ListSchedules(t.Context())
	if err != nil || len(list) != 2 || list[0].Name != a || list[1].Name != z || list[0].Owner != owner || list[0].Target != target {
		t.Fatalf("%+v, %v; expected both as they were set", list, err)
	}
	if err := b.ScheduleFor(t.Context(), "once", target, Spec{At: time.Now()}, nil); err != nil {
		t.Fatal(err)
	}
	if f := takeAll(t, b, 1)[0]; f.Name != target {
		t.Errorf("fired as %q; expected the target", f.Name)
	}
	fire(t, b, a, strings.Repeat("é", maxID/2), "")
	if f := takeAll(t, b, 1)[0]; f.Name != a {
		t.Errorf("fired as %q; expected the name", f.Name)
	}
	reconcile(t, b, owner, nil, Reconciled{Removed: 2})
	for what, err := range map[string]error{
		"name":      b.Fire(t.Context(), strings.Repeat("x", maxName+1), "", nil),
		"no name":   b.Fire(t.Context(), "", "", nil),
		"id":        b.Fire(t.Context(), "x", strings.Repeat("x", maxID+1), nil),
		"broken id": b.Fire(t.Context(), "x", "\xff", nil),
		"payload":   b.Fire(t.Context(), "x", "", make([]byte, maxPayload+1)),
		"target":    b.ScheduleFor(t.Context(), "x", "", Spec{Every: time.Hour}, nil),
		"unset":     b.Unschedule(t.Context(), strings.Repeat("x", maxName+1)),
	} {
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; expected an error of kind invalid", what, err)
		}
	}
}

// TestTriggerRights: who may publish on one name's subject can fire that name
// and no other, not even with its header.
func TestTriggerRights(t *testing.T) {
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
		Users: []*server.User{{Username: "operator", Password: "operator"}, {Username: "trigger", Password: "trigger", Permissions: &server.Permissions{
			Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX.>"}},
			Publish:   &server.SubjectPermission{Allow: []string{"keyturn.schedule.due.mine"}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(limit) {
		t.Fatal("the server did not start")
	}
	connect := func(user string) *nats.Conn {
		nc, err := nats.Connect(srv.ClientURL(), nats.UserInfo(user, user), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	b := open(t, connect("operator"), nil)
	o := (&Options{}).withDefaults()
	nc := connect("trigger")
	js, err := newJetStream(nc, o)
	if err != nil {
		t.Fatal(err)
	}
	trigger := &Bus{nc: nc, js: js, opts: o}
	fire(t, trigger, "mine", "1", "")
	if err := trigger.Fire(t.Context(), "yours", "1", nil); !fault.Is(err, fault.Denied) {
		t.Errorf("another name: %v; expected an error of kind denied", err)
	}
	if f := takeAll(t, b, 1)[0]; f.Name != "mine" {
		t.Errorf("fired %+v", f)
	}
	r := run(t, b, nil)
	for _, h := range []nats.Header{{headerName: {"yours"}}, {headerName: {"mine"}, headerTarget: {"yours"}}, {headerName: {"%zz"}}, {headerName: {"mine"}, headerFiring: {"%zz"}}, nil} {
		if err := trigger.publish(t.Context(), "forge", ScheduleStream, []*nats.Msg{forged(h)}); err != nil {
			t.Fatal(err)
		}
		testenv.Eventually(t, limit, "the forged firing dropped", func() bool { return storedIn(t, b, ScheduleStream) == 0 })
	}
	if len(r.fired) != 0 {
		t.Errorf("fired %q; expected nothing", r.fired)
	}
}

func forged(h nats.Header) *nats.Msg {
	if h == nil {
		h = nats.Header{}
	}
	return &nats.Msg{Subject: duePrefix + events.Token("mine"), Header: h}
}

// TestFireSurvivesOutage: a firing that was stored is there after a restart,
// and one that could not be stored is an error.
func TestFireSurvivesOutage(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), &Options{PublishTimeout: 500 * time.Millisecond})
	fire(t, b, "x", "1", "")
	srv.Stop()
	if err := b.Fire(t.Context(), "y", "1", nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v; expected an error of kind unavailable", err)
	}
	srv.Start()
	testenv.Eventually(t, limit, "fired after the restart", func() bool { return b.Fire(t.Context(), "y", "1", nil) == nil })
	got := takeAll(t, b, 2)
	if got[0].Name == got[1].Name {
		t.Errorf("%+v; expected x and y", got)
	}
	if err := errors.Join(b.Fire(t.Context(), "x", "1", nil), b.Fire(t.Context(), "y", "1", nil)); err != nil {
		t.Error(err)
	}
	if n := storedIn(t, b, ScheduleStream); n != 0 {
		t.Errorf("%d fired again; expected none", n)
	}
}
