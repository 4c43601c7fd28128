package natskv

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// Get implements [secrets.Reader].
func (s *Store) Get(ctx context.Context, r ref.Ref, stage secrets.Stage) (*secrets.Version, error) {
	const op = "natskv: get"
	switch stage {
	case secrets.Current, secrets.Pending, secrets.Previous:
	default:
		return nil, fault.Newf(fault.Invalid, op, "%q is not a stage; expected current, pending or previous", stage)
	}
	rec, _, err := s.read(ctx, op, r)
	if err != nil {
		return nil, err
	}
	v := rec.at(stage)
	switch {
	case v == nil:
		return nil, fault.Newf(fault.NotFound, op, "%s has no %s version", r, stage)
	case v.Disabled:
		return nil, fault.Newf(fault.NotFound, op, "the %s version of %s, %s, is disabled; enable it to read it", stage, r, v.ID)
	}
	return s.keys.open(op, r, stage, v)
}

// PutPending implements [secrets.Store].
func (s *Store) PutPending(ctx context.Context, r ref.Ref, token string, v secrets.Value) (*secrets.Version, error) {
	return s.PutPendingAfter(ctx, r, token, "", v)
}

// PutPendingAfter implements [secrets.Succeeder]; an empty current is any.
func (s *Store) PutPendingAfter(ctx context.Context, r ref.Ref, token, current string, v secrets.Value) (*secrets.Version, error) {
	const op = "natskv: put pending"
	if err := checkToken(op, token); err != nil {
		return nil, err
	}
	if err := checkValue(op, v); err != nil {
		return nil, err
	}
	made := newVersion(token, v)
	var out *secrets.Version
	err := s.change(ctx, op, r, func(rec *record) (changed bool, err error) {
		switch {
		case rec.Current.has(token) || rec.Previous.has(token):
			return false, fault.Newf(fault.Conflict, op, "rotation %s of %s was promoted already; start a new rotation", token, r)
		case rec.Pending.has(token):
			out, err = s.keys.open(op, r, secrets.Pending, rec.Pending)
			return false, err
		case rec.Pending != nil:
			return false, fault.Newf(fault.Conflict, op, "rotation %s of %s is unfinished; let it finish, or discard it", rec.Pending.Token, r)
		case current != "" && rec.Current.ID != current:
			return false, fault.Newf(fault.Conflict, op, "version %s of %s is not current any more; read the secret again", current, r)
		}
		out = made
		rec.Pending, err = s.keys.seal(op, r, secrets.Pending, made, standing{})
		return true, err
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Promote implements [secrets.Store].
func (s *Store) Promote(ctx context.Context, r ref.Ref, token string) (*secrets.Version, error) {
	const op = "natskv: promote"
	if err := checkToken(op, token); err != nil {
		return nil, err
	}
	var out *secrets.Version
	err := s.change(ctx, op, r, func(rec *record) (changed bool, err error) {
		switch {
		case rec.Current.has(token):
			out, err = s.keys.open(op, r, secrets.Current, rec.Current)
			return false, err
		case rec.Pending.has(token):
		case rec.Pending != nil:
			return false, fault.Newf(fault.Conflict, op, "rotation %s of %s is pending, not %s; read the secret again", rec.Pending.Token, r, token)
		case rec.Previous.has(token):
			return false, fault.Newf(fault.Conflict, op, "rotation %s of %s was superseded; read the secret again", token, r)
		default:
			return false, fault.Newf(fault.NotFound, op, "rotation %s of %s has no version; store one first", token, r)
		}
		previous, err := s.keys.move(op, r, secrets.Current, secrets.Previous, rec.Current, standing{})
		if err != nil {
			return false, err
		}
		if out, err = s.keys.open(op, r, secrets.Pending, rec.Pending); err != nil {
			return false, err
		}
		current, err := s.keys.seal(op, r, secrets.Current, out, standing{Activated: time.Now().UTC()})
		if err != nil {
			return false, err
		}
		rec.Current, rec.Pending, rec.Previous = current, nil, previous
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// Discard implements [secrets.Store].
func (s *Store) Discard(ctx context.Context, r ref.Ref, token string) error {
	const op = "natskv: discard"
	if err := checkToken(op, token); err != nil {
		return err
	}
	return s.change(ctx, op, r, func(rec *record) (bool, error) {
		switch {
		case rec.Pending == nil || rec.Current.has(token):
			return false, nil
		case !rec.Pending.has(token):
			return false, fault.Newf(fault.Conflict, op, "rotation %s of %s is pending, not %s; it was left alone", rec.Pending.Token, r, token)
		}
		rec.Pending = nil
		return true, nil
	})
}

// Describe implements [secrets.Store]. It opens nothing. Activated is by the
// clock of the process that promoted; for an entry of before it was recorded
// it is when the entry was last written, by the server's.
func (s *Store) Describe(ctx context.Context, r ref.Ref) (*secrets.Description, error) {
	rec, _, err := s.read(ctx, "natskv: describe", r)
	if err != nil {
		return nil, err
	}
	d := &secrets.Description{Ref: r}
	for _, stage := range []secrets.Stage{secrets.Current, secrets.Pending, secrets.Previous} {
		if v := rec.at(stage); v != nil {
			d.Versions = append(d.Versions, secrets.VersionInfo{
				ID: v.ID, Token: v.Token, Stages: []secrets.Stage{stage}, Created: v.Created, Activated: v.Activated, Disabled: v.Disabled, Held: v.Held,
			})
		}
	}
	if c := d.Holder(secrets.Current); c.Activated.IsZero() {
		c.Activated = rec.written
	}
	return d, nil
}

// CreateSecret implements [secrets.Creator].
func (s *Store) CreateSecret(ctx context.Context, r ref.Ref, v secrets.Value) (*secrets.Version, error) {
	const op = "natskv: create secret"
	key, err := s.key(op, r)
	if err != nil {
		return nil, err
	}
	if err := checkValue(op, v); err != nil {
		return nil, err
	}
	made := newVersion("", v)
	rec := &record{Format: recordFormat}
	if rec.Current, err = s.keys.seal(op, r, secrets.Current, made, standing{Activated: made.Created}); err != nil {
		return nil, err
	}
	err = s.write(ctx, op, r, key, rec, 0)
	if err != nil && fault.KindOf(err) != fault.Invalid && fault.KindOf(err) != fault.Denied {
		// Whatever failed, the entry tells whether it is the one made here: a
		// lost answer, and the client's own retry of a lost answer, look like
		// failures too.
		if found, _, rerr := s.read(ctx, op, r); rerr == nil && found.Current.ID == made.ID {
			return made, nil
		}
	}
	switch {
	case fault.Is(err, fault.Conflict):
		return nil, fault.Newf(fault.Conflict, op, "%s exists already and was left as it is", r)
	case err != nil:
		return nil, err
	}
	return made, nil
}

// Reseal seals with the first key of the keyring every value that is sealed
// with another, and returns how many secrets it changed. It may be repeated
// and may run beside anything else; the first failure ends it.
func (s *Store) Reseal(ctx context.Context) (int, error) {
	const op = "natskv: reseal"
	refs, err := s.List(ctx)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, r := range refs {
		did := false
		err := s.change(ctx, op, r, func(rec *record) (bool, error) {
			did = false
			for stage, v := range map[secrets.Stage]**sealed{secrets.Current: &rec.Current, secrets.Pending: &rec.Pending, secrets.Previous: &rec.Previous} {
				if *v == nil || (*v).Key == s.keys.ring[0].id {
					continue
				}
				moved, err := s.keys.move(op, r, stage, stage, *v, (*v).standing)
				if err != nil {
					return false, err
				}
				*v, did = moved, true
			}
			return did, nil
		})
		if fault.Is(err, fault.NotFound) {
			continue // deleted since it was listed
		}
		if err != nil {
			return n, err
		}
		if did {
			n++
		}
	}
	return n, nil
}

// read returns the entry of r and its revision.
func (s *Store) read(ctx context.Context, op string, r ref.Ref) (*record, uint64, error) {
	key, err := s.key(op, r)
	if err != nil {
		return nil, 0, err
	}
	if err := ctx.Err(); err != nil {
		return nil, 0, classify(op, err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	e, err := s.kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return nil, 0, fault.Newf(fault.NotFound, op, "there is no secret %s; create it, or correct the name", r)
	}
	if err != nil {
		return nil, 0, classify(op+" "+r.String(), err)
	}
	rec, err := decodeRecord(op, r, e.Value())
	if err != nil {
		return nil, 0, err
	}
	rec.written = e.Created()
	return rec, e.Revision(), nil
}

// write stores rec if the entry still has the revision, 0 for none.
func (s *Store) write(ctx context.Context, op string, r ref.Ref, key string, rec *record, revision uint64) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return fault.Newf(fault.Invalid, op, "the entry of %s cannot be encoded", r)
	}
	if len(b) > maxRecord {
		return fault.Newf(fault.Invalid, op, "the entry of %s would take %d bytes; expected at most %d", r, len(b), maxRecord)
	}
	if err := ctx.Err(); err != nil {
		return classify(op, err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	if revision == 0 {
		_, err = s.kv.Create(ctx, key, b)
	} else {
		_, err = s.kv.Update(ctx, key, b, revision)
	}
	if err != nil {
		return classify(op+" "+r.String(), err)
	}
	return nil
}

// changeTries bounds how often change begins again because somebody else
// wrote. Each time somebody made progress.
const changeTries = 20

// change applies f to the entry of r in one compare-and-swap. f tells whether
// it changed the record; it is called again with a fresh record when somebody
// else wrote meanwhile.
//
// After an error that leaves open whether the write took effect, f looks at
// the entry once more: that it finds nothing left to change is success. The
// write is not repeated, that is for the caller; a late effect of it is
// refused by its revision or is what the caller's repetition will find.
func (s *Store) change(ctx context.Context, op string, r ref.Ref, f func(*record) (changed bool, err error)) error {
	for try := range changeTries {
		rec, revision, err := s.read(ctx, op, r)
		if err != nil {
			return err
		}
		changed, err := f(rec)
		if err != nil || !changed {
			return err
		}
		err = s.write(ctx, op, r, EntryKey(r.Name), rec, revision)
		switch fault.KindOf(err) {
		case fault.Conflict:
			if err := pause(ctx, try); err != nil {
				return classify(op, err)
			}
			continue
		case fault.Invalid, fault.Denied:
			return err
		}
		if err != nil {
			if again, _, rerr := s.read(ctx, op, r); rerr == nil {
				if changed, ferr := f(again); ferr == nil && !changed {
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

// pause waits a random while that grows with the number of tries, up to some
// 50 ms.
func pause(ctx context.Context, try int) error {
	limit := time.Millisecond << min(try, 5)
	t := time.NewTimer(time.Duration(mrand.Int64N(int64(limit)) + int64(limit)/2)) //nolint:gosec // jitter, not a secret
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// newVersion copies v, which the caller may wipe.
func newVersion(token string, v secrets.Value) *secrets.Version {
	b := v.Reveal()
	defer clear(b)
	return &secrets.Version{ID: rand.Text(), Token: token, Value: secrets.NewValue(b), Created: time.Now().UTC()}
}

func checkToken(op, token string) error {
	if token == "" || len(token) > maxToken || !utf8.ValidString(token) {
		return fault.Newf(fault.Invalid, op, "the rotation token has %d bytes; expected 1 to %d bytes of UTF-8, such as a UUID", len(token), maxToken)
	}
	return nil
}

func checkValue(op string, v secrets.Value) error {
	if n := v.Len(); n == 0 || n > MaxValue {
		return fault.Newf(fault.Invalid, op, "the value has %d bytes; expected 1 to %d", n, MaxValue)
	}
	return nil
}
