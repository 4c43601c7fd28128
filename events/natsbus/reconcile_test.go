package natsbus

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
)

func reconcile(t testing.TB, b *Bus, owner string, want []Schedule, expected Reconciled) {
	t.Helper()
	got, err := b.Reconcile(t.Context(), owner, want)
	if err != nil || got != expected {
		t.Fatalf("reconcile %q: %+v, %v; expected %+v", owner, got, err, expected)
	}
}

// names lists the schedules as "name owner".
func names(t testing.TB, b *Bus) []string {
	t.Helper()
	list, err := b.ListSchedules(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, sc := range list {
		out = append(out, strings.TrimSpace(sc.Name+" "+sc.Owner))
	}
	return out
}

// TestReconcileWritesDifferences: also when the server has restarted between.
func TestReconcileWritesDifferences(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	const n = 2100 // more than two pages
	want := nightly(n, 3)
	want[7].Target, want[7].Payload = "elsewhere", []byte("p")
	reconcile(t, b, "prod", want, Reconciled{Set: n})
	seq := lastSeq(t, b)
	list, err := b.ListSchedules(t.Context())
	if err != nil || len(list) != n {
		t.Fatalf("%d schedules, %v; expected %d", len(list), err, n)
	}
	for _, sc := range list {
		i := slices.IndexFunc(want, func(w Schedule) bool { return w.Name == sc.Name })
		target := want[i].Target
		if target == "" {
			target = sc.Name
		}
		if sc.Owner != "prod" || sc.Target != target || sc.Spec != want[i].Spec || string(sc.Payload) != string(want[i].Payload) {
			t.Fatalf("%+v; expected %+v of prod", sc, want[i])
		}
	}
	srv.Stop()
	srv.Start()
	reconcile(t, b, "prod", want, Reconciled{Kept: n})
	if got := lastSeq(t, b); got != seq {
		t.Errorf("the same again wrote %d messages; expected none", got-seq)
	}
	changed := slices.Clone(want[:n-100])
	for i := range 25 {
		changed[i].Spec.Cron = fmt.Sprintf("0 0 %d * * *", distant(4))
	}
	changed[30].Target = "another"
	changed[31].Payload = []byte("other")
	reconcile(t, b, "prod", changed, Reconciled{Set: 27, Kept: n - 127, Removed: 100})
	reconcile(t, b, "prod", nil, Reconciled{Removed: n - 100})
	if got := storedIn(t, b, ScheduleStream); got != 0 {
		t.Errorf("%d messages left; expected none", got)
	}
}

// TestReconcileRemovesItsOwn: not those of others, and no deadlines.
func TestReconcileRemovesItsOwn(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	hourly := Spec{Every: time.Hour}
	at := Spec{At: time.Now().Add(time.Hour)}
	reconcile(t, b, "a", []Schedule{{Name: "x", Spec: hourly}, {Name: "y", Spec: hourly}}, Reconciled{Set: 2})
	reconcile(t, b, "b", []Schedule{{Name: "z", Spec: hourly}}, Reconciled{Set: 1})
	set(t, b, "single", hourly, "x")
	set(t, b, "retire x", at, "a") // as of a's release before there were owners, but a deadline
	set(t, b, "later y", at, "")
	set(t, b, "old", hourly, "a") // as of a's release before there were owners
	set(t, b, "old and wanted", hourly, "a")
	seq := lastSeq(t, b)
	reconcile(t, b, "a", []Schedule{
		{Name: "y", Spec: hourly}, {Name: "old and wanted", Spec: hourly, Payload: []byte("a")},
	}, Reconciled{Kept: 2, Removed: 2})
	if got := lastSeq(t, b); got != seq {
		t.Errorf("%d messages written; expected none", got-seq)
	}
	want := []string{"later y", "old and wanted", "retire x", "single", "y a", "z b"}
	if got := names(t, b); !slices.Equal(got, want) {
		t.Errorf("left are %q; expected %q", got, want)
	}
	// A wanted name of another owner is taken over, and is then safe from it.
	reconcile(t, b, "b", []Schedule{{Name: "y", Spec: hourly}}, Reconciled{Set: 1, Removed: 1})
	reconcile(t, b, "a", nil, Reconciled{Removed: 1})
	if got, want := names(t, b), []string{"later y", "retire x", "single", "y b"}; !slices.Equal(got, want) {
		t.Errorf("left are %q; expected %q", got, want)
	}
}

// TestReconcileTakesFirings: what a removed schedule has fired goes with it,
// what others have made due under the same name stays.
func TestReconcileTakesFirings(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	second := Spec{Every: time.Second}
	reconcile(t, b, "a", []Schedule{{Name: "x", Spec: second}, {Name: "y", Target: "t", Spec: second}, {Name: "z", Spec: Spec{Every: time.Hour}}}, Reconciled{Set: 3})
	if err := b.Fire(t.Context(), "z", "", []byte("fired")); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, limit, "firings of both, and the one from outside", func() bool { return storedIn(t, b, ScheduleStream) == 6 })
	reconcile(t, b, "a", nil, Reconciled{Removed: 3})
	if got := storedIn(t, b, ScheduleStream); got != 1 {
		t.Errorf("%d messages left; expected the firing from outside", got)
	}
	r := run(t, b, nil)
	testenv.Eventually(t, limit, "the firing from outside handled", func() bool { return r.count("z=fired") == 1 })
}

