//go:build unix && !linux

package pgserver

import (
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// sysProcAttr cannot tie the child to our death here; the next Start on the
// same directory finds and stops it.
func sysProcAttr(as *identity) *syscall.SysProcAttr { return baseAttr(as) }

// runsOn reports whether pid is a live postgres that was started on data.
func runsOn(pid int, data string) bool {
	out, err := exec.Command("ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output() //nolint:gosec // a number
	line := string(out)
	return err == nil && strings.Contains(line, "postgres") && strings.Contains(line, data)
}
