package secrets

import (
	"context"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/fault"
)

func TestLocalLock(t *testing.T) {
	l := NewLocks()
	held, unlock, err := l.Lock(t.Context(), "a")
	if err != nil || held.Err() != nil {
		t.Fatalf("lock: %v, %v", err, held.Err())
	}
	// Another name is free.
	_, other, err := l.Lock(t.Context(), "b")
	if err != nil {
		t.Fatal(err)
	}
	other()
	// Who waits for the same one waits no longer than its context.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := l.Lock(ended, "a"); !fault.Is(err, fault.Unavailable) {
		t.Errorf("lock what is held: %v, expected unavailable", err)
	}
	unlock()
	unlock() // gives nobody else's lock away

	n := 0 // guarded by the lock, says the race detector
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			for range 20 {
				_, unlock, err := l.Lock(t.Context(), "a")
				if err != nil {
					t.Error(err)
					return
				}
				n++
				unlock()
				unlock()
			}
		})
	}
	wg.Wait()
	if n != 400 {
		t.Errorf("counted %d, expected 400", n)
	}
	if len(l.held) != 0 {
		t.Errorf("%d names are kept though nobody holds them", len(l.held))
	}
}
