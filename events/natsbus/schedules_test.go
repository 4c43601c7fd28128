package natsbus

import (
	"context"
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
		done <- b.RunSchedules(ctx, func(ctx context.Context, f Firing) error {
			name, payload := f.Name, f.Payload
			if f.ID == "" || f.Attempt == 0 {
				t.Errorf("a firing without id or attempt: %+v", f)
			}
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
	for _, name := range []string{"", string(make([]byte, maxName+1)), "\xff"} {
		if err := b.Schedule(t.Context(), name, Spec{Every: time.Hour}, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("name %.20q: %v; expected an error of kind invalid", name, err)
		}
	}
	if err := b.Schedule(t.Context(), "x", Spec{Every: time.Hour}, make([]byte, maxPayload+1)); !fault.Is(err, fault.Invalid) {
		t.Errorf("large payload: %v", err)
	}
	if n := lastSeq(t, b); n != 0 {
		t.Errorf("%d messages written; expected none", n)
	}
}

// A firing keeps its id when it is delivered again, and no other has it.
func TestFiringID(t *testing.T) {
	n := testenv.NATS(t)
	b, err := Open(t.Context(), n.Conn(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan Firing, 16)
	done := make(chan error, 1)
	go func() {
		done <- b.RunSchedules(ctx, func(_ context.Context, f Firing) error {
			got <- f
			if f.Attempt == 1 {
				return fault.Newf(fault.Unavailable, "test", "not yet")
			}
			return nil
		})
	}()
	ids := map[string]int{}
	for _, name := range []string{"one", "two"} {
		if err := b.Schedule(ctx, name, Spec{At: time.Now()}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for range 4 {
		select {
		case f := <-got:
			ids[f.Name+" "+f.ID]++
		case <-time.After(limit):
			t.Fatalf("deliveries so far: %v; expected two of each", ids)
		}
	}
	if len(ids) != 2 {
		t.Errorf("deliveries by id: %v; expected two firings, twice each", ids)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
