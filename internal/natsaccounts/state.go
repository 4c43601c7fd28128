package natsaccounts

import (
	"slices"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier/tenants"
)

// A Form says how a server learns of the accounts.
type Form string

// The forms.
const (
	Operator Form = "operator" // JWTs, pushed to a running server
	Config   Form = "config"   // a fragment of nats-server.conf
)

// A UserKind says how a user of the form [Config] signs in.
type UserKind string

// The kinds of users. Those of the form [Operator] have creds files.
const (
	NKey     UserKind = "nkey"
	Password UserKind = "password"
)

// State is all that is known beside the private keys: it holds no secret but
// bcrypt hashes.
type State struct {
	Form Form   `json:"form"`
	Name string `json:"name"` // of the operator
	// OperatorKey and the accounts are public keys; "" in the form Config.
	OperatorKey     string `json:"operator_key,omitempty"`
	OperatorSigning string `json:"operator_signing,omitempty"`
	SystemKey       string `json:"system_key,omitempty"`

	Platform Account   `json:"platform"`
	Tenants  []Account `json:"tenants"`

	// Saved is when it was written last, by the clock that signs.
	Saved time.Time `json:"saved,omitzero"`
}

// clock reports a clock that is behind the last change. A server takes the
// newer of two JWTs of an account, by when they were signed, when it was away
// and hears from the others: an old key that was removed would be trusted again.
// And who removes a key revokes what was signed before it was replaced, so that
// credentials with an old time would be cut off with it.
func (s *State) clock() error {
	if now := time.Now(); s.Form == Operator && now.Unix() < s.Saved.Unix() {
		return fault.Newf(fault.Unavailable, "sign accounts", "this machine's clock is %s behind the last change of the accounts; set it, and repeat the command", s.Saved.Sub(now).Round(time.Second))
	}
	return nil
}

// An Account is the platform or a tenant.
type Account struct {
	Name string `json:"name"`
	// Key is its public key.
	Key string `json:"key,omitempty"`
	// Signing are the keys that sign users, the newest last. All but the last
	// are on their way out.
	Signing []SigningKey `json:"signing,omitempty"`
	// RevokedBefore refuses every user that was signed then or earlier, in
	// Unix seconds; 0 means none.
	RevokedBefore int64  `json:"revoked_before,omitempty"`
	Limits        Limits `json:"limits,omitzero"`
	Users         []User `json:"users,omitempty"`
}

// A SigningKey is a public key.
type SigningKey struct {
	Key   string    `json:"key"`
	Added time.Time `json:"added"`
	// Until is when it may be removed; zero for the newest.
	Until time.Time `json:"until,omitzero"`
}

// A User signs in with a key, or a password.
type User struct {
	Name    string    `json:"name"`
	Issued  time.Time `json:"issued"`
	Expires time.Time `json:"expires,omitzero"` // zero: never
	// Signer is the account's signing key that signed it, in the form Operator.
	Signer string   `json:"signer,omitempty"`
	Kind   UserKind `json:"kind,omitempty"`
	// Logins are the public keys, or the names and bcrypt hashes, the newest
	// last. All but the last are on their way out.
	Logins []Login `json:"logins,omitempty"`
}

// A Login is a public key, or a name and a password's hash.
type Login struct {
	Key   string    `json:"key,omitempty"`
	Name  string    `json:"name,omitempty"`
	Hash  string    `json:"hash,omitempty"`
	Until time.Time `json:"until,omitzero"`
}

// Tenant returns the account of a tenant. The error is of kind NotFound.
func (s *State) Tenant(name string) (*Account, error) {
	if i := slices.IndexFunc(s.Tenants, func(a Account) bool { return a.Name == name }); i >= 0 {
		return &s.Tenants[i], nil
	}
	return nil, fault.Newf(fault.NotFound, "tenants", "there is no tenant %q; keyturn tenants list shows those there are, keyturn tenants add makes one", name)
}

// account returns a tenant's account, or the platform's for its name.
func (s *State) account(name string) (*Account, error) {
	if name == Platform {
		return &s.Platform, nil
	}
	return s.Tenant(name)
}

// newTenant checks a tenant's name. quarantine has no agents, so no account.
func (s *State) newTenant(name, quarantine string) error {
	const op = "add tenant"
	if err := tenants.CheckName(name); err != nil {
		return fault.New(fault.Invalid, op, err)
	}
	if name == quarantine || name == tenants.DefaultQuarantine {
		return fault.Newf(fault.Invalid, op, "%s is the quarantine, which nobody listens to but the platform", name)
	}
	if _, err := s.Tenant(name); err == nil {
		return fault.Newf(fault.Conflict, op, "there is a tenant %s already; keyturn tenants creds makes credentials for it", name)
	}
	return nil
}

// signer is the key that signs new users.
func (a *Account) signer() string {
	if len(a.Signing) == 0 {
		return ""
	}
	return a.Signing[len(a.Signing)-1].Key
}

// user returns the user of that name, or nil.
func (a *Account) user(name string) *User {
	if i := slices.IndexFunc(a.Users, func(u User) bool { return u.Name == name }); i >= 0 {
		return &a.Users[i]
	}
	return nil
}

// Leaving is when the last of what a rotation replaced may be removed, and
// false if no rotation is under way.
func (a *Account) Leaving() (time.Time, bool) {
	var last time.Time
	for _, k := range a.Signing {
		if k.Until.After(last) {
			last = k.Until
		}
	}
	for _, u := range a.Users {
		for _, l := range u.Logins {
			if l.Until.After(last) {
				last = l.Until
			}
		}
	}
	return last, !last.IsZero()
}
