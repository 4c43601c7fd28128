// Package pgserver runs a private PostgreSQL server from installed binaries,
// for keyturn dev and for tests: on a loopback port, with TLS by a
// certificate authority of its own and scram-sha-256 for every connection.
//
// A directory holds one cluster. Starting again on it finds the same data,
// superuser password and, where it is still free, port.
package pgserver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dirlock"
)

// Options of [Start]. Only Dir is required.
type Options struct {
	// BinDir holds initdb and postgres. [FindBinaries] by default.
	BinDir string
	// Dir is where everything is kept. It is made if missing.
	Dir string
	// Log gets what the server and initdb print, from one goroutine at a
	// time, until Stop has returned. nil discards.
	Log io.Writer
	// Port on loopback. By default the one of the last start on Dir if it is
	// free, else any.
	Port int
	// NoSync turns fsync off: faster, and a power cut loses the cluster.
	NoSync bool
	// MaxConnections is 100 by default.
	MaxConnections int
	// Settings are further server parameters by name, such as log_statement.
	Settings map[string]string
}

// A Server is a running PostgreSQL. Its fields do not change after Start.
type Server struct {
	Host string // 127.0.0.1
	Port int
	// CAFile and CAPEM are the certificate of the authority that signed the
	// server's, which is for 127.0.0.1, ::1 and localhost.
	CAFile string
	CAPEM  []byte
	// SuperUser and SuperPassword sign in as the cluster's superuser.
	SuperUser, SuperPassword string
	Pid                      int

	proc *process
	lock io.Closer
	once sync.Once
	err  error
}

const (
	superUser    = "postgres"
	startTimeout = time.Minute
	// A server that is asked to stop gets these to do it: fast shutdown,
	// then immediate shutdown, then SIGKILL.
	fastTimeout  = 10 * time.Second
	quickTimeout = 5 * time.Second
)

// Start makes the cluster if Dir has none, starts the server and returns when
// it accepts connections. ctx bounds the start only; one minute at most. A
// server that a killed process left running on Dir is stopped first. Errors:
// Invalid says what to change, Conflict that another process uses Dir,
// Unavailable carries the end of the server's log.
func Start(ctx context.Context, o Options) (*Server, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if o.Dir == "" {
		return nil, fault.Newf(fault.Invalid, op, "Options.Dir is empty; name a directory for the cluster")
	}
	if o.BinDir == "" {
		if o.BinDir = FindBinaries(); o.BinDir == "" {
			return nil, fault.Newf(fault.NotFound, op, "no initdb and postgres in /usr/lib/postgresql/*/bin or PATH; install them with %q or set %s", InstallHint, BinEnv)
		}
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, err)
	}
	o.Dir = dir
	if o.MaxConnections == 0 {
		o.MaxConnections = 100
	}
	as, err := runAs()
	if err != nil {
		return nil, err
	}
	if err := prepareDir(dir, as); err != nil {
		return nil, err
	}
	// The lock ends with this process, so that a server found running without
	// it has lost its parent.
	lock, err := dirlock.Take(filepath.Join(dir, "lock"))
	if fault.Is(err, fault.Conflict) {
		return nil, fault.Newf(fault.Conflict, op, "%s is in use by another process; stop that one or choose another directory", dir)
	}
	if err != nil {
		return nil, err
	}
	s, err := start(ctx, o, as)
	if err != nil {
		_ = lock.Close()
		return nil, err
	}
	s.lock = lock
	return s, nil
}

const op = "start PostgreSQL"

