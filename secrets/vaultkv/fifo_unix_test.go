//go:build unix

package vaultkv_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

func fifo(t *testing.T, path string) string {
	t.Helper()
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// released runs f, and writes to the FIFO at path if f hangs on it.
func released(t *testing.T, path string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Errorf("%s is waited for", filepath.Base(path))
		if w, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			_ = w.Close()
		}
		<-done
	}
}

// A FIFO as a credential is refused: nobody need ever write to it.
func TestFIFO(t *testing.T) {
	tg := fake(t)
	path := fifo(t, filepath.Join(t.TempDir(), "credential"))
	for what, m := range map[string]vaultkv.Method{
		"token": vaultkv.TokenFile{Path: path}, "secret id": vaultkv.AppRole{RoleID: "r", SecretIDFile: path},
		"wrapped": vaultkv.AppRole{RoleID: "r", SecretIDFile: path, Wrapped: true, Role: "r"},
	} {
		released(t, path, func() {
			_, err := vaultkv.SignIn(t.Context(), tg.client(t, "", tg.transport), m, nil)
			wantErr(t, what, err, fault.Invalid, "not a regular file")
		})
	}
	// A link to a file is one, as Kubernetes mounts its secrets.
	a := newAppRole(t, tg, "")
	a.issue(t)
	link := filepath.Join(a.dir, "link")
	if err := os.Symlink(a.method.SecretIDFile, link); err != nil {
		t.Fatal(err)
	}
	a.method.SecretIDFile = link
	a.open(t)
}

// One that takes the place of the file later does not keep the session from
// ending.
func TestCloseBesideFIFO(t *testing.T) {
	tg := fake(t)
	a := newAppRole(t, tg, "")
	a.issue(t)
	clk := newClock()
	s, err := vaultkv.SignIn(t.Context(), tg.client(t, "", tg.transport), a.method, vaultkv.WithAfter(vaultkv.SessionOptions{}, clk.after))
	if err != nil {
		t.Fatal(err)
	}
	clk.next(t)
	if err := os.Remove(a.method.SecretIDFile); err != nil {
		t.Fatal(err)
	}
	path := fifo(t, a.method.SecretIDFile)
	tg.fake.Advance(time.Hour) // the token is no more
	clk.ticks <- time.Time{}
	released(t, path, s.Close)
}
