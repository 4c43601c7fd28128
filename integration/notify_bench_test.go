package integration_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/eventbridge"
	"github.com/keyturn/keyturn/events/eventgrid"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
	"github.com/keyturn/keyturn/notifier/webhook"
	"github.com/keyturn/keyturn/ref"
)

const benchKey = "benchmark-key-0123456789"

// benchSecrets is how many secrets the events are about, in turn.
const benchSecrets = 5000

// notice is a native event of EventBridge about secret i and version n.
func notice(i, n int64) []byte {
	return fmt.Appendf(nil, `{"version":"0","id":"6a7e8feb-b491-4cf7-a9f1-%012d","detail-type":"Secret Label Updated","source":"aws.secretsmanager","account":"012345678901","time":"%s","region":"us-west-2","resources":["arn:aws:secretsmanager:us-west-2:012345678901:secret:agents/s%d-a1b2c3"],"detail":{"name":"agents/s%d","labelUpdated":"AWSCURRENT","versionId":"a1b2c3d4-5678-90ab-cdef-%012d"}}`,
		n, time.Now().UTC().Format(time.RFC3339), i, i, n)
}

// gridBatch is a batch of 100 events of Event Grid, from number n on.
func gridBatch(n int64) []byte {
	var b bytes.Buffer
	b.WriteByte('[')
	for k := range int64(100) {
		if k > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `{"id":"00eccf70-95a7-4e7c-8299-%012d","topic":"/subscriptions/x/resourceGroups/rg/providers/Microsoft.KeyVault/vaults/kv","subject":"s%d","eventType":"Microsoft.KeyVault.SecretNewVersionCreated","eventTime":"%s","data":{"Id":"https://kv.vault.azure.net/secrets/s%d/%032x","VaultName":"kv","ObjectType":"Secret","ObjectName":"s%d","Version":"%032x"},"dataVersion":"1","metadataVersion":"1"}`,
			n+k, (n+k)%benchSecrets, time.Now().UTC().Format(time.RFC3339Nano), (n+k)%benchSecrets, n+k, (n+k)%benchSecrets, n+k)
	}
	b.WriteByte(']')
	return b.Bytes()
}

// A bench is a notifier on a NATS server, and clients that post to it.
type notifyBench struct {
	url    string
	client *http.Client
	nc     *nats.Conn
	bus    *natsbus.Bus
}

// syncs are how a server syncs its files.
var syncs = map[string]func(*server.Options){
	"SyncAlways":   func(o *server.Options) { o.SyncAlways = true },
	"SyncInterval": func(o *server.Options) { o.SyncAlways = false },
}

func newNotifyBench(b *testing.B, mode string) *notifyBench {
	b.Helper()
	nc := testenv.NATS(b, syncs[mode]).Conn(b)
	bus, err := natsbus.Open(b.Context(), nc, &natsbus.Options{GroupCommit: mode == "SyncAlways", MaxInFlight: 1024})
	if err != nil {
		b.Fatal(err)
	}
	key, err := webhook.APIKey("", benchKey)
	if err != nil {
		b.Fatal(err)
	}
	h := notifier.New(bus, bus, nil).Handler(func(d notifier.Delivery) ([]events.Event, error) {
		if d.Source == "eventgrid" {
			return eventgrid.Decode(d.Body, d.Received)
		}
		return eventbridge.Decode(d.Body, d.Received)
	})
	src, err := webhook.Listen(b.Context(), webhook.Options{Addr: "127.0.0.1:0", MaxInFlight: 512, Routes: []webhook.Route{
		{Kind: webhook.EventBridge{}, Auth: []webhook.Authenticator{key}},
		{Kind: webhook.EventGrid{}, Auth: []webhook.Authenticator{key}},
	}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- src.Run(ctx, h) }()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	return &notifyBench{url: "http://" + src.Addr().String(), client: keepAlive(b), nc: nc, bus: bus}
}

func keepAlive(b *testing.B) *http.Client {
	tr := &http.Transport{MaxIdleConnsPerHost: 512, MaxConnsPerHost: 512}
	b.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}
}

