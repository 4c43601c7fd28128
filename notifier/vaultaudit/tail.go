package vaultaudit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"time"

	"github.com/keyturn/keyturn/internal/spool"
)

const (
	// tailChunk is how much of the file is read at a time.
	tailChunk = 256 << 10
	// maxPiece is how many bytes of records are stored at a time.
	maxPiece = 256 << 10
	// saveEvery is how often the position is written at most. What is read
	// again after a crash is harmless: events are named by what happened.
	saveEvery = time.Second
)

// A tail follows a file by name. It looks at the file ten times a second rather
// than being told by the kernel: that costs a stat, works on every file system,
// and there is no event that can be missed or come in another order.
//
// nxadm/tail v1.4.11 was judged for this: it opens the new file as soon as the
// old one is renamed, without reading what Vault wrote in between; it takes a
// file that was truncated and grew again for one that only grew; it buffers a
// line of any length; and it knows a position as an offset only, so that a
// rotation while it is down goes unseen.
//
// A file is known by its head, the first bytes that were read of it, since
// inodes are used again and copytruncate keeps the inode: entries have times
// and random ids, so no two files begin alike.
type tail struct {
	s *Source
	f File

	file   *os.File
	info   os.FileInfo // of file, as it was opened
	pos    position
	resume bool // the file of pos is to be found
	over   bool // in the middle of a line that is too long
	broken bool // the last read failed
	dirty  bool // pos is not written
	saved  time.Time
	cause  string // why reading does not go on, to say so once
}

func newTail(s *Source, f File) *tail { return &tail{s: s, f: f} }

// run follows the file until ctx is done.
func (t *tail) run(ctx context.Context) {
	defer func() {
		t.close()
		t.save(true)
	}()
	t.start(ctx)
	for ctx.Err() == nil {
		more := t.look(ctx)
		t.save(false)
		if more {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(t.f.Poll):
		}
	}
}

// start finds where the last process ended. Where that cannot be told it reads
// all of the file: twice is better than never.
func (t *tail) start(ctx context.Context) {
	known, err := t.load()
	if err != nil {
		t.s.o.Logger.ErrorContext(ctx, "the position in the audit file cannot be read; reading the file from its beginning, and none that was rotated away", "source", t.s.o.Name, "err", err)
	}
	if t.resume = known; known {
		t.catchUp(ctx, true)
		return
	}
	t.pos = position{}
	if !t.f.FromStart && err == nil && t.open(t.f.Path) == nil {
		if err := t.toEnd(); err != nil {
			t.fail(err)
		}
	}
	t.dirty = true
	t.save(true)
}

// look reads what is new, and reports whether there may be more at once.
func (t *tail) look(ctx context.Context) (more bool) {
	if t.resume {
		t.catchUp(ctx, false)
		return !t.resume
	}
	if t.file == nil {
		if err := t.open(t.f.Path); err != nil {
			t.fail(err)
			return false
		}
	}
	now, err := os.Stat(t.f.Path)
	if err == nil && os.SameFile(now, t.info) {
		if same, err := t.same(t.file); err != nil {
			t.fail(err)
			return false
		} else if !same { // truncated: the rest may be in a copy
			t.close()
			t.resume = true
			return true
		}
		return t.read(ctx)
	}
	// Renamed or removed. Vault writes to the old file until it is told to open
	// the new one, which it has done once there is something in that; a file in
	// the new place that is empty may have been made by others.
	more = t.read(ctx)
	if more || err != nil || now.Size() == 0 || ctx.Err() != nil {
		return more
	}
	for t.read(ctx) { //nolint:revive // to the end, once more, for what came before the first line of the new file
	}
	if ctx.Err() != nil || !t.ended() {
		return false
	}
	t.between(ctx)
	return true
}

