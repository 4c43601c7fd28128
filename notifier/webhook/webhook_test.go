package webhook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/eventbridge"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	key    = "0123456789abcdef-first"
	newKey = "0123456789abcdef-second"
)

// bus persists events by id and dead letters by key, can be away, and can be
// slow.
type bus struct {
	mu     sync.Mutex
	events map[string]int
	dead   map[string]notifier.DeadLetter
	away   error
	hold   chan struct{} // if not nil, Publish waits for it or its context
	inside int
}

func newBus() *bus { return &bus{events: map[string]int{}, dead: map[string]notifier.DeadLetter{}} }

func (b *bus) Publish(ctx context.Context, es ...events.Event) error {
	b.mu.Lock()
	hold := b.hold
	b.inside++
	b.mu.Unlock()
	defer func() { b.mu.Lock(); b.inside--; b.mu.Unlock() }()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away != nil {
		return b.away
	}
	for _, e := range es {
		b.events[e.ID]++
	}
	return ctx.Err()
}

func (b *bus) Park(_ context.Context, l notifier.DeadLetter) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.away == nil {
		b.dead[l.Key()] = l
	}
	return b.away
}

func (b *bus) set(away error, hold chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away, b.hold = away, hold
}

// counts returns how many events, dead letters and publishes in flight there are.
func (b *bus) counts() (events, dead, inside int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.events), len(b.dead), b.inside
}

// decode is the decoder that a notifier on AWS has.
func decode(d notifier.Delivery) ([]events.Event, error) {
	return eventbridge.Decode(d.Body, d.Received)
}

// auth accepts API keys in X-Api-Key.
func auth(keys ...string) []Authenticator {
	a, err := APIKey("", keys...)
	if err != nil {
		panic(err)
	}
	return []Authenticator{a}
}

// bridge is one route for EventBridge, which edit may change.
func bridge(edit func(*Route)) []Route {
	r := Route{Kind: EventBridge{}, Auth: auth(key)}
	if edit != nil {
		edit(&r)
	}
	return []Route{r}
}

// within is bridge with a time-out.
func within(d time.Duration) []Route { return bridge(func(r *Route) { r.Timeout = d }) }

// running is a Source that serves until stop.
type running struct {
	*Source
	t     *testing.T
	stop  context.CancelFunc
	ended chan error
	http  *http.Client
}

