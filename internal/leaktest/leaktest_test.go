package leaktest

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
)

// What a search finds decides what the leak tests are worth.
func TestFind(t *testing.T) {
	c := Canary() + "/+\""
	for name, leak := range map[string]string{
		"plain":      "password=" + c + " ",
		"hex":        hex.EncodeToString([]byte("x" + c)),
		"base64":     base64.StdEncoding.EncodeToString([]byte(`{"p":"` + c + `"}`)),
		"base64 +1":  base64.StdEncoding.EncodeToString([]byte(`{"pp":"` + c + `"}`)),
		"base64 +2":  base64.StdEncoding.EncodeToString([]byte(`{"ppp":"` + c + `"}`)),
		"query":      "q=" + url.QueryEscape(c),
		"quoted":     fmt.Sprintf("%q", c),
		"bytes":      fmt.Sprintf("%v", []byte("ab"+c+"cd")),
		"dump":       fmt.Sprintf("%+v", struct{ b []byte }{[]byte(c)}),
		"in between": "....." + c + ".....",
	} {
		if Find([]byte(leak), c) == "" {
			t.Errorf("%s: not found", name)
		}
	}
	for _, clean := range []string{"", "nothing", "[redacted]", Canary()} {
		if form := Find([]byte(clean), c); form != "" {
			t.Errorf("%q: found as %s", clean, form)
		}
	}
}

// failures counts instead of failing.
type failures struct {
	testing.TB
	n int
}

func (f *failures) Helper()               {}
func (f *failures) Errorf(string, ...any) { f.n++ }

func TestChecksFail(t *testing.T) {
	c := Canary()
	var r Recorder
	r.Logger().Info("said", "value", []byte(c))
	f := &failures{TB: t}
	r.Check(f, c)
	if f.n == 0 {
		t.Error("a canary in a log was not noticed")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "block"), []byte("..."+c), 0o600); err != nil {
		t.Fatal(err)
	}
	f.n = 0
	CheckDir(f, dir, c)
	if f.n == 0 {
		t.Error("a canary in a file was not noticed")
	}
	f.n = 0
	CheckDir(f, dir, Canary())
	if f.n != 0 {
		t.Error("a canary that is nowhere was found")
	}
}
