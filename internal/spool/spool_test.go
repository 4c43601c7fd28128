package spool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func open(t tb, dir string, o Options) *Spool {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t tb, s *Spool, recs ...string) {
	t.Helper()
	for _, r := range recs {
		if err := s.Append(context.Background(), []byte(r)); err != nil {
			t.Fatal(err)
		}
	}
}

func take(t tb, s *Spool, n int) []*Record {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var out []*Record
	for range n {
		r, err := s.Next(ctx)
		if err != nil {
			t.Fatalf("record %d of %d: %v", len(out)+1, n, err)
		}
		out = append(out, r)
	}
	return out
}

// none fails t if there is another record.
func none(t tb, s *Spool) {
	t.Helper()
	if r, err := s.read(); r != nil || err != nil {
		t.Fatalf("found another record %v, error %v; expected none", r != nil, err)
	}
}

func segments(t testing.TB, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"+suffix))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestOrderAndRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spool")
	s := open(t, dir, Options{})
	put(t, s, "a", "b", "c", "d")
	rs := take(t, s, 3)
	if got := string(rs[0].Data) + string(rs[1].Data) + string(rs[2].Data); got != "abc" {
		t.Fatalf("read %q", got)
	}
	s.Done(rs[2]) // out of order: b is not done, so c comes again
	s.Done(rs[0])
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.Done(rs[1]) // too late
	s = open(t, dir, Options{})
	put(t, s, "e")
	rs = take(t, s, 4)
	if got := string(rs[0].Data) + string(rs[1].Data) + string(rs[2].Data) + string(rs[3].Data); got != "bcde" {
		t.Fatalf("read %q after a restart; expected bcde", got)
	}
	for _, r := range rs {
		s.Done(r)
	}
	none(t, s)
	if err := errors.Join(s.Close(), s.Close()); err != nil {
		t.Fatal(err)
	}
	if names := segments(t, dir); len(names) != 0 {
		t.Errorf("%v are left; expected nothing, since all is done", names)
	}
	// Numbers go on above the cursor, which would else skip what is new.
	s = open(t, dir, Options{})
	put(t, s, "f")
	if got := string(take(t, s, 1)[0].Data); got != "f" {
		t.Errorf("read %q", got)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if want := map[bool]fs.FileMode{true: 0o700, false: 0o600}[d.IsDir()]; err == nil && info.Mode().Perm() != want {
			t.Errorf("%s has mode %o; expected %o", path, info.Mode().Perm(), want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOneProcess(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	defer func() { _ = s.Close() }()
	if _, err := Open(dir, Options{}); !fault.Is(err, fault.Conflict) {
		t.Errorf("%v; expected Conflict", err)
	}
	if _, err := Open(t.TempDir(), Options{MaxBytes: 10}); !fault.Is(err, fault.Invalid) {
		t.Errorf("%v; expected Invalid", err)
	}
	for _, r := range [][]byte{nil, make([]byte, MaxRecord+1)} {
		if err := s.Append(t.Context(), r); !fault.Is(err, fault.Invalid) {
			t.Errorf("a record of %d bytes: %v; expected Invalid", len(r), err)
		}
	}
	long := make([]byte, MaxRecord)
	if err := s.Append(t.Context(), long, []byte("x")); err != nil {
		t.Fatal(err)
	}
	if rs := take(t, s, 2); !bytes.Equal(rs[0].Data, long) || string(rs[1].Data) != "x" {
		t.Error("the longest record came back changed")
	}
}

func TestFullAndSegmentsGo(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{MaxBytes: 64 << 10, NoSync: true})
	rec := bytes.Repeat([]byte("x"), 1000)
	n := 0
	for ; n < 1000; n++ {
		if err := s.Append(t.Context(), rec); errors.Is(err, ErrFull) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if n < 55 || n > 65 {
		t.Errorf("%d KB fitted into 64 KiB", n)
	}
	if st := s.Stats(); st.Bytes > 64<<10 || st.Segments < 7 || st.Waiting != int64(n) {
		t.Errorf("%+v", st)
	}
	for _, r := range take(t, s, n) {
		s.Done(r)
	}
	if names := segments(t, dir); len(names) > 1 {
		t.Errorf("%d segments left when all is done", len(names))
	}
	if err := s.Append(t.Context(), rec); err != nil {
		t.Errorf("%v; expected room again", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Append(t.Context(), rec); !errors.Is(err, ErrClosed) {
		t.Errorf("%v; expected closed", err)
	}
	if _, err := s.Next(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("%v; expected closed", err)
	}
}

// A tail that is torn at any byte, or followed by anything, costs the record
// that was torn and no other.
func TestTornTail(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{NoSync: true})
	put(t, s, "first", "second", "third")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(segments(t, dir)[0])
	if err != nil {
		t.Fatal(err)
	}
	ends := map[int]int{8: 0, 8 + 13: 1, 8 + 13 + 14: 2, 8 + 13 + 14 + 13: 3}
	want := 0
	check := func(t *testing.T, content []byte, want int) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name(1)), content, 0o600); err != nil {
			t.Fatal(err)
		}
		// Twice, since the second time it is not the last segment.
		s := open(t, dir, Options{NoSync: true})
		put(t, s, "new")
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, dir, Options{NoSync: true})
		rs := take(t, s, want+1)
		if string(rs[want].Data) != "new" {
			t.Errorf("read %q; expected the new record after %d old ones", rs[want].Data, want)
		}
		none(t, s)
		if st := s.Stats(); st.Lost != 0 {
			t.Errorf("%d bytes are called lost that were only torn", st.Lost)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for cut := range len(whole) + 1 {
		if n, ok := ends[cut]; ok {
			want = n
		}
		check(t, whole[:cut], want)
	}
	for _, tail := range []string{"\x00", strings.Repeat("\x00", 4096), "\xff\xff\xff\xff\xff\xff\xff\xff", "\x01\x00\x00\x00garbage"} {
		check(t, append(bytes.Clone(whole), tail...), 3)
	}
}

// A flipped bit in an old segment is told, costs the rest of that segment, and
// stops nobody.
func TestCorruptSegment(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{NoSync: true})
	put(t, s, "first", "second")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{NoSync: true})
	put(t, s, "third")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	old := segments(t, dir)[0]
	b, err := os.ReadFile(old)
	if err != nil {
		t.Fatal(err)
	}
	b[8+13+10] ^= 4
	if err := os.WriteFile(old, b, 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{NoSync: true})
	rs := take(t, s, 2)
	if string(rs[0].Data) != "first" || string(rs[1].Data) != "third" || s.Stats().Lost != 14 {
		t.Errorf("read %q and %q, lost %d", rs[0].Data, rs[1].Data, s.Stats().Lost)
	}
	s.Done(rs[0])
	s.Done(rs[1])
	if names := segments(t, dir); len(names) != 0 {
		t.Errorf("segments %v; expected the corrupt one gone too", names)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// failing is a file of a disk that is full or dying.
type failing struct {
	File
	mode *atomic.Int32
}

const (
	fine = iota
	noSpace
	noSync
	noFile
)

func (f failing) Write(b []byte) (int, error) {
	if f.mode.Load() == noSpace {
		n, _ := f.File.Write(b[:len(b)/2]) // as a disk that fills up
		return n, syscall.ENOSPC
	}
	return f.File.Write(b)
}

func (f failing) Sync() error {
	if f.mode.Load() == noSync {
		return syscall.EIO
	}
	return f.File.Sync()
}

func (f failing) Truncate(int64) error { return syscall.EIO }

func TestDiskFails(t *testing.T) {
	dir := t.TempDir()
	var mode atomic.Int32
	o := Options{Create: func(n string) (File, error) {
		if mode.Load() == noFile {
			return nil, syscall.ENOSPC
		}
		f, err := os.OpenFile(n, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		return failing{f, &mode}, err
	}}
	s := open(t, dir, o)
	var want []string
	for round := range 3 {
		for _, m := range []int32{noSpace, noSync, noSpace, noFile} {
			if m == noFile { // a segment is made after one that failed
				mode.Store(noSync)
				_ = s.Append(t.Context(), []byte("bad"))
			}
			rec := fmt.Sprintf("%d-%d", round, m)
			mode.Store(m)
			if err := s.Append(t.Context(), []byte("bad"+rec)); !fault.Is(err, fault.Unavailable) {
				t.Fatalf("%v; expected Unavailable", err)
			}
			mode.Store(fine)
			put(t, s, rec)
			want = append(want, rec)
		}
	}
	for _, w := range want {
		r := take(t, s, 1)[0]
		if string(r.Data) != w {
			t.Fatalf("read %q; expected %q", r.Data, w)
		}
	}
	if s.Stats().Lost != 0 {
		t.Error("what nobody was promised counts as lost")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// After a restart what failed may come or not; what was answered must.
	s = open(t, dir, Options{})
	seen := map[string]bool{}
	for {
		r, err := s.read()
		if err != nil {
			t.Fatal(err)
		}
		if r == nil {
			break
		}
		seen[string(r.Data)] = true
	}
	for _, w := range want {
		if !seen[w] {
			t.Errorf("%s was answered and is lost", w)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// Whatever is appended, done and restarted in whatever order: nothing is lost,
// the order holds within a process, and what is done from the front stays done.
func TestModel(t *testing.T) {
	root := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(root, "")
		if err != nil {
			rt.Fatal(err)
		}
		o := Options{NoSync: true, SegmentBytes: 200}
		s := open(rt, dir, o)
		defer func() { _ = s.Close() }()
		var next uint64
		done := map[uint64]bool{}
		var out []*Record
		read := uint64(0)
		number := func(r *Record) uint64 { return binary.BigEndian.Uint64(r.Data) }
		for range rapid.IntRange(1, 60).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"put", "put", "take", "take", "done", "done", "restart"}).Draw(rt, "do") {
			case "put":
				rec := append(binary.BigEndian.AppendUint64(nil, next), make([]byte, rapid.IntRange(0, 90).Draw(rt, "len"))...)
				put(rt, s, string(rec))
				next++
			case "take":
				r, err := s.read()
				if err != nil {
					rt.Fatal(err)
				}
				if r == nil {
					if read != next {
						rt.Fatalf("nothing to read after %d of %d", read, next)
					}
					continue
				}
				if number(r) != read {
					rt.Fatalf("read %d; expected %d", number(r), read)
				}
				read++
				out = append(out, r)
			case "done":
				if len(out) > 0 {
					i := rapid.IntRange(0, len(out)-1).Draw(rt, "which")
					done[number(out[i])] = true
					s.Done(out[i])
					out = append(out[:i], out[i+1:]...)
				}
			case "restart":
				if err := s.Close(); err != nil {
					rt.Fatal(err)
				}
				s = open(rt, dir, o)
				out = nil
				for read = 0; done[read]; read++ {
				}
				for n := range done { // what is behind one that is not done comes again
					if n > read {
						delete(done, n)
					}
				}
			}
		}
	})
}

// Many append while one reads; all that was answered comes, in each writer's
// order, and one fsync serves many.
func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	var syncs atomic.Int64
	s := open(t, dir, Options{SegmentBytes: 4096, Create: func(n string) (File, error) {
		f, err := os.OpenFile(n, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		return counting{f, &syncs}, err
	}})
	const writers, each = 32, 40
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := s.Append(t.Context(), fmt.Appendf(nil, "%d %d", w, i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var at [writers]int
	var pool []*Record
	for _, r := range take(t, s, writers*each) {
		var w, i int
		if _, err := fmt.Sscanf(string(r.Data), "%d %d", &w, &i); err != nil || at[w] != i {
			t.Fatalf("writer %d: read %d, expected %d (%v)", w, i, at[w], err)
		}
		at[w]++
		pool = append(pool, r)
	}
	wg.Wait()
	rand.Shuffle(len(pool), func(i, j int) { pool[i], pool[j] = pool[j], pool[i] })
	for _, r := range pool {
		wg.Go(func() { s.Done(r) })
	}
	wg.Wait()
	if st := s.Stats(); st.Taken != 0 || st.Segments > 1 {
		t.Errorf("%+v; expected everything done", st)
	}
	if n := syncs.Load(); n > writers*each/2 {
		t.Errorf("%d fsyncs for %d appends; expected them shared", n, writers*each)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

type counting struct {
	File
	n *atomic.Int64
}

func (c counting) Sync() error { c.n.Add(1); return c.File.Sync() }

// TestDirectoryRemoved: what is appended after somebody removed the directory
// is not answered as if it were safe.
func TestDirectoryRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "s")
	s, err := Open(dir, Options{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	if err := s.Append(t.Context(), []byte("a")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Append(t.Context(), []byte("b")); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%v; expected unavailable", err)
		}
	}
}
