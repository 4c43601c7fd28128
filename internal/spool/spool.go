// Package spool is a queue on disk for one process: many append, one reads in
// order, and what was read is forgotten when it is done. An append is answered
// from one local write, so whoever waits for the answer never waits for what
// comes after the queue.
//
// The log is a directory of segments. A segment is a magic number and records
// of length, CRC-32C and bytes. Segments are only ever appended to, by the
// process that made them: after a crash the torn end of the last one is cut
// off and a new one begun. A segment is removed when all its records are done;
// a cursor beside the segments keeps what was done of the oldest one. Both may
// lag, so that a record is read at least once, never not at all.
//
// tidwall/wal v1.2.1 was judged for this and found unfit: Open refuses a log
// with a torn tail for good (ErrCorrupt), records have no checksum, so that a
// flipped bit is returned as data, whole segments are kept in memory, and what
// was consumed is not kept without rewriting a segment.
package spool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dirlock"
)

const (
	op = "spool"

	defaultMaxBytes     = 1 << 30
	defaultSegmentBytes = 8 << 20
	// maxPending bounds, in bytes, what waits in memory for a disk that hangs.
	maxPending = 4 << 20
	// MaxRecord is the longest record in bytes.
	MaxRecord = 2 << 20

	suffix     = ".seg"
	cursorName = "cursor"
)

// What an append can fail with beside the disk's own error. They are of kind
// Unavailable.
var (
	// ErrFull says that the spool has MaxBytes.
	ErrFull error = fault.Newf(fault.Unavailable, op, "the spool is full; expected its reader to keep up, or a larger bound")
	// ErrBusy says that the disk does not keep up.
	ErrBusy error = fault.Newf(fault.Unavailable, op, "too much waits for the disk; expected it to take writes within milliseconds")
	// ErrClosed says that Close was called.
	ErrClosed error = fault.Newf(fault.Unavailable, op, "the spool is closed")
)

// A File is a segment that is being written.
type File interface {
	io.WriteCloser
	Sync() error
	Truncate(size int64) error
}

// Options of [Open]. The zero value of each field means its default.
type Options struct {
	// MaxBytes bounds all segments together. 1 GiB by default, 64 KiB at
	// least.
	MaxBytes int64
	// SegmentBytes is after how many bytes a new segment is begun. 8 MiB by
	// default, and never more than an eighth of MaxBytes.
	SegmentBytes int64
	// NoSync leaves it to the operating system when bytes reach the disk:
	// records survive the end of the process, not that of the machine.
	NoSync bool
	// Logger hears of records that were lost. The default discards.
	Logger *slog.Logger
	// Create makes a segment, for tests whose disk fails. By default it is
	// created with mode 0600, and must not exist.
	Create func(name string) (File, error)
}

// Stats are what a spool holds.
type Stats struct {
	// Bytes are on disk, with what is done of a segment that is still used.
	Bytes int64
	// Segments is the number of files.
	Segments int
	// Waiting counts the records that were appended by this process and not
	// yet read. Those that an earlier process left are not counted.
	Waiting int64
	// Taken counts the records that were read and are not done.
	Taken int
	// Lost counts bytes that could not be read back.
	Lost int64
}

// A Spool is an open directory. Add, Append, Done and Stats are safe for
// concurrent use; Next is for one reader.
type Spool struct {
	dir    string
	o      Options
	lock   io.Closer
	cursor *os.File

	mu      sync.Mutex
	segs    []*segment // oldest first
	next    uint64     // number of the next segment
	total   int64      // bytes of segs
	pending *batch     // not yet taken by the committer
	writing int64      // bytes that the committer is writing
	taken   []*Record  // in order of reading; the first is not done
	stats   Stats
	closed  bool

	work    chan struct{} // wakes the committer
	more    chan struct{} // wakes the reader
	stop    chan struct{} // closed by Close
	stopped chan struct{} // closed when the committer ended

	active *segment // the committer's
	file   File     // of active

	cmu   sync.Mutex // held while the cursor is written; before mu
	rmu   sync.Mutex // held while reading; before mu
	r     reader
	ended bool // the directory is given back
}

// A segment is one file. Its size is what is committed.
type segment struct {
	num    uint64
	path   string
	size   int64
	sealed bool
	// from is where reading begins.
	from int64
}

