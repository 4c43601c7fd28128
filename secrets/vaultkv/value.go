package vaultkv

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"unicode/utf8"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// textField holds the exact text of a value beside its fields, where reading
// the fields would give another.
const textField = "keyturn_text"

// binarySuffix names the field of a value that is no text.
const binarySuffix = "_base64"

// fields are the data of a version.
type fields = map[string]json.RawMessage

// encode returns the data that a version with value v has. The error is of
// kind Invalid.
func encode(op string, v secrets.Value, field string) (fields, error) {
	if v.IsZero() {
		return nil, fault.Newf(fault.Invalid, op, "the value is empty; expected 1 to %d bytes", MaxValue)
	}
	if n := v.Len(); n > MaxValue {
		return nil, fault.Newf(fault.Invalid, op, "the value has %d bytes; expected at most %d", n, MaxValue)
	}
	raw := v.Reveal()
	defer clear(raw)
	if !utf8.Valid(raw) {
		return fields{field + binarySuffix: quote(base64.StdEncoding.EncodeToString(raw))}, nil
	}
	plain := plainFields(raw, field)
	if _, ok := plain[textField]; ok {
		return nil, fault.Newf(fault.Invalid, op, "the value has a field %s, which is Keyturn's own; take it away", textField)
	}
	seen, err := asServed(plain)
	if err != nil {
		return nil, fault.Newf(fault.Invalid, op, "the value has a number that Vault cannot hand out; expected 64-bit floating point, or a string")
	}
	if err := checkLimits(op, seen); err != nil {
		return nil, err
	}
	if got, err := decode(op, seen, field); err != nil || !got.Equal(v) {
		plain[textField] = quote(string(raw))
	}
	return plain, nil
}

// decode returns the value of a version with the given data. The error is of
// kind Invalid.
func decode(op string, data json.RawMessage, field string) (secrets.Value, error) {
	var m fields
	// The decoder's error is dropped: it may quote the value.
	if err := json.Unmarshal(data, &m); err != nil || m == nil {
		return secrets.Value{}, fault.Newf(fault.Invalid, op, "the version's data is no JSON object")
	}
	if text, ok := str(m[textField]); ok {
		delete(m, textField)
		if same(plainFields([]byte(text), field), m) {
			return secrets.NewString(text), nil
		}
	}
	if len(m) == 1 {
		if text, ok := str(m[field]); ok && text != "" {
			return secrets.NewString(text), nil
		}
		if text, ok := str(m[field+binarySuffix]); ok {
			if b, err := base64.StdEncoding.Strict().DecodeString(text); err == nil && len(b) > 0 {
				defer clear(b)
				return secrets.NewValue(b), nil
			}
		}
	}
	b, err := canonical(m)
	if err != nil {
		return secrets.Value{}, fault.Newf(fault.Invalid, op, "the version's data cannot be written as JSON")
	}
	defer clear(b)
	return secrets.NewValue(b), nil
}

// plainFields are the fields of a text without those of our own. They are
// written anew: Vault refuses a key that comes twice, and half of a surrogate
// pair, which JSON allows.
func plainFields(raw []byte, field string) fields {
	var m fields
	if json.Unmarshal(raw, &m) == nil && m != nil {
		b, err := canonical(m)
		if err == nil && json.Unmarshal(b, &m) == nil {
			clear(b)
			return m
		}
	}
	return fields{field: quote(string(raw))}
}

// asServed is what Vault answers with for m: it reads what it stored as 64-bit
// floating point and writes it again.
func asServed(m fields) (json.RawMessage, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	var parsed any
	if err := json.Unmarshal(b, &parsed); err != nil {
		return nil, err
	}
	return write(parsed)
}

// same reports whether two versions' fields are served alike.
func same(a, b fields) bool {
	x, errX := asServed(a)
	y, errY := asServed(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// canonical writes m with sorted keys and its numbers as they are.
func canonical(m fields) ([]byte, error) {
	b, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var parsed any
	if err := dec.Decode(&parsed); err != nil {
		return nil, err
	}
	return write(parsed)
}

// write encodes v as people would: <, > and & as they are, as package dbsecret
// writes passwords.
func write(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// quote writes text, which is valid UTF-8, as a JSON string.
func quote(text string) json.RawMessage {
	b, err := write(text)
	if err != nil {
		panic("vaultkv: a string cannot be written as JSON") // cannot happen
	}
	return b
}

// str reads a JSON string.
func str(raw json.RawMessage) (string, bool) {
	var s *string
	if len(raw) == 0 || json.Unmarshal(raw, &s) != nil || s == nil {
		return "", false
	}
	return *s, true
}
