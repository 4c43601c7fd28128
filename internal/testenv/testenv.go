// Package testenv starts real servers for tests on free loopback ports, from
// installed packages or in process. Where one is missing the test is skipped
// with the command that installs it; with REQUIRE_INTEGRATION=1, which CI
// sets, a skip is a failure.
package testenv

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// Missing skips t, or fails it where integration is required, naming what is
// missing and the command that brings it.
func Missing(t testing.TB, what, install string) {
	t.Helper()
	if os.Getenv("REQUIRE_INTEGRATION") != "" {
		t.Fatalf("%s is missing and REQUIRE_INTEGRATION is set; install it with: %s", what, install)
	}
	t.Skipf("%s is missing; install it with: %s", what, install)
}

// FreePort returns a loopback port that was free a moment ago.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// A NATSServer is a real NATS server with JetStream on disk, in this process.
type NATSServer struct {
	t    testing.TB
	opts server.Options
	srv  *server.Server
}

// NATS starts a server that stores below t.TempDir and syncs each write, unless
// change says otherwise. It ends with t.
func NATS(t testing.TB, change ...func(*server.Options)) *NATSServer {
	t.Helper()
	n := &NATSServer{t: t, opts: server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true, SyncAlways: true,
	}}
	for _, f := range change {
		f(&n.opts)
	}
	n.Start()
	t.Cleanup(n.Stop)
	return n
}

// Start starts the server, again on the same port and directory if it ran
// before.
func (n *NATSServer) Start() {
	n.t.Helper()
	opts := n.opts
	srv, err := server.NewServer(&opts)
	if err != nil {
		n.t.Fatal(err)
	}
	srv.Start()
	if !srv.ReadyForConnections(10 * time.Second) {
		n.t.Fatal("testenv: the NATS server did not start within 10 s")
	}
	n.opts.Port = srv.Addr().(*net.TCPAddr).Port
	n.srv = srv
}

// Stop shuts the server down and waits for it.
func (n *NATSServer) Stop() {
	if n.srv == nil {
		return
	}
	n.srv.Shutdown()
	n.srv.WaitForShutdown()
	n.srv = nil
}

// URL is where clients connect.
func (n *NATSServer) URL() string {
	return "nats://" + (&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: n.opts.Port}).String()
}

// Dir is where JetStream stores its files.
func (n *NATSServer) Dir() string { return n.opts.StoreDir }

// Conn connects a client that reconnects for ever and closes with t.
func (n *NATSServer) Conn(t testing.TB, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(n.URL(), append([]nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(50 * time.Millisecond)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// Eventually polls cond every 5 ms until it holds, and fails t with what after
// the time limit.
func Eventually(t testing.TB, limit time.Duration, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		if cond() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("within %s: expected %s", limit, what)
		}
	}
}
