package vaultaudit

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

// entry is an audit entry as Vault writes it, with n as its id.
func entry(n int, kind, operation, path string) string {
	return fmt.Sprintf(`{"type":%q,"time":"2026-11-24T00:12:53.480653107Z","auth":{"client_token":"hmac-sha256:8bb21a","display_name":"token","policies":["root"]},"request":{"id":"%08d-eab3-0b65-6338-278424cda1a2","operation":%q,"path":%q,"mount_point":"secret/","mount_type":"kv","namespace":{"id":"root"},"data":{"data":{"api_key":"hmac-sha256:93569f"},"options":{}},"remote_address":"127.0.0.1"},"response":{"mount_point":"secret/","data":{"version":%d,"created_time":"hmac-sha256:66b5d6"}}}`, kind, n, operation, path, n+1)
}

func write(n int) string {
	return entry(n, "response", "update", fmt.Sprintf("secret/data/agents/%d", n%7))
}
func read(n int) string { return entry(n, "response", "read", "secret/data/agents/x") }

// number is n of the entry in d, or -1.
func number(d notifier.Delivery) int {
	var e struct {
		Request struct{ ID string }
	}
	n := -1
	if json.Unmarshal(d.Body, &e) == nil {
		_, _ = fmt.Sscanf(e.Request.ID, "%d-", &n)
	}
	return n
}

// bus is a handler that remembers, and can be away or slow.
type bus struct {
	mu    sync.Mutex
	away  error
	slow  chan struct{} // if not nil, calls wait for it
	got   map[int]int
	all   []notifier.Delivery
	calls int
	now   int
	peak  int
}

func (b *bus) handle(ctx context.Context, d notifier.Delivery) error {
	b.mu.Lock()
	b.calls++
	b.now++
	b.peak = max(b.peak, b.now)
	slow := b.slow
	b.mu.Unlock()
	if slow != nil {
		select {
		case <-slow:
		case <-ctx.Done():
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.now--
	if err := ctx.Err(); err != nil {
		return err
	}
	if b.away != nil {
		return b.away
	}
	if b.got == nil {
		b.got = map[int]int{}
	}
	b.got[number(d)]++
	b.all = append(b.all, d)
	return nil
}

func (b *bus) set(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = err
}

func (b *bus) distinct() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.got)
}

func (b *bus) deliveries() []notifier.Delivery {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]notifier.Delivery(nil), b.all...)
}

// counts sums up observations.
type counts struct {
	mu sync.Mutex
	m  map[string]int
}

func (c *counts) observe(o Observation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.m == nil {
		c.m = map[string]int{}
	}
	c.m[strings.TrimSuffix(string(o.What)+" "+o.Reason, " ")] += o.N
}

func (c *counts) get(what string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.m[what]
}

// A rig is a source that runs.
type rig struct {
	*Source
	counts *counts
	http   *httptest.Server
	stop   func()
}

func start(t testing.TB, o Options, b *bus) *rig {
	t.Helper()
	r := &rig{counts: &counts{}}
	if o.Dir == "" {
		o.Dir = t.TempDir()
	}
	if o.Backoff == 0 {
		o.Backoff, o.MaxBackoff = time.Millisecond, 20*time.Millisecond
	}
	if o.Observe == nil {
		o.Observe = r.counts.observe
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	r.Source = s
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, b.handle) }()
	r.http = httptest.NewServer(s.Handler())
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run did not end")
		}
		r.http.Close()
	})
	t.Cleanup(r.stop)
	return r
}

// post sends body as OpenBao does: no content type.
func post(t testing.TB, url, body string) int {
	t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	return resp.StatusCode
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	testenv.Eventually(t, 15*time.Second, what, cond)
}

