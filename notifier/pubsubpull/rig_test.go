package pubsubpull

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keyturn/keyturn/internal/pull"
	"github.com/keyturn/keyturn/internal/pull/pulltest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// It looks only every few seconds whether its stream has ended.
		goleak.IgnoreTopFunction("cloud.google.com/go/pubsub/v2.(*messageIterator).streamKeepAliveHandler"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"), // one a process, of the client
	)
}

const (
	project      = "example-project"
	subscription = "keyturn"
	topicName    = "projects/" + project + "/topics/secrets"
	subName      = "projects/" + project + "/subscriptions/" + subscription
)

// A rig is a subscription of Google's own fake, reached through proxies.
type rig struct {
	t   *testing.T
	srv *pstest.Server

	mu      sync.Mutex
	ahead   time.Duration
	proxies []*proxy
	down    bool
}

func newRig(t *testing.T, change ...func(*pubsubpb.Subscription)) *rig {
	r := &rig{t: t, srv: pstest.NewServer()}
	t.Cleanup(func() {
		for _, p := range r.proxies {
			p.close()
		}
		_ = r.srv.Close()
	})
	r.srv.SetTimeNowFunc(func() time.Time {
		r.mu.Lock()
		defer r.mu.Unlock()
		return time.Now().Add(r.ahead)
	})
	if _, err := r.srv.GServer.CreateTopic(t.Context(), &pubsubpb.Topic{Name: topicName}); err != nil {
		t.Fatal(err)
	}
	sub := &pubsubpb.Subscription{
		Name: subName, Topic: topicName, AckDeadlineSeconds: 10,
		RetryPolicy: &pubsubpb.RetryPolicy{MinimumBackoff: durationpb.New(10 * time.Millisecond), MaximumBackoff: durationpb.New(20 * time.Millisecond)},
	}
	for _, f := range change {
		f(sub)
	}
	if _, err := r.srv.GServer.CreateSubscription(t.Context(), sub); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *rig) Send(body string) { r.srv.Publish(topicName, []byte(body), nil) }

func (r *rig) Left() (n int) {
	for _, m := range r.srv.Messages() {
		if m.Acks == 0 {
			n++
		}
	}
	return n
}

func (r *rig) Down(on bool) {
	r.mu.Lock()
	r.down = on
	proxies := r.proxies
	r.mu.Unlock()
	for _, p := range proxies {
		p.set(on)
	}
}

// Expire lets the deadlines of messages that nobody holds run out.
func (r *rig) Expire() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ahead += 2 * time.Minute
}

func (r *rig) Lease() time.Duration           { return 0 } // at least 10 s
func (r *rig) Many() int                      { return 600 }
func (r *rig) MinBytes() int                  { return 100_000 }
func (r *rig) Body(name string, n int) string { return pulltest.Plain(name, n) }
func (r *rig) Name(b []byte) string           { return pulltest.PlainName(b) }

// options are of a source whose network can be cut.
func (r *rig) options() (Options, func()) {
	p := newProxy(r.t, r.srv.Addr)
	r.mu.Lock()
	r.proxies = append(r.proxies, p)
	r.mu.Unlock()
	return Options{
		Project: project, Subscription: subscription, Endpoint: p.addr(), Insecure: true,
		Streams: 16, // the fake delivers one message to each every 10 ms
		retry:   pull.Backoff{Min: 10 * time.Millisecond, Max: 100 * time.Millisecond},
		again:   pull.Backoff{Min: 20 * time.Millisecond, Max: 100 * time.Millisecond},
	}, p.close
}

func (r *rig) New(s pulltest.Settings) pulltest.Instance {
	o, cut := r.options()
	o.MaxInFlight, o.MaxBytes, o.Hold, o.Drain, o.Timeout, o.Logger = s.MaxInFlight, s.MaxBytes, s.Hold, s.Drain, s.Timeout, s.Log
	src := pulltest.Make(r.t, New, o)
	return pulltest.Instance{Source: src, Stats: src.Stats, Cut: cut}
}

// A proxy is a network that can be away.
type proxy struct {
	l      net.Listener
	target string
	wg     sync.WaitGroup

	mu    sync.Mutex
	away  bool
	conns map[net.Conn]struct{}
}

func newProxy(t *testing.T, target string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, target: target, conns: map[net.Conn]struct{}{}}
	p.wg.Go(p.accept)
	return p
}

func (p *proxy) addr() string { return p.l.Addr().String() }

func (p *proxy) accept() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(c) })
	}
}

func (p *proxy) serve(c net.Conn) {
	defer func() { _ = c.Close() }()
	b, err := (&net.Dialer{}).DialContext(context.Background(), "tcp", p.target)
	if err != nil {
		return
	}
	defer func() { _ = b.Close() }()
	p.mu.Lock()
	away := p.away
	p.conns[c], p.conns[b] = struct{}{}, struct{}{}
	p.mu.Unlock()
	if away {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(b, c)
		_ = b.Close()
	}()
	_, _ = io.Copy(c, b)
	_ = c.Close()
	<-done
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
	delete(p.conns, b)
}

func (p *proxy) set(away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = away
	if away {
		for c := range p.conns {
			_ = c.Close()
		}
	}
}

func (p *proxy) close() {
	_ = p.l.Close()
	p.set(true)
	p.wg.Wait()
}

func TestSource(t *testing.T) {
	pulltest.Run(t, func(t *testing.T) pulltest.Rig { return newRig(t) })
}
