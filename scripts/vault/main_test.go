package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tree writes files with what each edit looks for, changed by f.
func tree(t *testing.T, f func(e edit) string) string {
	t.Helper()
	dir := t.TempDir()
	for _, e := range edits {
		path := filepath.Join(dir, filepath.FromSlash(e.file))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("before\n"+f(e)+"\nafter\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestAdapt(t *testing.T) {
	dir := tree(t, func(e edit) string { return e.old })
	for range 2 { // once more changes nothing
		if err := adapt(dir, edits); err != nil {
			t.Fatal(err)
		}
		for _, e := range edits {
			got, err := os.ReadFile(filepath.Join(dir, e.file))
			if err != nil || string(got) != "before\n"+e.new+"\nafter\n" {
				t.Errorf("%s is %q, %v", e.file, got, err)
			}
		}
	}
}

func TestAdaptRefusesAnotherSource(t *testing.T) {
	for what, f := range map[string]func(e edit) string{
		"other": func(edit) string { return "something else" },
		"twice": func(e edit) string { return e.old + e.old },
	} {
		dir := tree(t, f)
		err := adapt(dir, edits)
		if err == nil || !strings.Contains(err.Error(), edits[0].file) {
			t.Errorf("%s: %v, expected an error that names the file", what, err)
		}
		got, _ := os.ReadFile(filepath.Join(dir, edits[0].file))
		if string(got) != "before\n"+f(edits[0])+"\nafter\n" {
			t.Errorf("%s: the file was changed to %q", what, got)
		}
	}
	if err := adapt(t.TempDir(), edits); err == nil {
		t.Error("no files: expected an error")
	}
}