// post returns the status; 0 means that there was none.
func post(ctx context.Context, c *http.Client, url string, body []byte) int {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0
	}
	req.Header.Set("X-Api-Key", benchKey)
	req.Header.Set("Content-Type", "application/json")
	res, err := c.Do(req)
	if err != nil {
		return 0
	}
	_, _ = io.Copy(io.Discard, res.Body)
	_ = res.Body.Close()
	return res.StatusCode
}

// inParallel calls f with 0 to n-1 from 64 goroutines.
func inParallel(n int64, f func(i int64)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for i := next.Add(1) - 1; i < n; i = next.Add(1) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// BenchmarkNotify is how many events a second go from an HTTP request to
// JetStream's acknowledgement, by single posts and by batches of 100, beside a
// handler that does nothing but publish the body, and beside the client's own
// asynchronous publish of messages of the same size.
func BenchmarkNotify(b *testing.B) {
	for _, mode := range []string{"SyncAlways", "SyncInterval"} {
		b.Run(mode+"/Single", func(b *testing.B) {
			n := newNotifyBench(b, mode)
			b.ResetTimer()
			start := time.Now()
			inParallel(int64(b.N), func(i int64) {
				if code := post(b.Context(), n.client, n.url+"/v1/eventbridge", notice(i%benchSecrets, i)); code != 200 {
					b.Errorf("status %d", code)
				}
			})
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "events/s")
			n.stored(b, int64(b.N))
		})
		b.Run(mode+"/Batch100", func(b *testing.B) {
			n := newNotifyBench(b, mode)
			b.ResetTimer()
			start := time.Now()
			batches := (int64(b.N) + 99) / 100
			inParallel(batches, func(i int64) {
				if code := post(b.Context(), n.client, n.url+"/v1/eventgrid", gridBatch(i*100)); code != 200 {
					b.Errorf("status %d", code)
				}
			})
			b.ReportMetric(float64(batches*100)/time.Since(start).Seconds(), "events/s")
			n.stored(b, batches*100)
		})
		b.Run(mode+"/MinimalHandler", func(b *testing.B) {
			js := rawStream(b, mode)
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err == nil {
					_, err = js.Publish(r.Context(), "raw.x", body)
				}
				if err != nil {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			}))
			defer srv.Close()
			client := keepAlive(b)
			b.ResetTimer()
			start := time.Now()
			inParallel(int64(b.N), func(i int64) {
				if code := post(b.Context(), client, srv.URL, notice(i%benchSecrets, i)); code != 200 {
					b.Errorf("status %d", code)
				}
			})
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "events/s")
		})
		b.Run(mode+"/RawAsync", func(b *testing.B) {
			js := rawStream(b, mode)
			e := events.New(events.VersionActivated, ref.Ref{Provider: ref.AWS, Scope: "012345678901/us-west-2", Name: "agents/s1"}, time.Now(), "v")
			body, err := json.Marshal(e.Data)
			if err != nil {
				b.Fatal(err)
			}
			body = append(body, bytes.Repeat([]byte(" "), 400)...) // and its headers
			b.ResetTimer()
			start := time.Now()
			for range b.N {
				if _, err := js.PublishAsync("raw.x", body, jetstream.WithStallWait(time.Minute)); err != nil {
					b.Fatal(err)
				}
			}
			<-js.PublishAsyncComplete()
			b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "events/s")
		})
	}
}

// stored fails b unless the stream holds n events.
func (n *notifyBench) stored(b *testing.B, want int64) {
	b.Helper()
	js, err := jetstream.New(n.nc)
	if err != nil {
		b.Fatal(err)
	}
	s, err := js.Stream(b.Context(), natsbus.EventStream)
	if err != nil {
		b.Fatal(err)
	}
	// Of one secret 64 stay.
	if got := int64(s.CachedInfo().State.LastSeq); got != want {
		b.Errorf("%d events stored; expected %d", got, want)
	}
}

