//go:build !unix

package dirlock

import (
	"io"
	"os"
)

// Take opens the file at path. Where there are no advisory locks nothing keeps a
// second process out.
func Take(path string) (io.Closer, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, disk("open the file", err)
	}
	return f, nil
}
