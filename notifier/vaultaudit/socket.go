package vaultaudit

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/spool"
)

const (
	// readBuffer is how much of a connection is read at a time.
	readBuffer = 32 << 10
	// maxPartial bounds, in bytes, the half lines of all connections together
	// beyond their read buffers.
	maxPartial = 64 << 20
	// lastRead is how long a connection is read after the end of Run.
	lastRead = 200 * time.Millisecond
	// maxBatch is after how many bytes of records they are stored, though more
	// lines have arrived.
	maxBatch = 1 << 20
)

func (c Socket) withDefaults() (Socket, error) {
	bad := func(format string, args ...any) (Socket, error) {
		return Socket{}, fault.Newf(fault.Invalid, op+": socket", format, args...)
	}
	setDefault(&c.Network, "tcp")
	setDefault(&c.Mode, 0o600)
	setDefault(&c.MaxConns, 1024)
	setDefault(&c.LineTimeout, 10*time.Second)
	if c.MaxConns < 0 || c.LineTimeout < 0 {
		return bad("a bound is negative; expected positive ones, or 0 for the default")
	}
	switch c.Network {
	case "tcp":
		setDefault(&c.Address, "127.0.0.1:9090")
		host, _, err := net.SplitHostPort(c.Address)
		if err != nil {
			return bad("address %q; expected host:port", c.Address)
		}
		ip := net.ParseIP(host)
		proven := c.TLS != nil && c.TLS.ClientAuth >= tls.RequireAndVerifyClientCert
		if host != "localhost" && (ip == nil || !ip.IsLoopback()) && !proven && !c.AllowRemote {
			return bad("address %q is beyond this machine, and whoever reaches it could forge events; expected a loopback address, TLS that verifies clients, or AllowRemote", c.Address)
		}
	case "unix":
		if c.Address == "" || c.TLS != nil {
			return bad("a unix socket without a path, or with TLS; expected a path and no TLS")
		}
	default:
		return bad("network %q; expected tcp or unix", c.Network)
	}
	return c, nil
}

func listen(ctx context.Context, c Socket) (net.Listener, error) {
	if c.Network == "unix" {
		return listenUnix(ctx, c)
	}
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", c.Address)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: op + ": listen", Err: err}
	}
	if c.TLS != nil {
		conf := c.TLS.Clone()
		conf.MinVersion = max(conf.MinVersion, tls.VersionTLS12)
		ln = tls.NewListener(ln, conf)
	}
	return ln, nil
}

// listenUnix makes the socket under another name in a directory that only we
// can enter, and moves it into place when its mode is right: there is no moment
// at which others could connect. What an earlier process left is replaced.
func listenUnix(ctx context.Context, c Socket) (net.Listener, error) {
	if info, err := os.Lstat(c.Address); err == nil {
		if info.Mode().Type() != os.ModeSocket {
			return nil, fault.Newf(fault.Conflict, op+": listen", "%s exists and is no socket; expected a free path", c.Address)
		}
		if conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", c.Address); err == nil {
			_ = conn.Close()
			return nil, fault.Newf(fault.Conflict, op+": listen", "somebody listens on %s; expected a free path", c.Address)
		}
	}
	unavailable := func(err error) (net.Listener, error) {
		return nil, &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: op + ": listen", Err: err}
	}
	dir, err := os.MkdirTemp(filepath.Dir(c.Address), ".kt")
	if err != nil {
		return unavailable(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	name := filepath.Join(dir, "s")
	ln, err := (&net.ListenConfig{}).Listen(ctx, "unix", name)
	if err != nil {
		return unavailable(err)
	}
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	if err := errors.Join(os.Chmod(name, c.Mode.Perm()), os.Rename(name, c.Address)); err != nil {
		_ = ln.Close()
		return unavailable(err)
	}
	return &unixListener{Listener: ln, path: c.Address}, nil
}

// A unixListener removes its socket when it is closed.
type unixListener struct {
	net.Listener
	path string
	once sync.Once
}

func (l *unixListener) Close() error {
	err := l.Listener.Close()
	l.once.Do(func() { _ = os.Remove(l.path) })
	return err
}

// serve accepts connections until ctx is done.
func (s *Source) serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.ln.Close() })
	defer stop()
	var conns sync.WaitGroup
	defer conns.Wait()
	slots := make(chan struct{}, s.o.Socket.MaxConns)
	for failures := 0; ; {
		conn, err := s.ln.Accept()
		if ctx.Err() != nil {
			if conn != nil {
				_ = conn.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: op + ": accept", Err: err}
		}
		if err != nil { // as too many open files: it passes
			failures++
			if held, ok := s.noisy.allow(time.Now(), 1); ok {
				s.o.Logger.ErrorContext(ctx, "no connection can be accepted", "source", s.o.Name, "failures", held, "err", err)
			}
			select {
			case <-time.After(min(5*time.Millisecond<<min(failures, 8), time.Second)):
			case <-ctx.Done():
			}
			continue
		}
		failures = 0
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.Close()
			if held, ok := s.noisy.allow(time.Now(), 1); ok {
				s.o.Logger.WarnContext(ctx, "connections refused: too many", "source", s.o.Name, "refused", held, "limit", cap(slots))
			}
			continue
		}
		conns.Go(func() {
			defer func() { <-slots }()
			s.receiveLines(ctx, conn)
		})
	}
}

