package rotators

import (
	"crypto/rand"
	"math/big"
	"strings"

	"github.com/keyturn/keyturn/fault"
)

// A PasswordPolicy says what generated passwords look like. The knobs and
// their meaning are those of GetRandomPassword and of the environment
// variables of the AWS samples.
// https://docs.aws.amazon.com/secretsmanager/latest/apireference/API_GetRandomPassword.html
type PasswordPolicy struct {
	Length int // characters; 32 when zero
	// Exclude lists characters that never appear.
	Exclude                                                        string
	ExcludeNumbers, ExcludePunctuation, ExcludeUpper, ExcludeLower bool
	AllowMissingType                                               bool // do not insist on one of each included type
}

const (
	lower       = "abcdefghijklmnopqrstuvwxyz"
	upper       = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	digits      = "0123456789"
	punctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
)

// Generate returns a password from the operating system's random source,
// every character drawn uniformly from those allowed. The error is of kind
// Invalid: the policy cannot be met.
func (p PasswordPolicy) Generate() (string, error) {
	n := p.Length
	if n == 0 {
		n = 32
	}
	var types []string
	for _, t := range []struct {
		chars string
		out   bool
	}{{lower, p.ExcludeLower}, {upper, p.ExcludeUpper}, {digits, p.ExcludeNumbers}, {punctuation, p.ExcludePunctuation}} {
		if t.out {
			continue
		}
		kept := strings.Map(func(r rune) rune {
			if strings.ContainsRune(p.Exclude, r) {
				return -1
			}
			return r
		}, t.chars)
		if kept != "" {
			types = append(types, kept)
		}
	}
	all := strings.Join(types, "")
	if all == "" {
		return "", fault.Newf(fault.Invalid, "generate password", "the policy excludes every character; allow some")
	}
	if n < 0 || n > 4096 || (!p.AllowMissingType && n < len(types)) {
		return "", fault.Newf(fault.Invalid, "generate password", "length %d cannot hold one of each of %d character types, or is over 4096", n, len(types))
	}
	// Rejection keeps the distribution uniform over the passwords that meet
	// the policy, which placing one of each type by hand would not.
	for range 10_000 {
		b := make([]byte, n)
		for i := range b {
			j, err := rand.Int(rand.Reader, big.NewInt(int64(len(all))))
			if err != nil {
				return "", fault.New(fault.Unavailable, "generate password", err)
			}
			b[i] = all[j.Int64()]
		}
		if p.AllowMissingType || hasEach(b, types) {
			return string(b), nil
		}
	}
	return "", fault.Newf(fault.Invalid, "generate password", "no password of length %d met the policy in 10000 tries; make it longer", n)
}

func hasEach(b []byte, types []string) bool {
	for _, t := range types {
		if !strings.ContainsAny(string(b), t) {
			return false
		}
	}
	return true
}
