package noticetest

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Words are what the errors of a decoder may say: the text of its sources.
// With them a fuzz target can tell an echo of the input from a word that is in
// both, such as the name of a member.
type Words string

// Vocabulary reads the sources of the package under test, which is in the
// current directory, and of package notice.
func Vocabulary(t testing.TB) Words {
	t.Helper()
	var all strings.Builder
	for _, glob := range []string{"*.go", "../../internal/notice/*.go"} {
		files, err := filepath.Glob(glob)
		if err != nil || len(files) == 0 {
			t.Fatalf("no sources are at %s: %v", glob, err)
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			b, err := os.ReadFile(f) //nolint:gosec // a source of this module
			if err != nil {
				t.Fatal(err)
			}
			// As the compiler reads it.
			all.WriteString(strings.ReplaceAll(string(b), `\"`, `"`) + "\n")
		}
	}
	return Words(all.String())
}

// echo is how many bytes in a row make an echo. The shortest credentials that
// clouds make have 16; shorter runs would be found by chance.
const echo = 12

// NoEcho fails t if err quotes input.
func (w Words) NoEcho(t failer, input []byte, err error) {
	t.Helper()
	if err == nil {
		return
	}
	text := err.Error()
	for i := 0; i+echo <= len(text); i++ {
		if run := text[i : i+echo]; bytes.Contains(input, []byte(run)) && !strings.Contains(string(w), run) {
			t.Fatalf("the error quotes the input: %q of %q", run, text)
		}
	}
}
