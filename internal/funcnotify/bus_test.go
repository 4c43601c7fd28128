package funcnotify

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/notifier"
	"github.com/keyturn/keyturn/ref"
)

const limit = 20 * time.Second

func event(name string) events.Event {
	e := events.New(events.VersionActivated, ref.Ref{Provider: ref.AWS, Scope: "111122223333/us-east-1", Name: name}, time.Now(), name)
	e.Data.Tenant = "acme"
	return e
}

// newBus is a Bus as a function has it, at url.
func newBus(t *testing.T, url string, env ...string) (*Bus, *leaktest.Recorder) {
	t.Helper()
	e, err := ParseEnv(append([]string{"KEYTURN_NATS_URL=" + url, "KEYTURN_TENANT=acme"}, env...), form)
	if err != nil {
		t.Fatal(err)
	}
	var rec leaktest.Recorder
	b := NewBus(e, nil, rec.Logger())
	t.Cleanup(b.Close)
	return b, &rec
}

func publish(t *testing.T, b *Bus, name string) (events.Receipt, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	return b.PublishReceipt(ctx, event(name))
}

// rights are those that the documentation asks for.
func rights(srv *server.Options) {
	all := &server.User{Username: "admin", Password: "admin"}
	few := &server.User{Username: "notify", Password: "notify", Permissions: &server.Permissions{
		Publish: &server.SubjectPermission{Allow: []string{
			"keyturn.v1.>", "keyturn.late.v1.>", "keyturn.deadletter.>",
			"$JS.API.DIRECT.GET.KEYTURN_EVENTS", "$JS.API.DIRECT.GET.KEYTURN_EVENTS.>",
			"$JS.API.DIRECT.GET.KEYTURN_LATE", "$JS.API.DIRECT.GET.KEYTURN_LATE.>",
		}},
		Subscribe: &server.SubjectPermission{Allow: []string{"_INBOX_notify.>"}},
	}}
	srv.Users = []*server.User{all, few}
}

// With the rights that are documented, and no others, everything is done that a
// function does: a new event, one that is known, an old one, an older one of which
// the history must tell, and a dead letter.
func TestFewRights(t *testing.T) {
	srv := testenv.NATS(t, rights)
	admin, _ := newBus(t, srv.URL(), "KEYTURN_NATS_CREDS=admin:admin", "KEYTURN_CREATE_STREAMS=1")
	few := []string{"KEYTURN_NATS_CREDS=notify:notify", "KEYTURN_NATS_INBOX=_INBOX_notify"}
	b, rec := newBus(t, srv.URL(), few...)

	// Before anybody has made the streams.
	if _, err := publish(t, b, "early"); !fault.Is(err, fault.Unavailable) || !strings.Contains(err.Error(), "stream") {
		t.Errorf("without streams: %v; expected Unavailable that says so", err)
	}
	rec.Record("early")
	if _, err := publish(t, admin, "by-admin"); err != nil {
		t.Fatal(err)
	}
	now := event("db")
	old := now
	old.Time, old.ID = now.Time.Add(-time.Hour), now.ID+"-old"
	for i, c := range []struct {
		e    events.Event
		want events.Receipt
	}{{now, events.Receipt{Stored: 1}}, {now, events.Receipt{Duplicates: 1}}, {old, events.Receipt{Late: 1}}, {old, events.Receipt{Duplicates: 1}}} {
		if got, err := b.PublishReceipt(t.Context(), c.e); err != nil || got != c.want {
			t.Errorf("%d: %+v, %v; expected %+v", i, got, err, c.want)
		}
	}
	if err := b.Park(t.Context(), notifier.DeadLetter{Delivery: notifier.Delivery{Source: "s", Body: []byte("x")}, Reason: "r", Kind: fault.Invalid}); err != nil {
		t.Errorf("park: %v", err)
	}
	forbidden, _ := newBus(t, srv.URL(), append(few, "KEYTURN_CREATE_STREAMS=1")...)
	if _, err := publish(t, forbidden, "x"); !fault.Is(err, fault.Denied) {
		t.Errorf("to look at streams without the right: %v; expected Denied", err)
	}
	wrong, _ := newBus(t, srv.URL(), "KEYTURN_NATS_CREDS=notify:wrong-"+leaktest.Canary())
	if _, err := publish(t, wrong, "x"); !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassAuth {
		t.Errorf("with a wrong password: %v; expected Denied, class auth", err)
	}
	rec.Check(t, "notify:notify")
}

// NATS goes away and comes back: an error meanwhile, and then the same Bus works.
func TestAwayAndBack(t *testing.T) {
	srv := testenv.NATS(t)
	b, _ := newBus(t, srv.URL(), "KEYTURN_CREATE_STREAMS=1")
	if _, err := publish(t, b, "one"); err != nil {
		t.Fatal(err)
	}
	srv.Stop()
	if _, err := publish(t, b, "two"); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("%v; expected Unavailable", err)
	}
	srv.Start()
	if _, err := publish(t, b, "two"); err != nil {
		t.Fatal(err)
	}
	// It went away between invocations, and nobody has noticed.
	srv.Stop()
	srv.Start()
	if r, err := publish(t, b, "three"); err != nil || r.Stored != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
}

