package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// A screen prints lines, and under them, on a terminal, one line that is
// drawn anew. It is safe for concurrent use.
type screen struct {
	mu     sync.Mutex
	w      io.Writer
	tty    bool
	footer func() string
	drawn  bool
}

// newScreen returns a screen on w. Redrawing is for terminals only: in a file
// the footer is printed as a line now and then.
func newScreen(w io.Writer, footer func() string) *screen {
	s := &screen{w: w, footer: footer}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		s.tty = err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
	}
	return s
}

const (
	eraseLine    = "\r\x1b[K"
	footerEvery  = 250 * time.Millisecond
	footerInFile = 5 * time.Second
)

// line prints one line: a time, what speaks, and what it says.
func (s *screen) line(who, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	_, _ = fmt.Fprintf(s.w, "%s  %-7s %s\n", time.Now().Format("15:04:05.000"), who, fmt.Sprintf(format, args...))
	s.draw()
}

// text prints lines as they are.
func (s *screen) text(t string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	_, _ = fmt.Fprintln(s.w, strings.TrimRight(t, "\n"))
	s.draw()
}

func (s *screen) erase() {
	if s.drawn {
		_, _ = io.WriteString(s.w, eraseLine)
		s.drawn = false
	}
}

func (s *screen) draw() {
	if s.tty && s.footer != nil {
		_, _ = io.WriteString(s.w, s.footer())
		s.drawn = true
	}
}

// run keeps the footer fresh until ctx is done, and takes it away then.
func (s *screen) run(ctx context.Context) {
	every := footerInFile
	if s.tty {
		every = footerEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.mu.Lock()
			s.erase()
			s.tty = false // from here on lines only
			s.mu.Unlock()
			return
		case <-tick.C:
		}
		if !s.tty {
			s.text(s.footer())
			continue
		}
		s.mu.Lock()
		s.erase()
		s.draw()
		s.mu.Unlock()
	}
}

// lags keeps the most recent durations and tells their percentiles. It is
// safe for concurrent use.
type lags struct {
	mu   sync.Mutex
	ring []time.Duration
	next int
}

const lagsKept = 4096

func (l *lags) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ring) < lagsKept {
		l.ring = append(l.ring, d)
		return
	}
	l.ring[l.next] = d
	l.next = (l.next + 1) % lagsKept
}

// percentiles returns the median and the 99th percentile by nearest rank;
// ok is false while there is nothing.
func (l *lags) percentiles() (p50, p99 time.Duration, ok bool) {
	l.mu.Lock()
	sorted := slices.Clone(l.ring)
	l.mu.Unlock()
	if len(sorted) == 0 {
		return 0, 0, false
	}
	slices.Sort(sorted)
	rank := func(p int) time.Duration { return sorted[(len(sorted)*p+99)/100-1] }
	return rank(50), rank(99), true
}

// short prints a duration with three significant digits at the most.
func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%d µs", d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// grouped prints n with a comma between thousands.
func grouped(n int64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// shortID is enough of a version id or token to tell it from its neighbours.
func shortID(s string) string {
	if len(s) > 8 {
		return s[:8]
	}
	if s == "" {
		return "-"
	}
	return s
}
