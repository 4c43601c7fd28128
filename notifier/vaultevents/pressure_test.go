package vaultevents_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/coder/websocket"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/internal/vaultfake"
	"github.com/keyturn/keyturn/notifier"
	"github.com/keyturn/keyturn/notifier/vaultevents"
)

func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} } //nolint:gosec // is refused

// A delivery that fails is handed on again, with its attempts counted.
func TestFailureIsRetried(t *testing.T) {
	r := newRig(t)
	r.start(t, r.options())
	r.subscribed(t, 2)
	var last atomic.Int32
	r.bus.set(func(d notifier.Delivery) error {
		last.Store(int32(d.Attempt)) //nolint:gosec // small
		if d.Attempt < 4 {
			return fault.Newf(fault.Unavailable, "bus", "away")
		}
		return nil
	})
	r.RotateStatic("", "database/", "agent") // nothing would find this one again
	r.bus.wants(t, "version.activated /database/static-creds/agent")
	if last.Load() != 4 {
		t.Errorf("attempt %d; expected 4", last.Load())
	}
}

// One that is given up is looked for, until the bus is back.
func TestGivenUpIsLookedFor(t *testing.T) {
	r := newRig(t)
	o := r.options()
	o.MaxAttempts = 2
	r.start(t, o)
	r.subscribed(t, 2)
	r.bus.set(func(notifier.Delivery) error { return fault.Newf(fault.Unavailable, "bus", "away") })
	r.put(t, "secret/data/a", "x")
	testenv.Eventually(t, limit, "one to be given up", func() bool { return strings.Contains(r.log.String(), "was given up") })
	testenv.Eventually(t, limit, "a look that fails", func() bool { return strings.Contains(r.log.String(), "looking at the metadata failed") })
	r.bus.set(nil)
	r.bus.wants(t, "version.activated /secret/a 1")
}

// A handler that stands still: no more than MaxInFlight notifications are
// taken, Vault lets go of us, and all is found in the end.
func TestSlowHandler(t *testing.T) {
	r := newRig(t)
	o := r.options()
	o.MaxInFlight, o.PingEvery, o.Timeout = 3, 5*time.Millisecond, 50*time.Millisecond
	o.Types = []string{"kv-v2/*"}
	r.start(t, o)
	r.subscribed(t, 1)
	r.put(t, "secret/data/first", "x")
	r.bus.wants(t, "version.activated /secret/first 1")
	gate := make(chan struct{})
	r.bus.set(func(notifier.Delivery) error { <-gate; return nil })
	filler := []byte(`{"id":"x","type":"*","data":{"event_type":"kv-v2/filler"},"x":"` + strings.Repeat("y", 60_000) + `"}`)
	sent := 0
	for r.Subscriptions() == 1 { // until Vault finds that we are slow
		r.SendFrame(filler)
		if sent++; sent > 100_000 {
			t.Fatal("all is taken")
		}
	}
	const secrets = 20
	for i := range secrets {
		r.put(t, fmt.Sprint("secret/data/s", i), "x")
	}
	r.bus.mu.Lock()
	// Four more may come from looking.
	if most := r.bus.most; most > 3+4 {
		t.Errorf("%d deliveries at a time; expected at most 7", most)
	}
	r.bus.mu.Unlock()
	close(gate)
	for i := range secrets {
		r.bus.wants(t, fmt.Sprintf("version.activated /secret/s%d 1", i))
	}
}

// Run lets what is in flight finish, and only so long.
func TestDrain(t *testing.T) {
	for name, patient := range map[string]bool{"in time": true, "too late": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			o := r.options()
			o.DrainTimeout = 5 * time.Second
			if !patient {
				o.DrainTimeout = 10 * time.Millisecond
			}
			s, err := vaultevents.New(o)
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			started, release, done := make(chan struct{}, 8), make(chan struct{}), make(chan error, 1)
			var finished, aborted atomic.Int32
			go func() {
				done <- s.Run(ctx, func(ctx context.Context, _ notifier.Delivery) error {
					started <- struct{}{}
					select {
					case <-release:
						finished.Add(1)
						return nil
					case <-ctx.Done():
						aborted.Add(1)
						return ctx.Err()
					}
				})
			}()
			r.subscribed(t, 2)
			r.RotateStatic("", "database/", "agent")
			<-started
			<-started
			cancel()
			if patient {
				r.subscribed(t, 0)
				close(release)
			}
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(limit):
				t.Fatal("Run does not end")
			}
			if got := [2]int32{finished.Load(), aborted.Load()}; patient && got != [2]int32{2, 0} || !patient && got != [2]int32{0, 2} {
				t.Errorf("%d finished and %d were aborted", got[0], got[1])
			}
		})
	}
}