// A firewall forgets the connection of a process that stood still: it says
// nothing, and nothing passes. The next use finds out, and connects anew.
func TestForgottenConnection(t *testing.T) {
	srv := testenv.NATS(t)
	f := newForgetful(t, strings.TrimPrefix(srv.URL(), "nats://"))
	b, rec := newBus(t, "nats://"+f.addr(), "KEYTURN_CREATE_STREAMS=1")
	b.idle = 0
	for i, name := range []string{"one", "two", "three"} {
		if i > 0 {
			f.forget()
		}
		if r, err := publish(t, b, name); err != nil || r.Stored != 1 {
			t.Fatalf("%s: %+v, %v", name, r, err)
		}
	}
	if n := f.accepted.Load(); n != 3 {
		t.Errorf("%d connections; expected 3", n)
	}
	if !strings.Contains(rec.String(), "connected to NATS again") {
		t.Error("the log does not tell")
	}
}

// Many invocations share one connection, also while it is lost.
func TestShared(t *testing.T) {
	srv := testenv.NATS(t)
	f := newForgetful(t, strings.TrimPrefix(srv.URL(), "nats://"))
	b, _ := newBus(t, "nats://"+f.addr(), "KEYTURN_CREATE_STREAMS=1")
	if _, err := publish(t, b, "first"); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	const n = 40
	for i := range n {
		wg.Go(func() {
			if i == n/2 {
				f.cut()
			}
			if _, err := publish(t, b, "db-"+string(rune('a'+i))); err != nil && !fault.Is(err, fault.Unavailable) {
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	if got := f.accepted.Load(); got > 3 {
		t.Errorf("%d connections; expected one, and one after it was cut", got)
	}
	nc := srv.Conn(t)
	bus, err := natsbus.Attach(nc, nil)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]int{}
	for e, err := range bus.Events(t.Context(), natsbus.EventsQuery{}) {
		if err != nil {
			t.Fatal(err)
		}
		seen[e.ID]++
	}
	for id, times := range seen {
		if times != 1 {
			t.Errorf("%s is stored %d times", id, times)
		}
	}
}

// Credentials are read anew for each connection.
func TestCredentialsAreReadAnew(t *testing.T) {
	srv := testenv.NATS(t, func(o *server.Options) {
		o.Users = []*server.User{{Username: "a", Password: "a"}, {Username: "b", Password: "b"}}
	})
	f := newForgetful(t, strings.TrimPrefix(srv.URL(), "nats://"))
	text := "a:a"
	e, err := ParseEnv([]string{"KEYTURN_NATS_URL=nats://" + f.addr(), "KEYTURN_TENANT=acme", "KEYTURN_CREATE_STREAMS=1"}, form)
	if err != nil {
		t.Fatal(err)
	}
	reads := 0
	b := NewBus(e, func(context.Context) ([]byte, error) { reads++; return []byte(text), nil }, (&leaktest.Recorder{}).Logger())
	t.Cleanup(b.Close)
	for range 3 {
		if _, err := publish(t, b, "x"); err != nil {
			t.Fatal(err)
		}
	}
	if reads != 1 {
		t.Errorf("read %d times for one connection", reads)
	}
	text = "nobody:x"
	f.cut()
	testenv.Eventually(t, limit, "that the end of the connection shows", func() bool { return b.lost.Err() != nil })
	if _, err := publish(t, b, "y"); !fault.Is(err, fault.Denied) {
		t.Fatalf("%v; expected Denied", err)
	}
	text = "b:b"
	if _, err := publish(t, b, "y"); err != nil || reads != 3 {
		t.Fatalf("%v after %d reads; expected success with the third", err, reads)
	}
}

// A forgetful is a TCP proxy that can stop passing what its connections carry,
// without a word.
type forgetful struct {
	ln       net.Listener
	to       string
	accepted atomic.Int64

	mu    sync.Mutex
	conns []net.Conn
	muted []*atomic.Bool
}

func newForgetful(t *testing.T, to string) *forgetful {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &forgetful{ln: ln, to: to}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.accepted.Add(1)
			s, err := (&net.Dialer{}).Dial("tcp", to)
			if err != nil {
				_ = c.Close()
				continue
			}
			var mute atomic.Bool
			f.mu.Lock()
			f.conns, f.muted = append(f.conns, c, s), append(f.muted, &mute)
			f.mu.Unlock()
			wg.Go(func() { pass(s, c, &mute) })
			wg.Go(func() { pass(c, s, &mute) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		f.cut()
		wg.Wait()
	})
	return f
}

func pass(dst io.WriteCloser, src io.Reader, mute *atomic.Bool) {
	defer func() { _ = dst.Close() }()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		if mute.Load() {
			continue
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (f *forgetful) addr() string { return f.ln.Addr().String() }

func (f *forgetful) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, m := range f.muted {
		m.Store(true)
	}
}

func (f *forgetful) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.conns {
		_ = c.Close()
	}
}
