package tenants

import (
	"slices"

	"github.com/keyturn/keyturn/fault"
)

// maxName is the length of a tenant's name, in bytes: it is a subject token,
// and part of file and account names.
const maxName = 63

// reserved are the names of the platform itself.
var reserved = []string{"keyturn", "sys", "system"}

// CheckName reports whether name can be a tenant: 1 to 63 lower-case letters,
// digits, hyphens and underscores, of which the first is a letter or a digit,
// and none of the platform's own names. Such a name is its own subject token.
// The error is of kind Invalid and quotes nothing.
func CheckName(name string) error {
	if len(name) == 0 || len(name) > maxName {
		return fault.Newf(fault.Invalid, "tenant name", "it has %d bytes; expected 1 to %d", len(name), maxName)
	}
	for i := range len(name) {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != '_') {
			return fault.Newf(fault.Invalid, "tenant name", "it has a character at byte %d that is not allowed there; expected lower-case letters, digits, hyphen and underscore, and a letter or digit first", i+1)
		}
	}
	if slices.Contains(reserved, name) {
		return fault.Newf(fault.Invalid, "tenant name", "it is one of the platform's own names; choose another")
	}
	return nil
}
