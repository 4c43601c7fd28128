package postgres

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	"github.com/xdg-go/stringprep"
	"golang.org/x/text/unicode/norm"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// What PostgreSQL uses by default, and every client can do.
const (
	scramIterations = 4096
	scramSaltLen    = 16
)

// newVerifier returns what the server stores for password, with a fresh salt,
// in the form that ALTER ROLE takes as it is:
//
//	SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>
//
// https://www.postgresql.org/docs/current/catalog-pg-authid.html
func newVerifier(password secrets.Value) (string, error) {
	salt := make([]byte, scramSaltLen)
	_, _ = rand.Read(salt) // never fails
	return verifier(password, salt, scramIterations)
}

// verifier follows RFC 5802 section 3.
func verifier(password secrets.Value, salt []byte, iterations int) (string, error) {
	plain := password.Reveal()
	defer clear(plain)
	salted, err := pbkdf2.Key(sha256.New, saslprep(string(plain)), salt, iterations, sha256.Size)
	if err != nil {
		return "", fault.Newf(fault.Invalid, "scram-sha-256", "the key derivation refuses its parameters")
	}
	defer clear(salted)
	clientKey := mac(salted, "Client Key")
	defer clear(clientKey)
	storedKey := sha256.Sum256(clientKey)
	enc := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, enc(salt), enc(storedKey[:]), enc(mac(salted, "Server Key"))), nil
}

func mac(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// Two steps of pg_saslprep: its mapping, with the checks that it makes before
// normalizing. Where RFC 4013 lists U+200B both as a space and as nothing,
// PostgreSQL takes the space, so spaces come first.
var saslChecks = stringprep.Profile{
	Mappings:  []stringprep.Mapping{stringprep.SASLprep.Mappings[1], stringprep.SASLprep.Mappings[0]},
	Prohibits: stringprep.SASLprep.Prohibits,
	CheckBiDi: true,
}

// saslprep prepares a password as PostgreSQL does: what SASLprep prohibits is
// used as it is instead of being refused.
// https://github.com/postgres/postgres/blob/REL_15_STABLE/src/common/saslprep.c
func saslprep(password string) string {
	ascii := true
	for i := range len(password) {
		ascii = ascii && password[i] < 0x80
	}
	if ascii {
		return password
	}
	mapped, err := saslChecks.Prepare(password)
	if err != nil || mapped == "" {
		return password
	}
	return norm.NFKC.String(mapped)
}