// serve runs a source on a free port in front of pub.
func serve(t *testing.T, o Options, h notifier.Handler) *running {
	t.Helper()
	if o.Routes == nil {
		o.Routes = bridge(nil)
	}
	o.Addr = "127.0.0.1:0"
	s, err := Listen(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	r := &running{Source: s, t: t, stop: stop, ended: make(chan error, 1), http: &http.Client{Transport: &http.Transport{}}}
	go func() { r.ended <- s.Run(ctx, h) }()
	t.Cleanup(func() {
		stop()
		select {
		case err := <-r.ended:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(20 * time.Second):
			t.Error("Run did not return within 20 s of the end of its context")
		}
		r.http.CloseIdleConnections()
	})
	return r
}

// post sends body as EventBridge does. edit may spoil the request.
func (r *running) post(body string, edit func(*http.Request)) (status int, header http.Header, text string) {
	r.t.Helper()
	status, header, text, err := r.try(body, edit)
	if err != nil {
		r.t.Fatal(err)
	}
	return status, header, text
}

func (r *running) try(body string, edit func(*http.Request)) (status int, header http.Header, text string, err error) {
	req, err := http.NewRequestWithContext(context.WithoutCancel(r.t.Context()), http.MethodPost, r.URL(r.o.Routes[0].Path), strings.NewReader(body))
	if err != nil {
		return 0, nil, "", err
	}
	req.Header.Set("User-Agent", "Amazon/EventBridge/ApiDestinations")
	req.Header.Set("Content-Type", "application/json; charset=utf-8")
	req.Header.Set("Range", "bytes=0-1048575")
	req.Header.Set("X-Api-Key", key)
	if edit != nil {
		edit(req)
	}
	resp, err := r.http.Do(req)
	if err != nil {
		return 0, nil, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, string(b), err
}

func (r *running) get(path string) int {
	r.t.Helper()
	status, _, _ := r.post("", func(q *http.Request) {
		q.Method, q.URL.Path, q.Body, q.ContentLength = http.MethodGet, path, nil, 0
		q.Header.Del("X-Api-Key")
	})
	return status
}

// moved is a label event of version v.
func moved(v int) string {
	return fmt.Sprintf(`{"version":"0","id":"6a7e8feb-b491-4cf7-a9f1-%012d","detail-type":"Secret Label Updated","source":"aws.secretsmanager",
"account":"111122223333","time":"2026-06-01T10:00:05Z","region":"eu-west-1","resources":["arn:aws:secretsmanager:eu-west-1:111122223333:secret:db-Ab12Cd"],
"detail":{"name":"db","labelUpdated":"AWSCURRENT","versionId":"00000000-0000-4000-8000-%012d"}}`, v, v)
}

func TestReceives(t *testing.T) {
	b := newBus()
	var got notifier.Delivery
	inner := notifier.New(b, b, nil).Handler(decode)
	r := serve(t, Options{Routes: bridge(func(r *Route) { r.Name, r.Path = "api-destination", "/v1/eventbridge" })}, func(ctx context.Context, d notifier.Delivery) error { got = d; return inner(ctx, d) })
	trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if code, _, _ := r.post(moved(1), func(q *http.Request) { q.Header.Set("Traceparent", trace) }); code != 200 {
		t.Fatalf("status %d; expected 200", code)
	}
	if got.Source != "api-destination" || string(got.Body) != moved(1) || got.Received.IsZero() || got.Attempt != 0 || len(got.Attributes) != 1 || got.Attributes["traceparent"] != trace {
		t.Errorf("delivered %+v", got)
	}
	// A redelivery is the same event; another change is another.
	for _, v := range []int{1, 1, 2} {
		if code, _, _ := r.post(moved(v), nil); code != 200 {
			t.Fatalf("status %d; expected 200", code)
		}
	}
	if n, dead, _ := b.counts(); n != 2 || dead != 0 {
		t.Errorf("%d events and %d dead letters; expected 2 and 0", n, dead)
	}
	// What cannot be understood is kept and acknowledged.
	for _, body := range []string{"", "not JSON", "{}", `{"source":"aws.secretsmanager","detail-type":"Secret Label Updated"}`} {
		if code, _, _ := r.post(body, nil); code != 200 {
			t.Errorf("%q: status %d; expected 200", body, code)
		}
	}
	if n, dead, _ := b.counts(); n != 2 || dead != 4 {
		t.Errorf("%d events and %d dead letters; expected 2 and 4", n, dead)
	}
}

func TestRefuses(t *testing.T) {
	b := newBus()
	r := serve(t, Options{Routes: bridge(func(r *Route) { r.Auth, r.MaxBody = auth(key, newKey), 2000 })}, notifier.New(b, b, nil).Handler(decode))
	set := func(k, v string) func(*http.Request) { return func(q *http.Request) { q.Header.Set(k, v) } }
	method := func(m string) func(*http.Request) { return func(q *http.Request) { q.Method = m } }
	for name, c := range map[string]struct {
		edit func(*http.Request)
		body string
		want int
	}{
		"both keys work":   {set("X-Api-Key", newKey), moved(1), 200},
		"no key":           {func(q *http.Request) { q.Header.Del("X-Api-Key") }, moved(1), 401},
		"empty key":        {set("X-Api-Key", ""), moved(1), 401},
		"wrong key":        {set("X-Api-Key", "0123456789abcdef-third"), moved(1), 401},
		"prefix of key":    {set("X-Api-Key", key[:len(key)-1]), moved(1), 401},
		"key and more":     {set("X-Api-Key", key+"x"), moved(1), 401},
		"other case":       {set("X-Api-Key", strings.ToUpper(key)), moved(1), 401},
		"both keys in one": {set("X-Api-Key", key+","+newKey), moved(1), 401},
		"two keys":         {func(q *http.Request) { q.Header.Add("X-Api-Key", "x") }, moved(1), 401},
		"key elsewhere":    {func(q *http.Request) { q.Header.Del("X-Api-Key"); q.Header.Set("Authorization", key) }, moved(1), 401},
		"key in the query": {func(q *http.Request) { q.Header.Del("X-Api-Key"); q.URL.RawQuery = "X-Api-Key=" + key }, moved(1), 401},
		"key before all": {func(q *http.Request) {
			q.Header.Del("X-Api-Key")
			q.Method = http.MethodPut
			q.Header.Set("Content-Type", "x")
		}, moved(1), 401},
		"get":           {method(http.MethodGet), "", 405},
		"put":           {method(http.MethodPut), moved(1), 405},
		"form":          {set("Content-Type", "application/x-www-form-urlencoded"), moved(1), 415},
		"text":          {set("Content-Type", "text/plain"), moved(1), 415},
		"broken type":   {set("Content-Type", ";;"), moved(1), 415},
		"other charset": {set("Content-Type", "application/json; charset=latin1"), moved(1), 415},
		"cloudevents":   {set("Content-Type", "application/cloudevents+json"), moved(1), 200},
		"no type":       {func(q *http.Request) { q.Header.Del("Content-Type") }, moved(1), 200},
		"gzip":          {set("Content-Encoding", "gzip"), moved(1), 415},
		"identity":      {set("Content-Encoding", "identity"), moved(1), 200},
		"too long":      {nil, strings.Repeat("x", 2001), 413},
		"too long, unsaid": {func(q *http.Request) {
			q.ContentLength = -1
			q.Body = io.NopCloser(strings.NewReader(strings.Repeat("x", 1<<20)))
		}, "", 413},
		"just fits":    {nil, strings.Repeat(" ", 2000), 200},
		"another path": {func(q *http.Request) { q.URL.Path = "/" }, moved(1), 404},
		"path below":   {func(q *http.Request) { q.URL.Path += "/x" }, moved(1), 404},
	} {
		t.Run(name, func(t *testing.T) {
			code, header, _, err := r.try(c.body, c.edit)
			if err != nil {
				t.Fatal(err)
			}
			if code != c.want {
				t.Errorf("status %d; expected %d", code, c.want)
			}
			if code == 405 && header.Get("Allow") != "POST" {
				t.Errorf("Allow %q", header.Get("Allow"))
			}
			if code == 401 && header.Get("WWW-Authenticate") == "" {
				t.Error("401 without WWW-Authenticate")
			}
		})
	}
	if n, dead, _ := b.counts(); n != 1 || dead != 1 { // the notice, and the spaces
		t.Errorf("%d events and %d dead letters; expected 1 and 1", n, dead)
	}
}

// TestOutageAnswers503AndResumes: while the bus is away nothing is
// acknowledged and nothing answered 4xx; afterwards the same posts work.
func TestOutageAnswers503AndResumes(t *testing.T) {
	b := newBus()
	r := serve(t, Options{}, notifier.New(b, b, nil).Handler(decode))
	for _, away := range []error{errors.New("no responders"), fault.New(fault.Denied, "bus", nil), fault.New(fault.NotFound, "bus", nil)} {
		b.set(away, nil)
		for _, body := range []string{moved(1), "poison"} {
			code, header, text := r.post(body, nil)
			if code != 503 || header.Get("Retry-After") == "" || strings.Contains(text, "responders") {
				t.Errorf("%v: status %d, Retry-After %q, %q; expected 503 and no details", away, code, header.Get("Retry-After"), text)
			}
		}
	}
	b.set(nil, nil)
	for _, body := range []string{moved(1), "poison"} {
		if code, _, _ := r.post(body, nil); code != 200 {
			t.Errorf("after the outage: status %d; expected 200", code)
		}
	}
	if n, dead, _ := b.counts(); n != 1 || dead != 1 {
		t.Errorf("%d events and %d dead letters; expected 1 and 1", n, dead)
	}
}

// TestSlowBusAnswers503InTime is trap 8: EventBridge waits 5 s.
func TestSlowBusAnswers503InTime(t *testing.T) {
	b := newBus()
	b.set(nil, make(chan struct{}))
	r := serve(t, Options{Routes: within(200 * time.Millisecond)}, notifier.New(b, b, nil).Handler(decode))
	start := time.Now()
	if code, header, _ := r.post(moved(1), nil); code != 503 || header.Get("Retry-After") == "" {
		t.Errorf("status %d; expected 503", code)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("answered after %s; EventBridge waits 5 s", took)
	}
}

func TestHandlerPanicIs503(t *testing.T) {
	r := serve(t, Options{}, func(context.Context, notifier.Delivery) error { panic("boom") })
	if code, _, _ := r.post(moved(1), nil); code != 503 {
		t.Errorf("status %d; expected 503", code)
	}
	if code := r.get("/healthz"); code != 200 {
		t.Errorf("status %d of /healthz afterwards; expected 200", code)
	}
}

func TestInvalidIs400(t *testing.T) {
	r := serve(t, Options{}, func(context.Context, notifier.Delivery) error { return fault.Newf(fault.Invalid, "h", "never") })
	if code, _, _ := r.post(moved(1), nil); code != 400 {
		t.Errorf("status %d; expected 400", code)
	}
}

// TestProbes: liveness never asks anybody, and readiness tells the truth of a
// second ago at most, however many probes there are.
func TestProbes(t *testing.T) {
	var mu sync.Mutex
	var away error
	asked := 0
	r := serve(t, Options{Ready: func(context.Context) error { mu.Lock(); defer mu.Unlock(); asked++; return away }}, nil)
	start := time.Now()
	for range 200 {
		if h, rd := r.get("/healthz"), r.get("/readyz"); h != 200 || rd != 200 {
			t.Fatalf("healthz %d, readyz %d; expected 200 and 200", h, rd)
		}
	}
	mu.Lock()
	if most := 1 + int(time.Since(start)/time.Second); asked == 0 || asked > most {
		t.Errorf("asked %d times for 200 probes; expected 1 to %d", asked, most)
	}
	away = errors.New("nats: disconnected from nats://user:pass@host")
	mu.Unlock()
	testenv.Eventually(t, 10*time.Second, "readyz to tell", func() bool { return r.get("/readyz") == 503 })
	if h := r.get("/healthz"); h != 200 {
		t.Errorf("healthz %d; expected 200", h)
	}
	if _, _, text := r.post("", func(q *http.Request) { q.URL.Path = "/readyz" }); strings.Contains(text, "nats") {
		t.Errorf("/readyz tells strangers why: %q", text)
	}
}

func TestConcurrentPosts(t *testing.T) {
	b := newBus()
	r := serve(t, Options{}, notifier.New(b, b, nil).Handler(decode))
	var wg sync.WaitGroup
	for worker := range 16 {
		wg.Go(func() {
			for v := range 25 {
				body := moved(v)
				if worker%4 == 0 {
					body = fmt.Sprintf("poison %d", v)
				}
				if code, _, _, err := r.try(body, nil); err != nil || code != 200 {
					t.Errorf("status %d, %v; expected 200", code, err)
					return
				}
			}
		})
	}
	wg.Wait()
	if n, dead, _ := b.counts(); n != 25 || dead != 25 {
		t.Errorf("%d events and %d dead letters; expected 25 and 25", n, dead)
	}
}

// TestTooManyInFlight: beyond the bound a sender is told to come again.
func TestTooManyInFlight(t *testing.T) {
	b := newBus()
	hold := make(chan struct{})
	b.set(nil, hold)
	r := serve(t, Options{MaxInFlight: 2}, notifier.New(b, b, nil).Handler(decode))
	codes := make(chan int, 2)
	for v := range 2 {
		go func() { code, _, _, _ := r.try(moved(v), nil); codes <- code }()
	}
	testenv.Eventually(t, 10*time.Second, "two posts inside the bus", func() bool { _, _, in := b.counts(); return in == 2 })
	if code, header, _ := r.post(moved(3), nil); code != 503 || header.Get("Retry-After") == "" {
		t.Errorf("status %d; expected 503", code)
	}
	close(hold)
	for range 2 {
		if code := <-codes; code != 200 {
			t.Errorf("status %d; expected 200", code)
		}
	}
}

func TestOptionsRefused(t *testing.T) {
	with := func(edit func(*Options)) Options {
		o := Options{Routes: bridge(nil), Addr: "127.0.0.1:0"}
		edit(&o)
		return o
	}
	route := func(edit func(*Route)) Options { return with(func(o *Options) { edit(&o.Routes[0]) }) }
	for name, o := range map[string]Options{
		"no route":           {},
		"no kind":            route(func(r *Route) { r.Kind = nil }),
		"no auth":            route(func(r *Route) { r.Auth = nil }),
		"nil auth":           route(func(r *Route) { r.Auth = []Authenticator{nil} }),
		"path":               route(func(r *Route) { r.Path = "hook" }),
		"path not clean":     route(func(r *Route) { r.Path = "/v1/../hook" }),
		"path to be escaped": route(func(r *Route) { r.Path = "/a b" }),
		"root":               route(func(r *Route) { r.Path = "/" }),
		"probe path":         route(func(r *Route) { r.Path = "/readyz" }),
		"name":               route(func(r *Route) { r.Name = "a.b" }),
		"negative":           route(func(r *Route) { r.Timeout = -1 }),
		"negative bound":     with(func(o *Options) { o.MaxBytes = -1 }),
		"two of a name":      with(func(o *Options) { o.Routes = append(bridge(func(r *Route) { r.Path = "/x" }), o.Routes...) }),
		"two of a path": with(func(o *Options) {
			o.Routes = append(bridge(func(r *Route) { r.Name, r.Path = "x", "/v1/eventbridge" }), o.Routes...)
		}),
		"handler":         route(func(r *Route) { r.Handler = http.NotFoundHandler() }),
		"any origin":      route(func(r *Route) { r.Kind = CloudEvents{Origins: []string{"*"}} }),
		"SNS, unverified": route(func(r *Route) { r.Kind = SNS{} }),
		"half TLS":        with(func(o *Options) { o.CertFile = "cert.pem" }),
		"lost file":       with(func(o *Options) { o.CertFile, o.KeyFile = "no-such.pem", "no-such.pem" }),
		"no PEM file":     with(func(o *Options) { o.CertFile, o.KeyFile = "webhook_test.go", "webhook_test.go" }),
	} {
		s, err := Listen(t.Context(), o)
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v; expected an error of kind invalid", name, err)
		}
		if err == nil {
			_ = s.Close()
		}
	}
	if _, err := Handler(nil, Options{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("Handler without a route: %v; expected an error of kind invalid", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if _, err := Listen(t.Context(), Options{Routes: bridge(nil), Addr: l.Addr().String()}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("a port that is taken: %v; expected an error of kind unavailable", err)
	}
}
