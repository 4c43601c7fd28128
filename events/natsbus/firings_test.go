package natsbus

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
)

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
	if n := storedIn(t, b1, ScheduleStream); n != 0 {
		t.Errorf("%d messages left in the stream; expected none", n)
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
	o := &Options{AckWait: time.Second, Workers: 2}
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
	begun := time.Now()
	for i := range 3 {
		set(t, b, "other", Spec{At: time.Now()}, string(rune('0'+i)))
		testenv.Eventually(t, limit, "another job done meanwhile", func() bool {
			return r.count("other="+string(rune('0'+i)))+other.count("other="+string(rune('0'+i))) > 0
		})
	}
	testenv.Eventually(t, limit, "several times AckWait gone by", func() bool { return time.Since(begun) > 3*o.AckWait })
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
	idleConsumer(t, b)
	if err := b.js.DeleteConsumer(t.Context(), ScheduleStream, ScheduleConsumer); err != nil {
		t.Fatal(err)
	}
	set(t, b, "b", Spec{At: time.Now()}, "p")
	testenv.Eventually(t, limit, "a job after the consumer was deleted", func() bool { return r.count("b=p") >= 1 })
	idleConsumer(t, b)
	if n := r.count("a=p"); n != 1 {
		t.Errorf("the job done before was started %d times; expected once", n)
	}
}
