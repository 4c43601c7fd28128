//go:build unix

package spool

import (
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/keyturn/keyturn/fault"
)

// lockDir takes the lock at path until it is closed or the process ends.
func lockDir(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, disk("open the lock", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &fault.Error{Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: op, Msg: "another process uses this directory; expected one directory a process"}
		}
		return nil, disk("lock the directory", err)
	}
	return f, nil
}
