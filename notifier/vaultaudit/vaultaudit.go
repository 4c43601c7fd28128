// Package vaultaudit receives audit entries of Vault and OpenBao, by a socket
// to which their socket device writes, by the HTTP device that only OpenBao
// has, and from the file of their file device.
//
// Vault waits for its audit devices: an entry that a device does not take
// blocks or fails the request that it is about, and OpenBao's HTTP device has
// neither a time limit nor a second try.
// https://developer.hashicorp.com/vault/docs/audit#blocked-audit-devices
// So an entry is answered from one local append to a spool on disk, and a
// worker publishes from there later. The bus can be away for as long as the
// spool has room, and no request of Vault notices.
//
// # What is lost, and when
//
// An answer means that the entry is in the spool, and by default on the disk.
// A tailed file is never lost from: reading waits while the spool is full. For
// a socket or the HTTP device there is one case in which an entry is answered
// and dropped: when the spool is full, or its disk does not write. The choice
// is then between a hint that nobody hears and a Vault that serves nobody, and
// the hint is the smaller loss, because agents poll and a resync lists what
// changed. Every such drop is an error in the log and an [Observation] to alert
// on. It is the newest that is dropped: the older ones are promised, and in
// flight. Where a second audit device makes Vault safe from this one, set
// RefuseWhenFull, and a drop becomes 503, which Vault logs as well.
//
// A socket has no answers. What is still in the kernel when this process is
// killed is lost, and Vault's socket device may lose an entry itself when the
// connection breaks. The HTTP device and the file lose nothing.
//
// # What is stored
//
// Entries that mean no event, which are nearly all, are thrown away unstored,
// see [Relevant]. Of the others the spool gets only what a decoder needs, see
// [Redact]: no payload, no HMAC of one, no token. Files have mode 0600, the
// directory 0700.
package vaultaudit

import (
	"context"
	"crypto/tls"
	"io/fs"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/spool"
	"github.com/keyturn/keyturn/notifier"
)

const op = "vaultaudit"

// Options of [Open]. Dir is required; the zero value of each other field means
// its default.
type Options struct {
	// Name is the source name of deliveries. "vaultaudit" by default.
	Name string
	// Dir is the directory of the spool, for this source and process alone. It
	// is made if it is missing. It belongs on a disk that survives a restart.
	Dir string
	// MaxBytes bounds the spool. 1 GiB by default, which is about two million
	// entries.
	MaxBytes int64
	// NoSync answers before the disk has an entry: it survives the end of the
	// process, not that of the machine.
	NoSync bool
	// AppendTimeout bounds how long an answer waits for the disk. 1 s by
	// default.
	AppendTimeout time.Duration
	// RefuseWhenFull answers the HTTP device 503 for an entry that cannot be
	// stored. By default it is dropped and answered 200.
	RefuseWhenFull bool
	// MaxLine bounds an entry in bytes. 1 MiB by default, and at most 2 MiB.
	MaxLine int
	// MaxInFlight bounds how many deliveries are handled at a time. 64 by
	// default. Sixteen times as many may wait in memory.
	MaxInFlight int
	// Backoff and MaxBackoff are how long a delivery that failed waits at
	// first and at most. 100 ms and 10 s by default.
	Backoff, MaxBackoff time.Duration
	// Drain bounds how long deliveries in flight may go on after the end of
	// the context of Run. 5 s by default.
	Drain time.Duration
	// Socket listens for a socket device. nil does not.
	Socket *Socket
	// File follows the file of a file device. nil does not.
	File *File
	// Logger gets no content of any entry. The default discards.
	Logger *slog.Logger
	// Observe is called with what became of entries, for metrics. It must not
	// block, and be safe for concurrent use.
	Observe func(Observation)

	// create makes a file of the spool, in tests whose disk fails.
	create func(string) (spool.File, error)
}

// A Socket listens for JSON lines. There is no way in a socket device to prove
// who writes, so it is for this machine, unless TLS asks for a certificate.
type Socket struct {
	// Network is "tcp" or "unix". "tcp" by default.
	Network string
	// Address is where to listen. 127.0.0.1:9090 by default; for unix the path
	// of the socket, which has no default.
	Address string
	// TLS is for a proxy in front of Vault, which itself does not speak TLS to
	// a socket device.
	TLS *tls.Config
	// AllowRemote allows an address beyond loopback without TLS that verifies
	// clients. Whoever reaches it can then forge events.
	AllowRemote bool
	// Mode is the mode of a unix socket. 0600 by default: only the same user
	// can write. Use 0660 and a common group if Vault is another one.
	Mode fs.FileMode
	// MaxConns bounds connections; more are closed at once. 1024 by default.
	MaxConns int
	// LineTimeout bounds the time from the first byte of a line to its last. A
	// connection may be idle for ever between lines. 10 s by default.
	LineTimeout time.Duration
}

