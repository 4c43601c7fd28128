package natsaccounts

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dirlock"
)

// The files of a [Store].
const (
	stateFile    = "state.json"
	lockFile     = "lock"
	keyDir       = "keys"
	credsDir     = "creds"
	operatorConf = "operator.conf"
	memoryConf   = "operator-memory.conf"
	plainConf    = "accounts.conf"
	temporary    = ".tmp-*" // what is not yet in its place
)

// A Store is a directory that only its owner can read, with the state, the
// private keys, the credentials that were made and what servers read. Whoever
// has it is the operator: keep it where the platform's other root keys are.
// Each write is whole or not at all. Several processes may use it: one changes
// it at a time, and the others fail with Conflict.
type Store struct {
	dir string
	now func() time.Time
}

// Init makes a store in dir, which must be empty or not be there: the keys of
// the operator, the system account and the platform, or none of them in the
// form [Config]. The error is of kind Conflict if there is one already.
func Init(dir, name string, form Form) (*Store, error) {
	const op = "init accounts"
	if form != Operator && form != Config {
		return nil, fault.Newf(fault.Invalid, op, "form %q; expected %s or %s", string(form), Operator, Config)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.New(fault.Invalid, op, err)
	}
	in, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, err)
	}
	if len(in) > 0 {
		return nil, fault.Newf(fault.Conflict, op, "%s is not empty; expected a new directory, since keys are never overwritten", dir)
	}
	st := &Store{dir: dir, now: time.Now}
	for _, d := range []string{dir, st.path(keyDir), st.path(credsDir)} {
		if err := errors.Join(os.MkdirAll(d, 0o700), os.Chmod(d, 0o700)); err != nil { //nolint:gosec // a directory needs its x
			return nil, fault.New(fault.Invalid, op, err)
		}
	}
	s := &State{Form: form, Name: name, Platform: Account{Name: Platform}, Tenants: []Account{}}
	if form == Operator {
		for _, k := range []struct {
			public *string
			make   func() (nkeys.KeyPair, error)
		}{
			{&s.OperatorKey, nkeys.CreateOperator}, {&s.OperatorSigning, nkeys.CreateOperator},
			{&s.SystemKey, nkeys.CreateAccount}, {&s.Platform.Key, nkeys.CreateAccount},
		} {
			if *k.public, err = st.newKey(k.make); err != nil {
				return nil, err
			}
		}
		if err := st.addSigner(&s.Platform, time.Time{}); err != nil {
			return nil, err
		}
		if err := st.writeSystemCreds(s.SystemKey); err != nil {
			return nil, err
		}
	}
	return st, st.save(s)
}

