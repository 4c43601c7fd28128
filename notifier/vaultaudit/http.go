package vaultaudit

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/spool"
)

const (
	// maxRequests bounds how many requests are read and stored at a time.
	maxRequests = 256
	// bodyTimeout bounds how long a body may take to arrive.
	bodyTimeout = 5 * time.Second
	// maxDiscard is how much of a body that is too long is read, so that its
	// sender reads our answer. Vault takes requests of 32 MiB at most.
	maxDiscard = 64 << 20
)

var errTooLong = fault.Newf(fault.Invalid, op, "an entry is longer than MaxLine")

// Handler returns the handler for OpenBao's HTTP audit device. It does not
// authenticate: mount it behind what does. It may be called before Run.
//
//	200  every entry of the body is stored, or means no event, or was dropped
//	     loudly: see the package's text
//	400  the body did not arrive as a whole
//	405  not POST          415  compressed
//	503  the process is about to end, or RefuseWhenFull and an entry could not
//	     be stored; never after a wait for anything but the local disk
//
// https://openbao.org/docs/audit/http/
func (s *Source) Handler() http.Handler { return http.HandlerFunc(s.receive) }

func (s *Source) receive(w http.ResponseWriter, r *http.Request) {
	received := time.Now()
	w.Header().Set("Cache-Control", "no-store")
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "expected POST", http.StatusMethodNotAllowed)
		return
	}
	if ce := r.Header.Get("Content-Encoding"); ce != "" && ce != "identity" {
		http.Error(w, "expected a body without Content-Encoding", http.StatusUnsupportedMediaType)
		return
	}
	if s.closing.Load() {
		http.Error(w, "draining", http.StatusServiceUnavailable)
		return
	}
	wait := time.NewTimer(s.o.AppendTimeout)
	defer wait.Stop()
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-wait.C:
		// Unread, so nobody knows whether it matters.
		s.drop(viaHTTP, "overload", 1)
		s.answer(w, spool.ErrBusy)
		return
	}
	// A recorder in a test has no deadlines; a server's connection has.
	rc := http.NewResponseController(w)
	_ = rc.SetReadDeadline(received.Add(bodyTimeout))
	stored, err := s.readBody(r.Body, r.ContentLength, received)
	if err != nil {
		s.drop(viaHTTP, "cut", 1)
		w.Header().Set("Connection", "close")
		http.Error(w, "the body did not arrive", http.StatusBadRequest)
		return
	}
	_ = rc.SetReadDeadline(time.Time{})
	s.answer(w, stored)
}

// answer answers 200, or after err what RefuseWhenFull says.
func (s *Source) answer(w http.ResponseWriter, err error) {
	if err != nil && (s.o.RefuseWhenFull || errors.Is(err, spool.ErrClosed)) {
		http.Error(w, "not stored", http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusOK)
}

// append stores recs for the HTTP device, and says loudly if that fails.
func (s *Source) append(recs [][]byte) error {
	if len(recs) == 0 {
		return nil
	}
	// Not the request's context: what its sender gave up on counts as well.
	ctx, cancel := context.WithTimeout(context.Background(), s.o.AppendTimeout)
	defer cancel()
	c, err := s.add(recs)
	if err == nil {
		err = c.Wait(ctx)
	}
	switch {
	case err == nil:
		s.count(viaHTTP, Stored, "", len(recs))
	case errors.Is(err, spool.ErrClosed):
		// Answered 503 by a process that ends: the sender was told.
	default:
		s.drop(viaHTTP, reason(err), len(recs))
	}
	return err
}

// readBody stores the lines of a body of about length bytes, or -1. Stored says
// why some of them are not, err why the body did not arrive.
func (s *Source) readBody(body io.Reader, length int64, received time.Time) (stored, err error) {
	var in intake
	flush := func() {
		in.tell(s, viaHTTP)
		if in.tooBig > 0 {
			stored = errTooLong
		}
		if err := s.append(in.recs); err != nil {
			stored = err
		}
		in = intake{}
	}
	defer flush()
	var buf bytes.Buffer
	if length > 0 {
		buf.Grow(int(min(length, int64(s.o.MaxLine))) + bytes.MinRead)
	}
	for {
		// One byte more than a line may have tells that it is too long.
		_, err := io.CopyN(&buf, body, int64(s.o.MaxLine+1-buf.Len()))
		last := errors.Is(err, io.EOF)
		if err != nil && !last {
			return nil, err
		}
		for found := true; found; {
			var line, rest []byte
			if line, rest, found = bytes.Cut(buf.Bytes(), []byte("\n")); !found && !last {
				break
			}
			in.add(s, line, received)
			buf.Next(buf.Len() - len(rest))
		}
		if last {
			return stored, nil
		}
		if buf.Len() > s.o.MaxLine {
			in.cut(buf.Bytes())
			if _, err := io.CopyN(io.Discard, body, maxDiscard); err != nil && !errors.Is(err, io.EOF) {
				return nil, err
			}
			return stored, nil
		}
		if in.size >= maxBatch {
			flush()
		}
	}
}