// receiveLines stores the lines of conn until its end, that of ctx, or a line
// that does not end in time.
func (s *Source) receiveLines(ctx context.Context, conn net.Conn) {
	defer func() { _ = conn.Close() }()
	// What has arrived is still read: nobody will send it again.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now().Add(lastRead)) })
	defer stop()
	l := &lines{s: s, conn: conn, r: bufio.NewReaderSize(conn, readBuffer), ended: ctx}
	defer l.release()
	for {
		in, err := l.read()
		in.tell(s, viaSocket)
		// Meanwhile the kernel keeps what comes: there is nobody to answer, but
		// memory is bounded.
		if len(in.recs) > 0 {
			if c, err := s.add(in.recs); err != nil {
				s.drop(viaSocket, reason(err), len(in.recs))
			} else {
				s.await(c, len(in.recs))
			}
		}
		if err != nil {
			return
		}
	}
}

// add adds recs, and waits if the disk is busy.
func (s *Source) add(recs [][]byte) (*spool.Commit, error) {
	for deadline := time.Now().Add(s.o.AppendTimeout); ; time.Sleep(2 * time.Millisecond) {
		c, err := s.sp.Add(recs...)
		if !errors.Is(err, spool.ErrBusy) || time.Now().After(deadline) {
			return c, err
		}
	}
}

// await tells what became of n records that were added.
func (s *Source) await(c *spool.Commit, n int) {
	ctx, cancel := context.WithTimeout(context.Background(), s.o.AppendTimeout)
	defer cancel()
	if err := c.Wait(ctx); err != nil {
		s.drop(viaSocket, "disk", n)
		return
	}
	s.count(viaSocket, Stored, "", n)
}

// lines reads whole lines off a connection.
type lines struct {
	s     *Source
	conn  net.Conn
	r     *bufio.Reader
	ended context.Context //nolint:containedctx // of the connection
	part  []byte          // the beginning of a line that is longer than r
	held  int             // bytes of part that are accounted for
	over  bool            // the line is too long and its rest is passed over
	timed bool            // a deadline is set
	until time.Time       // the last one, after the end of Run
}

// read waits for a line, and takes those that came with it. The error is that
// of the connection, after which the lines in in still count.
func (l *lines) read() (in intake, err error) {
	now := time.Time{}
	for {
		if l.r.Buffered() == 0 {
			if len(in.recs)+in.irrelevant+in.unreadable+in.tooBig > 0 {
				return in, nil
			}
			if err := l.wait(); err != nil {
				return in, l.end(err)
			}
			now = time.Now()
		} else if now.IsZero() {
			now = time.Now()
		}
		if in.size >= maxBatch {
			return in, nil
		}
		// In the middle of a line: its end must come in time.
		if b, _ := l.r.Peek(l.r.Buffered()); !l.timed && bytes.IndexByte(b, '\n') < 0 {
			if len(in.recs) > 0 {
				return in, nil // store what is whole before waiting
			}
			l.deadline(now.Add(l.s.o.Socket.LineTimeout))
		}
		chunk, err := l.r.ReadSlice('\n')
		switch {
		case err == nil:
			l.line(&in, chunk, now)
		case errors.Is(err, bufio.ErrBufferFull):
			l.grow(&in, chunk)
		default:
			return in, l.end(err)
		}
	}
}

// wait waits, as long as it takes, for the first byte of a line, or within its
// time for more of one.
func (l *lines) wait() error {
	if l.timed && len(l.part) == 0 && !l.over {
		l.deadline(time.Time{})
	}
	_, err := l.r.Peek(1)
	return err
}

// end tells of a line that did not end in time. One at which the connection
// ended is none: Vault writes it again on its next connection.
func (l *lines) end(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) && l.ended.Err() == nil {
		l.s.drop(viaSocket, "cut", 1)
	}
	return err
}

func (l *lines) deadline(t time.Time) {
	_ = l.conn.SetReadDeadline(t)
	l.timed = !t.IsZero()
	if l.ended.Err() != nil { // the last deadline must stand
		if l.until.IsZero() {
			l.until = time.Now().Add(lastRead)
		}
		_ = l.conn.SetReadDeadline(l.until)
	}
}

// line takes the end of a line.
func (l *lines) line(in *intake, chunk []byte, now time.Time) {
	switch {
	case l.over:
	case len(l.part) > 0:
		in.add(l.s, append(l.part, chunk...), now)
	default:
		in.add(l.s, chunk, now)
	}
	l.over = false
	l.release()
	if l.timed {
		l.deadline(time.Time{})
	}
}

// grow takes a piece of a line that is longer than the buffer, if the line is
// not too long and there is memory for it.
func (l *lines) grow(in *intake, chunk []byte) {
	if l.over {
		return
	}
	if need := len(l.part) + len(chunk); need > l.s.o.MaxLine || l.s.partial.Add(int64(len(chunk))) > maxPartial {
		if need <= l.s.o.MaxLine {
			l.held += len(chunk)
		}
		in.cut(append(l.part, chunk...))
		l.over = true
		l.release()
		return
	}
	l.held += len(chunk)
	l.part = append(l.part, chunk...)
}

// release forgets the half line.
func (l *lines) release() {
	l.s.partial.Add(-int64(l.held))
	l.part, l.held = nil, 0
}
