package sibling

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// changeTries bounds how often change begins again because somebody else
// wrote. Each time somebody made progress.
const changeTries = 20

// A plan decides from the state of a secret what is to be done about it. A nil
// act means that nothing is; an error, that nothing can be.
type plan func(ctx context.Context, st *state) (act func(context.Context) error, err error)

// change carries out f under the lock, and begins again when somebody else
// wrote between look and act. What a promotion that died has left is settled
// first, whatever f is about: the note of it is what the next state is told by,
// and its value must not stay where nobody looks.
//
// After an error that leaves open whether the write took effect, f looks once
// more: that it finds nothing left to do is success. The write is not repeated,
// that is for the caller.
func (s *Store) change(ctx context.Context, op string, r ref.Ref, f plan) error {
	held, unlock, err := s.lock.Lock(ctx, "secret "+r.String())
	if err != nil {
		return err
	}
	defer unlock()
	err = s.try(held, op, r, f)
	if err != nil && held.Err() != nil && ctx.Err() == nil {
		return &fault.Error{
			Kind: fault.Unavailable, Class: fault.ClassConcurrency, Op: op,
			Msg: fmt.Sprintf("the lock on %s was lost while it was held; try again", r), Err: err,
		}
	}
	return err
}

func (s *Store) try(ctx context.Context, op string, r ref.Ref, f plan) error {
	for try := range changeTries {
		st, err := s.settled(ctx, op, r)
		if fault.Is(err, fault.Conflict) && fault.ClassOf(err) == fault.ClassConcurrency {
			if err := pause(ctx, try); err != nil {
				return fault.New(fault.Unavailable, op, err)
			}
			continue
		}
		if err != nil {
			return err
		}
		act, err := f(ctx, st)
		if err != nil {
			st.wipe()
		}
		if err != nil || act == nil {
			return err
		}
		if err = act(ctx); err == nil {
			return nil
		}
		if fault.Is(err, fault.Conflict) {
			if err := pause(ctx, try); err != nil {
				return fault.New(fault.Unavailable, op, err)
			}
			continue
		}
		if open(err) {
			if again, lerr := s.look(ctx, r); lerr == nil && again.left == nil {
				if act, ferr := f(ctx, again); ferr == nil && act == nil {
					return nil
				}
			}
		}
		return err
	}
	return &fault.Error{
		Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: op,
		Msg: fmt.Sprintf("others wrote to %s each of %d times; try again", r, changeTries),
	}
}

// open reports whether a write that failed with err may have taken effect.
func open(err error) bool {
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.Unknown:
		return err != nil
	case fault.NotFound, fault.Conflict, fault.Denied, fault.Invalid:
	}
	return false
}

// pause waits a random while that grows with the number of tries, up to some
// 50 ms.
func pause(ctx context.Context, try int) error {
	limit := time.Millisecond << min(try, 5)
	t := time.NewTimer(time.Duration(rand.Int64N(int64(limit)) + int64(limit)/2)) //nolint:gosec // jitter, not a secret
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