func TestHTTP(t *testing.T) {
	b := &bus{}
	r := start(t, Options{Name: "audit", MaxLine: 4096}, b)
	url := r.http.URL
	before := time.Now()
	if code := post(t, url, write(1)+"\n"); code != 200 {
		t.Fatalf("status %d", code)
	}
	eventually(t, "one delivery", func() bool { return b.distinct() == 1 })
	d := b.deliveries()[0]
	if d.Source != "audit" || d.ID != "00000001-eab3-0b65-6338-278424cda1a2-response" || d.Attempt != 1 || d.Received.Before(before.Add(-time.Second)) || !json.Valid(d.Body) {
		t.Errorf("delivery %+v", d)
	}
	for name, c := range map[string]struct {
		body string
		code int
		what string
	}{
		"several lines":        {write(2) + "\n\n" + read(3) + "\r\n" + write(4), 200, "stored"},
		"trap 43: reads":       {read(5) + "\n", 200, "irrelevant"},
		"trap 35: requests":    {entry(6, "request", "create", "secret/data/x"), 200, "irrelevant"},
		"nothing":              {"", 200, ""},
		"too long":             {strings.Replace(write(7), `"hmac-sha256:93569f"`, `"`+strings.Repeat("x", 9000)+`"`, 1), 200, "dropped too_long"},
		"too long, irrelevant": {strings.Replace(read(8), `"hmac-sha256:93569f"`, `"`+strings.Repeat("x", 9000)+`"`, 1), 200, "irrelevant"},
		"a prefix":             {"@cee: " + write(9), 200, "stored"},
		"garbage":              {"no JSON at all", 200, "unreadable"},
	} {
		t.Run(name, func(t *testing.T) {
			was := r.counts.get(c.what)
			if code := post(t, url, c.body); code != c.code {
				t.Errorf("status %d; expected %d", code, c.code)
			}
			if c.what != "" && r.counts.get(c.what) == was {
				t.Errorf("nothing was counted as %s", c.what)
			}
		})
	}
	eventually(t, "deliveries", func() bool { return b.distinct() == 5 }) // 1, 2, 4, 9 and the stub
	req, _ := http.NewRequest(http.MethodGet, url, nil)
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %v", err)
	} else {
		_ = resp.Body.Close()
	}
	req, _ = http.NewRequest(http.MethodPost, url, strings.NewReader("x"))
	req.Header.Set("Content-Encoding", "gzip")
	if resp, err := http.DefaultClient.Do(req); err != nil || resp.StatusCode != http.StatusUnsupportedMediaType {
		t.Errorf("gzip: %v", err)
	} else {
		_ = resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
	// A body that stops in the middle.
	rec := httptest.NewRecorder()
	r.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/", broken{}))
	if rec.Code != http.StatusBadRequest || r.counts.get("dropped cut") != 1 {
		t.Errorf("a cut body: status %d, %d counted", rec.Code, r.counts.get("dropped cut"))
	}
	r.stop()
	rec = httptest.NewRecorder()
	r.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(write(1))))
	if rec.Code != http.StatusServiceUnavailable {
		t.Errorf("status %d after the end; expected 503", rec.Code)
	}
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("cut") }

// trap 40: while the bus is away or hangs, Vault is answered as when it is
// there; afterwards everything comes.
func TestTrap40AnswersDoNotWaitForTheBus(t *testing.T) {
	const n = 150
	measure := func(t *testing.T, b *bus, from int) (time.Duration, *rig) {
		r := start(t, Options{MaxInFlight: 8, Drain: time.Millisecond}, b)
		begin := time.Now()
		for i := range n {
			if code := post(t, r.http.URL, write(from+i)); code != 200 {
				t.Fatalf("status %d", code)
			}
		}
		return time.Since(begin), r
	}
	good, _ := measure(t, &bus{}, 0)
	away := &bus{away: fault.New(fault.Unavailable, "test", nil)}
	gone, r := measure(t, away, 0)
	hung := &bus{slow: make(chan struct{})}
	hangs, r2 := measure(t, hung, 0)
	// The limit is wide, since others use the machine too. An answer that waited
	// for the bus would take for ever.
	t.Logf("%d answers: %v with the bus, %v while it is away, %v while it hangs", n, good, gone, hangs)
	if limit := 10*good + time.Second; gone > limit || hangs > limit {
		t.Errorf("answers take %v without the bus and %v with one that hangs, %v with one", gone, hangs, good)
	}
	away.set(nil)
	close(hung.slow)
	eventually(t, "everything to come after the outage", func() bool { return away.distinct() == n && hung.distinct() == n })
	if hung.peak > 8 {
		t.Errorf("%d calls at a time; expected at most 8", hung.peak)
	}
	eventually(t, "an empty spool", func() bool { return r.Stats().Taken == 0 && r2.Stats().Taken == 0 })
}

