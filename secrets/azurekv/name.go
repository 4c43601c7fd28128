package azurekv

import (
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

const (
	// MaxValue is the longest value in bytes. The service counts characters
	// and refuses more than 25,600 of them ("25 KB").
	// https://learn.microsoft.com/azure/key-vault/secrets/about-secrets
	MaxValue = 25600
	// maxName leaves room for the sibling in the 127 characters of a name.
	// https://learn.microsoft.com/azure/key-vault/general/about-keys-secrets-certificates
	maxName = 127 - len(sibling.Suffix)
	// maxTag is the longest value of a tag, of which there are at most maxTags.
	maxTag  = 256
	maxTags = 15
)

var (
	nameForm    = regexp.MustCompile(`^[0-9a-z-]+$`)
	vaultForm   = regexp.MustCompile(`^[a-z][0-9a-z-]{1,22}[0-9a-z]$`)
	versionForm = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

// Canonical returns r with the names of vault and secret in lower case. Key
// Vault finds a secret whatever the case of its name; a ref is compared letter
// by letter, so there is one spelling of it, and [Store] refuses all others.
// Events tell a name in the case in which it was first written.
func Canonical(r ref.Ref) ref.Ref {
	if r.Provider == ref.Azure {
		r.Scope, r.Name = strings.ToLower(r.Scope), strings.ToLower(r.Name)
	}
	return r
}

// validate refuses what is no secret of Key Vault, or has another spelling.
func (d *driver) validate(op string, r ref.Ref) error {
	if err := r.Validate(); err != nil {
		return fault.New(fault.Invalid, op, err)
	}
	switch vault := r.ScopePart(0); {
	case r.Provider != ref.Azure:
		return fault.Newf(fault.Invalid, op, "%s is not a secret of Azure; expected azure://VAULT/NAME", r)
	case Canonical(r) != r:
		return fault.Newf(fault.Invalid, op, "Key Vault's names do not tell upper from lower case, and refs do; write %s as %s", r, Canonical(r))
	case !vaultForm.MatchString(vault):
		return fault.Newf(fault.Invalid, op, "%q is not the name of a vault; expected 3 to 24 letters, digits and hyphens", vault)
	case !nameForm.MatchString(r.Name):
		return fault.Newf(fault.Invalid, op, "%q is not the name of a Key Vault secret; expected letters, digits and hyphens", r.Name)
	case len(r.Name) > maxName:
		return fault.Newf(fault.Invalid, op, "the name of %s has %d characters; expected at most %d, so that %s can be appended", r, len(r.Name), maxName, sibling.Suffix)
	case strings.HasSuffix(r.Name, sibling.Suffix):
		return fault.Newf(fault.Invalid, op, "%s is where the pending version of another secret is kept; expected a name that does not end in %s", r, sibling.Suffix)
	}
	return nil
}

func checkValue(op string, v secrets.Value) error {
	if n := v.Len(); n == 0 || n > MaxValue {
		return fault.Newf(fault.Invalid, op, "the value has %d bytes; expected 1 to %d, which is what Key Vault keeps", n, MaxValue)
	}
	b := v.Reveal()
	defer clear(b)
	if !utf8.Valid(b) {
		return fault.Newf(fault.Invalid, op, "the value is not text; Key Vault keeps strings of UTF-8, so encode it first, for example in base64")
	}
	return nil
}

func checkToken(op, token string) error {
	if token == "" || len(token) > maxTag || !utf8.ValidString(token) {
		return fault.Newf(fault.Invalid, op, "the rotation token has %d bytes; expected 1 to %d bytes of UTF-8, such as a UUID", len(token), maxTag)
	}
	return nil
}
