package natsbus

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/testenv"
)

// everything reads both streams.
func everything(t testing.TB, b *Bus, subjects ...string) (told, late []StoredEvent) {
	for _, into := range []*[]StoredEvent{&told, &late} {
		for e, err := range b.Events(t.Context(), EventsQuery{Late: into == &late, Subjects: subjects}) {
			if err != nil {
				t.Fatal(err)
			}
			*into = append(*into, e)
		}
	}
	return told, late
}

// shrunk are options with which a repetition is soon beyond the window.
func shrunk() *Options {
	return &Options{Duplicates: 200 * time.Millisecond, Skew: time.Second, PublishTimeout: limit, MaxPerSubject: 1000, GroupCommit: true}
}

func receipt(t testing.TB, b *Bus, want events.Receipt, es ...events.Event) {
	t.Helper()
	got, err := b.PublishReceipt(t.Context(), es...)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("receipt %+v; expected %+v", got, want)
	}
}

func at(e events.Event, ago time.Duration) events.Event {
	e.Time = time.Now().Add(-ago).UTC()
	return e
}

func TestReceipts(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), shrunk())
	other := open(t, srv.Conn(t), shrunk())
	stored, dup, late := events.Receipt{Stored: 1}, events.Receipt{Duplicates: 1}, events.Receipt{Late: 1}
	first, second, third := at(activated("a", "x"), 10*time.Hour), at(activated("a", "y"), 2*time.Hour), at(activated("a", "z"), 3*time.Hour)
	receipt(t, b, stored, first)
	receipt(t, b, stored, second)
	testenv.Eventually(t, limit, "the server forgot the ids", func() bool { return windowPassed(t, b) })
	for _, bus := range []*Bus{b, other} {
		t.Run("trap 45: repetitions beyond the window", func(t *testing.T) {
			receipt(t, bus, dup, second)
			receipt(t, bus, dup, first)
			receipt(t, bus, events.Receipt{Duplicates: 3}, second, first, second)
		})
	}
	t.Run("trap 11: late", func(t *testing.T) {
		receipt(t, other, late, third)
		receipt(t, other, dup, third)
		receipt(t, b, dup, third)
	})
	testenv.Eventually(t, limit, "the server forgot the ids", func() bool { return windowPassed(t, b) })
	receipt(t, b, dup, third)
	receipt(t, open(t, srv.Conn(t), shrunk()), dup, third)
	told, lates := everything(t, b)
	if len(told) != 2 || len(lates) != 1 || lates[0].ID != third.ID || told[1].ID != second.ID || lates[0].Subject != told[0].Subject {
		t.Errorf("%d events and %d late: %+v %+v; expected 2 and 1", len(told), len(lates), told, lates)
	}
	// Each event of one call is counted once.
	receipt(t, b, events.Receipt{Stored: 2, Duplicates: 2, Late: 1}, first, at(activated("a", "n"), 0), at(activated("b", "n"), 0), at(activated("a", "o"), 20*time.Hour), third)
}

// windowPassed reports whether the duplicate window has passed since the last
// message was stored.
func windowPassed(t testing.TB, b *Bus) bool {
	for _, stream := range []string{EventStream, LateStream} {
		s, err := b.js.Stream(t.Context(), stream)
		if err != nil {
			t.Fatal(err)
		}
		if time.Since(s.CachedInfo().State.LastTime) < 2*b.opts.Duplicates {
			return false
		}
	}
	return true
}

// TestForeignLastMessage: a subject whose last message is no event, and
// one that other software has written, do not hide what is newest.
// TestAnIdIsItsSubjects: who may announce for one tenant cannot use up the id
// of an event that another tenant is to hear.
func TestAnIdIsItsSubjects(t *testing.T) {
	b := open(t, testenv.NATS(t).Conn(t), nil)
	real := at(activated("victim", "2"), 0)
	forged := at(activated("own", "2"), 0)
	forged.ID, forged.Data.Tenant = real.ID, "umbrella"
	receipt(t, b, events.Receipt{Stored: 1}, forged)
	receipt(t, b, events.Receipt{Stored: 1}, real)
	receipt(t, b, events.Receipt{Duplicates: 1}, real)
}

func TestForeignLastMessage(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	e := at(activated("a", "new"), time.Hour)
	publish(t, b, e)
	if _, err := b.js.Publish(t.Context(), e.Subject(), []byte("no event")); err != nil {
		t.Fatal(err)
	}
	receipt(t, b, events.Receipt{Late: 1}, at(activated("a", "old"), 2*time.Hour))
	receipt(t, b, events.Receipt{Stored: 1, Duplicates: 1}, e, at(activated("a", "newer"), 0))
}

