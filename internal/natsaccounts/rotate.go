package natsaccounts

import (
	"slices"
	"time"

	"github.com/keyturn/keyturn/fault"
)

// A Step is what one call of [Store.Rotate] did.
type Step string

// The steps of a rotation, in order.
const (
	// Added: there are new keys beside the old ones. Servers must be told.
	Added Step = "added"
	// Issued: every user has new credentials. Agents must get them.
	Issued Step = "issued"
	// Waiting: nothing was done, since agents may still use the old ones.
	Waiting Step = "waiting"
	// Removed: the old keys and all they signed are refused. Servers must be
	// told; then connections with old credentials are cut.
	Removed Step = "removed"
)

// A Rotation is what was done, and what is left.
type Rotation struct {
	Step  Step
	Files []string  // the credentials that were written
	Until time.Time // when the old keys may be removed
	// Keys are the public keys or names that were added or removed.
	Keys []string
}

// RotateOptions of [Store.Rotate].
type RotateOptions struct {
	// Grace is how long the old credentials stay valid after the new ones have
	// been added; 0 is 24 hours.
	Grace time.Duration
	// Force removes the old keys at once, as when one has leaked.
	Force bool
}

// Rotate takes the next step of the rotation of an account's keys: it adds
// new keys, issues new credentials to every user, and removes the old ones
// after the grace. Between adding and issuing, and after removing, servers
// must be told, or agents are refused. A call that is repeated after a crash
// takes the step that is due.
func (st *Store) Rotate(tenant string, o RotateOptions) (Rotation, error) {
	var r Rotation
	if o.Grace < 0 {
		return r, fault.Newf(fault.Invalid, "rotate", "the grace is %s; expected none or a time to come", o.Grace)
	}
	if o.Grace == 0 {
		o.Grace = 24 * time.Hour
	}
	err := st.change(func(s *State) error {
		a, err := s.account(tenant)
		if err != nil {
			return err
		}
		now := st.now().UTC()
		until, under := a.Leaving()
		r.Until = until
		switch {
		case !under && s.Form == Config && len(a.Users) == 0:
			return fault.Newf(fault.NotFound, "rotate", "%s has no users; keyturn tenants creds makes one", tenant)
		case !under:
			r.Step, r.Until = Added, now.Add(o.Grace)
			return st.add(s.Form, a, &r)
		case slices.ContainsFunc(a.Users, func(u User) bool { return stale(s.Form, a, &u) }):
			r.Step = Issued
			return st.issue(s.Form, a, &r)
		case now.Before(until) && !o.Force:
			r.Step = Waiting
			return nil
		}
		r.Step = Removed
		st.remove(a, &r)
		return nil
	})
	return r, err
}

func (st *Store) add(form Form, a *Account, r *Rotation) error {
	if form == Operator {
		err := st.addSigner(a, r.Until)
		r.Keys = []string{a.signer()}
		return err
	}
	for i := range a.Users {
		u := &a.Users[i]
		if err := st.addLogin(a, u, r.Until); err != nil {
			return err
		}
		r.Keys = append(r.Keys, u.newest())
	}
	return nil
}

// stale reports whether a user's credentials are not of the newest key.
func stale(form Form, a *Account, u *User) bool {
	if form == Operator {
		return u.Signer != a.signer()
	}
	return u.Signer != u.newest()
}

func (st *Store) issue(form Form, a *Account, r *Rotation) error {
	for i := range a.Users {
		u := &a.Users[i]
		if !stale(form, a, u) {
			continue
		}
		issue := st.issueLogin
		if form == Operator {
			issue = func(a *Account, u *User) (string, error) { return st.issueJWT(a, u, 0) }
		}
		file, err := issue(a, u)
		if err != nil {
			return err
		}
		r.Files = append(r.Files, file)
	}
	return nil
}

func (st *Store) remove(a *Account, r *Rotation) {
	a.Signing = slices.DeleteFunc(a.Signing, func(k SigningKey) bool {
		if k.Until.IsZero() {
			return false
		}
		r.Keys = append(r.Keys, k.Key)
		st.forget(k.Key)
		return true
	})
	if n := len(a.Signing); n > 0 {
		// A second fence behind the first. What the new key signed in the very
		// second in which it was made must pass.
		a.RevokedBefore = a.Signing[n-1].Added.Unix() - 1
	}
	for i := range a.Users {
		u := &a.Users[i]
		u.Logins = slices.DeleteFunc(u.Logins, func(l Login) bool {
			if l.Until.IsZero() {
				return false
			}
			r.Keys = append(r.Keys, l.id())
			st.forget(l.id())
			return true
		})
	}
}
