package natsbus

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
)

// A replica is a running RunSchedules that keeps what it is given.
type replica struct {
	mu    sync.Mutex
	fired []string // name + "=" + payload
	stop  func()
}

func run(t testing.TB, b *Bus, h func(ctx context.Context, name string, n int) error) *replica {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &replica{}
	done := make(chan error, 1)
	go func() {
		done <- b.RunSchedules(ctx, func(ctx context.Context, name string, payload []byte) error {
			r.mu.Lock()
			r.fired = append(r.fired, name+"="+string(payload))
			n := 0
			for _, f := range r.fired {
				if f == name+"="+string(payload) {
					n++
				}
			}
			r.mu.Unlock()
			if h == nil {
				return nil
			}
			return h(ctx, name, n)
		})
	}()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Errorf("RunSchedules returned %v after its context ended; expected nil", err)
				}
			case <-time.After(limit):
				t.Error("RunSchedules did not return after its context ended")
			}
		})
	}
	t.Cleanup(r.stop)
	return r
}

func (r *replica) count(what string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, f := range r.fired {
		if f == what {
			n++
		}
	}
	return n
}

func set(t testing.TB, b *Bus, name string, s Spec, payload string) {
	t.Helper()
	if err := b.Schedule(t.Context(), name, s, []byte(payload)); err != nil {
		t.Fatal(err)
	}
}