// Open opens the store in dir. The error is of kind NotFound if there is none,
// and Denied if others can read it.
func Open(dir string) (*Store, error) {
	const op = "open accounts"
	info, err := os.Stat(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Newf(fault.NotFound, op, "there are no accounts in %s; keyturn tenants init makes them", dir)
	}
	if err == nil && info.Mode().Perm()&0o077 == 0 {
		info, err = os.Stat(dir)
	}
	if err != nil {
		return nil, fault.New(fault.Invalid, op, err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fault.Newf(fault.Denied, op, "others can read %s; run chmod -R go= on it", dir)
	}
	return &Store{dir: dir, now: time.Now}, nil
}

func (st *Store) path(elem ...string) string {
	return filepath.Join(append([]string{st.dir}, elem...)...)
}

// State reads the state.
func (st *Store) State() (*State, error) {
	b, err := os.ReadFile(st.path(stateFile))
	if err != nil {
		return nil, fault.New(fault.Invalid, "read accounts", err)
	}
	s := &State{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fault.New(fault.Invalid, "read "+st.path(stateFile), err)
	}
	return s, nil
}

// change reads the state, lets f change it, and saves it and what servers read
// of it. Nothing is saved if f fails; keys that it made lie unused.
func (st *Store) change(f func(*State) error) error {
	l, err := dirlock.Take(st.path(lockFile))
	if fault.Is(err, fault.Conflict) {
		return &fault.Error{Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: "change accounts", Msg: "another command is changing them; expected one at a time, repeat this one"}
	}
	if err != nil {
		return err
	}
	defer func() { _ = l.Close() }()
	st.sweep()
	s, err := st.State()
	if err != nil {
		return err
	}
	if err := s.clock(); err != nil {
		return err
	}
	if err := f(s); err != nil {
		return err
	}
	return st.save(s)
}

// sweep removes what a command that was killed has begun to write: half a key is
// of no use to anybody but a thief. The caller holds the lock.
func (st *Store) sweep() {
	for _, in := range []string{".", keyDir, credsDir, filepath.Join(credsDir, "*")} {
		names, _ := filepath.Glob(st.path(in, temporary))
		for _, name := range names {
			_ = os.Remove(name)
		}
	}
}

// save writes the configuration first: who sees the new state finds it there.
func (st *Store) save(s *State) error {
	if s.Form == Config {
		text, err := s.PlainConfig()
		if err != nil {
			return err
		}
		if err := writeFile(st.path(plainConf), []byte(text)); err != nil {
			return err
		}
	} else {
		b, err := s.Bundle(st.Key)
		if err != nil {
			return err
		}
		if err := writeFile(st.path(operatorConf), []byte(b.ServerConfig("jwt"))); err != nil {
			return err
		}
		if err := writeFile(st.path(memoryConf), []byte(b.MemoryConfig())); err != nil {
			return err
		}
	}
	s.Saved = time.Now().UTC()
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fault.New(fault.Invalid, "save accounts", err)
	}
	return writeFile(st.path(stateFile), append(text, '\n'))
}

// ServerConfig is the file that nats-server includes.
func (st *Store) ServerConfig(form Form) string {
	if form == Config {
		return st.path(plainConf)
	}
	return st.path(operatorConf)
}

// SystemCreds is the creds file of the user that pushes accounts.
func (st *Store) SystemCreds() string { return st.path(credsDir, "system.creds") }

// Key is the store's [Keyring].
func (st *Store) Key(public string) (nkeys.KeyPair, error) {
	b, err := os.ReadFile(st.path(keyDir, public+".nk"))
	if err != nil {
		return nil, fault.New(fault.NotFound, "private key", err)
	}
	defer clear(b)
	kp, err := nkeys.FromSeed([]byte(strings.TrimSpace(string(b))))
	if err != nil {
		return nil, fault.Newf(fault.Invalid, "private key", "%s.nk is no seed; restore it from your copy", public)
	}
	return kp, nil
}

// newKey makes a key, keeps its seed, and returns the public one.
func (st *Store) newKey(create func() (nkeys.KeyPair, error)) (string, error) {
	kp, err := create()
	if err != nil {
		return "", fault.New(fault.Invalid, "make a key", err)
	}
	defer kp.Wipe()
	public, err := kp.PublicKey()
	if err != nil {
		return "", fault.New(fault.Invalid, "make a key", err)
	}
	seed, err := kp.Seed()
	if err != nil {
		return "", fault.New(fault.Invalid, "make a key", err)
	}
	defer clear(seed)
	return public, writeFile(st.path(keyDir, public+".nk"), append(seed, '\n'))
}

// forget deletes a private key that is not used any more. One that cannot be
// deleted is no longer trusted all the same.
func (st *Store) forget(public string) {
	if public != "" {
		_ = os.Remove(st.path(keyDir, public+".nk"))
	}
}

// writeFile writes a file that only its owner may read, whole or not at all:
// an agent that connects meanwhile reads the old one or the new one.
func writeFile(path string, b []byte) error {
	fail := func(err error) error { return fault.New(fault.Invalid, "write "+path, err) }
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fail(err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), temporary) // mode 0600
	if err != nil {
		return fail(err)
	}
	_, err = f.Write(b)
	// On the disk before it takes the old one's place, and there before the next
	// file that names it: a power cut must leave neither an empty key nor a state
	// without its key.
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return fail(err)
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return fail(err)
	}
	return nil
}

// syncDir makes the names in dir safe.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
