// Package memstore keeps staged secrets in the memory of one process, for
// tests, examples and the parts of a development set-up that nobody else
// reads. Package natskv is the store for everything that must last.
//
// It knows the current, pending and previous version of a secret, and
// therefore the tokens of those three only: a token that was promoted before
// the previous version was is forgotten.
package memstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

var (
	_ secrets.Store     = (*Store)(nil)
	_ secrets.Succeeder = (*Store)(nil)
	_ secrets.Creator   = (*Store)(nil)
	_ secrets.Disabler  = (*Store)(nil)
)

// MaxValue is the longest value in bytes, as in AWS Secrets Manager.
const MaxValue = 64 << 10

// A Store holds secrets of any provider's refs. It is safe for concurrent
// use; make one with [New].
type Store struct {
	mu sync.Mutex
	m  map[ref.Ref]*staged
	n  int // versions ever made; the next one's id
}

// staged is one secret. A version is never changed after it was made.
type staged struct {
	current, pending, previous *secrets.Version
	activated                  time.Time // of current
	disabled, held             bool      // previous is
}

// New returns an empty Store.
func New() *Store { return &Store{m: map[ref.Ref]*staged{}} }

// Get implements [secrets.Reader].
func (s *Store) Get(ctx context.Context, r ref.Ref, stage secrets.Stage) (*secrets.Version, error) {
	var out *secrets.Version
	err := s.with(ctx, "get", r, func(st *staged) error {
		switch stage {
		case secrets.Current:
			out = st.current
		case secrets.Pending:
			out = st.pending
		case secrets.Previous:
			if st.disabled {
				return fault.Newf(fault.NotFound, "memstore: get", "version %s of %s, its previous one, is disabled; enable it to read it", st.previous.ID, r)
			}
			out = st.previous
		default:
			return fault.Newf(fault.Invalid, "memstore: get", "%q is not a stage; expected current, pending or previous", stage)
		}
		if out == nil {
			return fault.Newf(fault.NotFound, "memstore: get", "%s has no %s version", r, stage)
		}
		out = clone(out)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// PutPending implements [secrets.Store].
func (s *Store) PutPending(ctx context.Context, r ref.Ref, token string, v secrets.Value) (*secrets.Version, error) {
	return s.PutPendingAfter(ctx, r, token, "", v)
}

// PutPendingAfter implements [secrets.Succeeder]; an empty current is any.
func (s *Store) PutPendingAfter(ctx context.Context, r ref.Ref, token, current string, v secrets.Value) (*secrets.Version, error) {
	const op = "memstore: put pending"
	if err := checkToken(op, token); err != nil {
		return nil, err
	}
	if err := checkValue(op, v); err != nil {
		return nil, err
	}
	var out *secrets.Version
	err := s.with(ctx, "put pending", r, func(st *staged) error {
		switch {
		case token == st.current.Token || st.previous != nil && token == st.previous.Token:
			return fault.Newf(fault.Conflict, op, "rotation %s of %s was promoted already; start a new rotation", token, r)
		case st.pending == nil && current != "" && st.current.ID != current:
			return fault.Newf(fault.Conflict, op, "version %s of %s is not current any more; read the secret again", current, r)
		case st.pending == nil:
			st.pending = s.version(token, v)
		case st.pending.Token != token:
			return fault.Newf(fault.Conflict, op, "rotation %s of %s is unfinished; let it finish, or discard it", st.pending.Token, r)
		}
		out = clone(st.pending)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Promote implements [secrets.Store].
func (s *Store) Promote(ctx context.Context, r ref.Ref, token string) (*secrets.Version, error) {
	const op = "memstore: promote"
	if err := checkToken(op, token); err != nil {
		return nil, err
	}
	var out *secrets.Version
	err := s.with(ctx, "promote", r, func(st *staged) error {
		switch {
		case token == st.current.Token:
		case st.pending != nil && st.pending.Token == token:
			st.current, st.pending, st.previous = st.pending, nil, st.current
			st.activated, st.disabled, st.held = time.Now().UTC(), false, false
		case st.pending != nil:
			return fault.Newf(fault.Conflict, op, "rotation %s of %s is pending, not %s; read the secret again", st.pending.Token, r, token)
		case st.previous != nil && st.previous.Token == token:
			return fault.Newf(fault.Conflict, op, "rotation %s of %s was superseded by %s; read the secret again", token, r, st.current.Token)
		default:
			return fault.Newf(fault.NotFound, op, "rotation %s of %s has no version; store one first", token, r)
		}
		out = clone(st.current)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Discard implements [secrets.Store].
func (s *Store) Discard(ctx context.Context, r ref.Ref, token string) error {
	const op = "memstore: discard"
	if err := checkToken(op, token); err != nil {
		return err
	}
	return s.with(ctx, "discard", r, func(st *staged) error {
		switch {
		case st.pending == nil || token == st.current.Token:
		case st.pending.Token == token:
			st.pending = nil
		default:
			return fault.Newf(fault.Conflict, op, "rotation %s of %s is pending, not %s; it was left alone", st.pending.Token, r, token)
		}
		return nil
	})
}

// Describe implements [secrets.Store].
func (s *Store) Describe(ctx context.Context, r ref.Ref) (*secrets.Description, error) {
	d := &secrets.Description{Ref: r}
	err := s.with(ctx, "describe", r, func(st *staged) error {
		for _, h := range []struct {
			v     *secrets.Version
			stage secrets.Stage
		}{{st.current, secrets.Current}, {st.pending, secrets.Pending}, {st.previous, secrets.Previous}} {
			if h.v == nil {
				continue
			}
			info := secrets.VersionInfo{ID: h.v.ID, Token: h.v.Token, Stages: []secrets.Stage{h.stage}, Created: h.v.Created}
			switch h.stage {
			case secrets.Current:
				info.Activated = st.activated
			case secrets.Previous:
				info.Disabled, info.Held = st.disabled, st.held
			case secrets.Pending:
			}
			d.Versions = append(d.Versions, info)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return d, nil
}

// CreateSecret implements [secrets.Creator].
func (s *Store) CreateSecret(ctx context.Context, r ref.Ref, v secrets.Value) (*secrets.Version, error) {
	const op = "memstore: create secret"
	if err := check(ctx, op, r); err != nil {
		return nil, err
	}
	if err := checkValue(op, v); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m[r] != nil {
		return nil, fault.Newf(fault.Conflict, op, "%s exists already and was left as it is", r)
	}
	st := &staged{current: s.version("", v)}
	st.activated = st.current.Created
	s.m[r] = st
	return clone(st.current), nil
}

// with calls f with the secret under the lock.
func (s *Store) with(ctx context.Context, op string, r ref.Ref, f func(*staged) error) error {
	op = "memstore: " + op
	if err := check(ctx, op, r); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.m[r]
	if st == nil {
		return fault.Newf(fault.NotFound, op, "there is no secret %s; create it, or correct the name", r)
	}
	return f(st)
}

// version makes a version. The caller holds the lock.
func (s *Store) version(token string, v secrets.Value) *secrets.Version {
	s.n++
	return &secrets.Version{ID: fmt.Sprint(s.n), Token: token, Value: copyValue(v), Created: time.Now().UTC()}
}

// clone gives a caller its own buffer, which it may wipe. It runs under the
// lock: Destroy wipes the store's own.
func clone(v *secrets.Version) *secrets.Version {
	c := *v
	c.Value = copyValue(v.Value)
	return &c
}

func copyValue(v secrets.Value) secrets.Value {
	b := v.Reveal()
	defer clear(b)
	return secrets.NewValue(b)
}

func check(ctx context.Context, op string, r ref.Ref) error {
	if err := r.Validate(); err != nil {
		return fault.New(fault.Invalid, op, err)
	}
	if err := ctx.Err(); err != nil {
		return fault.New(fault.Unavailable, op, err)
	}
	return nil
}

func checkToken(op, token string) error {
	if token == "" {
		return fault.Newf(fault.Invalid, op, "the rotation token is empty; expected the id of a rotation, such as a UUID")
	}
	return nil
}

func checkValue(op string, v secrets.Value) error {
	if n := v.Len(); n == 0 || n > MaxValue {
		return fault.Newf(fault.Invalid, op, "the value has %d bytes; expected 1 to %d", n, MaxValue)
	}
	return nil
}