// lastSeq is the schedule stream's last sequence: it moves with every write.
func lastSeq(t testing.TB, b *Bus) uint64 {
	t.Helper()
	s, err := b.js.Stream(t.Context(), ScheduleStream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.LastSeq
}

// idleConsumer waits until nothing is unacknowledged or waiting.
func idleConsumer(t testing.TB, b *Bus) {
	t.Helper()
	testenv.Eventually(t, limit, "every firing acknowledged", func() bool {
		c, err := b.js.Consumer(t.Context(), ScheduleStream, ScheduleConsumer)
		if err != nil {
			return false
		}
		i := c.CachedInfo()
		return i.NumAckPending == 0 && i.NumPending == 0 && i.NumRedelivered == 0
	})
}

func TestEachFiringOnOneReplica(t *testing.T) {
	srv := testenv.NATS(t)
	b1, b2 := open(t, srv.Conn(t), nil), open(t, srv.Conn(t), nil)
	r1, r2 := run(t, b1, nil), run(t, b2, nil)
	const n = 40
	for i := range n {
		set(t, b1, "job/"+string(rune('A'+i)), Spec{At: time.Now().Add(time.Second)}, "p")
	}
	total := func() (sum, twice int) {
		for i := range n {
			what := "job/" + string(rune('A'+i)) + "=p"
			c := r1.count(what) + r2.count(what)
			sum += min(c, 1)
			twice += max(c-1, 0)
		}
		return sum, twice
	}
	testenv.Eventually(t, limit, "every job done", func() bool { sum, _ := total(); return sum == n })
	idleConsumer(t, b1)
	if _, twice := total(); twice != 0 {
		t.Errorf("%d firings were handled twice", twice)
	}
	t.Logf("replica 1 handled %d, replica 2 %d", len(r1.fired), len(r2.fired))
	if left, err := b1.ListSchedules(t.Context()); err != nil || len(left) != 0 {
		t.Errorf("after firing once: %+v, %v; expected no schedules", left, err)
	}
}

func TestEveryFiresAgain(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	r := run(t, b, nil)
	set(t, b, "tick", Spec{Every: time.Second}, "p")
	set(t, b, "cron", Spec{Cron: "* * * * * *"}, "p")
	testenv.Eventually(t, limit, "three ticks of each", func() bool { return r.count("tick=p") >= 3 && r.count("cron=p") >= 3 })
	if err := b.Unschedule(t.Context(), "tick"); err != nil {
		t.Fatal(err)
	}
	before, cron := r.count("tick=p"), r.count("cron=p")
	testenv.Eventually(t, limit, "three ticks of the other", func() bool { return r.count("cron=p") >= cron+3 })
	// One may have been at work when it was removed.
	if n := r.count("tick=p"); n > before+1 {
		t.Errorf("fired %d times after it was removed", n-before)
	}
	if err := b.Unschedule(t.Context(), "tick"); err != nil {
		t.Errorf("to remove it again: %v; expected nil", err)
	}
}

func TestUnchangedIsNotWritten(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	specs := map[string]Spec{
		"a":      {Every: time.Hour},
		"b":      {At: time.Now().Add(time.Hour)},
		"c":      {Cron: "0 30 4 * * 1-5", TimeZone: "Europe/Berlin"},
		"d":      {Cron: "@daily"},
		"e é.*>": {Every: 90 * time.Minute},
	}
	for name, s := range specs {
		set(t, b, name, s, "p-"+name)
	}
	seq := lastSeq(t, b)
	var wg sync.WaitGroup
	for range 3 {
		for name, s := range specs {
			wg.Go(func() {
				if err := b.Schedule(t.Context(), name, s, []byte("p-"+name)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if got := lastSeq(t, b); got != seq {
		t.Errorf("setting the same again wrote %d messages; expected none", got-seq)
	}
	list, err := b.ListSchedules(t.Context())
	if err != nil || len(list) != len(specs) {
		t.Fatalf("%d schedules, %v; expected %d", len(list), err, len(specs))
	}
	for _, got := range list {
		want := specs[got.Name]
		if !got.Spec.At.Equal(want.At) || got.Spec.Every != want.Every || got.Spec.Cron != want.Cron || got.Spec.TimeZone != want.TimeZone || string(got.Payload) != "p-"+got.Name || got.Set.IsZero() {
			t.Errorf("%q reads as %+v; expected %+v", got.Name, got, want)
		}
	}
	// A changed one takes its place, and there is still one.
	set(t, b, "a", Spec{Every: 2 * time.Hour}, "p-a")
	set(t, b, "d", Spec{Cron: "@daily"}, "other")
	if got := lastSeq(t, b); got != seq+2 {
		t.Errorf("two changes wrote %d messages", got-seq)
	}
	list, err = b.ListSchedules(t.Context())
	if err != nil || len(list) != len(specs) {
		t.Fatalf("%d schedules, %v; expected %d", len(list), err, len(specs))
	}
	if list[0].Spec.Every != 2*time.Hour || string(list[3].Payload) != "other" {
		t.Errorf("%+v; expected the changes", list)
	}
}

// TestReplicasSetAtOnce: replicas that start together write once.
func TestReplicasSetAtOnce(t *testing.T) {
	srv := testenv.NATS(t)
	b1, b2 := open(t, srv.Conn(t), nil), open(t, srv.Conn(t), nil)
	var wg sync.WaitGroup
	for range 4 {
		for _, b := range []*Bus{b1, b2} {
			wg.Go(func() {
				if err := b.Schedule(t.Context(), "job", Spec{Every: time.Hour}, nil); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if got := lastSeq(t, b1); got != 1 {
		t.Errorf("%d writes; expected one", got)
	}
}

func TestBadSchedules(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	for what, s := range map[string]Spec{
		"nothing":     {},
		"two":         {Every: time.Hour, Cron: "@daily"},
		"too often":   {Every: time.Millisecond},
		"negative":    {Every: -time.Hour},
		"five fields": {Cron: "* * * * *"},
		"nonsense":    {Cron: "a b c d e f"},
		"hidden":      {Cron: "@every 1s"},
		"no zone":     {Cron: "0 0 4 * * *", TimeZone: "Nowhere/Land"},
		"zone at":     {At: time.Now(), TimeZone: "Europe/Berlin"},
		"word":        {Cron: "@sometimes"},
	} {
		if err := b.Schedule(t.Context(), "x", s, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; expected an error of kind invalid", what, err)
		}
	}
	for _, name := range []string{"", string(make([]byte, 300)), "\xff"} {
		if err := b.Schedule(t.Context(), name, Spec{Every: time.Hour}, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("name %q: %v; expected an error of kind invalid", name, err)
		}
	}
	if err := b.Schedule(t.Context(), "x", Spec{Every: time.Hour}, make([]byte, maxPayload+1)); !fault.Is(err, fault.Invalid) {
		t.Errorf("large payload: %v", err)
	}
	if n := lastSeq(t, b); n != 0 {
		t.Errorf("%d messages written; expected none", n)
	}
}

func TestFailedJobIsDueAgain(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	r := run(t, b, func(_ context.Context, name string, n int) error {
		switch {
		case name == "poison":
			return fault.Newf(fault.Invalid, "test", "never")
		case n == 1:
			return fault.New(fault.Unavailable, "test", errors.New("away"))
		}
		return nil
	})
	set(t, b, "flaky", Spec{At: time.Now()}, "p")
	set(t, b, "poison", Spec{At: time.Now()}, "p")
	testenv.Eventually(t, limit, "the job done at its second attempt", func() bool { return r.count("flaky=p") == 2 && r.count("poison=p") == 1 })
	idleConsumer(t, b)
	if f, p := r.count("flaky=p"), r.count("poison=p"); f != 2 || p != 1 {
		t.Errorf("flaky %d times, poison %d; expected 2 and 1", f, p)
	}
}

// TestLongJobStaysWithItsReplica: a job that takes longer than AckWait is not
// given to another replica, and what fires meanwhile collapses into one.
func TestLongJobStaysWithItsReplica(t *testing.T) {
	srv := testenv.NATS(t)
	o := &Options{AckWait: 600 * time.Millisecond, Workers: 2}
	b := open(t, srv.Conn(t), o)
	release := make(chan struct{})
	r := run(t, b, func(_ context.Context, _ string, n int) error {
		if n == 1 {
			<-release
		}
		return nil
	})
	set(t, b, "long", Spec{At: time.Now()}, "p")
	testenv.Eventually(t, limit, "the job begun", func() bool { return r.count("long=p") == 1 })
	other := run(t, open(t, srv.Conn(t), o), nil)
	for i := range 3 { // seconds pass: several times AckWait
		set(t, b, "other", Spec{At: time.Now()}, string(rune('0'+i)))
		testenv.Eventually(t, limit, "another job done meanwhile", func() bool {
			return r.count("other="+string(rune('0'+i)))+other.count("other="+string(rune('0'+i))) > 0
		})
	}
	if n := r.count("long=p") + other.count("long=p"); n != 1 {
		t.Errorf("the running job was started %d times", n)
	}
	close(release)
	idleConsumer(t, b)
	if n := r.count("long=p") + other.count("long=p"); n != 1 {
		t.Errorf("the job was started %d times", n)
	}
}

// TestFiringsCollapse: what fires while nobody runs is due once.
func TestFiringsCollapse(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	set(t, b, "tick", Spec{Every: time.Second}, "old")
	testenv.Eventually(t, limit, "three firings", func() bool { return lastSeq(t, b) >= 4 })
	set(t, b, "tick", Spec{Every: time.Hour}, "new")
	r := run(t, b, nil)
	testenv.Eventually(t, limit, "the firing handled", func() bool { return r.count("tick=old") > 0 })
	idleConsumer(t, b)
	if n := r.count("tick=old"); n != 1 {
		t.Errorf("handled %d firings; expected the latest only", n)
	}
}

func TestSchedulesSurviveRestart(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	r := run(t, b, nil)
	set(t, b, "tick", Spec{Every: time.Second}, "p")
	set(t, b, "once", Spec{At: time.Now().Add(3 * time.Second)}, "p")
	testenv.Eventually(t, limit, "a firing", func() bool { return r.count("tick=p") > 0 })
	srv.Stop()
	time.Sleep(2 * time.Second) // the time of "once" is near or past when the server is back
	before := r.count("tick=p")
	srv.Start()
	testenv.Eventually(t, limit, "firings after the restart", func() bool { return r.count("tick=p") >= before+2 && r.count("once=p") == 1 })
	list, err := b.ListSchedules(t.Context())
	if err != nil || !slices.ContainsFunc(list, func(s Schedule) bool { return s.Name == "tick" }) {
		t.Errorf("%+v, %v; expected the schedule", list, err)
	}
}

// TestConsumerDeleted: somebody who cleans up does not stop the schedules.
func TestConsumerDeleted(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	r := run(t, b, nil)
	set(t, b, "a", Spec{At: time.Now()}, "p")
	testenv.Eventually(t, limit, "the first job", func() bool { return r.count("a=p") == 1 })
	if err := b.js.DeleteConsumer(t.Context(), ScheduleStream, ScheduleConsumer); err != nil {
		t.Fatal(err)
	}
	set(t, b, "b", Spec{At: time.Now()}, "p")
	testenv.Eventually(t, limit, "a job after the consumer was deleted", func() bool { return r.count("b=p") >= 1 })
}
