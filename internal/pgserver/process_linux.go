package pgserver

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

func sysProcAttr(as *identity) *syscall.SysProcAttr {
	a := baseAttr(as)
	a.Pdeathsig = syscall.SIGINT // fast shutdown
	return a
}

// runsOn reports whether pid is a live postgres that works in data, which is
// where a postmaster stays.
func runsOn(pid int, data string) bool {
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil {
		return false
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	name, _, _ := bytes.Cut(cmdline, []byte{0})
	real, err := filepath.EvalSymlinks(data)
	return err == nil && cwd == real && bytes.HasPrefix([]byte(filepath.Base(string(name))), []byte("postgres"))
}
