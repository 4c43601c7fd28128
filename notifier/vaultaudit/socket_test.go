package vaultaudit

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
)

func dial(t testing.TB, r *rig) net.Conn {
	t.Helper()
	conn, err := net.Dial(r.Addr().Network(), r.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func send(t testing.TB, conn net.Conn, s string) {
	t.Helper()
	_ = conn.SetWriteDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(conn, s); err != nil {
		t.Fatal(err)
	}
}

func loopback() *Socket { return &Socket{Address: "127.0.0.1:0"} }

func TestSocketLines(t *testing.T) {
	b := &bus{}
	r := start(t, Options{Socket: loopback(), MaxLine: 256 << 10}, b)
	conn := dial(t, r)
	long := func(n, size int) string {
		return strings.Replace(write(n), `"hmac-sha256:93569f"`, `"`+strings.Repeat("x", size)+`"`, 1)
	}
	send(t, conn, write(1)+"\n"+read(2)+"\n\n"+write(3)+"\r\n"+write(4)[:100])
	eventually(t, "the whole lines", func() bool { return b.distinct() == 2 })
	send(t, conn, write(4)[100:]+"\ngarbage\n"+long(5, 100<<10)+"\n"+long(6, 300<<10)+"\n"+write(7)+"\n")
	eventually(t, "all but the huge one", func() bool { return b.distinct() == 6 }) // 1, 3, 4, 5, 7 and the stub
	eventually(t, "the huge one counted", func() bool { return r.counts.get("dropped too_long") == 1 })
	// A reader of huge lists must not raise an alarm.
	send(t, conn, strings.Replace(read(8), `"hmac-sha256:93569f"`, `"`+strings.Repeat("x", 300<<10)+`"`, 1)+"\n"+write(9)+"\n")
	eventually(t, "the line behind it", func() bool { return b.distinct() == 7 })
	if r.counts.get("dropped too_long") != 1 {
		t.Error("an irrelevant line that is too long counts as dropped")
	}
	// Half a line at the end: Vault writes it again.
	send(t, conn, write(10)[:300])
	_ = conn.Close()
	conn = dial(t, r)
	send(t, conn, write(10)+"\n")
	eventually(t, "the repetition", func() bool { return b.distinct() == 8 })
	if n := r.counts.get("dropped cut"); n != 0 {
		t.Errorf("%d cut; expected none, since the other side ended the connection", n)
	}
	// What has arrived when the process is told to end is kept.
	send(t, conn, write(11)+"\n")
	r.stop()
	if b.distinct() != 9 && r.counts.get("stored") != 9 {
		t.Errorf("%d delivered, %d stored; expected the last line to be read", b.distinct(), r.counts.get("stored"))
	}
	if n := r.partial.Load(); n != 0 {
		t.Errorf("%d bytes of half lines are still accounted for", n)
	}
}

// Whoever sends one byte now and then holds a connection for as long as a line
// may take, and others are not disturbed. Idle connections stay.
func TestSlowLoris(t *testing.T) {
	b := &bus{}
	r := start(t, Options{Socket: &Socket{Address: "127.0.0.1:0", LineTimeout: 100 * time.Millisecond}}, b)
	idle := dial(t, r)
	send(t, idle, write(1)+"\n")
	slow := dial(t, r)
	var closed error
	for i := 0; i < 2000 && closed == nil; i++ {
		_, closed = slow.Write([]byte("x"))
		time.Sleep(5 * time.Millisecond)
	}
	if closed == nil {
		t.Error("a connection that drips is kept")
	}
	if r.counts.get("dropped cut") != 1 {
		t.Errorf("%d counted as cut; expected 1", r.counts.get("dropped cut"))
	}
	send(t, idle, write(2)+"\n")
	eventually(t, "the idle connection's second line", func() bool { return b.distinct() == 2 })
}

func TestThousandConnections(t *testing.T) {
	b := &bus{}
	r := start(t, Options{Socket: loopback()}, b)
	const n = 1000
	conns := make([]net.Conn, n)
	for i := range conns {
		conns[i] = dial(t, r)
	}
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			if _, err := io.WriteString(c, read(i)+"\n"+write(i)+"\n"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	eventually(t, "an entry of each connection", func() bool { return b.distinct() == n })
}

func TestTooManyConnections(t *testing.T) {
	b := &bus{}
	r := start(t, Options{Socket: &Socket{Address: "127.0.0.1:0", MaxConns: 1}}, b)
	first := dial(t, r)
	send(t, first, write(1)+"\n")
	eventually(t, "the first", func() bool { return b.distinct() == 1 })
	second := dial(t, r)
	_ = second.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := second.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v; expected the second connection to be closed", err)
	}
	_ = first.Close()
	eventually(t, "room for a third", func() bool {
		c, err := net.Dial("tcp", r.Addr().String())
		if err != nil {
			return false
		}
		defer func() { _ = c.Close() }()
		_, _ = io.WriteString(c, write(2)+"\n")
		return b.distinct() == 2
	})
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.sock")
	// What a killed process left.
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = ln.Close()
	b := &bus{}
	o := Options{Socket: &Socket{Network: "unix", Address: path}}
	r := start(t, o, b)
	info, err := os.Lstat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Mode().Type() != os.ModeSocket {
		t.Errorf("%v, %v; expected a socket of mode 0600", info.Mode(), err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	send(t, conn, write(1)+"\n")
	eventually(t, "the line", func() bool { return b.distinct() == 1 })
	o.Dir = t.TempDir()
	if _, err := Open(t.Context(), o); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second listener: %v; expected Conflict", err)
	}
	r.stop()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 0 {
		t.Errorf("%v is left, %v", entries, err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), o); !fault.Is(err, fault.Conflict) {
		t.Errorf("a file in its place: %v; expected Conflict", err)
	}
}

// BenchmarkSocket sends entries of which 95 % are reads, and waits until the
// others are in the spool.
func BenchmarkSocket(b *testing.B) {
	for _, nosync := range []bool{false, true} {
		b.Run(fmt.Sprintf("nosync=%t", nosync), func(b *testing.B) {
			var c counts
			r := start(b, Options{Socket: loopback(), NoSync: nosync, Observe: c.observe}, &bus{})
			conn := dial(b, r)
			var block strings.Builder
			for i := range 100 {
				if i%20 == 0 {
					block.WriteString(write(i) + "\n")
				} else {
					block.WriteString(read(i) + "\n")
				}
			}
			b.SetBytes(int64(block.Len() / 100))
			sent := 0
			for b.Loop() {
				if sent%100 == 0 {
					send(b, conn, block.String())
				}
				sent++
			}
			blocks := (sent + 99) / 100
			eventually(b, "the rest to be stored", func() bool { return c.get("stored")+c.get("dropped disk") >= blocks*5 })
			if n := c.get("dropped disk"); n > 0 {
				b.Logf("%d entries waited longer than AppendTimeout for the disk", n)
			}
			b.ReportMetric(float64(sent)/b.Elapsed().Seconds(), "entries/s")
		})
	}
}

func BenchmarkRelevantRead(b *testing.B) {
	line := []byte(read(1))
	for b.Loop() {
		Relevant(line)
	}
}

func BenchmarkRedact(b *testing.B) {
	line := []byte(write(1))
	for b.Loop() {
		_, _ = Redact(line)
	}
}
