package natsbus

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/internal/testenv"
)

// tenThousand is the number of schedules that one server should bear.
const tenThousand = 10_000

// nightly returns n schedules as a configuration would have them: a name as on
// AWS, a cron expression of its own minute.
func nightly(n int, hour int) []Schedule {
	hour = distant(hour)
	out := make([]Schedule, n)
	for i := range out {
		out[i] = Schedule{
			Name: fmt.Sprintf("aws://111122223333/eu-west-1/prod/agents/team-%02d/credential-%05d", i%40, i),
			Spec: Spec{Cron: fmt.Sprintf("%d %d %d * * *", i%60, i/60%60, hour), TimeZone: "Europe/Berlin"},
		}
	}
	return out
}

// distant is an hour of the day, another for each hour, that no test's own time
// comes near in any zone in use here.
func distant(hour int) int { return (time.Now().UTC().Hour() + 8 + hour) % 24 }

// BenchmarkReconcile10000 is what a start of a deployment with 10,000 secrets
// costs: on an empty server, with nothing changed, with one in a hundred
// changed, and with all removed.
//
// The memory is the growth of this process's heap after a collection, from the
// server with its empty streams to the server with the schedules. It includes
// what the file store caches of its last blocks, and the few KB that the client
// keeps; not the wanted list, which was there before. On disk is the size of
// the messages in the stream.
func BenchmarkReconcile10000(b *testing.B) {
	want := nightly(tenThousand, 3)
	changed := slices.Clone(want)
	for i := range changed {
		if i%100 == 0 {
			changed[i].Spec.Cron = fmt.Sprintf("0 0 %d * * *", distant(4))
		}
	}
	for b.Loop() {
		srv := testenv.NATS(b)
		bus := open(b, srv.Conn(b), nil)
		empty := heap()
		step := func(want []Schedule, expected Reconciled, unit string) {
			begun := time.Now()
			got, err := bus.Reconcile(b.Context(), "prod", want)
			if err != nil || got != expected {
				b.Fatalf("%s: %+v, %v; expected %+v", unit, got, err, expected)
			}
			b.ReportMetric(float64(time.Since(begun).Milliseconds()), unit)
		}
		step(want, Reconciled{Set: tenThousand}, "ms-from-empty")
		b.ReportMetric(float64(heap()-empty)/(1<<20), "MB-heap")
		step(want, Reconciled{Kept: tenThousand}, "ms-no-change")
		step(changed, Reconciled{Set: tenThousand / 100, Kept: tenThousand - tenThousand/100}, "ms-1%-changed")
		s, err := bus.js.Stream(b.Context(), ScheduleStream)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(s.CachedInfo().State.Bytes)/(1<<20), "MB-on-disk")
		step(nil, Reconciled{Removed: tenThousand}, "ms-all-removed")
		srv.Stop()
	}
	runtime.KeepAlive(want)
	b.ReportMetric(0, "ns/op")
}

