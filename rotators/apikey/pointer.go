package apikey

import (
	"strconv"
	"strings"

	"github.com/keyturn/keyturn/fault"
)

// A pointer is a JSON pointer in its parts.
// https://www.rfc-editor.org/rfc/rfc6901
type pointer []string

var unescape = strings.NewReplacer("~1", "/", "~0", "~")

func parsePointer(s string) (pointer, error) {
	if s == "" {
		return pointer{}, nil
	}
	if s[0] != '/' {
		return nil, fault.Newf(fault.Invalid, "JSON pointer", "%q does not begin with /", s)
	}
	parts := strings.Split(s[1:], "/")
	for i, p := range parts {
		if strings.Contains(unescape.Replace(strings.ReplaceAll(strings.ReplaceAll(p, "~0", ""), "~1", "")), "~") {
			return nil, fault.Newf(fault.Invalid, "JSON pointer", "%q has a ~ that is followed by neither 0 nor 1", s)
		}
		// One pass, so that ~01 is ~1 and not a slash.
		parts[i] = unescape.Replace(p)
	}
	return parts, nil
}

// find returns what p points to in a document decoded by encoding/json.
func (p pointer) find(doc any) (any, bool) {
	for _, part := range p {
		switch v := doc.(type) {
		case map[string]any:
			next, ok := v[part]
			if !ok {
				return nil, false
			}
			doc = next
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(v) || strconv.Itoa(i) != part {
				return nil, false
			}
			doc = v[i]
		default:
			return nil, false
		}
	}
	return doc, true
}

// text returns the string that p points to, "" if there is none.
func (p pointer) text(doc any) string {
	v, _ := p.find(doc)
	s, _ := v.(string)
	return s
}
