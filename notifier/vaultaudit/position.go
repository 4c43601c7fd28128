package vaultaudit

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// maxHead is how many bytes of a file tell it from every other.
const maxHead = 1024

// A position is how far a file was read, and which file that is.
type position struct {
	// Offset is that of the first line that is not stored, in bytes.
	Offset int64 `json:"offset"`
	// Head and Sum are the length and SHA-256 of the beginning of the file.
	Head int    `json:"head"`
	Sum  string `json:"sha256"`
	// Saved is when this was written.
	Saved time.Time `json:"saved"`

	head []byte
}

// move goes on over b, the bytes at the offset.
func (p *position) move(b []byte) {
	if n := maxHead - len(p.head); n > 0 && int64(len(p.head)) == p.Offset {
		p.head = append(p.head, b[:min(n, len(b))]...)
		p.Head, p.Sum = len(p.head), digest(p.head)
	}
	p.Offset += int64(len(b))
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// same reports whether f is the file of the position: it begins as it did, and
// is not shorter than what was read.
func (t *tail) same(f *os.File) (bool, error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if info.Size() < t.pos.Offset {
		return false, nil
	}
	head := make([]byte, t.pos.Head)
	if _, err := f.ReadAt(head, 0); errors.Is(err, io.EOF) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	if t.pos.head == nil && t.pos.Head > 0 && digest(head) == t.pos.Sum {
		t.pos.head = head
	}
	return bytes.Equal(head, t.pos.head), nil
}

// toEnd passes over the history of the file that was opened.
func (t *tail) toEnd() error {
	info, err := t.file.Stat()
	if err != nil {
		return err
	}
	// To the end of the last whole line.
	end := info.Size()
	buf := make([]byte, tailChunk)
	for end > 0 {
		n := min(int64(len(buf)), end)
		if _, err := t.file.ReadAt(buf[:n], end-n); err != nil {
			return err
		}
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			end += int64(i+1) - n
			break
		}
		end -= n
	}
	head := make([]byte, min(end, maxHead))
	if _, err := t.file.ReadAt(head, 0); err != nil && len(head) > 0 {
		return err
	}
	t.pos.move(head)
	t.pos.Offset = end
	return nil
}

// catchUp goes to the file of the position, under whatever name it has now,
// reads it to its end, and then what came between it and the file. down says
// that this process did not see it happen.
func (t *tail) catchUp(ctx context.Context, down bool) {
	pos := t.pos
	for _, path := range append([]string{t.f.Path}, t.siblings()...) {
		if err := t.open(path); err != nil {
			if path == t.f.Path && !errors.Is(err, fs.ErrNotExist) {
				t.fail(err) // it may well be this one
				return
			}
			continue
		}
		t.pos = pos
		// A file of which nothing was read has no head to know it by.
		if same, err := t.same(t.file); err != nil || !same || pos.Head == 0 && path != t.f.Path {
			t.close()
			continue
		}
		t.resume = false
		if path == t.f.Path {
			if pos.Head == 0 && down {
				t.close()
				t.after(ctx, pos.Saved, nil)
			}
			return
		}
		for t.read(ctx) { //nolint:revive // to the end
		}
		if ctx.Err() != nil || !t.ended() {
			return
		}
		t.between(ctx)
		return
	}
	t.close()
	t.pos, t.resume, t.dirty = position{}, false, true
	if pos.Offset > 0 {
		t.s.drop(viaFile, "missed", 1)
		t.s.o.Logger.ErrorContext(ctx, "the audit file was rotated or truncated, and what was in it is not found; expected copies beside it, uncompressed", "source", t.s.o.Name, "path", t.f.Path)
	}
	t.after(ctx, pos.Saved, nil)
}

// between reads the files that are newer than the open one, which was read, and
// older than the one at the path, and then opens that one.
func (t *tail) between(ctx context.Context) {
	old, err := t.file.Stat()
	if err != nil {
		old = t.info
	}
	t.close()
	t.after(ctx, old.ModTime(), old)
}

