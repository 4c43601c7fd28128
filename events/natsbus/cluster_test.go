package natsbus

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/testenv"
)

// TestSecondReading: an event that was neither live nor there at the first
// reading is found by the second, and nothing else is handed on again. A
// subject transform makes such an event: the stream stores it under a subject
// that no subscriber hears.
func TestSecondReading(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	cfg := config(t, b.js, EventStream)
	cfg.Subjects = append(cfg.Subjects, "silent.>")
	cfg.SubjectTransform = &jetstream.SubjectTransformConfig{Source: "silent.>", Destination: "keyturn.v1.>"}
	if _, err := b.js.UpdateStream(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	publish(t, b, activated("a", "1"))
	s := NewSubscriber(srv.Conn(t), nil)
	s.settle = time.Second
	h := hear(t, s, events.Filter{Tenant: "acme", Refs: refs("a", "b"), Types: []events.Type{events.VersionActivated}}, nil).wait(t)
	m, err := encode(activated("b", "1"))
	if err != nil {
		t.Fatal(err)
	}
	m.Subject = "silent." + strings.TrimPrefix(m.Subject, events.SubjectPrefix)
	if _, err := b.js.PublishMsg(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if h.count("b", "1") != 0 {
		t.Fatal("the silent event was heard live; the test proves nothing")
	}
	h.eventually(t, "b", "1")
	if n := h.count("a", "1"); n != 1 {
		t.Errorf("the event of the first reading was handed on %d times; expected once", n)
	}
}

// TestClusterLosesAServer: three servers, three replicas of each stream; the
// server that leads the events stream stops. Publishing goes on, subscribers
// on the other servers and on the lost one hear it.
func TestClusterLosesAServer(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three servers")
	}
	start := time.Now()
	step := func(what string) { t.Logf("%5.1fs %s", time.Since(start).Seconds(), what) }
	ports := make([]int, 3)
	var routes []string
	for i := range ports {
		ports[i] = testenv.FreePort(t)
		routes = append(routes, "nats://"+net.JoinHostPort("127.0.0.1", fmt.Sprint(ports[i])))
	}
	servers := map[string]*server.Server{}
	var urls []string
	for i, port := range ports {
		name := fmt.Sprint("s", i)
		s, err := server.NewServer(&server.Options{
			ServerName: name, Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
			Cluster: server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: port},
			Routes:  server.RoutesFromStr(strings.Join(routes, ",")),
		})
		if err != nil {
			t.Fatal(err)
		}
		s.Start()
		t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
		servers[name] = s
	}
	for _, s := range servers {
		if !s.ReadyForConnections(limit) {
			t.Fatal("a server did not start")
		}
		urls = append(urls, s.ClientURL())
	}
	connect := func(urls ...string) *nats.Conn {
		nc, err := nats.Connect(strings.Join(urls, ","), nats.MaxReconnects(-1), nats.ReconnectWait(100*time.Millisecond), nats.DontRandomize())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	var b *Bus
	testenv.Eventually(t, 2*limit, "the cluster to elect a leader and take the streams", func() bool {
		var err error
		if b == nil {
			b, err = Open(t.Context(), connect(urls...), &Options{Replicas: 3})
		}
		return err == nil
	})
	step("streams")
	publish(t, b, activated("a", "1"))
	st, err := b.js.Stream(t.Context(), EventStream)
	if err != nil {
		t.Fatal(err)
	}
	leader := st.CachedInfo().Cluster.Leader
	f := events.Filter{Tenant: "acme", Refs: refs("a"), Types: []events.Type{events.VersionActivated}}
	var all []*hearer
	for _, s := range servers {
		// Each agent begins on its own server and knows the others.
		h := hear(t, NewSubscriber(connect(append([]string{s.ClientURL()}, urls...)...), nil), f, nil).wait(t)
		h.eventually(t, "a", "1")
		all = append(all, h)
	}
	step("three agents")
	servers[leader].Shutdown()
	servers[leader].WaitForShutdown()
	testenv.Eventually(t, 2*limit, "published without the leader", func() bool { return b.Publish(t.Context(), activated("a", "2")) == nil })
	step("published without the leader")
	for _, h := range all {
		h.eventually(t, "a", "2")
	}
	step("heard by all")
	late := hear(t, NewSubscriber(connect(urls...), nil), f, nil).wait(t)
	late.eventually(t, "a", "2")
	step("a late agent caught up")
	if err := b.Schedule(t.Context(), "job", Spec{At: time.Now().Add(time.Second)}, nil); err != nil {
		t.Fatal(err)
	}
	step("scheduled")
	r := run(t, b, nil)
	testenv.Eventually(t, 2*limit, "a schedule fired by two servers of three", func() bool { return r.count("job=") == 1 })
	step("fired")
}
