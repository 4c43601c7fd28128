// Package dirlock keeps a directory for one process at a time. The lock is the
// operating system's and ends with the process, however that ends: nobody has
// to remove what a killed one left.
package dirlock

import (
	"errors"
	"os"

	"github.com/keyturn/keyturn/fault"
)

const op = "lock"

// disk classifies an error of the operating system.
func disk(what string, err error) error {
	kind := fault.Unavailable
	if errors.Is(err, os.ErrPermission) {
		kind = fault.Denied
	}
	return fault.New(kind, op+": "+what, err)
}
