package natsbus

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/internal/testenv"
)

// BenchmarkCommit is how many events a second are stored, by callers that
// publish one event each and wait for it, on a server that syncs each commit
// to its disk, on one that syncs every two minutes, and on three replicas; one
// by one, and in the batches that gather.
func BenchmarkCommit(b *testing.B) {
	for _, kind := range []string{"SyncAlways", "SyncInterval", "Replicas3"} {
		for _, single := range []bool{true, false} {
			name := map[bool]string{true: "Singles", false: "Grouped"}[single]
			for _, callers := range []int{1, 16, 256} {
				if kind == "Replicas3" && !single {
					continue // the same
				}
				b.Run(fmt.Sprintf("%s/%s/%d", kind, name, callers), func(b *testing.B) {
					var nc *nats.Conn
					o := &Options{GroupCommit: !single, PublishTimeout: limit, MaxPerSubject: 1000}
					switch kind {
					case "SyncAlways":
						nc = testenv.NATS(b).Conn(b)
					case "SyncInterval":
						nc = connectTo(b, startServer(b, nil).ClientURL())
					case "Replicas3":
						nc = connectTo(b, startCluster(b)...)
						o.Replicas = 3
					}
					var commits, events atomic.Int64
					o.Observe = func(c Commit) { commits.Add(1); events.Add(int64(c.Events)) }
					var bus *Bus
					testenv.Eventually(b, 2*limit, "the streams", func() bool {
						var err error
						bus, err = Open(b.Context(), nc, o)
						return err == nil
					})
					for i := range callers { // every subject is known
						publish(b, bus, activated(fmt.Sprint("s", i), "0"))
					}
					commits.Store(0)
					events.Store(0)
					var next atomic.Int64
					b.ResetTimer()
					start := time.Now()
					var wg sync.WaitGroup
					for c := range callers {
						wg.Go(func() {
							for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
								if err := bus.Publish(b.Context(), activated(fmt.Sprint("s", c), fmt.Sprint("v", i))); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					wg.Wait()
					b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "events/s")
					b.ReportMetric(float64(events.Load())/float64(commits.Load()), "events/commit")
				})
			}
		}
	}
}

// startServer starts a server whose options change may change.
func startServer(t testing.TB, change func(*server.Options)) *server.Server {
	t.Helper()
	o := &server.Options{Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true}
	if change != nil {
		change(o)
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	return s
}

// startCluster starts three servers and returns their addresses.
func startCluster(t testing.TB) (urls []string) {
	t.Helper()
	var routes []string
	ports := make([]int, 3)
	for i := range ports {
		ports[i] = testenv.FreePort(t)
		routes = append(routes, "nats://"+net.JoinHostPort("127.0.0.1", fmt.Sprint(ports[i])))
	}
	for i, port := range ports {
		s := startServer(t, func(o *server.Options) {
			o.ServerName = fmt.Sprint("s", i)
			o.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port}
			o.Routes = server.RoutesFromStr(strings.Join(routes, ","))
		})
		if !s.ReadyForConnections(limit) {
			t.Fatal("a server did not start")
		}
		urls = append(urls, s.ClientURL())
	}
	return urls
}

func connectTo(t testing.TB, urls ...string) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(strings.Join(urls, ","), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}
