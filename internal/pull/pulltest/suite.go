package pulltest

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/notifier"
)

// away is what the notifier says while NATS is away.
var away = fault.Newf(fault.Unavailable, "notifier: publish", "the bus is away")

// Run runs the suite.
func Run(t *testing.T, rig func(t *testing.T) Rig) {
	for _, c := range []struct {
		name string
		run  func(*testing.T, Rig)
	}{
		{"everything is handled, whatever handlers do", anything},
		{"only what was handled is acknowledged", onlyHandled},
		{"an instance is killed and another finishes", killed},
		{"a lease is extended while its handler runs", extended},
		{"messages in flight are bounded", boundedCount},
		{"bytes in flight are bounded", boundedBytes},
		{"the bus is away: the source slows down and goes on by itself", busAway},
		{"the cloud is away: logged once, and once when it is back", cloudAway},
		{"the end: handlers finish, and what is not done is given back", drain},
		{"a handler that does not obey does not hold up the end", disobedient},
		{"nothing of a message is logged", silent},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, rig(t)) })
	}
}

func anything(t *testing.T, r Rig) {
	n := r.Many()
	SendAll(r, n, 200)
	l := NewLedger()
	s := r.New(Settings{MaxInFlight: 128})
	Start(t, s, func(ctx context.Context, d notifier.Delivery) (err error) {
		name := r.Name(d.Body)
		call := l.Begin(name, len(d.Body))
		ok := false
		defer func() { l.End(name, len(d.Body), ok) }()
		if call == 1 {
			switch rand.IntN(40) {
			case 0:
				return away
			case 1:
				return errors.New("unclassified")
			case 2:
				panic("a defect")
			case 3:
				time.Sleep(20 * time.Millisecond)
			case 4:
				<-time.After(time.Millisecond)
				return fault.New(fault.Denied, "handler", nil)
			case 5:
				ok = true
				return fault.New(fault.Invalid, "handler", nil)
			}
		}
		ok = true
		return nil
	})
	eventually(t, "every message to be acknowledged", func() bool { return r.Left() == 0 })
	if m := l.Missing(n); len(m) > 0 {
		t.Fatalf("%d messages were acknowledged and never handled, the first is %s", len(m), m[0])
	}
	eventually(t, "nothing in flight", func() bool { st := s.Stats(); return st.Acknowledged >= int64(n) })
	if st := s.Stats(); st.Invalid == 0 || st.Released == 0 {
		t.Errorf("counted %+v; expected some invalid and some released", st)
	}
}

func onlyHandled(t *testing.T, r Rig) {
	const n = 60
	SendAll(r, n, 100)
	l := NewLedger()
	var well atomic.Bool
	s := r.New(Settings{})
	Start(t, s, func(_ context.Context, d notifier.Delivery) error {
		name := r.Name(d.Body)
		l.Begin(name, 0)
		bad := strings.HasSuffix(name, "0") && !well.Load()
		l.End(name, 0, !bad)
		if bad {
			return errors.New("no")
		}
		return nil
	})
	eventually(t, "the good ones to be acknowledged", func() bool { return r.Left() <= n/10 })
	eventually(t, "the bad ones to come again", func() bool { return l.CallsOf(name(0)) >= 2 && l.CallsOf(name(10)) >= 2 })
	if left := r.Left(); left != n/10 {
		t.Errorf("%d messages are left, expected the %d that fail", left, n/10)
	}
	well.Store(true)
	eventually(t, "the rest to be acknowledged", func() bool { return r.Left() == 0 })
}

func killed(t *testing.T, r Rig) {
	n := r.Many() / 2
	SendAll(r, n, 100)
	l := NewLedger()
	handler := func(_ context.Context, d notifier.Delivery) error {
		name := r.Name(d.Body)
		l.Begin(name, 0)
		time.Sleep(time.Millisecond)
		l.End(name, 0, true)
		return nil
	}
	a := r.New(Settings{MaxInFlight: 64, Drain: 10 * time.Millisecond})
	stop := Start(t, a, handler)
	eventually(t, "the first instance to be in the middle", func() bool { return l.Done() > n/4 })
	a.Cut()
	stop()
	if r.Left() == 0 {
		t.Fatal("nothing was left when the first instance was killed, so nothing is tested")
	}
	Start(t, r.New(Settings{MaxInFlight: 64}), handler)
	finish(t, r)
	if m := l.Missing(n); len(m) > 0 {
		t.Errorf("%d messages are lost", len(m))
	}
}

// finish waits until all is acknowledged, letting leases end now and then.
func finish(t *testing.T, r Rig) {
	t.Helper()
	expire := time.Now()
	eventually(t, "all to be acknowledged", func() bool {
		if time.Now().After(expire) {
			r.Expire()
			expire = time.Now().Add(2 * time.Second)
		}
		return r.Left() == 0
	})
}