// TestReconcileAtOnce: replicas that start together, with the same list and,
// in the middle of a roll-out, with another.
func TestReconcileAtOnce(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	old := nightly(300, 3)
	fresh := append(slices.Clone(old[:200]), nightly(400, 3)[300:]...)
	for i := range 50 {
		fresh[i].Spec.Cron = fmt.Sprintf("0 0 %d * * *", distant(4))
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	sum := 0
	for i := range 4 {
		want := old
		bus := open(t, srv.Conn(t), nil)
		wg.Go(func() {
			got, err := bus.Reconcile(context.Background(), "prod", want)
			if err != nil || got.Set+got.Kept != len(want) || got.Removed != 0 {
				t.Errorf("replica %d: %+v, %v", i, got, err)
			}
			mu.Lock()
			sum += got.Set
			mu.Unlock()
		})
	}
	wg.Wait()
	if sum != 300 || lastSeq(t, b) != 300 {
		t.Errorf("%d set by all, %d messages written; expected 300 once", sum, lastSeq(t, b))
	}
	for i := range 4 {
		want := [][]Schedule{old, fresh}[i%2]
		bus := open(t, srv.Conn(t), nil)
		wg.Go(func() {
			if _, err := bus.Reconcile(context.Background(), "prod", want); err != nil {
				t.Errorf("replica %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	// Whoever comes last has the last word.
	if _, err := b.Reconcile(t.Context(), "prod", fresh); err != nil {
		t.Fatal(err)
	}
	reconcile(t, b, "prod", fresh, Reconciled{Kept: len(fresh)})
	if got := names(t, b); len(got) != len(fresh) {
		t.Errorf("%d schedules; expected %d", len(got), len(fresh))
	}
}

// TestRemoveLeavesWhatIsNewer: a schedule that another replica has set since
// it was listed is not removed.
func TestRemoveLeavesWhatIsNewer(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	set(t, b, "x", Spec{Every: time.Hour}, "old")
	have, err := b.list(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	set(t, b, "x", Spec{Every: time.Hour}, "new")
	if _, err := b.remove(t.Context(), slices.Collect(maps.Values(have))); err != nil {
		t.Fatal(err)
	}
	if got := names(t, b); len(got) != 1 {
		t.Errorf("schedules %q; expected the newer one", got)
	}
}

func TestReconcileRefuses(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	good := Schedule{Name: "good", Spec: Spec{Every: time.Hour}}
	for what, c := range map[string]struct {
		owner string
		bad   Schedule
	}{
		"no owner":    {"", Schedule{Name: "x", Spec: good.Spec}},
		"bad owner":   {"\xff", Schedule{Name: "x", Spec: good.Spec}},
		"no name":     {"a", Schedule{Spec: good.Spec}},
		"bad target":  {"a", Schedule{Name: "x", Target: "\xff", Spec: good.Spec}},
		"twice":       {"a", good},
		"no spec":     {"a", Schedule{Name: "x"}},
		"one-shot":    {"a", Schedule{Name: "x", Spec: Spec{At: time.Now()}}},
		"big payload": {"a", Schedule{Name: "x", Spec: good.Spec, Payload: make([]byte, maxPayload+1)}},
	} {
		if got, err := b.Reconcile(t.Context(), c.owner, []Schedule{good, c.bad}); !fault.Is(err, fault.Invalid) || got != (Reconciled{}) {
			t.Errorf("%s: %+v, %v; expected an error of kind invalid", what, got, err)
		}
	}
	if n := lastSeq(t, b); n != 0 {
		t.Errorf("%d messages written; expected none", n)
	}
	// What only the server knows to be wrong does not stop the others, but
	// nothing is removed.
	set(t, b, "old", good.Spec, "a")
	want := append(nightly(200, 3), Schedule{Name: "bad", Spec: Spec{Cron: "a b c d e f"}}, Schedule{Name: "worse", Spec: Spec{Cron: "0 0 99 * * *"}})
	got, err := b.Reconcile(t.Context(), "a", want)
	if !fault.Is(err, fault.Invalid) || got != (Reconciled{Set: 200}) || !strings.Contains(err.Error(), "and 1 more") {
		t.Errorf("%+v, %v; expected 200 set, and an error of kind invalid", got, err)
	}
	if got := names(t, b); len(got) != 201 {
		t.Errorf("%d schedules; expected 201", len(got))
	}
}

// TestReconcileDuringOutage: it ends early, and the repetition sets the rest.
func TestReconcileDuringOutage(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), &Options{PublishTimeout: 300 * time.Millisecond})
	want := nightly(1000, 3)
	done := make(chan error, 1)
	go func() {
		_, err := b.Reconcile(context.Background(), "prod", want)
		done <- err
	}()
	testenv.Eventually(t, limit, "some set", func() bool { return lastSeq(t, b) > 50 })
	srv.Stop()
	if err := <-done; !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v; expected an error of kind unavailable", err)
	}
	if _, err := b.Reconcile(t.Context(), "prod", want); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without a server: %v; expected an error of kind unavailable", err)
	}
	srv.Start()
	var got Reconciled
	testenv.Eventually(t, limit, "reconciled after the outage", func() (ok bool) {
		r, err := b.Reconcile(t.Context(), "prod", want)
		got = r
		return err == nil
	})
	if got.Set+got.Kept != len(want) || got.Kept == 0 {
		t.Errorf("%+v; expected 1000, some of them kept", got)
	}
	reconcile(t, b, "prod", want, Reconciled{Kept: len(want)})
}

func TestEachEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	items := make([]int, 10*atOnce)
	err := each(ctx, items, func(context.Context, int) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v; expected that the context ended", err)
	}
	if err := each(ctx, []int{}, func(context.Context, int) error { return nil }); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("nothing to do: %v", err)
	}
}

// TestForeignSpecs: what is no schedule, or speaks of another name than its
// subject, is passed over.
func TestForeignSpecs(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	set(t, b, "good", Spec{Every: time.Hour}, "p")
	for i, h := range []nats.Header{
		{},
		{headerName: {"good"}, jetstream.ScheduleHeader: {"@every 1h"}, jetstream.ScheduleTargetHeader: {duePrefix + "good"}},
		{headerName: {"%zz"}, jetstream.ScheduleHeader: {"@every 1h"}, jetstream.ScheduleTargetHeader: {duePrefix + "good"}},
	} {
		if _, err := b.js.PublishMsg(t.Context(), &nats.Msg{Subject: specPrefix + events.Token(fmt.Sprint("forged", i)), Header: h}); err != nil {
			t.Fatal(err)
		}
	}
	if got := names(t, b); !slices.Equal(got, []string{"good"}) {
		t.Errorf("schedules %q; expected the good one", got)
	}
	reconcile(t, b, "p", nil, Reconciled{Removed: 1})
}
