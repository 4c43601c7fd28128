//go:build unix

package dirlock

import (
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/keyturn/keyturn/fault"
)

// Take takes the lock that the file at path stands for, which is made with mode
// 0600 and stays, until it is closed or the process ends. It does not wait: the
// error is of kind Conflict if somebody has it, Denied or Unavailable for what
// the system says.
func Take(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, disk("open the file", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &fault.Error{Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: op, Msg: "another process uses this directory; expected one at a time"}
		}
		return nil, disk("lock the file", err)
	}
	return f, nil
}