func extended(t *testing.T, r Rig) {
	if r.Lease() == 0 {
		return
	}
	SendAll(r, 3, 100)
	l := NewLedger()
	s := r.New(Settings{})
	Start(t, s, func(_ context.Context, d notifier.Delivery) error {
		name := r.Name(d.Body)
		l.Begin(name, 0)
		time.Sleep(3 * r.Lease())
		l.End(name, 0, true)
		return nil
	})
	eventually(t, "the messages to be acknowledged", func() bool { return r.Left() == 0 })
	if calls := l.Calls(); calls != 3 {
		t.Errorf("the handler was called %d times for 3 messages", calls)
	}
	if st := s.Stats(); st.Extended < 3 || st.Lost != 0 {
		t.Errorf("counted %+v; expected extensions and nothing lost", st)
	}
}

func boundedCount(t *testing.T, r Rig) {
	const n, bound = 300, 7
	SendAll(r, n, 100)
	l := NewLedger()
	s := r.New(Settings{MaxInFlight: bound})
	Start(t, s, func(_ context.Context, d notifier.Delivery) error {
		name := r.Name(d.Body)
		l.Begin(name, len(d.Body))
		time.Sleep(time.Millisecond)
		l.End(name, len(d.Body), true)
		return nil
	})
	eventually(t, "all to be acknowledged", func() bool { return r.Left() == 0 })
	if l.Peak > bound {
		t.Errorf("%d messages were in flight, expected at most %d", l.Peak, bound)
	}
	if l.Peak < 2 {
		t.Errorf("at most %d message was in flight; expected them to be handled concurrently", l.Peak)
	}
}

func boundedBytes(t *testing.T, r Rig) {
	const n = 12
	bound, size := r.MinBytes()*3/2, r.MinBytes()/5
	SendAll(r, n, size)
	l := NewLedger()
	s := r.New(Settings{MaxBytes: bound})
	Start(t, s, func(_ context.Context, d notifier.Delivery) error {
		name := r.Name(d.Body)
		l.Begin(name, len(d.Body))
		time.Sleep(50 * time.Millisecond) // longer than it takes to receive more
		l.End(name, len(d.Body), true)
		return nil
	})
	eventually(t, "all to be acknowledged", func() bool { return r.Left() == 0 })
	if l.PeakBytes > bound || l.PeakBytes < size*9/10 {
		t.Errorf("%d bytes were in flight, expected those of one message of %d at least, and at most %d", l.PeakBytes, size, bound)
	}
}

func busAway(t *testing.T, r Rig) {
	const n, bound = 300, 10
	SendAll(r, n, 100)
	l := NewLedger()
	var back atomic.Bool
	s := r.New(Settings{MaxInFlight: bound, Hold: time.Minute})
	Start(t, s, func(_ context.Context, d notifier.Delivery) error {
		name := r.Name(d.Body)
		l.Begin(name, 0)
		l.End(name, 0, back.Load())
		if back.Load() {
			return nil
		}
		return away
	})
	// Each of the messages in flight is tried some times, with back-off, and
	// no other is received.
	eventually(t, "retries", func() bool { return l.Calls() >= 3*bound })
	start, calls := time.Now(), l.Calls()
	eventually(t, "a second to pass", func() bool { return time.Since(start) > time.Second })
	if more := l.Calls() - calls; more > 4*bound {
		t.Errorf("the handler was called %d times a second while the bus is away", more)
	}
	if st := s.Stats(); st.Received > bound || st.Acknowledged != 0 || r.Left() != n {
		t.Errorf("counted %+v and %d left; expected at most %d received, and none acknowledged", st, r.Left(), bound)
	}
	back.Store(true)
	eventually(t, "all to be acknowledged", func() bool { return r.Left() == 0 })
	if m := l.Missing(n); len(m) > 0 {
		t.Errorf("%d messages are lost", len(m))
	}
}

// Outage sends 50 messages to a source while the bus is away for longer than a
// lease, and waits until they are acknowledged after it. Whether each was
// received once, and none given up, is for the caller to say.
func Outage(t testing.TB, r Rig, s notifier.Source) {
	t.Helper()
	SendAll(r, 50, 120)
	var back atomic.Bool
	var calls atomic.Int64
	Start(t, s, func(context.Context, notifier.Delivery) error {
		calls.Add(1)
		if back.Load() {
			return nil
		}
		return away
	})
	start := time.Now()
	eventually(t, "the outage to last", func() bool { return time.Since(start) > 3*r.Lease() && calls.Load() > 100 })
	back.Store(true)
	eventually(t, "all to be acknowledged", func() bool { return r.Left() == 0 })
}

