package sibling

import (
	"context"
	"log/slog"
	"strings"

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

// Options adjusts a [Store].
type Options struct {
	// Locker keeps one writer a secret. A backend without compare-and-swap
	// needs one as soon as two processes write: one that stalls between its
	// look and its append would make a superseded value current. With
	// compare-and-swap it still settles two races. One is a Discard beside a
	// Promote of the same token: no provider compares two secrets in one step,
	// so the version may become current that the discard was told is dropped,
	// and without a token. The other is a Destroy beside an Enable, which may
	// destroy what was enabled just now where [Driver] cannot compare in the
	// same step. Nil keeps apart the callers of this Store only.
	Locker secrets.Locker
	// Logger hears of promotions that were found half done; nil is the
	// default one. No value is logged.
	Logger *slog.Logger
}

// A Store is a [secrets.Store] over a [Driver]. It is safe for concurrent use;
// by several processes as far as Driver compares and swaps, or as the Locker
// keeps them apart.
//
// A reader of Current needs no permission on the sibling: without it the
// version of a promotion that was not recorded has no token. The id of a
// pending version begins with "pending/", since the sibling numbers its
// versions as the main secret does.
type Store struct {
	d    Driver
	lock secrets.Locker
	log  *slog.Logger
}

// New returns a Store over d. opts may be nil.
func New(d Driver, opts *Options) *Store {
	s := &Store{d: d, lock: secrets.NewLocks(), log: slog.Default()}
	if opts != nil && opts.Locker != nil {
		s.lock = opts.Locker
	}
	if opts != nil && opts.Logger != nil {
		s.log = opts.Logger
	}
	return s
}

// Get implements [secrets.Reader].
func (s *Store) Get(ctx context.Context, r ref.Ref, stage secrets.Stage) (*secrets.Version, error) {
	const op = "sibling: get"
	if err := check(ctx, op, r); err != nil {
		return nil, err
	}
	switch stage {
	case secrets.Current:
		return s.getCurrent(ctx, op, r)
	case secrets.Pending, secrets.Previous:
	default:
		return nil, fault.Newf(fault.Invalid, op, "%q is not a stage; expected current, pending or previous", stage)
	}
	st, err := s.look(ctx, r)
	if err != nil {
		return nil, err
	}
	if stage == secrets.Pending {
		if st.pending == nil {
			return nil, fault.Newf(fault.NotFound, op, "%s has no %s version", r, stage)
		}
		return st.pending.version(), nil
	}
	st.wipe()
	v := st.main.Previous
	if v == nil {
		return nil, fault.Newf(fault.NotFound, op, "%s has no %s version", r, stage)
	}
	if v.Disabled {
		return nil, fault.Newf(fault.NotFound, op, "version %s of %s, its %s one, is disabled; enable it to read it", v.ID, r, stage)
	}
	return s.read(ctx, r, v)
}

// getCurrent asks again when the version that it was told of cannot be read:
// it may have been superseded and disabled since.
func (s *Store) getCurrent(ctx context.Context, op string, r ref.Ref) (*secrets.Version, error) {
	last := ""
	for try := 0; ; try++ {
		v, err := s.current(ctx, op, r)
		if err != nil {
			return nil, err
		}
		out, err := s.read(ctx, r, v)
		if !fault.Is(err, fault.NotFound) || v.ID == last || try == changeTries {
			return out, err
		}
		last = v.ID
	}
}

// current returns the current version with its token. The sibling is asked
// only where the main secret has no token to tell; that it may not be read, or
// that somebody took its version out of use, keeps nobody from current.
func (s *Store) current(ctx context.Context, op string, r ref.Ref) (*Version, error) {
	m, err := s.d.Main(ctx, r)
	if err != nil {
		return nil, err
	}
	if m.Current != nil && m.Current.Token == "" {
		st, err := s.look(ctx, r)
		switch {
		case err == nil:
			st.wipe()
			m = st.main
		case !fault.Is(err, fault.Denied) && !fault.Is(err, fault.Conflict):
			return nil, err
		}
	}
	if m.Current == nil {
		return nil, fault.Newf(fault.NotFound, op, "%s has no version; store one first", r)
	}
	return m.Current, nil
}

func (s *Store) read(ctx context.Context, r ref.Ref, v *Version) (*secrets.Version, error) {
	value, err := s.d.Read(ctx, r, v.ID)
	if err != nil {
		return nil, err
	}
	return &secrets.Version{ID: v.ID, Token: v.Token, Value: value, Created: v.Created}, nil
}

// Describe implements [secrets.Store]. It tells no value, but reads the
// sibling, and the current value where that may be a promotion which was not
// recorded.
func (s *Store) Describe(ctx context.Context, r ref.Ref) (*secrets.Description, error) {
	if err := check(ctx, "sibling: describe", r); err != nil {
		return nil, err
	}
	st, err := s.look(ctx, r)
	if err != nil {
		return nil, err
	}
	defer st.wipe()
	m := st.main
	d := &secrets.Description{Ref: r, ID: m.ID, RotationDisabled: m.RotationDisabled, NextRotation: m.NextRotation}
	if v := m.Current; v != nil {
		// The append that made it made it current too.
		d.Versions = append(d.Versions, secrets.VersionInfo{
			ID: v.ID, Token: v.Token, Stages: []secrets.Stage{secrets.Current}, Created: v.Created, Activated: v.Created, Disabled: v.Disabled,
		})
	}
	if p := st.pending; p != nil {
		d.Versions = append(d.Versions, secrets.VersionInfo{
			ID: pendingPrefix + p.ID, Token: p.Token, Stages: []secrets.Stage{secrets.Pending}, Created: p.Created,
		})
	}
	if v := m.Previous; v != nil {
		d.Versions = append(d.Versions, secrets.VersionInfo{
			ID: v.ID, Token: v.Token, Stages: []secrets.Stage{secrets.Previous}, Created: v.Created, Disabled: v.Disabled, Held: v.Held,
		})
	}
	return d, nil
}

// CreateSecret implements [secrets.Creator].
func (s *Store) CreateSecret(ctx context.Context, r ref.Ref, v secrets.Value) (*secrets.Version, error) {
	const op = "sibling: create secret"
	if err := check(ctx, op, r); err != nil {
		return nil, err
	}
	if err := checkValue(op, v); err != nil {
		return nil, err
	}
	made, err := s.d.Create(ctx, r, v)
	if err != nil {
		return nil, err
	}
	b := v.Reveal()
	defer clear(b)
	return &secrets.Version{ID: made.ID, Token: made.Token, Value: secrets.NewValue(b), Created: made.Created}, nil
}

// check refuses the sibling of a secret as a secret: its pending version would
// be the other's.
func check(ctx context.Context, op string, r ref.Ref) error {
	if err := r.Validate(); err != nil {
		return fault.New(fault.Invalid, op, err)
	}
	if strings.HasSuffix(r.Name, Suffix) {
		return fault.Newf(fault.Invalid, op, "%s is where the pending version of another secret is kept; expected a name that does not end in %s", r, Suffix)
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
	if v.IsZero() {
		return fault.Newf(fault.Invalid, op, "the value is empty; expected at least one byte")
	}
	return nil
}