// Open opens dir, which is made with mode 0700 if it is missing, and takes it
// for this process. The error is Invalid for a bound that cannot work, Conflict
// if another process has it, Denied or Unavailable for what the disk says.
func Open(dir string, o Options) (*Spool, error) {
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultMaxBytes
	}
	if o.MaxBytes < 64<<10 || o.SegmentBytes < 0 {
		return nil, fault.Newf(fault.Invalid, op, "a bound of %d bytes; expected at least %d", o.MaxBytes, 64<<10)
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	o.SegmentBytes = min(o.SegmentBytes, o.MaxBytes/8)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Create == nil {
		o.Create = func(name string) (File, error) {
			return os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, disk("make the directory", err)
	}
	lock, err := dirlock.Take(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, err
	}
	s := &Spool{
		dir: dir, o: o, lock: lock,
		work: make(chan struct{}, 1), more: make(chan struct{}, 1),
		stop: make(chan struct{}), stopped: make(chan struct{}),
	}
	if err := s.load(); err != nil {
		_ = lock.Close()
		return nil, err
	}
	go s.commits()
	return s, nil
}

// load finds what an earlier process left.
func (s *Spool) load() error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return disk("list the directory", err)
	}
	for _, e := range entries {
		digits, ok := strings.CutSuffix(e.Name(), suffix)
		num, err := strconv.ParseUint(digits, 10, 64)
		if !ok || err != nil || name(num) != e.Name() {
			continue
		}
		info, err := e.Info()
		if err != nil {
			return disk("look at a segment", err)
		}
		s.segs = append(s.segs, &segment{num: num, path: filepath.Join(s.dir, e.Name()), size: info.Size(), sealed: true, from: headerLen})
	}
	slices.SortFunc(s.segs, func(a, b *segment) int { return int(min(max(int64(a.num)-int64(b.num), -1), 1)) })
	if n := len(s.segs); n > 0 {
		// Only the last can be torn: each was checked when it was the last.
		if err := s.segs[n-1].cut(); err != nil {
			return err
		}
		s.next = s.segs[n-1].num
	}
	if s.cursor, err = os.OpenFile(filepath.Join(s.dir, cursorName), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		return disk("open the cursor", err)
	}
	num, off := readCursor(s.cursor)
	// Segments are never numbered below the cursor, which would skip them.
	s.next = max(s.next, num) + 1
	for len(s.segs) > 0 {
		g := s.segs[0]
		if g.num > num || g.num == num && off < g.size {
			if g.num == num {
				g.from = max(off, headerLen)
			}
			if g.size > headerLen {
				break
			}
		}
		if err := os.Remove(g.path); err != nil {
			return disk("remove a segment that is done", err)
		}
		s.segs = s.segs[1:]
	}
	for _, g := range s.segs {
		s.total += g.size
	}
	return nil
}

// Stats tells what the spool holds.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Bytes, st.Segments, st.Taken = s.total, len(s.segs), len(s.taken)
	return st
}

// Close writes what was added, ends Next, and gives the directory back. What is
// taken and not done will be read again by the next process. It may be called
// twice.
func (s *Spool) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		<-s.stopped
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	<-s.stopped

	s.cmu.Lock()
	defer s.cmu.Unlock()
	s.rmu.Lock()
	defer s.rmu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.r.close()
	s.ended = true
	if s.file != nil {
		_ = s.file.Close()
		s.file, s.active = nil, nil
	}
	if len(s.taken) == 0 && s.r.at(s.segs) {
		s.remove(s.segs) // nothing waits, so nothing has to lie here
		s.segs, s.total = nil, 0
	}
	return errors.Join(s.cursor.Close(), s.lock.Close())
}

// disk classifies an error of the operating system. Its text has a path and no
// content.
func disk(what string, err error) error {
	kind := fault.Unavailable
	if errors.Is(err, os.ErrPermission) {
		kind = fault.Denied
	}
	return fault.New(kind, op+": "+what, err)
}

func name(num uint64) string { return fmt.Sprintf("%020d%s", num, suffix) }

// Append adds recs and waits until they are as safe as NoSync says, or for ctx.
// An error of ctx leaves it open whether they will be.
func (s *Spool) Append(ctx context.Context, recs ...[]byte) error {
	c, err := s.Add(recs...)
	if err != nil {
		return err
	}
	return c.Wait(ctx)
}