func start(ctx context.Context, o Options, as *identity) (*Server, error) {
	c := cluster{opts: o, as: as, data: filepath.Join(o.Dir, "data"), log: newTail(o.Log)}
	if err := stopOrphan(c.data); err != nil {
		return nil, err
	}
	password, err := c.ensure(ctx)
	if err != nil {
		return nil, err
	}
	ca, err := ensureCerts(o.Dir, c.data, as)
	if err != nil {
		return nil, fault.New(fault.Unavailable, op, err)
	}
	s := &Server{
		Host: "127.0.0.1", SuperUser: superUser, SuperPassword: password,
		CAFile: filepath.Join(o.Dir, caName), CAPEM: ca,
	}
	// Somebody may take the port between our look and the server's bind.
	for range 3 {
		if s.Port, err = c.port(ctx); err != nil {
			return nil, fault.New(fault.Unavailable, op, err)
		}
		if s.proc, err = c.run(ctx, s.Port); err == nil || o.Port != 0 || !strings.Contains(c.log.String(), "could not bind") {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	s.Pid = s.proc.pid
	if err := writeFile(filepath.Join(o.Dir, "port"), []byte(strconv.Itoa(s.Port)), 0o644); err != nil {
		_ = s.proc.stop()
		return nil, fault.New(fault.Unavailable, op, err)
	}
	return s, nil
}

// port picks the port to listen on.
func (c *cluster) port(ctx context.Context) (int, error) {
	var lc net.ListenConfig
	if c.opts.Port != 0 {
		return c.opts.Port, nil
	}
	if b, err := os.ReadFile(filepath.Join(c.opts.Dir, "port")); err == nil {
		if p, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && p > 0 {
			if l, err := lc.Listen(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(p))); err == nil {
				return p, l.Close()
			}
		}
	}
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	return l.Addr().(*net.TCPAddr).Port, l.Close()
}

// DSN returns a connection URL with verified TLS.
func (s *Server) DSN(user, password, db string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(user, password),
		Host: net.JoinHostPort(s.Host, strconv.Itoa(s.Port)), Path: "/" + db,
		RawQuery: url.Values{"sslmode": {"verify-full"}, "sslrootcert": {s.CAFile}}.Encode(),
	}
	return u.String()
}

// Done is closed when the server has ended, whoever ended it.
func (s *Server) Done() <-chan struct{} { return s.proc.done }

// Stop shuts the server down and waits for it: open sessions are ended, data
// is kept. It takes at most 20 s, may be called more than once, and is nil
// for a server that ended by itself.
func (s *Server) Stop() error {
	s.once.Do(func() {
		s.err = s.proc.stop()
		_ = s.lock.Close()
	})
	return s.err
}

// Format keeps the password out of logs.
func (s *Server) Format(f fmt.State, _ rune) {
	_, _ = fmt.Fprintf(f, "PostgreSQL on %s:%d (pid %d)", s.Host, s.Port, s.Pid)
}

// stopOrphan ends a server that still runs on data although nobody holds the
// directory's lock: its parent was killed.
func stopOrphan(data string) error {
	pid, _ := postmaster(data)
	if pid == 0 || !runsOn(pid, data) {
		return nil // postgres itself clears a stale postmaster.pid
	}
	for _, try := range []struct {
		sig  syscall.Signal
		wait time.Duration
	}{{syscall.SIGINT, fastTimeout}, {syscall.SIGQUIT, quickTimeout}, {syscall.SIGKILL, quickTimeout}} {
		if err := signal(pid, try.sig); err != nil && runsOn(pid, data) {
			return fault.Newf(fault.Unavailable, op, "a PostgreSQL left over from a killed process (pid %d) runs on %s and cannot be stopped: %v", pid, data, err)
		}
		for deadline := time.Now().Add(try.wait); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
			if !runsOn(pid, data) {
				return nil
			}
		}
	}
	return fault.Newf(fault.Unavailable, op, "a PostgreSQL left over from a killed process (pid %d) runs on %s and does not stop; stop it by hand", pid, data)
}

// postmaster reads who serves data and whether it accepts connections, from
// the file that pg_ctl reads too: pid in line 1, state in line 8.
// https://www.postgresql.org/docs/current/storage-file-layout.html
func postmaster(data string) (pid int, ready bool) {
	b, err := os.ReadFile(filepath.Join(data, "postmaster.pid")) //nolint:gosec // our own directory
	if err != nil {
		return 0, false
	}
	lines := strings.Split(string(b), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil || pid <= 1 {
		return 0, false
	}
	return pid, len(lines) >= 8 && strings.TrimSpace(lines[7]) == "ready"
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// writeFile replaces path in one step, so that a kill leaves the old or the
// new content.
func writeFile(path string, b []byte, mode fs.FileMode) error {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// Exclusive: in the data directory another user could have put a link.
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode) //nolint:gosec // our own directory
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
