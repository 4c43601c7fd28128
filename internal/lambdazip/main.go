// Command lambdazip packs one program as a Lambda deployment package: a zip
// with the single file bootstrap, as runtime provided.al2023 wants it. The
// same program gives the same bytes, so a package can be checked against its
// source.
// https://docs.aws.amazon.com/lambda/latest/dg/golang-package.html
//
//	lambdazip -out dist/rotate.zip -limit 5500000 build/bootstrap
package main

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

func main() {
	out := flag.String("out", "", "zip to write")
	limit := flag.Int("limit", 0, "fail if the zip is larger, in bytes; 0 is no limit")
	flag.Parse()
	if *out == "" || flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "lambdazip: expected -out ZIP and one program, as in: lambdazip -out dist/rotate.zip build/bootstrap")
		os.Exit(2)
	}
	if err := run(os.Stdout, *out, *limit, flag.Arg(0)); err != nil {
		fmt.Fprintln(os.Stderr, "lambdazip:", err)
		os.Exit(1)
	}
}

func run(w io.Writer, out string, limit int, program string) error {
	b, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	arch, err := architecture(b)
	if err != nil {
		return fmt.Errorf("%s: %w", program, err)
	}
	z, err := pack(b)
	if err != nil {
		return fmt.Errorf("pack %s: %w", program, err)
	}
	if limit > 0 && len(z) > limit {
		return fmt.Errorf("%s would have %d bytes; expected at most %d: look for a new dependency with go list -deps", out, len(z), limit)
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o750); err != nil {
		return err
	}
	if err := os.WriteFile(out, z, 0o644); err != nil { //nolint:gosec // a package is no secret
		return err
	}
	_, err = fmt.Fprintf(w, "%-30s %-6s %8d bytes (program %9d)  sha256 %x\n", out, arch, len(z), len(b), sha256.Sum256(z))
	return err
}

// architecture names the processor that program is for, in Lambda's words. A
// program for another system, or one that needs a libc, is refused here and
// not at its first invocation.
func architecture(program []byte) (string, error) {
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		return "", errors.New("not a Linux program; build it with GOOS=linux")
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", errors.New("dynamically linked; build it with CGO_ENABLED=0")
		}
	}
	switch f.Machine {
	case elf.EM_X86_64:
		return "x86_64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	}
	return "", fmt.Errorf("built for %s; expected GOARCH amd64 or arm64", f.Machine)
}

// pack returns a zip whose bytes depend on program alone.
func pack(program []byte) ([]byte, error) {
	var buf bytes.Buffer
	z := zip.NewWriter(&buf)
	z.RegisterCompressor(zip.Deflate, func(w io.Writer) (io.WriteCloser, error) { return flate.NewWriter(w, flate.BestCompression) })
	h := &zip.FileHeader{
		Name: "bootstrap", Method: zip.Deflate,
		Modified: time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC), // zip's own first day
	}
	h.SetMode(0o755)
	f, err := z.CreateHeader(h)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(program); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
