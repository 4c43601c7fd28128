package pgserver

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// A cluster is one data directory and how to run it.
type cluster struct {
	opts Options
	as   *identity // nil: as ourselves
	data string
	log  *tail
}

// hba wants a password for every connection. Both hostssl and hostnossl are
// there, so that a client's own rules about plaintext can be tested.
const hba = `hostssl   all all 127.0.0.1/32 scram-sha-256
hostnossl all all 127.0.0.1/32 scram-sha-256
`

// ensure makes the cluster if there is none and returns the superuser's
// password. The data directory appears in one step, after its password has
// been stored, so a kill leaves no half cluster.
func (c *cluster) ensure(ctx context.Context) (string, error) {
	pwFile := filepath.Join(c.opts.Dir, "superuser.password")
	if exists(c.data) {
		b, err := os.ReadFile(pwFile)
		if err != nil {
			return "", fault.Newf(fault.Invalid, op, "%s holds a cluster whose superuser password file is not readable (%v); restore %s or remove the directory", c.opts.Dir, err, pwFile)
		}
		return strings.TrimSpace(string(b)), nil
	}
	password := rand.Text() + rand.Text()
	fresh := c.data + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return "", fault.New(fault.Unavailable, op, err)
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return "", fault.New(fault.Unavailable, op, err)
	}
	// initdb reads the password as the user that it runs as.
	given := filepath.Join(c.opts.Dir, "initdb.password")
	defer func() { _ = os.Remove(given) }()
	err := errors.Join(
		writeFile(pwFile, []byte(password+"\n"), 0o600),
		writeFile(given, []byte(password+"\n"), 0o600),
		c.as.own(given), c.as.own(fresh))
	if err != nil {
		return "", fault.New(fault.Unavailable, op, err)
	}
	args := []string{
		"--pgdata=" + fresh, "--username=" + superUser, "--pwfile=" + given, "--encoding=UTF8", "--no-locale",
		"--auth-local=scram-sha-256", "--auth-host=scram-sha-256", "--no-instructions",
	}
	if c.opts.NoSync {
		args = append(args, "--no-sync")
	}
	cmd := c.command("initdb", args...)
	p, err := launch(cmd, c.as)
	if err != nil {
		return "", fault.New(fault.Unavailable, op, err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		_ = p.stop()
		return "", fault.New(fault.Unavailable, "initdb", ctx.Err())
	}
	if p.err != nil {
		return "", fault.Newf(fault.Unavailable, "initdb", "%v\n%s", p.err, c.log)
	}
	hbaFile := filepath.Join(fresh, "pg_hba.conf")
	if err := errors.Join(writeFile(hbaFile, []byte(hba), 0o600), c.as.own(hbaFile)); err != nil {
		return "", fault.New(fault.Unavailable, op, err)
	}
	if err := os.Rename(fresh, c.data); err != nil {
		return "", fault.New(fault.Unavailable, op, err)
	}
	return password, nil
}

// run starts the server and waits until it accepts connections.
func (c *cluster) run(ctx context.Context, port int) (*process, error) {
	c.log.reset()
	settings := map[string]string{
		"listen_addresses": "127.0.0.1", "port": strconv.Itoa(port), "unix_socket_directories": "",
		"max_connections": strconv.Itoa(c.opts.MaxConnections), "password_encryption": "scram-sha-256",
		"ssl": "on", "ssl_cert_file": "server.crt", "ssl_key_file": "server.key", "ssl_min_protocol_version": "TLSv1.2",
		// A private server for development needs neither replicas nor much
		// memory.
		"shared_buffers": "32MB", "wal_level": "minimal", "max_wal_senders": "0",
		"logging_collector": "off", "log_destination": "stderr",
	}
	if c.opts.NoSync {
		settings["fsync"], settings["synchronous_commit"], settings["full_page_writes"] = "off", "off", "off"
	}
	for k, v := range c.opts.Settings {
		settings[k] = v
	}
	args := []string{"-D", c.data}
	names := make([]string, 0, len(settings))
	for k := range settings {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		args = append(args, "-c", k+"="+settings[k])
	}
	p, err := launch(c.command("postgres", args...), c.as)
	if err != nil {
		return nil, fault.New(fault.Unavailable, op, err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if pid, ready := postmaster(c.data); ready && pid == p.pid {
			return p, nil
		}
		select {
		case <-tick.C:
		case <-p.done:
			return nil, fault.Newf(fault.Unavailable, op, "the server ended: %v\n%s", p.err, c.log)
		case <-ctx.Done():
			_ = p.stop()
			return nil, &fault.Error{Kind: fault.Unavailable, Op: op, Msg: "not ready in time\n" + c.log.String(), Err: ctx.Err()}
		}
	}
}

// command prepares one of the binaries with an environment that nothing of
// ours, such as PGDATA or PGOPTIONS, can reach.
func (c *cluster) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.opts.BinDir, name), args...) //nolint:gosec,noctx // the operator's own binaries; the server outlives the context of its start
	cmd.Dir = c.opts.Dir
	cmd.Env = []string{"PATH=" + c.opts.BinDir + string(os.PathListSeparator) + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	cmd.Stdout, cmd.Stderr = c.log, c.log
	// Backends inherit the pipes and may outlive a killed postmaster a bit.
	cmd.WaitDelay = quickTimeout
	return cmd
}

// A tail passes a log on and remembers its end, for error messages.
type tail struct {
	mu  sync.Mutex
	out io.Writer
	b   []byte
}

const tailSize = 4096

func newTail(out io.Writer) *tail {
	if out == nil {
		out = io.Discard
	}
	return &tail{out: out}
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, b...)
	if over := len(t.b) - tailSize; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	// The server must not stall or die because its log cannot be written.
	_, _ = t.out.Write(b)
	return len(b), nil
}

func (t *tail) reset() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.b))
}
