package events

import (
	"crypto/sha256"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// SubjectPrefix starts every event subject.
const SubjectPrefix = "keyturn.v1."

// maxToken is the length in bytes beyond which an escaped scope or name is
// replaced by a digest, which keeps a subject far below what NATS takes (a
// control line of 4096 bytes) and near the 256 that it recommends.
// https://docs.nats.io/nats-concepts/subjects
const maxToken = 120

// Subject returns keyturn.v1.<tenant>.<provider>.<scope>.<name>.<noun>.<verb>,
// always eight tokens. Tokens are percent-escaped where NATS would split,
// match or refuse them, and a slash stays; [ParseSubject] reads them back. A
// scope or name too long for a token becomes "~" and a digest.
func Subject(tenant string, r ref.Ref, t Type) string {
	noun, verb := t.Parts()
	return SubjectPrefix + strings.Join([]string{
		Token(tenant), Token(string(r.Provider)), Token(r.Scope), Token(r.Name), noun, verb,
	}, ".")
}

// Subject returns the subject that e is published on.
func (e *Event) Subject() string { return Subject(e.Data.Tenant, e.Data.Ref, e.Type) }

// Subjects returns the subject patterns of f: one for each ref and type, with
// wildcards where f does not say.
func (f Filter) Subjects() []string {
	tenant := "*"
	if f.Tenant != "" {
		tenant = Token(f.Tenant)
	}
	heads := []string{"*.*.*"}
	if len(f.Refs) > 0 {
		heads = heads[:0]
		for _, r := range f.Refs {
			heads = append(heads, Token(string(r.Provider))+"."+Token(r.Scope)+"."+Token(r.Name))
		}
	}
	tails := []string{"*.*"}
	if len(f.Types) > 0 {
		tails = tails[:0]
		for _, t := range f.Types {
			noun, verb := t.Parts()
			tails = append(tails, noun+"."+verb)
		}
	}
	out := make([]string, 0, len(heads)*len(tails))
	for _, h := range heads {
		for _, t := range tails {
			out = append(out, SubjectPrefix+tenant+"."+h+"."+t)
		}
	}
	return out
}

// SubjectParts is what a subject tells.
type SubjectParts struct {
	Tenant, Provider, Scope, Name string
	// Digested reports that Scope or Name is a digest, not the text itself.
	Digested   bool
	Noun, Verb string
}

// ParseSubject reads a subject back. The error is of kind Invalid.
func ParseSubject(s string) (SubjectParts, error) {
	var p SubjectParts
	toks := strings.Split(s, ".")
	if len(toks) != 8 || toks[0]+"."+toks[1]+"." != SubjectPrefix {
		return p, fault.Newf(fault.Invalid, "parse subject", "%q is not keyturn.v1 with eight tokens", s)
	}
	dst := []*string{&p.Tenant, &p.Provider, &p.Scope, &p.Name}
	for i, d := range dst {
		tok := toks[2+i]
		if strings.HasPrefix(tok, "~") && i >= 2 {
			p.Digested = true
			*d = tok
			continue
		}
		plain, ok := unescape(tok)
		if !ok {
			return p, fault.Newf(fault.Invalid, "parse subject", "%q has a broken percent-escape in token %d", s, 3+i)
		}
		*d = plain
	}
	p.Noun, p.Verb = toks[6], toks[7]
	return p, nil
}

const upperHex = "0123456789ABCDEF"

// Token escapes s as one subject token. The empty string becomes "%", since
// NATS refuses empty tokens.
func Token(s string) string {
	if s == "" {
		return "%"
	}
	n := 0
	for i := range len(s) {
		if mustEscape(s[i], i) {
			n++
		}
	}
	if len(s)+2*n > maxToken {
		sum := sha256.Sum256([]byte(s))
		return "~" + idEncoding.EncodeToString(sum[:20])
	}
	if n == 0 {
		return s
	}
	b := make([]byte, 0, len(s)+2*n)
	for i := range len(s) {
		if c := s[i]; mustEscape(c, i) {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

// mustEscape reports whether NATS would split, match or refuse a token with c
// at index i, or whether c means something in the escaped form itself.
func mustEscape(c byte, i int) bool {
	switch c {
	case '.', '*', '>', '%':
		return true
	case '~', '$':
		return i == 0
	}
	return c <= ' ' || c >= 0x7f
}

func unescape(s string) (string, bool) {
	if s == "%" {
		return "", true
	}
	if !strings.Contains(s, "%") {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		hi, lo := strings.IndexByte(upperHex, s[i+1]), strings.IndexByte(upperHex, s[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		b = append(b, byte(hi<<4|lo))
		i += 2
	}
	return string(b), true
}
