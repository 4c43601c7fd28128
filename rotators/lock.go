package rotators

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// keyedLocks is one lock a secret, kept only while somebody wants it.
type keyedLocks struct {
	mu sync.Mutex
	m  map[ref.Ref]*keyedLock
}

type keyedLock struct {
	ch    chan struct{} // holds one token while unlocked
	users int
}

// lock waits for the secret's lock or the end of ctx.
func (l *keyedLocks) lock(ctx context.Context, id ref.Ref) (unlock func(), err error) {
	l.mu.Lock()
	if l.m == nil {
		l.m = map[ref.Ref]*keyedLock{}
	}
	k := l.m[id]
	if k == nil {
		k = &keyedLock{ch: make(chan struct{}, 1)}
		k.ch <- struct{}{}
		l.m[id] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.m, id)
		}
	}
	select {
	case <-k.ch:
		return func() { k.ch <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, &fault.Error{
			Kind: fault.Unavailable, Class: fault.ClassConcurrency, Op: "rotate",
			Msg: fmt.Sprintf("waiting for another rotation of %s to end", id), Err: errors.Join(ctx.Err(), context.Cause(ctx)),
		}
	}
}