// A File is followed by name, through renames and truncations. Its position is
// kept in the directory of the spool.
type File struct {
	// Path is the file. It may appear later.
	Path string
	// FromStart reads what is in the file the first time that it is followed.
	// By default that history is passed over: it is old news. Later starts go
	// on where the last one ended.
	FromStart bool
	// Poll is how often to look. 100 ms by default.
	Poll time.Duration
}

// A Source is a [notifier.Source].
type Source struct {
	o    Options
	sp   *spool.Spool
	ln   net.Listener
	tail *tail

	closing atomic.Bool
	slots   chan struct{} // requests that are being read
	partial atomic.Int64  // bytes of half lines in memory
	dropped throttle
	noisy   throttle // for refused connections

	mu    sync.Mutex
	stubs map[string]time.Time // when a like line was last passed on
}

var _ notifier.Source = (*Source)(nil)

// Open opens the spool and the socket, so that what is wrong with them is an
// error at once, and [Source.Handler] works from now on. The error is of kind
// Invalid for options that cannot work, Conflict for a spool or socket of
// another process, Denied or Unavailable for what the system says.
func Open(ctx context.Context, o Options) (*Source, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Source{o: o, slots: make(chan struct{}, maxRequests), stubs: map[string]time.Time{}}
	if s.sp, err = spool.Open(o.Dir, spool.Options{MaxBytes: o.MaxBytes, NoSync: o.NoSync, Logger: o.Logger, Create: o.create}); err != nil {
		return nil, err
	}
	if o.Socket != nil {
		if s.ln, err = listen(ctx, *o.Socket); err != nil {
			_ = s.sp.Close()
			return nil, err
		}
	}
	if o.File != nil {
		s.tail = newTail(s, *o.File)
	}
	return s, nil
}

// Addr is where the socket listens, or nil.
func (s *Source) Addr() net.Addr {
	if s.ln == nil {
		return nil
	}
	return s.ln.Addr()
}

// Stats tells how full the spool is.
func (s *Source) Stats() spool.Stats { return s.sp.Stats() }

// Close gives everything back if Run was never called.
func (s *Source) Close() error {
	s.closing.Store(true)
	if s.ln != nil {
		_ = s.ln.Close()
	}
	return s.sp.Close()
}

// Run takes entries and delivers them until ctx is done. Then it takes nothing
// new, lets deliveries in flight go on for the drain time, and closes the
// spool, which keeps what is not delivered for the next process. It returns
// nil after ctx is done, else what ended the socket.
func (s *Source) Run(ctx context.Context, h notifier.Handler) error {
	run, end := context.WithCancel(ctx)
	defer end()
	var failed error
	var in, out sync.WaitGroup
	if s.ln != nil {
		in.Go(func() {
			if failed = s.serve(run); failed != nil {
				end()
			}
		})
	}
	if s.tail != nil {
		in.Go(func() { s.tail.run(run) })
	}
	out.Go(func() { s.deliver(run, h) })
	<-run.Done()
	s.closing.Store(true)
	in.Wait()
	out.Wait()
	if err := s.Close(); failed == nil && err != nil {
		failed = err
	}
	return failed
}

func (o Options) withDefaults() (Options, error) {
	bad := func(format string, args ...any) (Options, error) {
		return Options{}, fault.Newf(fault.Invalid, op, format, args...)
	}
	if o.Dir == "" {
		return bad("no directory for the spool; expected one that survives a restart")
	}
	setDefault(&o.Name, "vaultaudit")
	setDefault(&o.MaxBytes, 1<<30)
	setDefault(&o.AppendTimeout, time.Second)
	setDefault(&o.MaxLine, 1<<20)
	setDefault(&o.MaxInFlight, 64)
	setDefault(&o.Backoff, 100*time.Millisecond)
	setDefault(&o.MaxBackoff, 10*time.Second)
	setDefault(&o.Drain, 5*time.Second)
	if o.MaxBytes < 0 || o.AppendTimeout < 0 || o.MaxInFlight < 0 || o.Backoff < 0 || o.MaxBackoff < o.Backoff || o.Drain < 0 {
		return bad("a bound is negative, or MaxBackoff below Backoff; expected positive ones, or 0 for the default")
	}
	if o.MaxLine < 1024 || o.MaxLine > spool.MaxRecord-stamp {
		return bad("MaxLine is %d bytes; expected 1024 to %d", o.MaxLine, spool.MaxRecord-stamp)
	}
	if o.Socket != nil {
		c, err := o.Socket.withDefaults()
		if err != nil {
			return Options{}, err
		}
		o.Socket = &c
	}
	if o.File != nil {
		f := *o.File
		if f.Path == "" || f.Poll < 0 {
			return bad("a file without a path, or with a negative interval; expected the file_path of Vault's file device")
		}
		setDefault(&f.Poll, 100*time.Millisecond)
		o.File = &f
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Observe == nil {
		o.Observe = func(Observation) {}
	}
	return o, nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
