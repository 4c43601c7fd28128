// Package keyissuer is a small issuer of API keys, as providers of language
// models have one, for keyturn dev and for tests: an administrator makes,
// lists, disables, enables and revokes the keys of a project, and a caller
// uses one. It speaks
// HTTP and keeps state; it is nobody's production issuer.
//
// A key is shown once, when it is made. What is kept, in memory and in the
// file, is its SHA-256 digest, which is enough for 256 random bits.
package keyissuer

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/keyturn/keyturn/fault"
)

// DefaultMaxKeys is how many live keys a project may have.
const DefaultMaxKeys = 10

// Options of an [Issuer]. The zero value of each field but AdminKey means its
// default.
type Options struct {
	// AdminKey is the bearer token of the administrator, at least 16 bytes.
	AdminKey string
	// File keeps the keys' digests across restarts. By default nothing does.
	File string
	// MaxKeys is how many live keys a project may have.
	MaxKeys int
	// Now tells the time.
	Now func() time.Time
}

// A Key is what the issuer tells of a key.
type Key struct {
	ID      string    `json:"id"`
	Project string    `json:"project"`
	Name    string    `json:"name"`
	Created time.Time `json:"created_at"`
	// Hint is the end of the key, for people who compare.
	Hint string `json:"hint"`
	// Disabled says that the key is refused until it is enabled. It is not
	// live: it does not count against the limit.
	Disabled bool `json:"disabled,omitempty"`
}

// record is one key as the file keeps it.
type record struct {
	Key
	Digest string `json:"sha256"`
}

// An Issuer holds the keys and is the [http.Handler] of its API. It is safe
// for concurrent use; make one with [New].
type Issuer struct {
	opts  Options
	admin [sha256.Size]byte

	mu   sync.Mutex
	keys []record // in the order in which they were made
	// byDigest finds a key by what a caller presents. The digest, not the key,
	// is looked up, so the time that takes tells nothing of any key.
	byDigest map[[sha256.Size]byte]string
}

// New returns an Issuer with the keys of o.File, if that exists. The error is
// of kind Invalid for options or a file that make no sense.
func New(o Options) (*Issuer, error) {
	if len(o.AdminKey) < 16 {
		return nil, fault.Newf(fault.Invalid, "key issuer", "admin key of %d bytes; expected at least 16", len(o.AdminKey))
	}
	if o.MaxKeys < 0 {
		return nil, fault.Newf(fault.Invalid, "key issuer", "at most %d keys; expected a positive number", o.MaxKeys)
	}
	if o.MaxKeys == 0 {
		o.MaxKeys = DefaultMaxKeys
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	i := &Issuer{opts: o, admin: sha256.Sum256([]byte(o.AdminKey))}
	i.opts.AdminKey = ""
	recs, err := load(o.File)
	if err != nil {
		return nil, err
	}
	return i, i.use(recs)
}

// use makes recs the keys.
func (i *Issuer) use(recs []record) error {
	byDigest := make(map[[sha256.Size]byte]string, len(recs))
	for _, r := range recs {
		b, err := hex.DecodeString(r.Digest)
		if err != nil || len(b) != sha256.Size || r.ID == "" {
			return fault.Newf(fault.Invalid, "key issuer", "key %q in %s has no digest; expected a file that this issuer wrote", r.ID, i.opts.File)
		}
		byDigest[[sha256.Size]byte(b)] = r.ID
	}
	i.keys, i.byDigest = recs, byDigest
	return nil
}

// commit persists recs and makes them the keys. Nothing changes if it fails.
func (i *Issuer) commit(recs []record) error {
	if err := save(i.opts.File, recs); err != nil {
		return err
	}
	return i.use(recs)
}

// Create makes a key for a project. The error is of kind Invalid for a name
// that the API does not allow, Unavailable with ClassQuota when the project
// is full.
func (i *Issuer) Create(project, name string) (k Key, secret string, err error) {
	if err := checkName("project", project); err != nil {
		return Key{}, "", err
	}
	if err := checkName("name", name); err != nil {
		return Key{}, "", err
	}
	var id [9]byte
	var raw [32]byte
	_, _ = rand.Read(id[:]) // never fails: crypto/rand since Go 1.24
	_, _ = rand.Read(raw[:])
	secret = "sk-demo-" + base64.RawURLEncoding.EncodeToString(raw[:])
	digest := sha256.Sum256([]byte(secret))

	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.room(project, "create key"); err != nil {
		return Key{}, "", err
	}
	k = Key{
		ID: "key_" + hex.EncodeToString(id[:]), Project: project, Name: name,
		Created: i.opts.Now().UTC(), Hint: secret[len(secret)-4:],
	}
	if err := i.commit(append(slices.Clone(i.keys), record{Key: k, Digest: hex.EncodeToString(digest[:])})); err != nil {
		return Key{}, "", err
	}
	return k, secret, nil
}

// room says whether the project may have another live key.
func (i *Issuer) room(project, op string) error {
	live := 0
	for _, r := range i.keys {
		if r.Project == project && !r.Disabled {
			live++
		}
	}
	if live >= i.opts.MaxKeys {
		return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassQuota, Op: op, Msg: "the project has as many live keys as it may; disable or revoke one first"}
	}
	return nil
}

