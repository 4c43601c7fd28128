package pgserver

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
)

// InstallHint is the command that brings the binaries.
const InstallHint = "sudo apt-get install -y postgresql"

// BinEnv names the environment variable that says where the binaries are.
const BinEnv = "KEYTURN_PG_BIN"

// FindBinaries returns the directory of initdb and postgres, or "": the one
// that KEYTURN_PG_BIN names and no other if it is set, else Debian's newest
// version, else wherever PATH has them.
func FindBinaries() string {
	if dir := os.Getenv(BinEnv); dir != "" {
		if hasBinaries(dir) {
			return dir
		}
		return ""
	}
	dirs, _ := filepath.Glob("/usr/lib/postgresql/*/bin") // the pattern is well formed
	slices.SortFunc(dirs, func(a, b string) int { return version(b) - version(a) })
	for _, dir := range dirs {
		if hasBinaries(dir) {
			return dir
		}
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		// Distributions link /usr/bin/initdb to where its neighbours are.
		if real, err := filepath.EvalSymlinks(path); err == nil {
			path = real
		}
		if dir := filepath.Dir(path); hasBinaries(dir) {
			return dir
		}
	}
	return ""
}

// version reads 15 from /usr/lib/postgresql/15/bin.
func version(dir string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(dir)))
	if err != nil {
		return 0
	}
	return n
}

func hasBinaries(dir string) bool {
	for _, name := range []string{"initdb", "postgres"} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.IsDir() || fi.Mode()&0o111 == 0 {
			return false
		}
	}
	return true
}
