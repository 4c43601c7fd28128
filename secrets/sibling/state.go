package sibling

import (
	"context"
	"fmt"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// pendingPrefix begins the id of a pending version as [Store] tells it: both
// secrets may count their versions from 1, and an id must name one of them.
const pendingPrefix = "pending/"

// A state is a secret and its sibling, taken together.
type state struct {
	// main is told as if the last append had been recorded.
	main *Main
	// pending is what may still be promoted, nil if there is nothing.
	pending *Pending
	// left is what the sibling still holds though it was promoted, its value
	// wiped.
	left *Pending
	// unrecorded: left was appended as main.Current, and nobody noted it.
	unrecorded bool
	rev        string // of the sibling
}

// look reads both secrets. The sibling comes first: what is read of the main
// secret is then the newer of the two, so a pending version is never compared
// with a current one that it has superseded long ago.
func (s *Store) look(ctx context.Context, r ref.Ref) (*state, error) {
	p, rev, err := s.d.Pending(ctx, r)
	if err != nil {
		return nil, err
	}
	m, err := s.d.Main(ctx, r)
	if err != nil {
		p.wipe()
		return nil, err
	}
	st, err := s.resolve(ctx, r, m, p)
	if err != nil {
		p.wipe()
		return nil, err
	}
	st.rev = rev
	return st, nil
}

// resolve tells whether p was promoted.
func (s *Store) resolve(ctx context.Context, r ref.Ref, m *Main, p *Pending) (*state, error) {
	st := &state{main: m}
	switch {
	case p == nil:
	case m.Current.has(p.Token) || m.Previous.has(p.Token):
		st.left = p
		p.wipe()
	case m.Current == nil || m.Current.Token != "" || m.Current.ID == p.After:
		st.pending = p
	default:
		// Somebody wrote after p was made and noted no token. If it is p's
		// value, it was p's promotion, which died before it could note it.
		v, err := s.d.Read(ctx, r, m.Current.ID)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		same := err == nil && v.Equal(p.Value)
		v.Wipe()
		if !same {
			st.pending = p
			return st, nil
		}
		previous, err := s.superseded(ctx, r, m, p)
		if err != nil {
			return nil, err
		}
		current := *m.Current
		current.Token = p.Token
		told := *m
		told.Current, told.Previous = &current, previous
		st.main, st.left, st.unrecorded = &told, p, true
		p.wipe()
	}
	return st, nil
}

// superseded returns the version that was current before p was appended, which
// nobody noted. It is the one that p was made from, or one that somebody wrote
// by hand since; but not what a twin appended, which holds p's own value.
func (s *Store) superseded(ctx context.Context, r ref.Ref, m *Main, p *Pending) (*Version, error) {
	before := m.Previous
	if before != nil && before.ID == p.After {
		return before, nil
	}
	if before != nil && before.Token == "" && !before.Disabled {
		v, err := s.d.Read(ctx, r, before.ID)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		other := err == nil && !v.Equal(p.Value)
		v.Wipe()
		if other {
			return before, nil
		}
	}
	if p.After == "" {
		return nil, nil //nolint:nilnil // there was no version before
	}
	return &Version{ID: p.After}, nil
}

// wipe empties what was read and is not handed on.
func (st *state) wipe() { st.pending.wipe() }

func (p *Pending) wipe() {
	if p != nil {
		p.Value.Wipe()
	}
}

// has reports whether v was written under token.
func (v *Version) has(token string) bool { return v != nil && token != "" && v.Token == token }

// currentID returns "" where the secret has no version yet.
func (st *state) currentID() string {
	if st.main.Current == nil {
		return ""
	}
	return st.main.Current.ID
}

// version hands p on.
func (p *Pending) version() *secrets.Version {
	return &secrets.Version{ID: pendingPrefix + p.ID, Token: p.Token, Value: p.Value, Created: p.Created}
}

// settled looks, and settles what is left of a promotion that died. The sibling
// has moved then, so it looks again.
func (s *Store) settled(ctx context.Context, op string, r ref.Ref) (*state, error) {
	st, err := s.look(ctx, r)
	if err != nil || st.left == nil {
		return st, err
	}
	serr := s.settle(ctx, r, st)
	if serr != nil && !open(serr) && !fault.Is(serr, fault.Conflict) {
		return nil, serr
	}
	// An answer that was lost leaves open whether it is done.
	again, err := s.look(ctx, r)
	switch {
	case err != nil && serr != nil:
		return nil, serr
	case err != nil:
		return nil, err
	case again.left == nil:
		return again, nil
	case open(serr):
		return nil, serr
	}
	return nil, &fault.Error{
		Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: op, Err: serr,
		Msg: fmt.Sprintf("others promoted or recorded rotation %s of %s meanwhile; read the secret again", again.left.Token, r),
	}
}

// settle notes what a promotion that died has not noted, and clears what it
// left. It may be repeated.
func (s *Store) settle(ctx context.Context, r ref.Ref, st *state) error {
	if err := s.record(ctx, r, st); err != nil {
		return err
	}
	return s.d.Clear(ctx, r, st.rev)
}

func (s *Store) record(ctx context.Context, r ref.Ref, st *state) error {
	if !st.unrecorded {
		return nil
	}
	previous := ""
	if st.main.Previous != nil {
		previous = st.main.Previous.ID
	}
	c := st.main.Current
	if err := s.d.Record(ctx, r, c.ID, c.Token, previous); err != nil {
		return err
	}
	s.log.InfoContext(ctx, "recorded a promotion that had died before it could", "ref", r.String(), "version", c.ID, "token", c.Token)
	return nil
}
