package vaultaudit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/internal/spool"
)

const (
	// stamp is how many bytes of a record are the time of arrival.
	stamp = 8
	// maxPrefix is how far into a line its object may begin: an audit device
	// can be told to put a prefix before each entry.
	maxPrefix = 256
	// quietFor is how long a like line that is no entry is only counted.
	quietFor = time.Minute
	// maxStubs bounds how many kinds of such lines are told apart.
	maxStubs = 64
)

// An intake gathers the records of one read of a transport.
type intake struct {
	recs                           [][]byte
	size                           int // bytes of recs
	irrelevant, unreadable, tooBig int
}

// add takes one line, which must not change until add returns.
func (in *intake) add(s *Source, line []byte, received time.Time) {
	line = bytes.TrimSpace(line)
	if len(line) == 0 {
		return
	}
	if len(line) > s.o.MaxLine {
		in.cut(line)
		return
	}
	entry := withoutPrefix(line)
	if !Relevant(entry) {
		in.irrelevant++
		return
	}
	body, err := Redact(entry)
	if err != nil {
		in.unreadable++
		if body = stub(line); !s.first(body, received) {
			return
		}
	}
	rec := make([]byte, stamp, stamp+len(body))
	binary.BigEndian.PutUint64(rec, uint64(received.UnixNano()))
	in.recs = append(in.recs, append(rec, body...))
	in.size += stamp + len(body)
}

// cut takes the beginning of a line that is too long. Most that are so long are
// answers to lists, of which the beginning tells that they do not matter.
func (in *intake) cut(line []byte) {
	if Relevant(withoutPrefix(line)) {
		in.tooBig++
	} else {
		in.irrelevant++
	}
}

// tell counts what in found beside records.
func (in *intake) tell(s *Source, via string) {
	s.count(via, Irrelevant, "", in.irrelevant)
	s.count(via, Unreadable, "", in.unreadable)
	s.drop(via, "too_long", in.tooBig)
}

// withoutPrefix returns line from its first brace on.
func withoutPrefix(line []byte) []byte {
	if i := bytes.IndexByte(line[:min(len(line), maxPrefix)], '{'); i > 0 {
		return line[i:]
	}
	return line
}

// first reports whether body, a stub, is the first of its kind in a while: a
// misconfigured device must not fill the spool with one and the same news.
func (s *Source) first(body []byte, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, ok := s.stubs[string(body)]; ok && now.Sub(last) < quietFor {
		return false
	}
	if len(s.stubs) >= maxStubs {
		clear(s.stubs)
	}
	s.stubs[string(body)] = now
	s.o.Logger.Error("lines that are no audit entries; expected the device's format to be json", "source", s.o.Name, "shape", string(body))
	return true
}

// reason says in one word why the spool did not take something.
func reason(err error) string {
	if errors.Is(err, spool.ErrFull) {
		return "full"
	}
	return "disk"
}

// unpack undoes add.
func unpack(rec []byte) (received time.Time, body []byte, err error) {
	if len(rec) <= stamp {
		return time.Time{}, nil, fmt.Errorf("a record of %d bytes", len(rec))
	}
	return time.Unix(0, int64(binary.BigEndian.Uint64(rec))).UTC(), rec[stamp:], nil
}
