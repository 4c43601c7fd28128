package natsaccounts

import (
	"crypto/rand"
	"encoding/base64"
	"os"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
	"golang.org/x/crypto/bcrypt"

	"github.com/keyturn/keyturn/fault"
)

// bcryptCost is the least there is: passwords here have 192 random bits, which
// nobody guesses, and a fleet that comes back at once must not keep the server
// busy with hashing.
const bcryptCost = bcrypt.MinCost

// AddTenant makes the account of a tenant. Servers must be told, by
// [Bundle.Push] or a reload. quarantine is the tenant that has no agents.
func (st *Store) AddTenant(name, quarantine string, l Limits) error {
	return st.change(func(s *State) error {
		if err := s.newTenant(name, quarantine); err != nil {
			return err
		}
		a := Account{Name: name, Limits: l}
		if s.Form == Operator {
			var err error
			if a.Key, err = st.newKey(nkeys.CreateAccount); err != nil {
				return err
			}
			if err := st.addSigner(&a, time.Time{}); err != nil {
				return err
			}
		}
		s.Tenants = append(s.Tenants, a)
		return nil
	})
}

// addSigner gives a a new signing key, and lets the others go at until.
func (st *Store) addSigner(a *Account, until time.Time) error {
	public, err := st.newKey(nkeys.CreateAccount)
	if err != nil {
		return err
	}
	for i := range a.Signing {
		if a.Signing[i].Until.IsZero() {
			a.Signing[i].Until = until
		}
	}
	a.Signing = append(a.Signing, SigningKey{Key: public, Added: st.now().UTC()})
	return nil
}

// CredsOptions of [Store.Creds].
type CredsOptions struct {
	// TTL is how long the credentials are valid, in the form Operator; 0 means
	// as long as those before, or for ever.
	TTL time.Duration
	// Kind is how the user signs in, in the form Config; NKey by default.
	Kind UserKind
}

// Creds makes credentials for a user of a tenant, or of the platform for
// [Platform], and returns the file, which only its owner may read. In the form
// Operator it is a creds file which servers take at once, and which may be
// made again at any time: the ones before stay valid until they expire or a
// rotation ends. In the form Config it is an nkey seed, or "name:password", and
// servers must be told first; the error is of kind Conflict if there is such a
// user.
func (st *Store) Creds(tenant, user string, o CredsOptions) (file string, err error) {
	if err := checkUser(user); err != nil {
		return "", err
	}
	err = st.change(func(s *State) error {
		a, err := s.account(tenant)
		if err != nil {
			return err
		}
		u := a.user(user)
		if u != nil && s.Form == Config {
			return fault.Newf(fault.Conflict, "credentials", "there is a user %s of %s already; keyturn tenants rotate replaces its key without a gap", user, tenant)
		}
		if u == nil {
			a.Users = append(a.Users, User{Name: user})
			u = &a.Users[len(a.Users)-1]
		}
		if s.Form == Config {
			u.Kind = o.Kind
			if u.Kind == "" {
				u.Kind = NKey
			}
			if err := st.addLogin(a, u, time.Time{}); err != nil {
				return err
			}
			file, err = st.issueLogin(a, u)
			return err
		}
		file, err = st.issueJWT(a, u, o.TTL)
		return err
	})
	return file, err
}

// issueJWT writes a creds file with a new user key.
func (st *Store) issueJWT(a *Account, u *User, ttl time.Duration) (string, error) {
	if ttl == 0 && !u.Expires.IsZero() {
		ttl = u.Expires.Sub(u.Issued)
	}
	kp, err := nkeys.CreateUser()
	if err != nil {
		return "", fault.New(fault.Invalid, "credentials", err)
	}
	defer kp.Wipe()
	public, err := kp.PublicKey()
	if err != nil {
		return "", fault.New(fault.Invalid, "credentials", err)
	}
	u.Issued, u.Expires = st.now().UTC(), time.Time{}
	if ttl > 0 {
		u.Expires = u.Issued.Add(ttl)
	}
	text, err := userJWT(a, st.Key, u.Name, public, u.Expires)
	if err != nil {
		return "", err
	}
	u.Signer = a.signer()
	path := st.CredsFile(a.Name, u)
	return path, writeCreds(path, text, kp)
}

func writeCreds(path, text string, kp nkeys.KeyPair) error {
	seed, err := kp.Seed()
	if err != nil {
		return fault.New(fault.Invalid, "credentials", err)
	}
	defer clear(seed)
	b, err := jwt.FormatUserConfig(text, seed)
	if err != nil {
		return fault.Newf(fault.Invalid, "credentials", "the creds file cannot be written") // the cause could quote it
	}
	defer clear(b)
	return writeFile(path, b)
}

// writeSystemCreds makes the user that pushes accounts.
func (st *Store) writeSystemCreds(system string) error {
	account, err := st.Key(system)
	if err != nil {
		return err
	}
	kp, err := nkeys.CreateUser()
	if err != nil {
		return fault.New(fault.Invalid, "credentials", err)
	}
	defer kp.Wipe()
	public, err := kp.PublicKey()
	if err != nil {
		return fault.New(fault.Invalid, "credentials", err)
	}
	text, err := systemUserJWT(account, public)
	if err != nil {
		return err
	}
	return writeCreds(st.SystemCreds(), text, kp)
}

// addLogin gives u a new key or password, which is kept until it is issued,
// and lets the others go at until.
func (st *Store) addLogin(a *Account, u *User, until time.Time) error {
	for i := range u.Logins {
		if u.Logins[i].Until.IsZero() {
			u.Logins[i].Until = until
		}
	}
	if u.Kind != Password {
		public, err := st.newKey(nkeys.CreateUser)
		if err != nil {
			return err
		}
		u.Logins = append(u.Logins, Login{Key: public})
		return nil
	}
	var b [24]byte
	_, _ = rand.Read(b[:])
	password := base64.RawURLEncoding.EncodeToString(b[:])
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcryptCost)
	if err != nil {
		return fault.New(fault.Invalid, "credentials", err)
	}
	// Names are unique on a server, over all accounts.
	name := a.Name + "." + u.Name + "." + base64.RawURLEncoding.EncodeToString(b[:3])
	if err := writeFile(st.path(keyDir, name+".nk"), []byte(name+":"+password+"\n")); err != nil {
		return err
	}
	u.Logins = append(u.Logins, Login{Name: name, Hash: string(hash)})
	return nil
}

func (l *Login) id() string {
	if l.Key != "" {
		return l.Key
	}
	return l.Name
}

// newest is what the newest login is called.
func (u *User) newest() string {
	if len(u.Logins) == 0 {
		return ""
	}
	return u.Logins[len(u.Logins)-1].id()
}

// issueLogin puts the newest login where the agent reads it.
func (st *Store) issueLogin(a *Account, u *User) (string, error) {
	from := st.path(keyDir, u.newest()+".nk")
	path := st.CredsFile(a.Name, u)
	b, err := os.ReadFile(from)
	if err != nil {
		return "", fault.New(fault.NotFound, "credentials", err)
	}
	defer clear(b)
	if err := writeFile(path, b); err != nil {
		return "", err
	}
	u.Issued, u.Signer = st.now().UTC(), u.newest()
	return path, nil
}

// CredsFile is where the credentials of a user are.
func (st *Store) CredsFile(tenant string, u *User) string {
	ext := ".creds"
	switch u.Kind {
	case NKey:
		ext = ".nk"
	case Password:
		ext = ".password"
	}
	return st.path(credsDir, tenant, u.Name+ext)
}
