// Package leaktest searches everything that leaves a process for a canary
// that was planted as a secret value.
package leaktest

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Canary returns a value that no program contains by chance.
func Canary() string {
	var b [12]byte
	_, _ = rand.Read(b[:])
	return "cnry" + hex.EncodeToString(b[:]) + "Zq9"
}

// A Recorder collects output in which no canary may appear.
type Recorder struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write records b.
func (r *Recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.Write(b)
}

// Logger returns a logger at debug level that writes to r, as text and JSON.
func (r *Recorder) Logger() *slog.Logger {
	o := &slog.HandlerOptions{Level: slog.LevelDebug, AddSource: true}
	return slog.New(slog.NewMultiHandler(slog.NewJSONHandler(r, o), slog.NewTextHandler(r, o)))
}

// Record formats each value in every way in which somebody might print it.
func (r *Recorder) Record(vs ...any) {
	for _, v := range vs {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
			_, _ = fmt.Fprintf(r, verb+"\n", v)
		}
		if j, err := json.Marshal(v); err == nil {
			_, _ = r.Write(j)
		}
		if err, ok := v.(error); ok {
			_, _ = fmt.Fprintln(r, err.Error())
		}
	}
}

// String returns all that was recorded.
func (r *Recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.b.String()
}

// Check fails t if a canary was recorded, plain or in a usual encoding.
func (r *Recorder) Check(t testing.TB, canaries ...string) {
	t.Helper()
	out := r.String()
	if out == "" {
		t.Fatal("leaktest: nothing was recorded, so nothing was checked")
	}
	for _, c := range canaries {
		if form := Find([]byte(out), c); form != "" {
			t.Errorf("leaktest: a secret value was printed (%s)", form)
		}
	}
}

// Find returns in which form c appears in b, or "". It knows plain text, hex,
// base64 in its three alignments, percent-encoding, and the decimal lists of
// bytes that fmt prints.
func Find(b []byte, c string) string {
	if c == "" {
		return ""
	}
	forms := map[string]string{
		"plain":  c,
		"hex":    hex.EncodeToString([]byte(c)),
		"HEX":    strings.ToUpper(hex.EncodeToString([]byte(c))),
		"query":  url.QueryEscape(c),
		"quoted": strings.Trim(strconv.Quote(c), `"`),
		"bytes":  strings.Trim(fmt.Sprint([]byte(c)), "[]"), //nolint:staticcheck // the numbers are meant
	}
	for i := range 3 {
		// The characters at both ends depend on the neighbours; cut them off.
		e := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", i) + c))
		if from, to := []int{0, 2, 3}[i], len(e)-3; to-from > 8 {
			forms["base64/"+strconv.Itoa(i)] = e[from:to]
		}
	}
	for name, form := range forms {
		if form != "" && bytes.Contains(b, []byte(form)) {
			return name
		}
	}
	return ""
}

// CheckDir fails t if a canary is in a file below dir, or if there is no file.
func CheckDir(t testing.TB, dir string, canaries ...string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path) //nolint:gosec // a test's own directory
		if err != nil {
			return err
		}
		files++
		for _, c := range canaries {
			if form := Find(b, c); form != "" {
				t.Errorf("leaktest: a secret value is in %s (%s)", path, form)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatalf("leaktest: %v", err)
	}
	if files == 0 {
		t.Fatalf("leaktest: no files below %s, so nothing was checked", dir)
	}
}