// Entries of one path come one after another, though others fail and repeat.
func TestOrderOfAPath(t *testing.T) {
	b := &bus{}
	var mu sync.Mutex
	failed := map[int]bool{}
	last := map[int]int{}
	wrong := 0
	s, err := Open(t.Context(), Options{Dir: t.TempDir(), Backoff: time.Millisecond, MaxBackoff: 2 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.Run(ctx, func(ctx context.Context, d notifier.Delivery) error {
			n := number(d)
			mu.Lock()
			defer mu.Unlock()
			if n%3 == 0 && !failed[n] {
				failed[n] = true
				if n%2 == 0 {
					panic("boom")
				}
				return errors.New("away")
			}
			if at, seen := last[n%7]; seen && at != n-7 {
				wrong++
			}
			last[n%7] = n
			if n == 5 {
				_ = b.handle(ctx, d)
				return fault.New(fault.Invalid, "test", nil) // done all the same
			}
			return b.handle(ctx, d)
		})
	})
	var lines strings.Builder
	for i := range 140 {
		lines.WriteString(write(i) + "\n")
	}
	rec := httptest.NewRecorder()
	s.Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(lines.String())))
	eventually(t, "all deliveries", func() bool { return b.distinct() == 140 })
	cancel()
	wg.Wait()
	if wrong != 0 {
		t.Errorf("%d deliveries came out of order", wrong)
	}
}

// A full spool drops loudly and answers 200, or refuses if it is told to; room
// comes back when the bus does.
func TestFullSpool(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		t.Run(fmt.Sprintf("refuse %t", refuse), func(t *testing.T) {
			b := &bus{away: errors.New("away")}
			r := start(t, Options{MaxBytes: 64 << 10, RefuseWhenFull: refuse, NoSync: true, MaxInFlight: 1}, b)
			n, code := 0, 200
			for ; n < 2000 && r.counts.get("dropped full") == 0; n++ {
				code = post(t, r.http.URL, write(n))
			}
			if want := map[bool]int{false: 200, true: 503}[refuse]; code != want || r.counts.get("dropped full") != 1 {
				t.Fatalf("status %d after %d entries, %d dropped; expected %d", code, n, r.counts.get("dropped full"), want)
			}
			if code := post(t, r.http.URL, read(1)); code != 200 {
				t.Errorf("a read is answered %d; expected 200, it needs no room", code)
			}
			b.set(nil)
			eventually(t, "all but the dropped", func() bool { return b.distinct() == n-1 })
			if code := post(t, r.http.URL, write(n)); code != 200 || r.counts.get("dropped full") != 1 {
				t.Errorf("status %d; expected room again", code)
			}
		})
	}
}

// Restarts with a bus that is away lose nothing and keep the order of arrival.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	for i := range 3 {
		r := start(t, Options{Dir: dir, Drain: time.Millisecond}, &bus{away: errors.New("away")})
		if code := post(t, r.http.URL, write(i)); code != 200 {
			t.Fatalf("status %d", code)
		}
		r.stop()
	}
	b := &bus{}
	r := start(t, Options{Dir: dir}, b)
	eventually(t, "everything", func() bool { return b.distinct() == 3 })
	r.stop()
	left, err := filepath.Glob(filepath.Join(dir, "*.seg"))
	if err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

func TestOptions(t *testing.T) {
	for name, o := range map[string]Options{
		"no directory":     {},
		"negative":         {Dir: "x", Drain: -1},
		"line too long":    {Dir: "x", MaxLine: 4 << 20},
		"spool too small":  {Dir: filepath.Join(t.TempDir(), "x"), MaxBytes: 5},
		"beyond loopback":  {Dir: "x", Socket: &Socket{Address: "0.0.0.0:0"}},
		"any address":      {Dir: "x", Socket: &Socket{Address: ":0"}},
		"not an address":   {Dir: "x", Socket: &Socket{Address: "127.0.0.1"}},
		"udp":              {Dir: "x", Socket: &Socket{Network: "udp"}},
		"unix without one": {Dir: "x", Socket: &Socket{Network: "unix"}},
		"no file":          {Dir: "x", File: &File{}},
	} {
		if s, err := Open(t.Context(), o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; expected Invalid", name, err)
			if err == nil {
				_ = s.Close()
			}
		}
	}
	s, err := Open(t.Context(), Options{Dir: t.TempDir(), Socket: &Socket{Address: "127.0.0.1:0"}})
	if err != nil {
		t.Fatal(err)
	}
	if s.Addr() == nil || s.Close() != nil {
		t.Error("no address, or it does not close")
	}
	if b := stub([]byte("x")); bytes.Contains(b, []byte("{")) {
		t.Errorf("stub %s", b)
	}
}
