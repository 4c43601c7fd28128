//go:build unix

package pgserver

import (
	"errors"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/keyturn/keyturn/fault"
)

// An identity is an unprivileged user to run as.
type identity struct {
	name     string
	uid, gid int
}

// runAs returns whom the server runs as: nil for ourselves, and another user
// if we are root, since PostgreSQL refuses to run as root.
func runAs() (*identity, error) {
	if os.Geteuid() != 0 {
		return nil, nil //nolint:nilnil // nil is "ourselves"
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if errors.Join(err1, err2) == nil && uid != 0 {
			return &identity{name: name, uid: uid, gid: gid}, nil
		}
	}
	return nil, fault.Newf(fault.Invalid, op, "PostgreSQL does not run as root, and there is neither a user postgres nor nobody to run it as; start as another user")
}

// own gives path to the identity.
func (as *identity) own(path string) error {
	if as == nil {
		return nil
	}
	return os.Lchown(path, as.uid, as.gid)
}

// prepareDir makes dir if it is missing and sees to it that the identity can
// get there. Directories above dir are opened for passing through only within
// the temporary directory; elsewhere that is the operator's decision.
func prepareDir(dir string, as *identity) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fault.New(fault.Invalid, op, err)
	}
	if as == nil {
		return nil
	}
	tmp := filepath.Clean(os.TempDir())
	for p := dir; p != filepath.Dir(p); p = filepath.Dir(p) {
		fi, err := os.Stat(p)
		if err != nil {
			return fault.New(fault.Invalid, op, err)
		}
		if fi.Mode()&0o001 != 0 {
			continue
		}
		if p != dir && !strings.HasPrefix(p, tmp+string(filepath.Separator)) {
			return fault.Newf(fault.Invalid, op, "PostgreSQL runs as user %s, who cannot pass through %s to %s; choose a directory elsewhere, such as below /var/lib, or allow it with: chmod o+x %s", as.name, p, dir, p)
		}
		if err := os.Chmod(p, fi.Mode().Perm()|0o001); err != nil {
			return fault.New(fault.Invalid, op, err)
		}
	}
	return nil
}

func signal(pid int, sig syscall.Signal) error { return syscall.Kill(pid, sig) }

func baseAttr(as *identity) *syscall.SysProcAttr {
	// A process group of its own: an interrupt typed at the terminal is for
	// us, and we stop the server last.
	a := &syscall.SysProcAttr{Setpgid: true}
	if as != nil {
		a.Credential = &syscall.Credential{Uid: uint32(as.uid), Gid: uint32(as.gid)} //nolint:gosec // ids are not negative
	}
	return a
}
