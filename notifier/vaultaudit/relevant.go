package vaultaudit

import "bytes"

// Relevant reports whether line, an audit entry, may mean an event: an entry of
// type response, of an operation that changes something, without an error. It
// looks at bytes only, without an allocation, and stops at the first thing that
// settles it, since most entries are reads and are thrown away here. It errs on
// the side of keeping only: an entry that it does not understand, or that is
// cut, is relevant. https://developer.hashicorp.com/vault/docs/audit
func Relevant(line []byte) bool {
	s := scanner{b: line}
	var r request
	keep := true
	s.object(func(key []byte) bool {
		switch string(key) {
		case "type":
			// The request's entry says what was asked, not what happened.
			keep = string(s.text()) != "request"
		case "error":
			keep = len(s.text()) == 0
		case "request":
			s.object(func(key []byte) bool {
				switch string(key) {
				case "operation":
					keep = !reading(s.text())
				case "path":
					r.path = s.text()
				case "mount_point":
					r.mount = s.text()
				case "mount_type":
					r.kind = s.text()
				default:
					s.skip()
				}
				return keep
			})
			keep = keep && !r.quiet()
		default:
			s.skip()
		}
		return keep
	})
	return keep
}

// reading reports whether an operation changes nothing. One that nobody has
// heard of may change something.
func reading(operation []byte) bool {
	switch string(operation) {
	case "read", "list", "scan", "help", "header", "alias-lookahead", "resolve-role":
		return true
	}
	return false
}

// A request is what tells calls that are writes by their operation only.
type request struct{ path, mount, kind []byte }

// quiet reports whether r changes no credential although its operation is an
// update: signing in, renewing, and computing. Where clients sign in often or
// encrypt by transit, these are the most of all entries.
func (r request) quiet() bool {
	rel, ok := bytes.CutPrefix(r.path, r.mount)
	if !ok || len(r.mount) == 0 {
		return false
	}
	if bytes.HasPrefix(r.mount, []byte("auth/")) && under(rel, "login") {
		return true
	}
	var calls []string
	switch string(r.kind) {
	case "transit":
		calls = transitCalls
	case "token":
		calls = tokenCalls
	case "system", "ns_system":
		calls = systemCalls
	}
	for _, c := range calls {
		if under(rel, c) {
			return true
		}
	}
	return false
}

var (
	transitCalls = []string{"encrypt", "decrypt", "rewrap", "sign", "verify", "hmac", "hash", "random", "datakey"}
	tokenCalls   = []string{"lookup", "lookup-self", "lookup-accessor", "renew", "renew-self", "renew-accessor"}
	systemCalls  = []string{"leases/renew", "leases/lookup", "renew", "capabilities", "capabilities-self", "capabilities-accessor", "tools", "wrapping", "audit-hash", "internal"}
)

// under reports whether path is call or below it.
func under(path []byte, call string) bool {
	rest, ok := bytes.CutPrefix(path, []byte(call))
	return ok && (len(rest) == 0 || rest[0] == '/')
}

// A scanner walks over JSON without checking more of it than it needs. bad is
// set when the text ends early or is not JSON, and then nothing is settled any
// more.
type scanner struct {
	b   []byte
	i   int
	bad bool
}

// next skips blanks and returns the byte there, or 0.
func (s *scanner) next() byte {
	for s.i < len(s.b) {
		switch c := s.b[s.i]; c {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return c
		}
	}
	return 0
}

// object calls member with the scanner before the value of each key, as it is
// written, until member returns false. What is no object is skipped.
func (s *scanner) object(member func(key []byte) bool) {
	if s.next() != '{' {
		s.skip()
		return
	}
	s.i++
	for !s.bad {
		switch s.next() {
		case '}':
			s.i++
			return
		case ',':
			s.i++
		case '"':
			key := s.text()
			if s.next() != ':' {
				s.bad = true
				return
			}
			s.i++
			if !member(key) {
				return
			}
		default:
			s.bad = true
		}
	}
}

// text returns the string there, without its quotes and with its escapes, or
// nil: a value that is written with escapes equals nothing that we look for,
// which keeps the entry. Anything else is skipped.
func (s *scanner) text() []byte {
	if s.next() != '"' {
		s.skip()
		return nil
	}
	s.i++
	start := s.i
	for {
		n := bytes.IndexByte(s.b[s.i:], '"')
		if n < 0 {
			s.i, s.bad = len(s.b), true
			return nil
		}
		end := s.i + n
		s.i = end + 1
		slashes := 0
		for slashes < end-start && s.b[end-1-slashes] == '\\' {
			slashes++
		}
		if slashes%2 == 0 {
			return s.b[start:end]
		}
	}
}

// skip passes over the value there.
func (s *scanner) skip() {
	depth := 0
	for !s.bad {
		switch s.next() {
		case 0:
			s.bad = true
			return
		case '"':
			s.text()
		case '{', '[':
			depth++
			s.i++
		case '}', ']':
			if depth == 0 {
				s.bad = true // a value is missing
				return
			}
			depth--
			s.i++
		case ',', ':':
			if depth == 0 {
				s.bad = true
				return
			}
			s.i++
			continue
		default:
			for s.i < len(s.b) && !delimiter(s.b[s.i]) {
				s.i++
			}
		}
		if depth == 0 {
			return
		}
	}
}

func delimiter(c byte) bool {
	switch c {
	case ' ', '\t', '\n', '\r', ',', ':', '{', '}', '[', ']', '"':
		return true
	}
	return false
}
