package spool

import (
	"context"
	"os"
	"path/filepath"

	"github.com/keyturn/keyturn/fault"
)

// A Commit is an append under way.
type Commit struct {
	done chan struct{}
	err  error
}

// Wait waits until the records are as safe as NoSync says and returns nil, or
// why they are not, or the error of ctx.
func (c *Commit) Wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return fault.New(fault.Unavailable, op+": append", ctx.Err())
	}
}

// A batch is what one write and one fsync make safe.
type batch struct {
	Commit
	buf []byte
	n   int64
}

// Add hands recs to the writer without waiting for it. All of them become safe
// together, with those of everybody who added while the disk was busy: that is
// how many appends share one fsync, without a timer. It fails at once with
// [ErrFull], [ErrBusy] or [ErrClosed], or Invalid for a record that is empty or
// longer than [MaxRecord].
func (s *Spool) Add(recs ...[]byte) (*Commit, error) {
	var need int64
	for _, r := range recs {
		if len(r) == 0 || len(r) > MaxRecord {
			return nil, fault.Newf(fault.Invalid, op, "a record of %d bytes; expected 1 to %d", len(r), MaxRecord)
		}
		need += recordLen + int64(len(r))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	b := s.pending
	if b == nil {
		b = &batch{Commit: Commit{done: make(chan struct{})}}
	}
	if len(b.buf) > 0 && int64(len(b.buf))+need > maxPending {
		return nil, ErrBusy
	}
	// A header more, since this may be the first of a segment.
	if s.total+s.writing+int64(len(b.buf))+need+headerLen > s.o.MaxBytes {
		return nil, ErrFull
	}
	for _, r := range recs {
		b.buf = appendRecord(b.buf, r)
	}
	b.n += int64(len(recs))
	s.pending = b
	wake(s.work)
	return &b.Commit, nil
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// commits writes batches until Close, and the last one after it.
func (s *Spool) commits() {
	defer close(s.stopped)
	for {
		var ending bool
		select {
		case <-s.work:
		case <-s.stop:
			ending = true
		}
		s.mu.Lock()
		b := s.pending
		s.pending = nil
		if b != nil {
			s.writing = int64(len(b.buf))
		}
		s.mu.Unlock()
		if b != nil {
			s.commit(b)
		}
		if ending {
			return
		}
	}
}

// commit writes b and tells everybody who waits.
func (s *Spool) commit(b *batch) {
	size, err := s.write(b)
	var gone []*segment
	s.mu.Lock()
	s.writing = 0
	if s.active != nil {
		s.total += size - s.active.size
		s.active.size = size
		if err == nil {
			s.stats.Waiting += b.n
		}
		if err != nil || size >= s.o.SegmentBytes {
			// After a failed write or fsync nobody knows what the file holds
			// beyond size: nothing is ever put there.
			_ = s.file.Close()
			s.active.sealed, s.active, s.file = true, nil, nil
			gone = s.drop()
		}
	}
	s.mu.Unlock()
	s.remove(gone)
	b.err = err
	close(b.done)
	wake(s.more)
}

// write writes b to the active segment, and returns how long that now is.
func (s *Spool) write(b *batch) (int64, error) {
	if s.active == nil {
		if err := s.begin(); err != nil {
			return 0, err
		}
	}
	size := s.active.size
	// A file whose name is gone takes bytes that nobody finds again. To look
	// costs a microsecond for each batch.
	if _, err := os.Lstat(s.active.path); err != nil {
		return size, disk("append to a segment that was removed", err)
	}
	_, err := s.file.Write(b.buf)
	if err == nil && !s.o.NoSync {
		err = s.file.Sync()
	}
	if err != nil {
		_ = s.file.Truncate(size)
		return size, disk("append", err)
	}
	return size + int64(len(b.buf)), nil
}

// begin makes the next segment.
func (s *Spool) begin() error {
	g := &segment{num: s.next, path: filepath.Join(s.dir, name(s.next)), size: headerLen, from: headerLen}
	f, err := s.o.Create(g.path)
	if err != nil {
		return disk("make a segment", err)
	}
	s.next++
	if _, err = f.Write([]byte(magic)); err == nil && !s.o.NoSync {
		err = syncDir(s.dir)
	}
	if err != nil {
		_ = f.Close()
		_ = os.Remove(g.path)
		return disk("begin a segment", err)
	}
	s.file = f
	s.mu.Lock()
	s.segs = append(s.segs, g)
	s.total += g.size
	s.active = g
	s.mu.Unlock()
	return nil
}

// syncDir makes the names in dir safe.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}