// heap is what is alive, after the collector had its say twice: once to find
// what has a finalizer, once to free it.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkFirings lets schedules fire within ten seconds, with two replicas
// that run them. The lag is from when one was due until its handler was called.
// It is split into the server's part, until the firing was stored, and the
// rest. Each must have come exactly once.
//
// 10000 is on a server that syncs its disk every two minutes, as nats-server
// does unless it is told otherwise. Nine in ten schedules fire once (@at,
// spread evenly) and the others twice (@every 5s). 1000Synced is on one that
// syncs every write: each firing costs it three (the firing is stored, its
// one-shot schedule and then the firing are removed), one after the other, so
// the disk decides how many a second there can be. There all fire once, since
// of the times of a period that it misses the server makes one.
func BenchmarkFirings(b *testing.B) {
	for _, c := range []struct {
		name   string
		n      int
		synced bool
	}{{"10000", tenThousand, false}, {"1000Synced", 1000, true}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				newFirings(b, c.n, c.synced).run(b)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

const (
	firingPeriod = 5 * time.Second
	firingSpread = 10 * time.Second
	firingRounds = 2 // of those that fire again
)

// firings is one run of BenchmarkFirings.
type firings struct {
	connect func() *Bus
	due     map[string]time.Time // the first time
	rounds  map[string]int

	mu                sync.Mutex
	fired             map[string]int
	total             int
	all, stored, rest []time.Duration
	by                [2]int
}

// newFirings sets the schedules.
func newFirings(b *testing.B, n int, synced bool) *firings {
	b.Helper()
	srv, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: b.TempDir(), NoSigs: true, NoLog: true, SyncAlways: synced})
	if err != nil {
		b.Fatal(err)
	}
	srv.Start()
	b.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(limit) {
		b.Fatal("the server did not start")
	}
	f := &firings{due: map[string]time.Time{}, rounds: map[string]int{}, fired: map[string]int{}, connect: func() *Bus {
		nc, err := nats.Connect(srv.ClientURL())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(nc.Close)
		return open(b, nc, nil)
	}}
	bus := f.connect()
	name := func(i int) string { return fmt.Sprintf("aws://111122223333/eu-west-1/prod/credential-%05d", i) }
	put := func(scs []Schedule) time.Duration {
		begun := time.Now()
		if err := each(b.Context(), scs, func(ctx context.Context, sc Schedule) error {
			sc.Target = sc.Name
			_, err := bus.put(ctx, sc, nil)
			return err
		}); err != nil {
			b.Fatal(err)
		}
		return time.Since(begun)
	}
	// How long it takes to set them says when they can be due.
	const probe = 500
	var scs []Schedule
	for i := range probe {
		scs = append(scs, Schedule{Name: fmt.Sprint("probe/", i), Spec: Spec{Every: time.Hour}})
	}
	begin := time.Now().Add(put(scs)*time.Duration(n)/probe*2 + firingPeriod)
	scs = scs[:0]
	for i := range n {
		if i%10 != 0 || synced {
			at := begin.Add(firingSpread * time.Duration(i) / time.Duration(n))
			scs = append(scs, Schedule{Name: name(i), Spec: Spec{At: at}})
			f.due[name(i)], f.rounds[name(i)] = at, 1
		}
	}
	put(scs)
	if left := time.Until(begin); left < firingPeriod {
		b.Fatalf("the first is due in %s, before all are set", left)
	}
	pause(b.Context(), time.Until(begin)-firingPeriod) // the others begin with these
	scs = scs[:0]
	for i := 0; i < n && !synced; i += 10 {
		scs = append(scs, Schedule{Name: name(i), Spec: Spec{Every: firingPeriod}})
		f.rounds[name(i)] = firingRounds
	}
	put(scs)
	list, err := bus.ListSchedules(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for _, sc := range list {
		if sc.Spec.Every == firingPeriod { // the server counts from the full second
			f.due[sc.Name] = sc.Set.Round(time.Second).Add(firingPeriod)
		}
	}
	return f
}

func (f *firings) run(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	expected := 0
	for _, n := range f.rounds {
		expected += n
	}
	var wg sync.WaitGroup
	for i := range f.by {
		replica := f.connect()
		wg.Go(func() {
			if err := replica.RunSchedules(ctx, func(_ context.Context, x Firing) error { return f.take(b, i, x) }); err != nil {
				b.Error(err)
			}
		})
	}
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline) && pause(ctx, 50*time.Millisecond); {
		f.mu.Lock()
		done := f.total >= expected
		f.mu.Unlock()
		if done {
			break
		}
	}
	pause(ctx, time.Second) // one too many would show
	cancel()
	wg.Wait()
	wrong := 0
	for name, n := range f.rounds {
		if f.fired[name] != n {
			wrong++
		}
	}
	if wrong > 0 {
		b.Errorf("%d schedules did not fire as often as they should; %d firings in all, expected %d", wrong, f.total, expected)
	}
	b.Logf("%d firings; the replicas handled %v", f.total, f.by)
	for name, lags := range map[string][]time.Duration{"lag": f.all, "server": f.stored, "rest": f.rest} {
		slices.Sort(lags)
		for p, at := range map[string]int{"p50": len(lags) / 2, "p99": len(lags) * 99 / 100, "max": len(lags) - 1} {
			b.ReportMetric(float64(lags[at].Milliseconds()), name+"-"+p+"-ms")
		}
	}
}

// take is the handler of replica i.
func (f *firings) take(b *testing.B, i int, x Firing) error {
	now := time.Now()
	f.mu.Lock()
	defer f.mu.Unlock()
	due, n := f.due[x.Name], f.fired[x.Name]
	round := int(x.At.Sub(due) / firingPeriod)
	if f.rounds[x.Name] == firingRounds && round >= firingRounds {
		return nil // goes on until the end
	}
	if f.rounds[x.Name] == 1 {
		round = 0
	}
	if x.At.Before(due) || n != round {
		b.Errorf("%s: firing %d at %s; expected number %d, due %s at first", x.Name, round, x.At, n, due)
	}
	due = due.Add(time.Duration(round) * firingPeriod)
	f.fired[x.Name]++
	f.total++
	f.by[i]++
	f.all, f.stored, f.rest = append(f.all, now.Sub(due)), append(f.stored, x.At.Sub(due)), append(f.rest, now.Sub(x.At))
	return nil
}