// A server whose certificate is not trusted gets no token.
func TestUntrustedServer(t *testing.T) {
	var asked atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked.Add(1) }))
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	t.Cleanup(srv.Close)
	r := newRig(t)
	o := r.options()
	o.Address = srv.URL
	r.start(t, o)
	testenv.Eventually(t, limit, "a refusal", func() bool { return strings.Contains(r.log.String(), "is not trusted") })
	if asked.Load() > 0 {
		t.Error("the server was asked all the same")
	}
}

// A token is not sent where a redirect leads without TLS, and a server that is
// no Vault is told so.
func TestOddServers(t *testing.T) {
	for name, c := range map[string]struct {
		h    http.HandlerFunc
		want string
	}{
		"redirect": {func(w http.ResponseWriter, q *http.Request) {
			http.Redirect(w, q, "http://192.0.2.1/", http.StatusTemporaryRedirect)
		}, "status 307"},
		"a page":  {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, "no websocket"},
		"forbids": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, "refuses the token"},
		"sealed":  {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }, "sealed"},
		"no JSON": {func(w http.ResponseWriter, q *http.Request) {
			if q.URL.Query().Get("list") == "" {
				w.WriteHeader(http.StatusNotFound)
			}
		}, "not one of Vault"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(c.h)
			t.Cleanup(srv.Close)
			r := newRig(t)
			o := r.options()
			o.Address = srv.URL
			r.start(t, o)
			testenv.Eventually(t, limit, "a word of "+c.want, func() bool { return strings.Contains(r.log.String(), c.want) })
		})
	}
}

// A connection that died without a word is found out by its silence.
func TestSilenceIsFoundOut(t *testing.T) {
	var opened atomic.Int32
	quit := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		conn, err := websocket.Accept(w, q, nil)
		if err != nil {
			return
		}
		defer func() { _ = conn.CloseNow() }()
		opened.Add(1)
		<-quit // reads nothing, so no ping is answered
	}))
	t.Cleanup(srv.Close)
	t.Cleanup(func() { close(quit) })
	r := newRig(t)
	o := r.options()
	o.Address, o.Mounts, o.Types = srv.URL, nil, []string{"*"}
	o.PingEvery, o.Timeout = 5*time.Millisecond, 100*time.Millisecond
	r.start(t, o)
	testenv.Eventually(t, limit, "a second connection", func() bool { return opened.Load() > 1 })
}

// What one notification costs, from the websocket to the handler's answer.
func BenchmarkSource(b *testing.B) {
	srv := vaultfake.New(b)
	srv.Enterprise(true)
	var n atomic.Int64
	s, err := vaultevents.New(vaultevents.Options{
		Address: srv.URL(), Types: []string{"*"}, Token: func(context.Context) (string, error) { return vaultfake.Root, nil },
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, func(context.Context, notifier.Delivery) error { n.Add(1); return nil }) }()
	testenv.Eventually(b, limit, "a subscription", func() bool { return srv.Subscriptions() == 1 })
	frame := []byte(`{"id":"9c78ae4b-0949-b44d-1a00-8d7bf818ae48","type":"*","data":{"event_type":"kv-v2/data-write","x":"` + strings.Repeat("y", 600) + `"}}`)
	b.ReportAllocs()
	var sent int64
	for b.Loop() {
		srv.SendFrame(frame)
		for sent++; sent-n.Load() > 1000; {
			time.Sleep(time.Microsecond)
		}
	}
	testenv.Eventually(b, limit, "all to arrive", func() bool { return n.Load() == sent })
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}
