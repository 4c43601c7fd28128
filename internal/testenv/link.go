package testenv

import (
	"net"
	"strconv"
	"sync"
	"testing"
	"time"
)

// A link is a TCP proxy to one port of loopback that can be cut.
type link struct {
	ln net.Listener
	to string
	wg sync.WaitGroup

	mu     sync.Mutex
	open   chan struct{} // closed while bytes may pass
	reset  bool
	closed bool
	conns  map[net.Conn]struct{}
}

func newLink(t testing.TB, port int) *link {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{ln: ln, to: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), open: make(chan struct{}), conns: map[net.Conn]struct{}{}}
	close(l.open)
	l.wg.Go(l.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		l.mu.Lock()
		l.closed = true
		l.pass()
		l.abort()
		l.mu.Unlock()
		l.wg.Wait()
	})
	return l
}

func (l *link) addr() string { return l.ln.Addr().String() }

func (l *link) accept() {
	for {
		c, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.serve(c) })
	}
}

func (l *link) serve(in net.Conn) {
	defer func() { _ = in.Close() }()
	if !l.keep(in) || !l.wait() {
		return
	}
	out, err := net.DialTimeout("tcp", l.to, 2*time.Second)
	if err != nil {
		return
	}
	defer func() { _ = out.Close() }()
	if !l.keep(out) {
		return
	}
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		both.Go(func() {
			l.copy(way[1], way[0])
			_ = in.Close()
			_ = out.Close()
		})
	}
	both.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, in)
	delete(l.conns, out)
}

// keep reports whether c may go on: what is reset is not connected.
func (l *link) keep(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.reset {
		abort(c)
		return false
	}
	l.conns[c] = struct{}{}
	return true
}

// wait waits until bytes may pass, and reports false at the end.
func (l *link) wait() bool {
	l.mu.Lock()
	open := l.open
	l.mu.Unlock()
	<-open
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.closed
}

// copy passes on what was read. What is read during a cut is passed on after
// it, as TCP does that repeats a segment.
func (l *link) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && l.wait() {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (l *link) cut(reset bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.open:
		l.open = make(chan struct{})
	default:
	}
	if l.reset = reset; reset {
		l.abort()
		l.pass() // what waits ends: its connection is gone
	}
}

func (l *link) heal() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reset = false
	l.pass()
}

// pass lets bytes through. The caller holds the lock.
func (l *link) pass() {
	select {
	case <-l.open:
	default:
		close(l.open)
	}
}

// abort ends all connections. The caller holds the lock.
func (l *link) abort() {
	for c := range l.conns {
		abort(c)
	}
	clear(l.conns)
}

// abort ends c with a reset.
func abort(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = c.Close()
}