// after is between for the files that changed at since or after it, except old:
// clocks of file systems are coarse, and twice is better than never.
func (t *tail) after(ctx context.Context, since time.Time, old fs.FileInfo) {
	current, _ := os.Stat(t.f.Path)
	for _, path := range t.siblings() {
		info, err := os.Stat(path)
		if err != nil || info.ModTime().Before(since) || old != nil && os.SameFile(info, old) || current != nil && os.SameFile(info, current) {
			continue
		}
		if err := t.open(path); err != nil {
			if !errors.Is(err, fs.ErrNotExist) { // what is in it nobody hears
				t.s.drop(viaFile, "missed", 1)
				t.fail(err)
			}
			continue
		}
		for t.read(ctx) { //nolint:revive // to the end
		}
		if ctx.Err() != nil || !t.ended() {
			return
		}
		t.close()
	}
	if err := t.open(t.f.Path); err != nil {
		t.fail(err)
	}
}

// siblings are the files that may be earlier ones of the path, oldest first:
// rotation adds to the name. Compressed ones are not looked into.
func (t *tail) siblings() []string {
	dir, base := filepath.Split(t.f.Path)
	entries, _ := os.ReadDir(cmp.Or(dir, "."))
	type file struct {
		path string
		at   time.Time
	}
	var files []file
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !info.Mode().IsRegular() || !rotated(base, e.Name()) {
			continue
		}
		files = append(files, file{filepath.Join(dir, e.Name()), info.ModTime()})
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.path, b.path)) })
	var out []string
	for _, f := range files {
		out = append(out, f.path)
	}
	return out
}

// rotated reports whether name is what rotation makes of base: audit.log.1,
// audit.log-20260601 and audit-20260601.log, but not audit-raw.log.
func rotated(base, name string) bool {
	switch filepath.Ext(name) {
	case ".gz", ".xz", ".bz2", ".zst", ".zip", ".tmp":
		return false
	}
	if rest, ok := strings.CutPrefix(name, base); ok {
		return len(rest) > 1 && strings.ContainsRune(".-_", rune(rest[0]))
	}
	rest, ok := strings.CutPrefix(name, strings.TrimSuffix(base, filepath.Ext(base)))
	return ok && len(rest) > 1 && strings.ContainsRune(".-_", rune(rest[0])) && rest[1] >= '0' && rest[1] <= '9'
}

// posFile returns where the position is kept: a name for each path.
func (t *tail) posFile() string {
	abs, err := filepath.Abs(t.f.Path)
	if err != nil {
		abs = t.f.Path
	}
	return filepath.Join(t.s.o.Dir, "file-"+digest([]byte(abs))[:16]+".json")
}

// load reads the position, and reports whether there is one.
func (t *tail) load() (bool, error) {
	b, err := os.ReadFile(t.posFile())
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var p position
	if err := json.Unmarshal(b, &p); err != nil || p.Offset < 0 || p.Head < 0 || p.Head > maxHead {
		return false, errors.New("it is not a position")
	}
	t.pos = p
	return true, nil
}

// save writes the position, if it changed and it is time, or now.
func (t *tail) save(now bool) {
	if !t.dirty || !now && time.Since(t.saved) < saveEvery {
		return
	}
	t.pos.Saved, t.saved = time.Now(), time.Now()
	b, err := json.Marshal(t.pos)
	if err == nil {
		err = t.write(b)
	}
	if err != nil {
		t.s.o.Logger.Warn("the position in the audit file cannot be written; after a restart some entries are read again", "source", t.s.o.Name, "err", err)
		return
	}
	t.dirty = false
}

// write puts b in the place of the position, under another name first, so that
// there is always a whole one: after a power cut, too.
func (t *tail) write(b []byte) error {
	name := t.posFile()
	f, err := os.OpenFile(name+".tmp", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil && !t.s.o.NoSync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(name+".tmp", name)
}