func rawStream(b *testing.B, mode string) jetstream.JetStream {
	b.Helper()
	js, err := jetstream.New(testenv.NATS(b, syncs[mode]).Conn(b), jetstream.WithPublishAsyncMaxPending(1024))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := js.CreateStream(b.Context(), jetstream.StreamConfig{Name: "RAW", Subjects: []string{"raw.>"}, Storage: jetstream.FileStorage}); err != nil {
		b.Fatal(err)
	}
	return js
}

// BenchmarkNotifyLag posts 500 events a second for ten seconds, whether or not
// those before were answered, and says how long a post took from when it was
// due.
func BenchmarkNotifyLag(b *testing.B) {
	for _, mode := range []string{"SyncAlways", "SyncInterval"} {
		b.Run(mode, func(b *testing.B) {
			n := newNotifyBench(b, mode)
			var mu sync.Mutex
			var lags []time.Duration
			var wg sync.WaitGroup
			b.ResetTimer()
			const rate, seconds = 500, 10
			start := time.Now()
			for i := range int64(rate * seconds) {
				due := start.Add(time.Duration(i) * time.Second / rate)
				time.Sleep(time.Until(due))
				wg.Go(func() {
					code := post(b.Context(), n.client, n.url+"/v1/eventbridge", notice(i%benchSecrets, i))
					if code != 200 {
						b.Errorf("status %d", code)
					}
					mu.Lock()
					lags = append(lags, time.Since(due))
					mu.Unlock()
				})
			}
			wg.Wait()
			slices.Sort(lags)
			for _, q := range []float64{.5, .99} {
				b.ReportMetric(float64(lags[int(q*float64(len(lags)-1))].Microseconds())/1000, fmt.Sprintf("ms-p%.0f", q*100))
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkNotifyMemory posts 10,000 events a second for a minute, in batches
// of 100, whether or not those before were answered, and says how much memory
// the process took at most (with the embedded NATS server and the clients in
// it), how many events were stored, and how many posts were turned away.
func BenchmarkNotifyMemory(b *testing.B) {
	for _, mode := range []string{"SyncInterval", "SyncAlways"} {
		b.Run(mode, func(b *testing.B) {
			n := newNotifyBench(b, mode)
			var peak, accepted, refused, failed atomic.Int64
			stop := make(chan struct{})
			var watch sync.WaitGroup
			watch.Go(func() {
				var m runtime.MemStats
				for t := time.NewTicker(250 * time.Millisecond); ; {
					select {
					case <-t.C:
						runtime.ReadMemStats(&m)
						peak.Store(max(peak.Load(), int64(m.HeapInuse)))
					case <-stop:
						return
					}
				}
			})
			b.ResetTimer()
			const rate, seconds = 100, 60
			start := time.Now()
			var wg sync.WaitGroup
			for i := range int64(rate * seconds) {
				time.Sleep(time.Until(start.Add(time.Duration(i) * time.Second / rate)))
				wg.Go(func() {
					switch code := post(b.Context(), n.client, n.url+"/v1/eventgrid", gridBatch(i*100)); code {
					case 200:
						accepted.Add(100)
					case http.StatusServiceUnavailable:
						refused.Add(100)
					default:
						failed.Add(100)
					}
				})
			}
			wg.Wait()
			took := time.Since(start)
			close(stop)
			watch.Wait()
			if failed.Load() > 0 {
				b.Errorf("%d events were answered neither 200 nor 503", failed.Load())
			}
			b.ReportMetric(float64(peak.Load())/(1<<20), "MiB-heap")
			b.ReportMetric(float64(accepted.Load())/took.Seconds(), "accepted/s")
			b.ReportMetric(float64(refused.Load())/took.Seconds(), "refused/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}
