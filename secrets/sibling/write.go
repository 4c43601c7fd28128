package sibling

import (
	"context"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// PutPending implements [secrets.Store].
func (s *Store) PutPending(ctx context.Context, r ref.Ref, token string, v secrets.Value) (*secrets.Version, error) {
	return s.PutPendingAfter(ctx, r, token, "", v)
}

// PutPendingAfter implements [secrets.Succeeder]; an empty current is any. The
// current version is looked at right before the sibling is written: no
// provider writes one secret if another is as it was. A rotation that is
// promoted in between moves the sibling, and is noticed there; a version that
// somebody writes by hand in between is noticed by nobody.
func (s *Store) PutPendingAfter(ctx context.Context, r ref.Ref, token, current string, v secrets.Value) (*secrets.Version, error) {
	const op = "sibling: put pending"
	if err := check(ctx, op, r); err != nil {
		return nil, err
	}
	if err := checkToken(op, token); err != nil {
		return nil, err
	}
	if err := checkValue(op, v); err != nil {
		return nil, err
	}
	var out *secrets.Version
	err := s.change(ctx, op, r, func(_ context.Context, st *state) (func(context.Context) error, error) {
		switch {
		case st.main.promoted(token):
			return nil, fault.Newf(fault.Conflict, op, "rotation %s of %s was promoted already; start a new rotation", token, r)
		case st.pending != nil && st.pending.Token == token:
			out = st.pending.version()
			return nil, nil
		case st.pending != nil:
			return nil, fault.Newf(fault.Conflict, op, "rotation %s of %s is unfinished; let it finish, or discard it", st.pending.Token, r)
		case current != "" && st.currentID() != current:
			return nil, fault.Newf(fault.Conflict, op, "version %s of %s is not current any more; read the secret again", current, r)
		}
		return func(ctx context.Context) error {
			if err := s.d.PutPending(ctx, r, st.rev, Pending{Token: token, After: st.currentID(), Value: v}); err != nil {
				return err
			}
			// A twin may have come first where nothing compares and swaps.
			got, _, err := s.d.Pending(ctx, r)
			if err != nil {
				return err
			}
			if got == nil || got.Token != token {
				return fault.Newf(fault.Conflict, op, "what was stored for rotation %s of %s was replaced at once; read the secret again", token, r)
			}
			out = got.version()
			return nil
		}, nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Promote implements [secrets.Store]. A version that somebody wrote by hand
// since pending was made is superseded, as AWS Secrets Manager does; one that
// another rotation wrote is a Conflict, and so are two by hand.
func (s *Store) Promote(ctx context.Context, r ref.Ref, token string) (*secrets.Version, error) {
	const op = "sibling: promote"
	if err := check(ctx, op, r); err != nil {
		return nil, err
	}
	if err := checkToken(op, token); err != nil {
		return nil, err
	}
	var out *secrets.Version // set where the value is at hand
	var done *Version        // what was found promoted
	err := s.change(ctx, op, r, func(_ context.Context, st *state) (func(context.Context) error, error) {
		m, p := st.main, st.pending
		switch {
		case m.Current.has(token):
			done = m.Current
			return nil, nil
		case p != nil && p.Token != token:
			return nil, fault.Newf(fault.Conflict, op, "rotation %s of %s is pending, not %s; read the secret again", p.Token, r, token)
		case m.promoted(token):
			return nil, fault.Newf(fault.Conflict, op, "rotation %s of %s was superseded; read the secret again", token, r)
		case p == nil:
			return nil, fault.Newf(fault.NotFound, op, "rotation %s of %s has no version; store one first", token, r)
		case st.currentID() != p.After && m.Current != nil && m.Current.Token != "":
			return nil, fault.Newf(fault.Conflict, op, "rotation %s of %s was made from version %s, which rotation %s superseded; discard it and rotate again", token, r, p.After, m.Current.Token)
		case st.madeFromGone():
			return nil, fault.Newf(fault.Conflict, op, "rotation %s of %s was made from version %q, which is neither current nor previous any more, so it may have been promoted before; discard it and rotate again", token, r, p.After)
		}
		return func(ctx context.Context) (err error) {
			out, err = s.append(ctx, r, st)
			return err
		}, nil
	})
	switch {
	case err != nil:
		return nil, err
	case out != nil:
		return out, nil
	}
	return s.read(ctx, r, done)
}

// append makes st's pending version the newest of the main secret, notes it,
// and clears the sibling, in this order: until it is noted, the sibling is what
// the append is recognized by.
func (s *Store) append(ctx context.Context, r ref.Ref, st *state) (*secrets.Version, error) {
	p := st.pending
	id, err := s.d.Append(ctx, r, st.main, *p)
	if open(err) {
		// The answer may be lost, and the append done.
		again, lerr := s.look(ctx, r)
		if lerr != nil || !again.main.Current.has(p.Token) {
			return nil, err
		}
		id, err = again.main.Current.ID, nil
		again.wipe()
	}
	if err != nil {
		return nil, err
	}
	if err := s.d.Record(ctx, r, id, p.Token, st.currentID()); err != nil {
		return nil, err
	}
	if err := s.d.Clear(ctx, r, st.rev); err != nil {
		return nil, err
	}
	v := &secrets.Version{ID: id, Token: p.Token, Value: p.Value}
	m, err := s.d.Main(ctx, r)
	if err != nil {
		return nil, err
	}
	if m.Current != nil && m.Current.ID == id {
		v.Created = m.Current.Created
	}
	return v, nil
}

// Discard implements [secrets.Store]. Of a token that was promoted it notes and
// clears what is left, as every write does.
func (s *Store) Discard(ctx context.Context, r ref.Ref, token string) error {
	const op = "sibling: discard"
	if err := check(ctx, op, r); err != nil {
		return err
	}
	if err := checkToken(op, token); err != nil {
		return err
	}
	return s.change(ctx, op, r, func(_ context.Context, st *state) (func(context.Context) error, error) {
		defer st.wipe()
		switch {
		case st.pending == nil || st.main.Current.has(token):
			return nil, nil
		case st.pending.Token != token:
			return nil, fault.Newf(fault.Conflict, op, "rotation %s of %s is pending, not %s; it was left alone", st.pending.Token, r, token)
		}
		return func(ctx context.Context) error {
			// Promoted since, it is the only trace of whose version that is.
			// What comes between here and there a Locker keeps out.
			m, err := s.d.Main(ctx, r)
			if err != nil {
				return err
			}
			if now := (&state{main: m}).currentID(); now != st.currentID() {
				return fault.Newf(fault.Conflict, op, "version %s of %s became current meanwhile; read the secret again", now, r)
			}
			return s.d.Clear(ctx, r, st.rev)
		}, nil
	})
}
