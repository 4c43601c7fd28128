package main

import (
	"archive/zip"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// maxZip is what scripts/package.sh allows too.
const maxZip = 5_500_000

// build makes the rotation function as scripts/package.sh does.
func build(t *testing.T, arch string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "bootstrap")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-tags", "lambda.norpc",
		"-ldflags", "-s -w -buildid=", "-o", out, "../../functions/aws/rotate")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, b)
	}
	return out
}

// The zip stays small, is the same each time, and holds one executable.
func TestRotatePackage(t *testing.T) {
	program := build(t, "amd64")
	dir := t.TempDir()
	var report bytes.Buffer
	var zips [2][]byte
	for i, name := range []string{"a.zip", "b.zip"} {
		out := filepath.Join(dir, name)
		if err := run(&report, out, maxZip, program); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		zips[i] = b
	}
	t.Log(report.String())
	if !bytes.Equal(zips[0], zips[1]) {
		t.Error("two packages of one program differ")
	}
	z, err := zip.NewReader(bytes.NewReader(zips[0]), int64(len(zips[0])))
	if err != nil {
		t.Fatal(err)
	}
	if len(z.File) != 1 || z.File[0].Name != "bootstrap" || z.File[0].Mode().Perm() != 0o755 {
		t.Fatalf("the zip holds %v; want one bootstrap of mode 0755", z.File)
	}
	r, err := z.File[0].Open()
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the zip holds another program")
	}
	if bytes.Contains(want, []byte(filepath.Dir(mustGetwd(t)))) {
		t.Error("the program names the directory that it was built in")
	}

	small := filepath.Join(dir, "c.zip")
	if err := run(&report, small, 1000, program); err == nil || !strings.Contains(err.Error(), "expected at most 1000") {
		t.Errorf("err %v; want one that names the limit", err)
	}
	if _, err := os.Stat(small); !os.IsNotExist(err) {
		t.Error("a package over the limit was written")
	}
}

func mustGetwd(t *testing.T) string {
	t.Helper()
	d, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestWhatIsNoProgram(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bootstrap")
	if err := os.WriteFile(file, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(io.Discard, file+".zip", 0, file); err == nil || !strings.Contains(err.Error(), "GOOS=linux") {
		t.Errorf("err %v; want one that says how to build", err)
	}
	if err := run(io.Discard, file+".zip", 0, file+"-missing"); !os.IsNotExist(err) {
		t.Errorf("err %v; want not found", err)
	}
}
