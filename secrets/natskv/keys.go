package natskv

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime"
	"strings"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// maxKeyFile bounds a key file in bytes; a key takes 45.
const maxKeyFile = 16 << 10

// Keys is a keyring: the first key seals, every key opens. To change the
// sealing key put a new one in front, restart every process, call
// [Store.Reseal], and take the old key away. Where several processes write,
// first add the new key behind the old one everywhere, so that all can open
// what the first of them seals.
//
// A Keys prints without its keys. The zero Keys is empty and refused.
type Keys struct {
	ring []sealingKey
}

// A sealingKey's id is derived from it, so it needs no name of its own and a
// record tells which key it wants.
type sealingKey struct {
	id    string
	bytes secrets.Value
}

// IDs returns the ids of the keys, the sealing one first. An id tells nothing
// of its key.
func (k Keys) IDs() []string {
	ids := make([]string, len(k.ring))
	for i := range k.ring {
		ids[i] = k.ring[i].id
	}
	return ids
}

func (k Keys) find(id string) (secrets.Value, bool) {
	for i := range k.ring {
		if k.ring[i].id == id {
			return k.ring[i].bytes, true
		}
	}
	return secrets.Value{}, false
}

// LoadKeys reads a keyring from the file at path, or, where path is empty,
// from the environment variable named env. A file that others than its owner
// may read is Denied; no file or variable is NotFound; anything else but keys
// in it is Invalid.
func LoadKeys(path, env string) (Keys, error) {
	const op = "natskv: load keys"
	if path != "" {
		return loadFile(op, path)
	}
	if env == "" {
		return Keys{}, fault.Newf(fault.Invalid, op, "neither a key file nor an environment variable is named; name one")
	}
	text, ok := os.LookupEnv(env)
	if !ok || strings.TrimSpace(text) == "" {
		return Keys{}, fault.Newf(fault.NotFound, op, "the environment variable %s is not set; expected a key, 32 bytes in base64, such as openssl rand -base64 32 makes", env)
	}
	return parseKeys(op+" from $"+env, []byte(text))
}

func loadFile(op, path string) (Keys, error) {
	f, err := os.Open(path)
	if err != nil {
		kind := fault.Denied
		if errors.Is(err, fs.ErrNotExist) {
			kind = fault.NotFound
		}
		return Keys{}, fault.New(kind, op, err)
	}
	defer func() { _ = f.Close() }()
	// The open file is looked at, not the path, which may be another file by
	// now.
	info, err := f.Stat()
	if err != nil {
		return Keys{}, fault.New(fault.Denied, op, err)
	}
	if !info.Mode().IsRegular() {
		return Keys{}, fault.Newf(fault.Invalid, op, "%s is not a regular file; expected a key file", path)
	}
	// Windows has no such modes and shows every file as 0666.
	if mode := info.Mode().Perm(); mode&^0o600 != 0 && runtime.GOOS != "windows" {
		return Keys{}, fault.Newf(fault.Denied, op, "%s has mode %04o; expected 0600 or stricter; run chmod 600 on it, and take a new key if others could read this one", path, mode)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return Keys{}, fault.New(fault.Unavailable, op, err)
	}
	defer clear(b)
	if len(b) > maxKeyFile {
		return Keys{}, fault.Newf(fault.Invalid, op, "%s is longer than %d bytes; expected a key file", path, maxKeyFile)
	}
	return parseKeys(op+" from "+path, b)
}

// ParseKeys reads keys separated by white space or commas, each 32 bytes in
// standard base64. A line that begins with '#' is a comment. The error is of
// kind Invalid.
func ParseKeys(text []byte) (Keys, error) { return parseKeys("natskv: parse keys", text) }

func parseKeys(op string, text []byte) (Keys, error) {
	var ring Keys
	for line := range bytes.Lines(text) {
		if bytes.HasPrefix(bytes.TrimSpace(line), []byte("#")) {
			continue
		}
		for _, word := range bytes.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(", \t\r\n", r) }) {
			n := len(ring.ring) + 1
			raw := make([]byte, base64.StdEncoding.DecodedLen(len(word)))
			// The decoder's error is dropped: what it quotes may be of a key.
			size, err := base64.StdEncoding.Strict().Decode(raw, word)
			switch {
			case err != nil:
				return Keys{}, fault.Newf(fault.Invalid, op, "key %d is not standard base64; expected 44 characters that end in '='", n)
			case size != chacha20poly1305.KeySize:
				return Keys{}, fault.Newf(fault.Invalid, op, "key %d has %d bytes; expected %d", n, size, chacha20poly1305.KeySize)
			}
			k := newKey(raw[:size])
			clear(raw)
			if _, ok := ring.find(k.id); ok {
				return Keys{}, fault.Newf(fault.Invalid, op, "key %d is there twice; take one away", n)
			}
			ring.ring = append(ring.ring, k)
		}
	}
	if len(ring.ring) == 0 {
		return Keys{}, fault.Newf(fault.Invalid, op, "there is no key; expected 32 bytes in base64")
	}
	return ring, nil
}

func newKey(b []byte) sealingKey {
	sum := sha256.Sum256(append([]byte("keyturn natskv key id\x00"), b...))
	return sealingKey{id: hex.EncodeToString(sum[:6]), bytes: secrets.NewValue(b)}
}

// GenerateKeyFile writes a new key to a new file that only its owner may
// read. A file that exists is a Conflict and left as it is: without its keys
// what they sealed is lost.
func GenerateKeyFile(path string) error {
	const op = "natskv: generate key file"
	b := make([]byte, chacha20poly1305.KeySize)
	_, _ = rand.Read(b) // never fails: crypto/rand since Go 1.24
	text := fmt.Appendf(nil, "# A sealing key of Keyturn. Keep a copy: what it sealed cannot be read without it.\n%s\n", base64.StdEncoding.EncodeToString(b))
	defer clear(b)
	defer clear(text)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fault.Newf(fault.Conflict, op, "%s exists and was left as it is; name another file", path)
	}
	if err != nil {
		return fault.New(fault.Denied, op, err)
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = os.Remove(path) // half a key is none
		return fault.New(fault.Unavailable, op, err)
	}
	return nil
}
