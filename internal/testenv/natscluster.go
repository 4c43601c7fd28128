package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// natsChild makes this binary a NATS server instead of a test.
const natsChild = "KEYTURN_TESTENV_NATS"

// childOptions are what a child is told.
type childOptions struct {
	Name, Dir           string
	Port, ClusterPort   int
	Routes              []string
	SyncAlways, Cluster bool
}

// ServeNATS runs a NATS server and never returns, if this process was started
// for that by [NATSNodes]. TestMain calls it first: a test binary is the one
// program that is sure to be there.
func ServeNATS() {
	text := os.Getenv(natsChild)
	if text == "" {
		return
	}
	err := serveNATS(text)
	_, _ = fmt.Fprintln(os.Stderr, "testenv: the NATS server:", err)
	os.Exit(1)
}

func serveNATS(text string) error {
	var c childOptions
	if err := json.Unmarshal([]byte(text), &c); err != nil {
		return err
	}
	o := &server.Options{
		ServerName: c.Name, Host: "127.0.0.1", Port: c.Port, JetStream: true, StoreDir: c.Dir,
		NoSigs: true, NoLog: true, SyncAlways: c.SyncAlways,
	}
	if c.Cluster {
		o.Routes = server.RoutesFromStr(strings.Join(c.Routes, ","))
		o.Cluster = server.ClusterOpts{
			Name: "test", Host: "127.0.0.1", Port: c.ClusterPort,
			// Servers tell each other where the others are. Nobody answers
			// there, so that the proxies between them are the only way; and
			// clients know only those that they were told of.
			Advertise: "127.0.0.1:1", NoAdvertise: true,
			// A route that is cut without a word is noticed in seconds.
			PingInterval: time.Second, MaxPingsOut: 3,
		}
	}
	s, err := server.NewServer(o)
	if err != nil {
		return err
	}
	s.Start()
	if !s.ReadyForConnections(time.Minute) {
		return fmt.Errorf("not ready within a minute")
	}
	_, _ = os.Stdin.Read(make([]byte, 1)) // ends with the test, however that ends
	return nil
}

// A NATSNode is a NATS server with JetStream on disk in a process of its own,
// which can be killed as kill -9 does.
type NATSNode struct {
	t    testing.TB
	opts childOptions
	cmd  *exec.Cmd
	log  *bytes.Buffer
}

// A NATSCluster is servers that are connected through proxies.
type NATSCluster struct {
	t     testing.TB
	Nodes []*NATSNode
	links map[[2]int]*link // from the one that dials
}

// NATSNodes starts n servers that are one cluster, or one server that syncs
// each write before it acknowledges it. They end with t. The binary's TestMain
// must call [ServeNATS].
func NATSNodes(t testing.TB, n int) *NATSCluster {
	t.Helper()
	c := &NATSCluster{t: t, links: map[[2]int]*link{}}
	for i := range n {
		c.Nodes = append(c.Nodes, &NATSNode{t: t, log: &bytes.Buffer{}, opts: childOptions{
			Name: fmt.Sprint("s", i), Dir: t.TempDir(), Port: FreePort(t), ClusterPort: FreePort(t),
			Cluster: n > 1, SyncAlways: n == 1,
		}})
	}
	for i, from := range c.Nodes {
		for j, to := range c.Nodes {
			if i != j {
				l := newLink(t, to.opts.ClusterPort)
				c.links[[2]int{i, j}] = l
				from.opts.Routes = append(from.opts.Routes, "nats://"+l.addr())
			}
		}
	}
	for _, n := range c.Nodes {
		n.launch()
		t.Cleanup(n.Kill)
	}
	for _, n := range c.Nodes {
		n.await()
	}
	return c
}

// Start starts the server again, on the same port and directory, and waits
// until it takes connections. It need not have found the others by then.
func (n *NATSNode) Start() {
	n.t.Helper()
	n.launch()
	n.await()
}

func (n *NATSNode) launch() {
	n.t.Helper()
	text, err := json.Marshal(n.opts)
	if err != nil {
		n.t.Fatal(err)
	}
	n.cmd = exec.CommandContext(context.Background(), os.Args[0])
	n.cmd.Env = append(os.Environ(), natsChild+"="+string(text))
	n.cmd.Stderr = n.log
	if _, err := n.cmd.StdinPipe(); err != nil {
		n.t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
}

func (n *NATSNode) await() {
	n.t.Helper()
	Eventually(n.t, time.Minute, "the NATS server "+n.opts.Name+" to listen", func() bool {
		conn, err := net.DialTimeout("tcp", n.addr(), time.Second)
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			return false
		}
		_ = conn.Close()
		return true
	})
}

// Kill is kill -9. It returns when the process is gone.
func (n *NATSNode) Kill() {
	if n.cmd == nil {
		return
	}
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
	n.cmd = nil
}

// Name is the server's name, as JetStream calls a leader.
func (n *NATSNode) Name() string { return n.opts.Name }

func (n *NATSNode) addr() string { return fmt.Sprintf("127.0.0.1:%d", n.opts.Port) }

// URL is where clients connect to this server.
func (n *NATSNode) URL() string { return "nats://" + n.addr() }

// Named returns the server of that name.
func (c *NATSCluster) Named(name string) *NATSNode {
	c.t.Helper()
	for _, n := range c.Nodes {
		if n.Name() == name {
			return n
		}
	}
	c.t.Fatalf("no server is called %q", name)
	return nil
}

// URL is where clients connect that know all servers but those in without.
func (c *NATSCluster) URL(without ...*NATSNode) string {
	var out []string
next:
	for _, n := range c.Nodes {
		for _, w := range without {
			if n == w {
				continue next
			}
		}
		out = append(out, n.URL())
	}
	return strings.Join(out, ",")
}

// Isolate cuts n off from the other servers; its clients still reach it. A
// reset ends connections and refuses new ones; without it nothing is said and
// nothing arrives, as behind a firewall.
func (c *NATSCluster) Isolate(n *NATSNode, reset bool) {
	for pair, l := range c.links {
		if c.Nodes[pair[0]] == n || c.Nodes[pair[1]] == n {
			l.cut(reset)
		}
	}
}

// Heal connects all servers again.
func (c *NATSCluster) Heal() {
	for _, l := range c.links {
		l.heal()
	}
}