// Disable has a key refused until [Issuer.Enable]. It reports false if there
// is none; one that is disabled already is success.
func (i *Issuer) Disable(project, id string) (bool, error) { return i.turn(project, id, true) }

// Enable undoes Disable. It reports false if there is no such key. The error
// is Unavailable with ClassQuota when the project is full.
func (i *Issuer) Enable(project, id string) (bool, error) { return i.turn(project, id, false) }

func (i *Issuer) turn(project, id string, disabled bool) (bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	at := i.index(project, id)
	if at < 0 {
		return false, nil
	}
	if i.keys[at].Disabled == disabled {
		return true, nil
	}
	if !disabled {
		if err := i.room(project, "enable key"); err != nil {
			return true, err
		}
	}
	recs := slices.Clone(i.keys)
	recs[at].Disabled = disabled
	return true, i.commit(recs)
}

// index finds a key of a project, or returns -1.
func (i *Issuer) index(project, id string) int {
	return slices.IndexFunc(i.keys, func(r record) bool { return r.ID == id && r.Project == project })
}

// Revoke ends a key at once. It reports false if there is none.
func (i *Issuer) Revoke(project, id string) (bool, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	at := i.index(project, id)
	if at < 0 {
		return false, nil
	}
	return true, i.commit(slices.Delete(slices.Clone(i.keys), at, at+1))
}

// Keys returns the keys of a project whose names begin with prefix, those that
// are disabled too, oldest first.
func (i *Issuer) Keys(project, prefix string) []Key {
	i.mu.Lock()
	defer i.mu.Unlock()
	out := []Key{}
	for _, r := range i.keys {
		if r.Project == project && strings.HasPrefix(r.Name, prefix) {
			out = append(out, r.Key)
		}
	}
	return out
}

// Verify returns the key that secret is, if it is not disabled.
func (i *Issuer) Verify(secret string) (Key, bool) {
	digest := sha256.Sum256([]byte(secret))
	i.mu.Lock()
	defer i.mu.Unlock()
	id, ok := i.byDigest[digest]
	if !ok {
		return Key{}, false
	}
	at := slices.IndexFunc(i.keys, func(r record) bool { return r.ID == id })
	if i.keys[at].Disabled {
		return Key{}, false
	}
	return i.keys[at].Key, true
}

func (i *Issuer) isAdmin(token string) bool {
	got := sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(got[:], i.admin[:]) == 1
}

const maxName = 200

func checkName(what, s string) error {
	if s == "" || len(s) > maxName || !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fault.Newf(fault.Invalid, "key issuer", "%s of %d bytes; expected 1 to %d without control characters", what, len(s), maxName)
	}
	return nil
}
