package natskv

import (
	"strings"

	"github.com/keyturn/keyturn/fault"
)

// maxKey bounds a key in bytes: with its prefix it is a subject, which must
// fit into the 4096 bytes of a protocol line several times.
const maxKey = 1024

const hexDigits = "0123456789ABCDEF"

// EntryKey returns the key under which the secret of a name is stored. Letters,
// digits, '_', '-' and '/' stand for themselves, every other byte is '=' and
// two upper-case hexadecimal digits, so a key is one token of a NATS subject
// and as readable as may be. A leading '_' is escaped as well, since NATS
// keeps keys that begin with "_kv" for itself.
func EntryKey(name string) string {
	var b strings.Builder
	for i := range len(name) {
		c := name[i]
		if plain(c) && (c != '_' || i > 0) {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('=')
		b.WriteByte(hexDigits[c>>4])
		b.WriteByte(hexDigits[c&15])
	}
	return b.String()
}

// EntryName is the inverse of [EntryKey]. A key that EntryKey never makes is an error of
// kind Invalid.
func EntryName(key string) (string, error) {
	b := make([]byte, 0, len(key))
	for i := 0; i < len(key); i++ {
		c := key[i]
		if c == '=' && i+2 < len(key) {
			hi, lo := strings.IndexByte(hexDigits, key[i+1]), strings.IndexByte(hexDigits, key[i+2])
			if hi >= 0 && lo >= 0 {
				c = byte(hi<<4 | lo)
				i += 2
			}
		}
		b = append(b, c)
	}
	// One spelling a name: two entries must not be one secret.
	if name := string(b); name != "" && EntryKey(name) == key {
		return name, nil
	}
	return "", fault.Newf(fault.Invalid, "natskv: key", "%q is not the key of a secret", key)
}

func plain(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-' || c == '/'
}
