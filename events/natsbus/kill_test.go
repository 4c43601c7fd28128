package natsbus

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/testenv"
)

const serverDir, serverPort = "NATSBUS_TEST_SERVER_DIR", "NATSBUS_TEST_SERVER_PORT"

// serve is a nats-server that syncs always, in a process of its own.
func serve(dir, port string) {
	n, err := strconv.Atoi(port)
	if err == nil {
		var s *server.Server
		if s, err = server.NewServer(&server.Options{Host: "127.0.0.1", Port: n, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true, SyncAlways: true}); err == nil {
			s.Start()
			_, _ = os.Stdin.Read(make([]byte, 1)) // ends with the test
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// A child is a server that can be killed.
type child struct {
	dir  string
	port int
	cmd  *exec.Cmd
}

func (c *child) start(t testing.TB) {
	t.Helper()
	c.cmd = exec.CommandContext(context.Background(), os.Args[0])
	c.cmd.Env = append(os.Environ(), serverDir+"="+c.dir, serverPort+"="+strconv.Itoa(c.port))
	if _, err := c.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill is kill -9.
func (c *child) kill() {
	if c.cmd != nil {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
		c.cmd = nil
	}
}

// TestKilledServer: a server is killed under load, again and again, in the
// middle of singles and of atomic batches. Whatever was acknowledged is there,
// whatever was not can be sent again, and everything is there once.
func TestKilledServer(t *testing.T) {
	for _, group := range []bool{false, true} {
		t.Run(map[bool]string{false: "singles", true: "batches"}[group], func(t *testing.T) {
			c := &child{dir: t.TempDir(), port: testenv.FreePort(t)}
			c.start(t)
			t.Cleanup(func() { c.kill() })
			url := "nats://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port))
			var b *Bus
			var batches, most int
			var mu sync.Mutex
			o := &Options{GroupCommit: group, PublishTimeout: 2 * time.Second, Observe: func(c Commit) {
				mu.Lock()
				defer mu.Unlock()
				if c.Events > 1 && c.Err == nil {
					batches++
					most = max(most, c.Events)
				}
			}}
			testenv.Eventually(t, limit, "the server", func() bool {
				conn, err := net.DialTimeout("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(c.port)), time.Second)
				if err == nil {
					_ = conn.Close()
				}
				return err == nil
			})
			b = open(t, connectTo(t, url), o)
			b.news.least = 2
			acked, unsure := map[string]events.Event{}, map[string]events.Event{}
			for round := range 4 {
				stop := make(chan struct{})
				var wg sync.WaitGroup
				var roundAcks int
				for p := range 48 {
					wg.Go(func() {
						for i := 0; ; i++ {
							select {
							case <-stop:
								return
							default:
							}
							e := activated(fmt.Sprintf("p%d", p), fmt.Sprintf("v%d-%d", round, i))
							err := b.Publish(context.Background(), e)
							mu.Lock()
							if err == nil {
								acked[e.ID] = e
								roundAcks++
							} else {
								unsure[e.ID] = e
							}
							mu.Unlock()
							if err != nil {
								return
							}
						}
					})
				}
				testenv.Eventually(t, limit, "load", func() bool {
					mu.Lock()
					defer mu.Unlock()
					return roundAcks > 60+37*round
				})
				c.kill()
				close(stop)
				c.start(t)
				wg.Wait()
			}
			testenv.Eventually(t, limit, "ready after the last restart", func() bool { return b.Ready(t.Context()) == nil })
			told, _ := everything(t, b)
			there := map[string]bool{}
			for _, e := range told {
				if there[e.ID] {
					t.Errorf("%s is stored twice", e.ID)
				}
				there[e.ID] = true
			}
			for id := range acked {
				if !there[id] {
					t.Errorf("%s was acknowledged and is not there", id)
				}
			}
			half := len(told) - len(acked)
			var again events.Receipt
			for e := range maps.Values(unsure) { // the senders come again
				r, err := b.PublishReceipt(t.Context(), e)
				if err != nil {
					t.Fatal(err)
				}
				again.Add(r)
			}
			told, late := everything(t, b)
			if len(told)+len(late) != len(acked)+len(unsure) || again.Duplicates != half {
				t.Errorf("%d and %d stored, again %+v; expected %d, of which %d are known", len(told), len(late), again, len(acked)+len(unsure), half)
			}
			t.Logf("%d acknowledged, %d not, of which %d were stored; %d batches of up to %d", len(acked), len(unsure), half, batches, most)
			if group && batches == 0 {
				t.Error("no batch was committed; the test proves nothing")
			}
		})
	}
}
