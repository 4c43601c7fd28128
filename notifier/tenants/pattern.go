package tenants

import (
	"fmt"
	"strings"
)

// capture is the variable that a pattern may hold.
const capture = "{tenant}"

// A pattern is one field of a rule, compiled: segments between slashes, of
// which each is a literal, a literal with stars, "**", or the captured tenant
// between two literals.
//
// There is just one way to match it, so nobody can choose a name that is
// captured in another way: a segment with the capture holds no star, and "**"
// stands on one side of the capture only.
type pattern struct {
	text    string
	literal bool
	segs    []segment
}

type segment struct {
	across   bool     // "**": one segment or more
	captures bool     // parts are what is before and after the tenant
	parts    []string // what is between the stars; one part is a literal
}

// compile reads a pattern. fold says that the provider takes upper and lower
// case for the same.
func compile(text string, fold bool) (pattern, error) {
	p := pattern{text: text}
	if fold {
		text = strings.ToLower(text)
	}
	before, at := false, -1
	for i, s := range strings.Split(text, "/") {
		var seg segment
		switch {
		case s == "**":
			seg.across = true
			before = before || at < 0
			if at >= 0 && before {
				return p, fmt.Errorf("%q has %s between two **, where it could be any segment; expected ** on one side of it only", p.text, capture)
			}
		case strings.Contains(s, "**"):
			return p, fmt.Errorf("%q has ** beside other text; expected it alone between slashes", p.text)
		case strings.Contains(s, capture):
			if at >= 0 {
				return p, fmt.Errorf("%q has %s twice; expected it once in a field", p.text, capture)
			}
			at = i
			head, tail, _ := strings.Cut(s, capture)
			if strings.ContainsAny(head+tail, "*{}") {
				return p, fmt.Errorf("%q has %s beside a star or a brace, where it could end in several places; expected literal text or slashes around it", p.text, capture)
			}
			seg.captures, seg.parts = true, []string{head, tail}
		case strings.ContainsAny(s, "{}"):
			return p, fmt.Errorf("%q has a brace; expected %s or none", p.text, capture)
		default:
			seg.parts = strings.Split(s, "*")
		}
		p.segs = append(p.segs, seg)
	}
	p.literal = !strings.ContainsAny(text, "*{")
	if p.literal {
		p.text = text
	}
	return p, nil
}

// captures reports whether p holds the captured tenant.
func (p *pattern) captures() bool {
	for i := range p.segs {
		if p.segs[i].captures {
			return true
		}
	}
	return false
}

// match reports whether p matches the whole of s, and what it captured.
func (p *pattern) match(s string) (tenant string, ok bool) {
	if p.literal {
		return "", s == p.text
	}
	segs := strings.Split(s, "/")
	for _, x := range segs {
		// Somebody who joins paths could take it for another name.
		if x == "." || x == ".." {
			return "", false
		}
	}
	return matchSegments(p.segs, segs)
}

// matchSegments is the usual two-pointer glob over segments: at a mismatch the
// last "**" takes one segment more. It needs no recursion, and its time is
// bounded by the product of the lengths.
func matchSegments(ps []segment, ss []string) (tenant string, ok bool) {
	i, j, star, mark := 0, 0, -1, 0
	for j < len(ss) {
		if i < len(ps) && ps[i].across {
			star, mark = i, j
			i, j = i+1, j+1 // one segment at least
			continue
		}
		if i < len(ps) {
			if _, fits := ps[i].match(ss[j]); fits {
				i, j = i+1, j+1
				continue
			}
		}
		if star < 0 {
			return "", false
		}
		mark++
		i, j = star+1, mark+1
	}
	if i != len(ps) {
		return "", false
	}
	return captured(ps, ss), true
}

// captured returns the tenant of a match. Its place is known from the front
// or, behind a "**", from the back.
func captured(ps []segment, ss []string) string {
	for i := range ps {
		if !ps[i].captures {
			continue
		}
		at := i
		for j := range i {
			if ps[j].across {
				at = len(ss) - (len(ps) - i)
				break
			}
		}
		t, _ := ps[i].match(ss[at])
		return t
	}
	return ""
}

// match reports whether the segment matches the whole of s.
func (g *segment) match(s string) (tenant string, ok bool) {
	head, tail := g.parts[0], g.parts[len(g.parts)-1]
	if len(g.parts) == 1 {
		return "", s == head
	}
	if len(s) < len(head)+len(tail) || !strings.HasPrefix(s, head) || !strings.HasSuffix(s, tail) {
		return "", false
	}
	mid := s[len(head) : len(s)-len(tail)]
	if g.captures {
		return mid, mid != ""
	}
	if s == "" {
		return "", false // a star alone stands for some text
	}
	for _, part := range g.parts[1 : len(g.parts)-1] {
		i := strings.Index(mid, part)
		if i < 0 {
			return "", false
		}
		mid = mid[i+len(part):]
	}
	return "", true
}
