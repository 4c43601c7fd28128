package webhook

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
)

func deliverNothing(context.Context, notifier.Delivery) error { return nil }

// TestBytesInFlight: bodies take no more memory together than they may, however
// they are announced, and what was refused gives its share back.
func TestBytesInFlight(t *testing.T) {
	const size = 100 << 10
	hold := make(chan struct{})
	var once sync.Once
	defer once.Do(func() { close(hold) })
	r := serve(t, Options{MaxBytes: 3*size + smallBody, Routes: bridge(func(r *Route) { r.MaxBody, r.Timeout = size, 20*time.Second })}, func(context.Context, notifier.Delivery) error {
		<-hold
		return nil
	})
	waitFor := func(n int) {
		testenv.Eventually(t, 10*time.Second, "the bodies to be in", func() bool {
			_, b := r.InFlight()
			return b >= int64(n*(size-1))
		})
	}
	codes := make(chan int, 3)
	send := func(chunked bool) (int, http.Header) {
		code, header, _, err := r.try(strings.Repeat(" ", size-1), func(q *http.Request) {
			if chunked {
				q.ContentLength = -1
			}
		})
		if err != nil {
			t.Error(err)
		}
		return code, header
	}
	for i := range 2 {
		go func() { c, _ := send(i == 1); codes <- c }()
		waitFor(i + 1)
	}
	if n, b := r.InFlight(); n != 2 || b < 2*(size-1) || b > 3*size {
		t.Errorf("%d requests with %d bytes in flight; expected 2 with some %d", n, b, 2*size)
	}
	go func() { c, _ := send(false); codes <- c }()
	waitFor(3)
	for _, chunked := range []bool{false, true} {
		if code, header := send(chunked); code != 503 || header.Get("Retry-After") == "" {
			t.Errorf("status %d beyond the bound; expected 503", code)
		}
	}
	once.Do(func() { close(hold) })
	for range 3 {
		if code := <-codes; code != 200 {
			t.Errorf("status %d within the bound; expected 200", code)
		}
	}
	testenv.Eventually(t, 10*time.Second, "everything to be given back", func() bool { n, b := r.InFlight(); return n == 0 && b == 0 })
}

// TestAnnouncedIsNotReserved: who announces a long body and sends nothing takes
// little.
func TestAnnouncedIsNotReserved(t *testing.T) {
	r := serve(t, Options{Routes: bridge(func(r *Route) { r.MaxBody, r.Timeout = 8<<20, 5*time.Second })}, deliverNothing)
	c := raw(t, r, head(key, 8<<20)+"{")
	testenv.Eventually(t, 10*time.Second, "it to be in flight", func() bool { n, _ := r.InFlight(); return n == 1 })
	if _, b := r.InFlight(); b > smallBody {
		t.Errorf("%d bytes reserved for one that arrived", b)
	}
	_ = c.Close()
}

// TestStrangersShutNobodyOut: all connections that a stranger keeps open on a
// route where the body is the proof leave room for the others, on that route's
// neighbours too.
func TestStrangersShutNobodyOut(t *testing.T) {
	g := newRig(t, func(o *Options) {
		o.MaxInFlight = 8
		for i := range o.Routes {
			o.Routes[i].Timeout = 10 * time.Second
		}
	})
	for _, s := range senders() {
		if s.name != "sns" {
			continue
		}
		for range 8 {
			c, err := net.Dial("tcp", g.Addr().String())
			must(t, err)
			defer func() { _ = c.Close() }()
			_, err = io.WriteString(c, s.wire("{", nil))
			must(t, err)
		}
	}
	// Two of eight: half of the gate, shared with the route for CloudEvents.
	testenv.Eventually(t, 10*time.Second, "the strangers to be in", func() bool { n, _ := g.InFlight(); return n == 2 })
	testenv.Eventually(t, 10*time.Second, "the other strangers to be turned away", func() bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return len(g.rejected) == 6
	})
	for _, s := range senders() {
		code, _, _ := g.send(t, s.path, s.body, s.as)
		if want := s.name == "sns"; (code == 503) != want || code >= 400 && !want {
			t.Errorf("%s: status %d while SNS is under attack", s.name, code)
		}
	}
}

// TestMountedHandler: the handler of a route gets a whole body and a bounded
// time, and its panic is an outage.
func TestMountedHandler(t *testing.T) {
	var got string
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil || r.ContentLength != int64(len(b)) {
			t.Errorf("%d bytes of %d: %v", len(b), r.ContentLength, err)
		}
		if got = string(b); got == "panic" {
			panic(got)
		}
		if _, ok := r.Context().Deadline(); !ok {
			t.Error("no deadline")
		}
		w.WriteHeader(http.StatusAccepted)
	})
	r := serve(t, Options{Routes: []Route{{Kind: VaultAudit{}, Auth: auth(key), Handler: h}}}, nil)
	for _, chunked := range []bool{false, true} {
		code, _, _ := r.post("entry", func(q *http.Request) {
			q.Header.Del("Content-Type")
			if chunked {
				q.ContentLength = -1
			}
		})
		if code != 202 || got != "entry" {
			t.Errorf("status %d of %q; expected 202", code, got)
		}
	}
	if code, _, _ := r.post("panic", nil); code != 503 {
		t.Errorf("status %d of a panic; expected 503", code)
	}
}
