package spool

import (
	"context"
	"os"
	"slices"
)

// readAhead is how much of a segment is read at a time.
const readAhead = 256 << 10

// A Record is one that Next returned.
type Record struct {
	// Data are the bytes as they were appended. They are the caller's.
	Data []byte

	seg  *segment
	end  int64
	done bool
}

// A reader is where Next stands.
type reader struct {
	seg *segment
	off int64 // of the next record
	f   *os.File
	buf []byte // the bytes at off
}

func (r *reader) close() {
	if r.f != nil {
		_ = r.f.Close()
	}
	r.f, r.buf = nil, nil
}

// at reports whether everything in segs was read.
func (r *reader) at(segs []*segment) bool {
	if len(segs) == 0 {
		return true
	}
	last := segs[len(segs)-1]
	return r.seg == last && r.off >= last.size
}

// Next returns the oldest record that it has not yet returned, and waits for
// one. It fails with the error of ctx, [ErrClosed], or what the disk says, after
// which it may be called again. Records come in the order in which they were
// added; those that were taken but not done when a process ended come again,
// with some that were done.
func (s *Spool) Next(ctx context.Context) (*Record, error) {
	for {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		select {
		case <-s.stop:
			return nil, ErrClosed
		default:
		}
		rec, err := s.read()
		if rec != nil || err != nil {
			return rec, err
		}
		select {
		case <-ctx.Done():
		case <-s.stop:
			return nil, ErrClosed
		case <-s.more:
		}
	}
}

// read returns the next record, or nil if there is none yet. It touches the disk
// without holding up those who append.
func (s *Spool) read() (*Record, error) {
	s.rmu.Lock()
	defer s.rmu.Unlock()
	r := &s.r
	for {
		size, ok := s.advance()
		if !ok {
			return nil, nil //nolint:nilnil // nothing yet
		}
		if r.f == nil {
			f, err := os.Open(r.seg.path)
			if err != nil {
				return nil, disk("open a segment", err)
			}
			r.f = f
		}
		data, need := parse(r.buf)
		if data == nil && need > 0 && int64(need) <= size-r.off {
			if err := r.fill(need, size); err != nil {
				return nil, disk("read a segment", err)
			}
			if data, need = parse(r.buf); data == nil && need > len(r.buf) && int64(need) <= size-r.off {
				continue // only the length was known
			}
		}
		rec := &Record{Data: slices.Clone(data), seg: r.seg, end: r.off + int64(need)}
		if data == nil {
			// Not a torn tail, which was cut: the disk lies. What follows
			// cannot be told apart, since lengths are all that separates it.
			s.o.Logger.Error("records lost: a segment is corrupt", "segment", r.seg.num, "offset", r.off, "bytes", size-r.off)
			rec.end, rec.done, need = size, true, len(r.buf)
		}
		s.take(rec, size-r.off)
		r.off, r.buf = rec.end, r.buf[need:]
		if data == nil {
			s.settle()
			continue
		}
		return rec, nil
	}
}

// take remembers that rec is out, or that lost bytes are gone.
func (s *Spool) take(rec *Record, lost int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.taken = append(s.taken, rec)
	if rec.done {
		s.stats.Lost += lost
	} else if s.stats.Waiting > 0 {
		s.stats.Waiting--
	}
}

// fill reads at least need bytes of the size that there are.
func (r *reader) fill(need int, size int64) error {
	buf := make([]byte, min(int64(max(readAhead, need)), size-r.off))
	if _, err := r.f.ReadAt(buf, r.off); err != nil {
		return err
	}
	r.buf = buf
	return nil
}

// advance goes to the next segment if all of this one was read, and returns how
// long the segment is, or false if there is nothing to read.
func (s *Spool) advance() (size int64, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.r
	for i := 0; r.seg == nil || r.off >= r.seg.size; {
		if r.seg != nil {
			if !r.seg.sealed {
				return 0, false
			}
			// It may be gone; those after it have higher numbers.
			for i < len(s.segs) && s.segs[i].num <= r.seg.num {
				i++
			}
		}
		if i == len(s.segs) {
			return 0, false
		}
		r.close()
		r.seg, r.off = s.segs[i], s.segs[i].from
	}
	return r.seg.size, true
}

// Done forgets rec: it is not read again, apart from what the cursor may lag. It
// may be called in any order, from any goroutine, also after Close, when it
// comes too late.
func (s *Spool) Done(rec *Record) {
	s.mu.Lock()
	rec.done, rec.Data = true, nil
	s.mu.Unlock()
	s.settle()
}

// settle moves the cursor over what is done from the front, and removes the
// segments before it.
func (s *Spool) settle() {
	s.cmu.Lock()
	defer s.cmu.Unlock()
	s.mu.Lock()
	var last *Record
	for len(s.taken) > 0 && s.taken[0].done {
		last = s.taken[0]
		last.seg.from = last.end
		s.taken[0] = nil
		s.taken = s.taken[1:]
	}
	if last == nil || s.ended {
		s.mu.Unlock()
		return
	}
	gone := s.drop()
	s.mu.Unlock()
	// If it cannot be written, records are read again after a restart.
	_ = writeCursor(s.cursor, last.seg.num, last.end)
	s.remove(gone)
}

// drop forgets the segments at the front that are done.
func (s *Spool) drop() (gone []*segment) {
	for len(s.segs) > 0 && s.segs[0].sealed && s.segs[0].from >= s.segs[0].size {
		gone = append(gone, s.segs[0])
		s.total -= s.segs[0].size
		s.segs = s.segs[1:]
	}
	return gone
}

func (s *Spool) remove(gone []*segment) {
	for _, g := range gone {
		if err := os.Remove(g.path); err != nil {
			s.o.Logger.Warn("a segment that is done cannot be removed; it goes at the next start", "segment", g.num, "err", err)
		}
	}
}