// TestOrderOfTheServersChecks pins what decide relies on: whichever the server
// looks at first, the id or the expected sequence, the answer is one that
// leads to the right decision.
func TestOrderOfTheServersChecks(t *testing.T) {
	check := func(t *testing.T, b *Bus, single bool) {
		a, c := activated("order", "a"), activated("order", "c")
		publish(t, b, a, c)
		m, err := encode(a)
		if err != nil {
			t.Fatal(err)
		}
		(&outgoing{msg: m, id: a.ID, subject: m.Subject}).identify()
		m.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{"0"} // wrong
		ack, err := b.js.PublishMsg(t.Context(), m)
		switch {
		case single && (apiError(err) == nil || !undecided(err)):
			t.Errorf("one server answers %+v, %v; expected wrong last sequence", ack, err)
		case !single && (err != nil || !ack.Duplicate):
			t.Errorf("a cluster answers %+v, %v; expected a duplicate", ack, err)
		}
		// A Bus that knows nothing, and one that knows what is wrong.
		receipt(t, b, events.Receipt{Duplicates: 2}, a, c)
		s, err := b.subjects.take(t.Context(), a.Subject())
		if err != nil {
			t.Fatal(err)
		}
		s.event.seq, s.event.id = 7777, "x"
		b.subjects.release(s)
		receipt(t, b, events.Receipt{Duplicates: 1}, a)
		receipt(t, b, events.Receipt{Stored: 1}, activated("order", "d"))
	}
	t.Run("single", func(t *testing.T) {
		check(t, open(t, testenv.NATS(t).Conn(t), nil), true)
	})
	t.Run("clustered", func(t *testing.T) {
		nc := connectTo(t, startCluster(t)...)
		var b *Bus
		testenv.Eventually(t, 3*limit, "the streams", func() bool {
			var err error
			b, err = Open(t.Context(), nc, &Options{Replicas: 3, PublishTimeout: limit})
			return err == nil
		})
		check(t, b, false)
		// Many publishers on one subject: nothing is Invalid, nothing is lost.
		compete(t, b, connectAndOpen(t, nc.ConnectedUrl(), &Options{Replicas: 3, PublishTimeout: limit}), 30)
	})
}

func connectAndOpen(t testing.TB, url string, o *Options) *Bus {
	t.Helper()
	return open(t, connectTo(t, url), o)
}

// compete has two processes publish the same n events of one subject at the
// same time.
func compete(t *testing.T, a, b *Bus, n int) {
	t.Helper()
	var es []events.Event
	for i := range n {
		es = append(es, at(activated("contested", fmt.Sprint("v", i)), 0))
	}
	var mu sync.Mutex
	var sum events.Receipt
	var wg sync.WaitGroup
	for _, bus := range []*Bus{a, b} {
		for half := range 2 {
			wg.Go(func() {
				for i, e := range es {
					if i%2 != half {
						continue
					}
					var r events.Receipt
					var err error
					for range 20 { // Unavailable means that the sender comes again
						if r, err = bus.PublishReceipt(t.Context(), e); err == nil {
							break
						}
					}
					if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					sum.Add(r)
					mu.Unlock()
				}
			})
		}
	}
	wg.Wait()
	if sum.Stored+sum.Late != n || sum.Duplicates != n {
		t.Errorf("%+v; expected %d stored and as many duplicates", sum, n)
	}
}

func TestTwoProcessesOneSubject(t *testing.T) {
	srv := testenv.NATS(t)
	a, b := open(t, srv.Conn(t), &Options{PublishTimeout: limit}), open(t, srv.Conn(t), &Options{PublishTimeout: limit, GroupCommit: true})
	compete(t, a, b, 60)
}

