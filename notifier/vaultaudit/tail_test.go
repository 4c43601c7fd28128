package vaultaudit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A logFile is the file of a file device.
type logFile struct {
	t    *testing.T
	path string
	f    *os.File
	n    int
}

func newLog(t *testing.T) *logFile {
	l := &logFile{t: t, path: filepath.Join(t.TempDir(), "audit.log")}
	l.reopen()
	t.Cleanup(func() { _ = l.f.Close() })
	return l
}

// reopen is what Vault does on SIGHUP.
func (l *logFile) reopen() {
	l.t.Helper()
	if l.f != nil {
		_ = l.f.Close()
	}
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	l.f = f
}

func (l *logFile) raw(s string) {
	l.t.Helper()
	if _, err := l.f.WriteString(s); err != nil {
		l.t.Fatal(err)
	}
}

// add writes n entries that matter, with reads in between.
func (l *logFile) add(n int) {
	l.t.Helper()
	for range n {
		l.raw(read(l.n) + "\n" + write(l.n) + "\n")
		l.n++
	}
}

func (l *logFile) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *logFile) rename(to string) { l.t.Helper(); l.must(os.Rename(l.path, l.path+to)) }

// copyTruncate is logrotate's copytruncate.
func (l *logFile) copyTruncate(to string) {
	l.t.Helper()
	b, err := os.ReadFile(l.path)
	l.must(err)
	l.must(os.WriteFile(l.path+to, b, 0o600))
	l.must(os.Truncate(l.path, 0))
}

func tailing(t *testing.T, dir string, l *logFile, b *bus) *rig {
	return start(t, Options{Dir: dir, NoSync: true, File: &File{Path: l.path, FromStart: true, Poll: 5 * time.Millisecond}}, b)
}

// TestTail: whatever happens to the file, while the process runs or between two
// runs, each entry comes, and none twice.
func TestTail(t *testing.T) {
	type step = func(l *logFile)
	rotate := func(l *logFile) { l.rename(".1"); l.add(1); l.reopen(); l.add(1) }
	for name, steps := range map[string][]step{
		"grows": {func(l *logFile) { l.add(3) }},
		"half a line": {func(l *logFile) {
			s := write(l.n) + "\n"
			l.n++
			l.raw(s[:50])
			time.Sleep(20 * time.Millisecond)
			l.raw(s[50:])
		}},
		"renamed": {rotate},
		"renamed, created": {func(l *logFile) {
			l.rename(".1")
			l.must(os.WriteFile(l.path, nil, 0o600))
			l.add(2)
			l.reopen()
			l.add(2)
		}},
		"copytruncate":               {func(l *logFile) { l.add(2); l.copyTruncate(".1"); l.add(1) }},
		"truncated and grown beyond": {func(l *logFile) { l.copyTruncate(".1"); l.add(30) }},
		"renamed twice": {func(l *logFile) {
			l.rename("-20260601")
			l.add(1)
			l.reopen()
			l.add(2)
			l.rename("-20260602")
			l.reopen()
			l.add(2)
		}},
		"dated before the extension": {func(l *logFile) {
			l.must(os.Rename(l.path, filepath.Join(filepath.Dir(l.path), "audit-20260601.log")))
			l.add(1)
			l.reopen()
			l.add(1)
		}},
		"shifted": {rotate, func(l *logFile) { l.must(os.Rename(l.path+".1", l.path+".2")) }, rotate},
		"a file beside it": {func(l *logFile) {
			l.must(os.WriteFile(filepath.Join(filepath.Dir(l.path), "audit-raw.log"), []byte(write(90)+"\n"), 0o600))
			l.rename(".1")
			l.reopen()
			l.add(1)
		}},
	} {
		for _, down := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, down %t", name, down), func(t *testing.T) {
				t.Parallel()
				l, dir, b := newLog(t), t.TempDir(), &bus{}
				l.add(3)
				r := tailing(t, dir, l, b)
				all := func() {
					t.Helper()
					eventually(t, "every entry", func() bool { return b.distinct() == l.n })
				}
				all()
				for _, s := range steps {
					if down {
						r.stop()
					}
					// Rotation is told by times of change, of a coarse clock.
					time.Sleep(15 * time.Millisecond)
					s(l)
					if down {
						r = tailing(t, dir, l, b)
					}
					all()
				}
				l.add(2)
				all()
				r.stop()
				b.mu.Lock()
				defer b.mu.Unlock()
				for n, times := range b.got {
					if times != 1 || n < 0 || n >= l.n {
						t.Errorf("entry %d came %d times", n, times)
					}
				}
				if n := r.counts.get("dropped missed") + r.counts.get("dropped cut"); n != 0 {
					t.Errorf("%d counted as lost", n)
				}
			})
		}
	}
}

