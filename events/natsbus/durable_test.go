package natsbus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
)

func TestAfterWraps(t *testing.T) {
	err := After(time.Minute, fmt.Errorf("outside: %w", fault.New(fault.Denied, "op", io.EOF)))
	if !errors.Is(err, io.EOF) || !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), "1m0s") || !strings.Contains(err.Error(), "EOF") {
		t.Errorf("%v does not wrap", err)
	}
	if err := After(-time.Minute, nil); err == nil || errors.Unwrap(err) != nil || !strings.Contains(err.Error(), "0s") {
		t.Errorf("%v; expected an error without a cause", err)
	}
}

// TestAfter: the handler's own delay counts, not the back-off, not the kind,
// and a newer firing does not wait for it.
func TestAfter(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	r := run(t, b, func(_ context.Context, name string, n int) error {
		switch {
		case name == "soon" && n <= 6: // the back-off would be half a minute
			return fmt.Errorf("wrapped: %w", After(time.Millisecond, fault.Newf(fault.Invalid, "test", "not now")))
		case name == "hour" && n == 1:
			return After(time.Hour, nil)
		}
		return nil
	})
	fire(t, b, "hour", "", "p")
	testenv.Eventually(t, limit, "the job put off", func() bool { return r.count("hour=p") == 1 })
	fire(t, b, "soon", "", "p")
	testenv.Eventually(t, limit, "the job done at last", func() bool { return r.count("soon=p") == 7 })
	if n := r.count("hour=p"); n != 1 {
		t.Errorf("the job that is put off for an hour was started %d times", n)
	}
	fire(t, b, "hour", "", "p")
	testenv.Eventually(t, limit, "the newer firing", func() bool { return r.count("hour=p") == 2 })
	idleConsumer(t, b)
}

// TestAfterSurvivesRestart: what is put off is still put off when the server
// and the replica have been restarted, and is done then.
func TestAfterSurvivesRestart(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), &Options{AckWait: time.Second})
	const wait = 5 * time.Second
	var until atomic.Int64 // in Unix nanoseconds
	handler := func(context.Context, string, int) error {
		if until.CompareAndSwap(0, time.Now().Add(wait).UnixNano()) {
			return After(wait, nil)
		}
		// The server keeps the time in whole seconds.
		if early := time.Until(time.Unix(0, until.Load())); early > 1100*time.Millisecond {
			t.Errorf("due again %s early", early)
		}
		return nil
	}
	r := run(t, b, handler)
	fire(t, b, "x", "", "p")
	testenv.Eventually(t, limit, "put off", func() bool { return r.count("x=p") == 1 })
	r.stop()
	srv.Stop()
	srv.Start()
	b = open(t, srv.Conn(t), &Options{AckWait: time.Second})
	r = run(t, b, handler)
	testenv.Eventually(t, limit, "done after the restart", func() bool { return r.count("x=p") == 1 })
	idleConsumer(t, b)
}

// TestWaitingJobsHoldUpNobody: far more jobs wait than the server lets be
// unacknowledged by default, as in a freeze, and others are done at once. The
// consumer may be of a release that had the default.
func TestWaitingJobsHoldUpNobody(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), &Options{Workers: 8})
	if _, err := b.js.CreateConsumer(t.Context(), ScheduleStream, jetstream.ConsumerConfig{
		Durable: ScheduleConsumer, FilterSubject: duePrefix + ">", AckPolicy: jetstream.AckExplicitPolicy, AckWait: b.opts.AckWait, MaxDeliver: -1,
	}); err != nil {
		t.Fatal(err)
	}
	const n = 1100
	var frozen atomic.Int64
	r := run(t, b, func(_ context.Context, name string, _ int) error {
		if strings.HasPrefix(name, "frozen") {
			frozen.Add(1)
			return After(time.Hour, nil)
		}
		return nil
	})
	names := make([]string, n)
	for i := range names {
		names[i] = fmt.Sprint("frozen/", i)
	}
	if err := each(t.Context(), names, func(ctx context.Context, name string) error { return b.Fire(ctx, name, "", nil) }); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 2*limit, "all put off", func() bool { return frozen.Load() == n })
	fire(t, b, "urgent", "", "p")
	testenv.Eventually(t, limit, "the other job done", func() bool { return r.count("urgent=p") == 1 })
}

// TestUnclassifiedGivesUp: an error that nobody classified is not tried for
// ever, and one that is put off again and again is.
func TestUnclassifiedGivesUp(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	b.tries = 5
	r := run(t, b, func(_ context.Context, name string, n int) error {
		if n < 5 || name == "patient" && n < 10 {
			return After(0, io.EOF)
		}
		if name == "patient" {
			return nil
		}
		return io.EOF
	})
	fire(t, b, "x", "", "p")
	fire(t, b, "patient", "", "p")
	testenv.Eventually(t, limit, "both done", func() bool { return storedIn(t, b, ScheduleStream) == 0 })
	if x, p := r.count("x=p"), r.count("patient=p"); x != 5 || p != 10 {
		t.Errorf("tried %d and %d times; expected 5 and 10", x, p)
	}
}
