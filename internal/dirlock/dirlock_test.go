package dirlock_test

import (
	"path/filepath"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dirlock"
)

func TestOneAtATime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	for range 2 { // the file stays, and the lock does not
		l, err := dirlock.Take(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dirlock.Take(path); !fault.Is(err, fault.Conflict) {
			t.Errorf("%v; expected a conflict", err)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := dirlock.Take(filepath.Join(path, "x")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("%v; expected unavailable below a file", err)
	}
}
