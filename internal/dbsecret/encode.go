package dbsecret

import (
	"bytes"
	"encoding/json"
	"unicode/utf8"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// Changes are what [Secret.With] replaces; zero fields are kept.
type Changes struct {
	Username string
	Password secrets.Value
}

// With returns the value that s was parsed from with c put in. Every other
// byte is kept: unknown keys, number types, order and spacing. The error is
// of kind Invalid: a change cannot be written as JSON.
func (s *Secret) With(c Changes) (secrets.Value, error) {
	raw := s.src.Reveal()
	defer clear(raw)
	// Room for both changes at their longest, so that growing leaves no
	// second copy behind.
	out := make([]byte, 0, len(raw)+6*(len(c.Username)+c.Password.Len())+4)
	defer func() { clear(out[:cap(out)]) }()
	last := 0
	err := walk(raw, func(key string, val []byte, at int) error {
		var text []byte
		switch {
		case key == "username" && c.Username != "":
			text = []byte(c.Username)
		case key == "password" && !c.Password.IsZero():
			text = c.Password.Reveal()
			defer clear(text)
		default:
			return nil
		}
		with, err := quote(key, text)
		if err != nil {
			return err
		}
		defer clear(with)
		out = append(append(out, raw[last:at]...), with...)
		last = at + len(val)
		return nil
	})
	if err != nil {
		return secrets.Value{}, err
	}
	out = append(out, raw[last:]...)
	return secrets.NewValue(out), nil
}

// Encode returns a new value with the fields of s, leaving out what is empty,
// or an error of kind Invalid if Parse would refuse it.
func Encode(s Secret) (secrets.Value, error) {
	if s.Port == 0 {
		s.Port = DefaultPort
	}
	password := s.Password.Reveal()
	defer clear(password)
	doc := struct {
		Engine    string          `json:"engine"`
		Host      string          `json:"host"`
		Port      int             `json:"port"`
		Username  string          `json:"username"`
		Password  json.RawMessage `json:"password"`
		DBName    string          `json:"dbname,omitempty"`
		MasterARN string          `json:"masterarn,omitempty"`
		SSL       *bool           `json:"ssl,omitempty"`
		Probe     string          `json:"probe,omitempty"`
	}{
		Engine: s.Engine, Host: s.Host, Port: s.Port, Username: s.Username,
		DBName: s.DBName, MasterARN: s.MasterARN, Probe: s.Probe,
	}
	var err error
	if doc.Password, err = quote("password", password); err != nil {
		return secrets.Value{}, err
	}
	defer clear(doc.Password)
	if s.SSL != SSLPrefer {
		on := s.SSL == SSLRequire
		doc.SSL = &on
	}
	b, err := json.Marshal(doc)
	if err != nil {
		return secrets.Value{}, fault.Newf(fault.Invalid, op, "not encodable as JSON")
	}
	defer clear(b)
	v := secrets.NewValue(b)
	if _, err := Parse(v); err != nil {
		v.Wipe()
		return secrets.Value{}, err
	}
	return v, nil
}

// quote writes text as a JSON string. encoding/json would silently replace
// what is not UTF-8.
func quote(key string, text []byte) ([]byte, error) {
	if !utf8.Valid(text) || bytes.IndexByte(text, 0) >= 0 {
		return nil, fault.Newf(fault.Invalid, op, "the new %s is not UTF-8 without zero characters, which is all that JSON and PostgreSQL can hold", key)
	}
	var b bytes.Buffer
	b.Grow(6*len(text) + 3)
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // readable for people, and the same string
	if err := enc.Encode(string(text)); err != nil {
		return nil, fault.Newf(fault.Invalid, op, "the new %s cannot be written as JSON", key)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
