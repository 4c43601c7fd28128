package eventbridge

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/keyturn/keyturn/fault"
)

// An object is a JSON object with its keys in lower case, since CloudTrail has
// written "arn", "aRN" and "ARN" for one thing. A member that is missing or of
// another type reads as empty, so that a field which nobody needs can have any
// shape. The nil object is empty.
type object map[string]json.RawMessage

// parseObject reads raw, which must be one JSON object.
func parseObject(raw []byte) (object, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(raw, &m); err != nil {
		return nil, notJSON(raw, err)
	}
	if m == nil {
		return nil, fault.Newf(fault.Invalid, opDecode, "the body is JSON null; expected an EventBridge event")
	}
	return fold(m), nil
}

// fold lowers the keys. Where two keys become one, the first in byte order
// that is not null wins, whatever the order of the input.
func fold(m map[string]json.RawMessage) object {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	o := make(object, len(m))
	for _, k := range keys {
		low := strings.ToLower(k)
		if _, taken := o[low]; !taken && string(m[k]) != "null" {
			o[low] = m[k]
		}
	}
	return o
}

// text returns the string at key, or "".
func (o object) text(key string) string {
	var s string
	if json.Unmarshal(o[strings.ToLower(key)], &s) != nil {
		return ""
	}
	return s
}

// texts returns the strings of the array at key; other members are left out.
func (o object) texts(key string) []string {
	var raw []json.RawMessage
	if json.Unmarshal(o[strings.ToLower(key)], &raw) != nil {
		return nil
	}
	var out []string
	for _, r := range raw {
		var s string
		if json.Unmarshal(r, &s) == nil && s != "" {
			out = append(out, s)
		}
	}
	return out
}

// object returns the object at key, or nil.
func (o object) object(key string) object {
	var m map[string]json.RawMessage
	if json.Unmarshal(o[strings.ToLower(key)], &m) != nil || m == nil {
		return nil
	}
	return fold(m)
}

// has reports whether key is there and not null.
func (o object) has(key string) bool { return o[strings.ToLower(key)] != nil }

// isFalse reports whether key is there and false.
func (o object) isFalse(key string) bool { return string(o[strings.ToLower(key)]) == "false" }

// digest names o by its members.
func (o object) digest() string {
	keys := make([]string, 0, len(o))
	for k := range o {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	h := sha256.New()
	for _, k := range keys {
		_, _ = io.WriteString(h, k+"\x00")
		_, _ = h.Write(append(o[k], 0))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// notJSON describes err without the parser's own text, which quotes the input.
func notJSON(raw []byte, err error) error {
	var wrong *json.UnmarshalTypeError
	if errors.As(err, &wrong) {
		return fault.Newf(fault.Invalid, opDecode, "found a JSON value of another type; expected the object of an EventBridge event")
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fault.Newf(fault.Invalid, opDecode, "the body is not JSON: broken at byte %d of %d; expected an EventBridge event", syntax.Offset, len(raw))
	}
	return fault.Newf(fault.Invalid, opDecode, "the body of %d bytes is not JSON; expected an EventBridge event", len(raw))
}

func plural(bad, all int) string {
	return fmt.Sprintf("%d of %d events in the array cannot be read, the first because", bad, all)
}