// ended reports whether everything in the file was stored. Half a line at the
// end of a file that is no longer written to will never be whole.
func (t *tail) ended() bool {
	info, err := t.file.Stat()
	if err != nil {
		return true
	}
	if t.broken {
		return false
	}
	if t.pos.Offset < info.Size() && !t.over {
		t.s.drop(viaFile, "cut", 1)
	}
	return true
}

// open opens path at its beginning.
func (t *tail) open(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file; expected the file of a file device")
	}
	if err != nil {
		_ = f.Close()
		return err
	}
	t.file, t.info, t.over = f, info, false
	t.pos = position{}
	t.dirty = true
	return nil
}

func (t *tail) close() {
	if t.file != nil {
		_ = t.file.Close()
	}
	t.file, t.info = nil, nil
}

// read stores what is whole of the next chunk, and reports whether there may be
// more.
func (t *tail) read(ctx context.Context) (more bool) {
	size := tailChunk
	for {
		buf := make([]byte, size)
		n, err := t.file.ReadAt(buf, t.pos.Offset)
		t.broken = err != nil && !errors.Is(err, io.EOF)
		if t.broken {
			t.fail(err)
			return false
		}
		buf = buf[:n]
		end := bytes.LastIndexByte(buf, '\n') + 1
		var in intake
		switch {
		case t.over && end == 0: // still within a line that is too long
			return t.keep(ctx, &in, buf) && n == size
		case end > 0:
			for line := range bytes.Lines(buf[:end]) {
				if !t.over {
					in.add(t.s, line, time.Now())
				}
				t.over = false
			}
			return t.keep(ctx, &in, buf[:end]) && n == size
		case n <= t.s.o.MaxLine && n < size:
			return false // half a line: the rest comes
		case n <= t.s.o.MaxLine:
			size = t.s.o.MaxLine + 1
		default:
			in.cut(buf)
			if !t.keep(ctx, &in, buf) {
				return false
			}
			t.over = true
			return true
		}
	}
}

// keep stores in and moves on over read, the bytes that it was in, unless they
// were no longer those of the file. It waits as long as the spool is full: the
// file remembers.
func (t *tail) keep(ctx context.Context, in *intake, read []byte) bool {
	// A file that was truncated while it was read gives any bytes.
	if same, err := t.same(t.file); err != nil || !same {
		return false
	}
	// In pieces, since what is larger than the spool would wait for ever.
	for recs := range pieces(in.recs, min(maxPiece, t.s.o.MaxBytes/8)) {
		if !t.store(ctx, recs) {
			return false
		}
	}
	t.cause = ""
	in.tell(t.s, viaFile)
	t.s.count(viaFile, Stored, "", len(in.recs))
	t.pos.move(read)
	t.dirty = true
	return true
}

// store stores recs, and waits as long as there is no room.
func (t *tail) store(ctx context.Context, recs [][]byte) bool {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		c, err := t.s.add(recs)
		if err == nil {
			// Not ctx: whether it is stored must be known before moving on.
			err = c.Wait(context.Background())
		}
		if err == nil {
			return true
		}
		t.fail(err)
		if errors.Is(err, spool.ErrClosed) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(wait):
		}
	}
}

// pieces gives recs in slices of at most limit bytes, or of one record.
func pieces(recs [][]byte, limit int64) iter.Seq[[][]byte] {
	return func(yield func([][]byte) bool) {
		for len(recs) > 0 {
			n, size := 0, int64(0)
			for n == 0 || n < len(recs) && size+int64(len(recs[n])) <= limit {
				size += int64(len(recs[n]))
				n++
			}
			if !yield(recs[:n]) {
				return
			}
			recs = recs[n:]
		}
	}
}

// fail says why reading does not go on, once for each reason.
func (t *tail) fail(err error) {
	if t.cause == err.Error() {
		return
	}
	t.cause = err.Error()
	t.s.o.Logger.Warn("the audit file is not read at present; trying again", "source", t.s.o.Name, "path", t.f.Path, "err", err)
}
