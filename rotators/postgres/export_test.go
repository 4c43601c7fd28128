package postgres

import (
	"testing"

	"github.com/keyturn/keyturn/secrets"
)

// Verifier makes a verifier with a given salt.
func Verifier(t testing.TB, p secrets.Value, salt []byte) string {
	t.Helper()
	v, err := verifier(p, salt, scramIterations)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