func cloudAway(t *testing.T, r Rig) {
	var rec leaktest.Recorder
	SendAll(r, 300, 100)
	l := NewLedger()
	handler := func(_ context.Context, d notifier.Delivery) error {
		name := r.Name(d.Body)
		l.Begin(name, 0)
		time.Sleep(time.Millisecond)
		l.End(name, 0, true)
		return nil
	}
	s := r.New(Settings{MaxInFlight: 8, Log: rec.Logger()})
	Start(t, s, handler)
	eventually(t, "some to be handled", func() bool { return l.Done() > 20 })
	r.Down(true)
	eventually(t, "the source to notice", func() bool { return s.Stats().Down })
	start := time.Now()
	eventually(t, "some tries", func() bool { return time.Since(start) > 300*time.Millisecond })
	r.Down(false)
	eventually(t, "the source to recover", func() bool { return !s.Stats().Down })
	for i := 300; i < 400; i++ {
		r.Send(r.Body(name(i), 100))
	}
	finish(t, r)
	if m := l.Missing(400); len(m) > 0 {
		t.Errorf("%d messages are lost", len(m))
	}
	// The recorder's logger writes each line twice.
	lines := func(what string) (n int) {
		for line := range strings.Lines(rec.String()) {
			if strings.Contains(line, what) && strings.Contains(line, "receive") {
				n++
			}
		}
		return n / 2
	}
	if a, b := lines("the cloud is away"), lines("the cloud is back"); a != 1 || b != 1 {
		t.Errorf("the outage was logged %d times and its end %d times, expected once each:\n%s", a, b, rec.String())
	}
}

func drain(t *testing.T, r Rig) {
	SendAll(r, 2, 100)
	l := NewLedger()
	goOn := make(chan struct{})
	s := r.New(Settings{MaxInFlight: 2, Drain: 300 * time.Millisecond})
	stop := Start(t, s, func(ctx context.Context, d notifier.Delivery) error {
		name := r.Name(d.Body)
		l.Begin(name, 0)
		if name == "m-00000" {
			<-goOn
			l.End(name, 0, true)
			return nil
		}
		<-ctx.Done() // would go on for ever
		l.End(name, 0, false)
		return ctx.Err()
	})
	eventually(t, "both to be handled", func() bool { return l.Calls() == 2 })
	go func() {
		time.Sleep(50 * time.Millisecond) // Run has been asked to end
		close(goOn)
	}()
	start := time.Now()
	stop()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("the end took %s", took)
	}
	if left := r.Left(); left != 1 {
		t.Fatalf("%d messages are left, expected the one that was not finished", left)
	}
	// It was given back, hence it is there at once. For a Rig with short leases
	// Expire does nothing; with long ones the cloud may have sent it once more
	// to the instance that was ending.
	start = time.Now()
	Start(t, r.New(Settings{}), func(_ context.Context, d notifier.Delivery) error {
		l.Begin(r.Name(d.Body), 0)
		l.End(r.Name(d.Body), 0, true)
		return nil
	})
	finish(t, r)
	if lease := r.Lease(); lease > 0 && time.Since(start) > lease {
		t.Errorf("it came again after %s; expected at once", time.Since(start))
	}
}

func disobedient(t *testing.T, r Rig) {
	SendAll(r, 1, 100)
	release := make(chan struct{})
	inside := make(chan struct{}, 16)
	s := r.New(Settings{Drain: 10 * time.Millisecond})
	stop := Start(t, s, func(context.Context, notifier.Delivery) error {
		inside <- struct{}{}
		<-release
		return nil
	})
	<-inside
	start := time.Now()
	stop()
	if took := time.Since(start); took > 8*time.Second {
		t.Errorf("the end took %s", took)
	}
	close(release)
	if r.Left() != 1 {
		t.Error("the message was acknowledged; expected it to be given back")
	}
}

func silent(t *testing.T, r Rig) {
	canary, text := leaktest.Canary(), leaktest.Canary()
	var rec leaktest.Recorder
	l := NewLedger()
	s := r.New(Settings{Log: rec.Logger()})
	rec.Record(s.Source)
	for i := range 4 {
		r.Send(r.Body(name(i)+canary, 200))
	}
	Start(t, s, func(_ context.Context, d notifier.Delivery) error {
		name := r.Name(d.Body)
		call := l.Begin(name, 0)
		l.End(name, 0, true)
		switch {
		case strings.HasPrefix(name, "m-00000") && call == 1:
			panic(text)
		case strings.HasPrefix(name, "m-00001") && call == 1:
			return errors.New(text)
		case strings.HasPrefix(name, "m-00002"):
			return fault.Newf(fault.Invalid, "handler", "%s", text)
		}
		return nil
	})
	eventually(t, "all to be acknowledged", func() bool { return r.Left() == 0 })
	rec.Check(t, canary, text)
}
