//go:build !unix

package pgserver

import (
	"os"
	"syscall"

	"github.com/keyturn/keyturn/fault"
)

// Elsewhere there are no signals to stop a server with.

type identity struct{}

func (*identity) own(string) error { return nil }

func runAs() (*identity, error) {
	return nil, fault.Newf(fault.Invalid, op, "a private PostgreSQL needs a Unix-like system; use a server of your own")
}

func prepareDir(dir string, _ *identity) error { return os.MkdirAll(dir, 0o700) }

func signal(int, syscall.Signal) error { return os.ErrInvalid }

func sysProcAttr(*identity) *syscall.SysProcAttr { return nil }

func runsOn(int, string) bool { return false }
