// Package notice reads the JSON of providers' notices for decoders: leniently
// where providers are careless, and without ever passing on text that has not
// the form of an identifier.
package notice

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keyturn/keyturn/fault"
)

// An Object is a JSON object with its keys in lower case and without blanks
// around them: documents and services of one provider spell one key in several
// ways. A member that is missing or of another type reads as empty, so that a
// field which nobody needs can have any shape. The nil Object is empty.
type Object map[string]json.RawMessage

// Parse reads raw, which must be one JSON object. op and expected are for the
// error, which is of kind Invalid and quotes nothing of raw.
func Parse(raw []byte, op, expected string) (Object, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, NotJSON(raw, err, op, expected)
	}
	if m == nil {
		return nil, fault.Newf(fault.Invalid, op, "found JSON null; expected %s", expected)
	}
	return fold(m), nil
}

// NotJSON describes err without the parser's own text, which quotes the input.
func NotJSON(raw []byte, err error, op, expected string) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fault.Newf(fault.Invalid, op, "found a JSON value of another type; expected %s", expected)
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fault.Newf(fault.Invalid, op, "the body is not JSON: broken at byte %d of %d; expected %s", syntax.Offset, len(raw), expected)
	}
	return fault.Newf(fault.Invalid, op, "the body of %d bytes is not JSON; expected %s", len(raw), expected)
}

// fold lowers and trims the keys. Where two keys become one, the first in byte
// order that is not null wins, whatever the order of the input.
func fold(m map[string]json.RawMessage) Object {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	o := make(Object, len(m))
	for _, k := range keys {
		key := strings.ToLower(strings.TrimSpace(k))
		if _, taken := o[key]; !taken && string(m[k]) != "null" {
			o[key] = m[k]
		}
	}
	return o
}

// Text returns the string at key without blanks around it, or "".
func (o Object) Text(key string) string {
	s, _ := text(o[strings.ToLower(key)])
	return strings.TrimSpace(s)
}

// text returns the string that raw is. Members of an Object were checked to be
// JSON, and few of their strings hold an escape: to copy the others as they are
// takes a third off what the decoding of a notice allocates.
func text(raw json.RawMessage) (string, bool) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", false
	}
	if in := raw[1 : len(raw)-1]; bytes.IndexByte(in, '\\') < 0 && utf8.Valid(in) {
		return string(in), true
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err == nil
}

// Number returns the number at key as it is written, also one that is written
// as a string, or "".
func (o Object) Number(key string) string {
	raw := o[strings.ToLower(key)]
	var n json.Number
	if json.Unmarshal(raw, &n) == nil && n != "" {
		return n.String()
	}
	s := o.Text(key)
	if json.Unmarshal([]byte(s), &n) == nil && s != "" {
		return n.String()
	}
	return ""
}

// Object returns the object at key, or nil.
func (o Object) Object(key string) Object {
	var m map[string]json.RawMessage
	if raw := o[strings.ToLower(key)]; len(raw) == 0 || raw[0] != '{' || json.Unmarshal(raw, &m) != nil {
		return nil
	}
	return fold(m)
}

// Texts returns the members of the object at key that are strings, with their
// keys as they are.
func (o Object) Texts(key string) map[string]string {
	var m map[string]json.RawMessage
	if json.Unmarshal(o[strings.ToLower(key)], &m) != nil {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, raw := range m {
		if s, ok := text(raw); ok {
			out[k] = s
		}
	}
	return out
}

// List returns the strings of the array at key that are not empty; other
// members are left out.
func (o Object) List(key string) []string {
	var out []string
	for _, raw := range o.Array(key) {
		if s, ok := text(raw); ok && s != "" {
			out = append(out, s)
		}
	}
	return out
}

// Array returns the members of the array at key as they are, or nil.
func (o Object) Array(key string) []json.RawMessage {
	var members []json.RawMessage
	if raw := o[strings.ToLower(key)]; len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &members) != nil {
		return nil
	}
	return members
}

// IsFalse reports whether key is there and false.
func (o Object) IsFalse(key string) bool { return string(o[strings.ToLower(key)]) == "false" }

// Has reports whether key is there and not null.
func (o Object) Has(key string) bool { return o[strings.ToLower(key)] != nil }

// Digest names o by its members.
func (o Object) Digest() string {
	keys := make([]string, 0, len(o))
	for k := range o {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	h := sha256.New()
	for _, k := range keys {
		_, _ = io.WriteString(h, k+"\x00")
		_, _ = h.Write(append(slices.Clone(o[k]), 0))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

var tokenForm = regexp.MustCompile(`^[A-Za-z0-9_.:/+=@-]{1,64}$`)

// Token returns s if it looks like an id of a version, message or event, or "".
func Token(s string) string {
	if tokenForm.MatchString(s) {
		return s
	}
	return ""
}

// Time reads RFC 3339 with any offset and gives UTC. Years that JSON cannot
// carry in UTC are refused.
func Time(s string) (time.Time, bool) {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.UTC().Year() < 1 || t.UTC().Year() > 9998 {
		return time.Time{}, false
	}
	return t.UTC(), true
}