func TestTailStartsAtTheEnd(t *testing.T) {
	l, dir, b := newLog(t), t.TempDir(), &bus{}
	l.add(3)
	o := Options{Dir: dir, File: &File{Path: l.path, Poll: 5 * time.Millisecond}}
	r := start(t, o, b)
	eventually(t, "the position to be kept", func() bool { _, err := os.Stat(r.tail.posFile()); return err == nil })
	l.add(2)
	eventually(t, "the new entries", func() bool { return b.distinct() == 2 })
	r.stop()
	l.add(1)
	start(t, o, b)
	eventually(t, "the entry of the time between", func() bool { return b.distinct() == 3 })
	if b.got[3] != 1 || b.got[4] != 1 || b.got[5] != 1 {
		t.Errorf("entries %v; expected 3 to 5 once each", b.got)
	}
}

// What is in the file is not passed over as history when it is only not known
// how far it was read: a power cut may leave an empty position.
func TestTailOfALostPosition(t *testing.T) {
	for name, spoiled := range map[string]string{"empty": "", "torn": `{"offset":1`, "negative": `{"offset":-1,"head":0}`} {
		t.Run(name, func(t *testing.T) {
			l, dir, b := newLog(t), t.TempDir(), &bus{}
			o := Options{Dir: dir, File: &File{Path: l.path, Poll: 5 * time.Millisecond}}
			r := start(t, o, b)
			eventually(t, "the position to be kept", func() bool { _, err := os.Stat(r.tail.posFile()); return err == nil })
			r.stop()
			l.add(2)
			l.must(os.WriteFile(r.tail.posFile(), []byte(spoiled), 0o600))
			start(t, o, b)
			eventually(t, "the entries of the time between", func() bool { return b.distinct() == 2 })
		})
	}
}

func TestTailOfAFileThatAppears(t *testing.T) {
	l, b := newLog(t), &bus{}
	l.must(os.Remove(l.path))
	start(t, Options{File: &File{Path: l.path, Poll: 5 * time.Millisecond}}, b)
	time.Sleep(20 * time.Millisecond)
	l.reopen()
	l.add(2)
	eventually(t, "its entries", func() bool { return b.distinct() == 2 })
}

// Huge lines and garbage do not stop the tail; what is gone for good is told.
func TestTailOfTrouble(t *testing.T) {
	l, dir, b := newLog(t), t.TempDir(), &bus{}
	o := Options{Dir: dir, MaxLine: 2048, File: &File{Path: l.path, FromStart: true, Poll: 5 * time.Millisecond}}
	l.raw(strings.Replace(write(90), `"hmac-sha256:93569f"`, `"`+strings.Repeat("x", 1<<20)+`"`, 1) + "\ngarbage\n")
	l.add(1)
	r := start(t, o, b)
	eventually(t, "the entry and a stub", func() bool { return b.distinct() == 2 })
	if n := r.counts.get("dropped too_long"); n != 1 {
		t.Errorf("%d too long", n)
	}
	r.stop()
	l.must(os.Truncate(l.path, 0))
	l.add(1)
	r = start(t, o, b)
	eventually(t, "the entry after the loss", func() bool { return b.distinct() == 3 })
	if n := r.counts.get("dropped missed"); n != 1 {
		t.Errorf("%d missed; expected the loss to be told", n)
	}
}

// A full spool holds the tail up, and nothing of the file is lost.
func TestTailWaitsForRoom(t *testing.T) {
	l, b := newLog(t), &bus{away: errors.New("away")}
	l.add(400)
	r := start(t, Options{MaxBytes: 64 << 10, NoSync: true, MaxInFlight: 1, File: &File{Path: l.path, FromStart: true, Poll: 5 * time.Millisecond}}, b)
	l.add(400)
	eventually(t, "a full spool", func() bool { return r.Stats().Bytes > 40<<10 })
	b.set(nil)
	eventually(t, "every entry", func() bool { return b.distinct() == l.n })
	if n := r.counts.get("dropped full"); n != 0 {
		t.Errorf("%d dropped; expected the file to wait", n)
	}
}
