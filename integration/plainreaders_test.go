package integration_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
)

const plainRotations = 50

// TestPlainReaders has a reader that knows nothing of us read each store
// all the time, as its provider's own clients do, while the secret rotates.
// Each value that it has not seen before was proven when it is read, and signs
// in there and then.
func TestPlainReaders(t *testing.T) {
	db := newDatabase(t)
	for name, newPlatform := range platforms(&oneProcess{}) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlatform(t)
			store := p.open(t, nil)
			r, rot := pair(t, p, store, db, "plain_"+name, true, &postgres.Options{})
			w := &witness{p: p, db: db, r: r, proven: map[digest]bool{}, seen: map[digest]bool{}}
			must(t, w.prove(get(t, store, r, secrets.Current).Value))
			ctx, stop := context.WithCancelCause(t.Context())
			done := make(chan error, 1)
			go func() {
				err := w.read(ctx)
				stop(err) // so that a test that waits for it ends
				done <- err
			}()
			runner := rotators.NewRunner(store, proving{rot.(able), w}, &rotators.Options{KeepPrevious: true})
			for i := 0; i < plainRotations && ctx.Err() == nil; i++ {
				_, err := runner.Rotate(t.Context(), r, "")
				must(t, err)
				// The next rotation sets another password for the user of the
				// credential before this one: who has just read it signs in first.
				testenv.Eventually(t, limit, "the new value read and tried", func() bool { return w.distinct() == i+2 || ctx.Err() != nil })
			}
			stop(nil)
			if err := <-done; err != nil {
				t.Fatalf("the plain reader: %v", err)
			}
			t.Logf("%s: %d plain reads in %d rotations, %d values, each of which signed in when it was read", name, w.reads, plainRotations, w.distinct())
		})
	}
}

// A digest stands for a credential that need not be kept.
type digest [sha256.Size]byte

// A witness reads and tries what it reads.
type witness struct {
	p  platform
	db *database
	r  ref.Ref

	reads int // by the reader alone

	mu     sync.Mutex
	proven map[digest]bool // by a rotation's test
	seen   map[digest]bool // and signed in
}

// digestOf is of user and password alone, since stores spell a JSON value in
// their own ways.
func digestOf(v secrets.Value) (digest, error) {
	s, err := dbsecret.Parse(v)
	if err != nil {
		return digest{}, err
	}
	return sha256.Sum256(append([]byte(s.Username+"\x00"), s.Password.Reveal()...)), nil
}

func (w *witness) prove(v secrets.Value) error {
	d, err := digestOf(v)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.proven[d] = true
	return err
}

func (w *witness) distinct() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.seen)
}

// read reads until ctx ends, with breaks so short that others get their turn:
// without any the runtime looks at the network every 10 ms only, and rotations
// crawl.
func (w *witness) read(ctx context.Context) error {
	var last digest
	for ; ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
		v, err := w.p.plain(context.WithoutCancel(ctx), w.r)
		if err != nil {
			return fmt.Errorf("read %d failed: %w", w.reads, err)
		}
		w.reads++
		d, err := digestOf(v)
		if err != nil {
			return err
		}
		if d == last {
			continue
		}
		last = d
		if err := w.try(context.WithoutCancel(ctx), d, v); err != nil {
			return err
		}
	}
	return nil
}

// try signs in with a value that was read just now for the first time.
func (w *witness) try(ctx context.Context, d digest, v secrets.Value) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !w.proven[d]:
		return errors.New("it got a value that no test had proven")
	case w.seen[d]:
		return errors.New("it got a value that was superseded already")
	}
	if err := w.db.signIn(ctx, v); err != nil {
		return fmt.Errorf("it got a value that does not sign in: %w", err)
	}
	w.seen[d] = true
	return nil
}

// able is what the rotator of alternating users can do.
type able interface {
	rotators.Rotator
	rotators.Retirer
	rotators.Restorer
	rotators.Verifier
}

// proving is a rotator that tells what its tests have proven.
type proving struct {
	able
	w *witness
}

func (p proving) Test(ctx context.Context, c rotators.Change) error {
	if err := p.able.Test(ctx, c); err != nil {
		return err
	}
	return p.w.prove(c.Pending)
}
