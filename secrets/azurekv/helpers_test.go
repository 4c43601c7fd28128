package azurekv_test

import (
	"context"
	"crypto/rand"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// name returns a fresh name of a secret, and token one of a rotation.
func name() string  { return "db-" + strings.ToLower(rand.Text()) }
func token() string { return "rotation-" + rand.Text() }

// locker is a lock service in memory that several processes share.
type locker struct {
	mu    sync.Mutex
	held  map[string]chan struct{}
	waits chan struct{} // hears of each wait that begins, if anybody listens
}

func newLocker() *locker {
	return &locker{held: map[string]chan struct{}{}, waits: make(chan struct{})}
}

// awaitWaiter returns once somebody waits for a lock that another one has.
func (l *locker) awaitWaiter(t *testing.T) {
	t.Helper()
	select {
	case <-l.waits:
	case <-time.After(30 * time.Second):
		t.Fatal("nobody waits for the lock")
	}
}

func (l *locker) Lock(ctx context.Context, name string) (context.Context, func(), error) {
	for {
		l.mu.Lock()
		free := l.held[name]
		if free == nil {
			free = make(chan struct{})
			l.held[name] = free
			l.mu.Unlock()
			return ctx, sync.OnceFunc(func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				delete(l.held, name)
				close(free)
			}), nil
		}
		l.mu.Unlock()
		select {
		case <-free:
		case l.waits <- struct{}{}:
			<-free
		case <-ctx.Done():
			return nil, nil, fault.New(fault.Unavailable, "lock "+name, ctx.Err())
		}
	}
}

func text(s string) secrets.Value { return secrets.NewString(s) }

// rotate stores and promotes value, and returns the version.
func rotate(t *testing.T, s secrets.Store, r ref.Ref, value string) *secrets.Version {
	t.Helper()
	tok := token()
	if _, err := s.PutPending(t.Context(), r, tok, text(value)); err != nil {
		t.Fatalf("put pending: %v", err)
	}
	v, err := s.Promote(t.Context(), r, tok)
	if err != nil {
		t.Fatalf("promote: %v", err)
	}
	return v
}

// stage returns the value of a stage, or "" where nobody holds it.
func stage(t *testing.T, s secrets.Reader, r ref.Ref, st secrets.Stage) string {
	t.Helper()
	v, err := s.Get(t.Context(), r, st)
	if fault.Is(err, fault.NotFound) {
		return ""
	}
	if err != nil {
		t.Fatalf("get %s: %v", st, err)
	}
	return string(v.Value.Reveal())
}

func want(t *testing.T, what string, err error, kind fault.Kind, parts ...string) {
	t.Helper()
	if err == nil || fault.KindOf(err) != kind {
		t.Errorf("%s: %v (kind %s), expected kind %s", what, err, fault.KindOf(err), kind)
		return
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%s: the error is %q, expected it to say %q", what, err, p)
		}
	}
}

func pendingName(r ref.Ref) string { return r.Name + sibling.Suffix }