// TestOnceAndForward is the property: whatever is published in whatever order,
// how often and by whom, each id is in one of the two streams once, and no
// event of a subject is stored after one that is newer by more than the
// tolerance.
func TestOnceAndForward(t *testing.T) {
	srv := testenv.NATS(t)
	var round int
	end := time.Now().Add(6 * time.Second)
	rapid.Check(t, func(rt *rapid.T) {
		if time.Now().After(end) { // the first rounds are enough for each run
			return
		}
		round++
		nc := srv.Conn(t)
		defer nc.Close()
		buses := []*Bus{open(t, nc, shrunk()), open(t, nc, shrunk())}
		for _, b := range buses {
			b.news.least, b.old.least = 2, 2
		}
		const skew = time.Second
		base := time.Now()
		// A history as providers make them: times and counters go forward, but
		// clocks differ by up to the tolerance.
		var pool []events.Event
		var subjects []string
		for s := range rapid.IntRange(1, 3).Draw(rt, "subjects") {
			style := rapid.SampledFrom([]string{"counter", "opaque", "disabled", "mixed"}).Draw(rt, "style")
			n := rapid.IntRange(1, 8).Draw(rt, "events")
			for i := range n {
				v := fmt.Sprint(i + 1)
				if style == "opaque" || style == "mixed" && i%2 == 0 {
					v = fmt.Sprint("v", i)
				}
				e := activated(fmt.Sprintf("r%ds%d", round, s), v)
				if style == "disabled" {
					e.Type = events.VersionDisabled
				}
				ago := time.Duration(n-1-i) * rapid.SampledFrom([]time.Duration{0, 100 * time.Millisecond, 3 * time.Second}).Draw(rt, "apart")
				wrong := time.Duration(rapid.IntRange(-400, 400).Draw(rt, "clock")) * time.Millisecond
				e.Time = base.Add(wrong - ago)
				switch rapid.IntRange(0, 9).Draw(rt, "odd") {
				case 0:
					e.Time = base.Add(time.Duration(rapid.IntRange(1, 600).Draw(rt, "ahead")) * time.Millisecond)
				case 1:
					if style != "counter" {
						e.Time = time.Time{}
					}
				}
				pool = append(pool, e)
				subjects = append(subjects, e.Subject())
			}
		}
		slices.Sort(subjects)
		subjects = slices.Compact(subjects)
		steps := rapid.IntRange(1, 12).Draw(rt, "steps")
		published := map[string]bool{}
		var stored int
		for range steps {
			var calls [][]events.Event // drawn before one is made
			for range rapid.IntRange(1, 2).Draw(rt, "together") {
				var es []events.Event
				for _, i := range rapid.SliceOfN(rapid.IntRange(0, len(pool)-1), 1, 6).Draw(rt, "publish") {
					es = append(es, pool[i])
					published[pool[i].ID+pool[i].Subject()] = true
				}
				calls = append(calls, es)
			}
			var wg sync.WaitGroup
			var mu sync.Mutex
			var failed []string
			for c, es := range calls {
				wg.Go(func() {
					r, err := buses[c].PublishReceipt(t.Context(), es...)
					mu.Lock()
					defer mu.Unlock()
					stored += r.Stored + r.Late
					if err != nil || r.Stored+r.Late+r.Duplicates != len(es) {
						failed = append(failed, fmt.Sprintf("%+v, %v for %d events", r, err, len(es)))
					}
				})
			}
			wg.Wait()
			if failed != nil {
				rt.Fatal(failed)
			}
			switch rapid.IntRange(0, 6).Draw(rt, "then") {
			case 0: // a crash: what the process knew is gone
				buses[0] = open(t, nc, shrunk())
				buses[0].news.least = 2
			case 1: // the server forgets the ids
				pause(t.Context(), 250*time.Millisecond)
			case 2:
				buses[0], buses[1] = buses[1], buses[0]
			}
		}
		told, late := everything(t, buses[0], subjects...)
		if len(told)+len(late) != len(published) || stored != len(published) {
			rt.Fatalf("%d events and %d late ones stored, receipts for %d; expected %d", len(told), len(late), stored, len(published))
		}
		seen := map[string]bool{}
		bySubject := map[string]newest{}
		for _, e := range slices.Concat(told, late) {
			if seen[e.ID+e.Subject] {
				rt.Fatalf("%s %s is stored twice", e.Subject, e.Data.Version)
			}
			seen[e.ID+e.Subject] = true
		}
		for _, e := range told {
			n := bySubject[e.Subject]
			if n.older(&e.Event, skew+50*time.Millisecond) {
				rt.Fatalf("%s: version %s of %s is stored after %+v", e.Subject, e.Data.Version, e.Time, n)
			}
			bySubject[e.Subject] = n.with(&e.Event, e.Stored, 0)
		}
	})
}

// TestPushedOut: an id that newer events have pushed out of the history is
// late, and so stored apart and once.
func TestPushedOut(t *testing.T) {
	srv := testenv.NATS(t)
	o := shrunk()
	o.MaxPerSubject = 3
	b := open(t, srv.Conn(t), o)
	var es []events.Event
	for i := range 6 {
		es = append(es, at(activated("a", fmt.Sprint("v", i)), time.Duration(10-i)*time.Hour))
	}
	receipt(t, b, events.Receipt{Stored: 6}, es...)
	testenv.Eventually(t, limit, "the server forgot the ids", func() bool { return windowPassed(t, b) })
	again := open(t, srv.Conn(t), o)
	receipt(t, again, events.Receipt{Late: 1, Duplicates: 3}, es[0], es[5], es[3], es[0])
	if told, _ := everything(t, b); len(told) != 3 || told[2].ID != es[5].ID {
		t.Errorf("%+v; expected the newest at the end", told)
	}
}
