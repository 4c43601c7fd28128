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
	// unrecorded is the version that left was appended as, nil if somebody
	// noted it, and superseded the id of the one before it, or "".
	unrecorded *Version
	superseded string
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
	case m.promoted(p.Token):
		st.left = p
		p.wipe()
	case m.Current == nil || m.Current.Token != "" || m.Current.ID == p.After:
		st.pending = p
	default:
		// Somebody wrote after p was made and noted no token. If it is p's
		// value, it was p's promotion, which died before it could note it.
		if err := s.compare(ctx, r, st, p); err != nil {
			return nil, err
		}
	}
	return st, nil
}

// compare looks for p's value in the versions that have no token: the current
// one, and the previous one, which somebody may have superseded by hand since.
// Older ones nobody tells of, see [state.madeFromGone].
func (s *Store) compare(ctx context.Context, r ref.Ref, st *state, p *Pending) error {
	cur, before := st.main.Current, st.main.Previous
	told := *st.main
	_, same, err := s.reads(ctx, r, cur, p)
	if err != nil {
		return err
	}
	if same {
		previous, err := s.before(ctx, r, st.main, p)
		if err != nil {
			return err
		}
		st.unrecorded = cur.under(p.Token)
		told.Current, told.Previous = st.unrecorded, previous
		if previous != nil {
			st.superseded = previous.ID
		}
	} else if before != nil && before.ID != p.After {
		if _, same, err = s.reads(ctx, r, before, p); err != nil {
			return err
		}
		if same {
			st.unrecorded, st.superseded = before.under(p.Token), p.After
			told.Previous = st.unrecorded
		}
	}
	if !same {
		st.pending = p
		return nil
	}
	st.main, st.left = &told, p
	p.wipe()
	return nil
}

// before returns the version that was current before p was appended as the
// current one, which nobody noted. It is the one that p was made from, or one
// that somebody wrote by hand since; but not what a twin appended, which holds
// p's own value.
func (s *Store) before(ctx context.Context, r ref.Ref, m *Main, p *Pending) (*Version, error) {
	v := m.Previous
	if v != nil && v.ID == p.After {
		return v, nil
	}
	if v != nil {
		readable, same, err := s.reads(ctx, r, v, p)
		if err != nil {
			return nil, err
		}
		if readable && !same {
			return v, nil
		}
	}
	if p.After == "" {
		return nil, nil //nolint:nilnil // there was no version before
	}
	return &Version{ID: p.After}, nil
}

// reads reports whether v can be read and may be p's, which it is not if it has
// a token, and whether it holds p's value.
func (s *Store) reads(ctx context.Context, r ref.Ref, v *Version, p *Pending) (readable, same bool, err error) {
	if v.Token != "" {
		return false, false, nil
	}
	value, err := s.d.Read(ctx, r, v.ID)
	if fault.Is(err, fault.NotFound) {
		return false, false, nil
	}
	if err != nil {
		return false, false, err
	}
	defer value.Wipe()
	return true, value.Equal(p.Value), nil
}

// promoted reports whether a version is known that was written under token.
func (m *Main) promoted(token string) bool {
	return m.Current.has(token) || m.Previous.has(token) || token != "" && m.Noted != nil && m.Noted(token)
}

// madeFromGone reports that the pending version was made from one that is
// neither current nor previous any more. It may have been promoted then, and
// superseded by hand: to promote it would be to bring an old value back.
func (st *state) madeFromGone() bool {
	previous := ""
	if st.main.Previous != nil {
		previous = st.main.Previous.ID
	}
	return st.pending.After != st.currentID() && st.pending.After != previous
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

// under returns a copy of v that was written under token.
func (v *Version) under(token string) *Version {
	out := *v
	out.Token = token
	return &out
}

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
	v := st.unrecorded
	if v == nil {
		return nil
	}
	if err := s.d.Record(ctx, r, v.ID, v.Token, st.superseded); err != nil {
		return err
	}
	s.log.InfoContext(ctx, "recorded a promotion that had died before it could", "ref", r.String(), "version", v.ID, "token", v.Token)
	return nil
}
