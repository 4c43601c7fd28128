//go:build !unix

package spool

import (
	"io"
	"os"
)

// lockDir opens path. Where there are no advisory locks nothing keeps a second
// process out.
func lockDir(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, disk("open the lock", err)
	}
	return f, nil
}
