// Package dbsecret reads and writes the JSON of a database secret, in the
// form that AWS gives it and the rotation functions of AWS expect:
//
//	{"engine": "postgres", "host": "db.example.com", "port": 5432,
//	 "username": "app", "password": "...", "dbname": "orders",
//	 "masterarn": "...", "ssl": true}
//
// One key is ours: probe, a statement that must succeed for the new
// credential. Keys that are not named here are kept as they are.
// https://docs.aws.amazon.com/secretsmanager/latest/userguide/reference_secret_json_structure.html
package dbsecret

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// An SSL is what the key ssl asks for.
type SSL uint8

// What ssl may ask for. The values are those of the AWS samples: a boolean,
// or the same as a string in any case. Anything else counts as absent.
const (
	SSLPrefer  SSL = iota // absent: TLS; plaintext only where the operator allows it
	SSLRequire            // true: TLS and nothing else
	SSLDisable            // false: plaintext
)

// String returns the meaning as in the JSON.
func (s SSL) String() string {
	return [...]string{"absent", "true", "false"}[min(s, SSLDisable)]
}

// A Secret is one parsed value. Printing it shows no password.
type Secret struct {
	Engine   string // postgres or aurora-postgresql
	Host     string
	Port     int // 5432 if the JSON has none
	Username string
	Password secrets.Value
	DBName   string // "" if the JSON has none
	// MasterARN names the secret whose user may change this one; "" if the
	// JSON has none.
	MasterARN string
	SSL       SSL
	// Probe is a statement that must succeed, read-only, for a new credential
	// to be taken into use; "" if the JSON has none.
	Probe string

	src secrets.Value
}

// Engines that Parse accepts.
var engines = []string{"postgres", "aurora-postgresql"}

const (
	// DefaultPort is PostgreSQL's.
	DefaultPort = 5432
	// maxSize is far above what any store holds (64 KiB on AWS).
	maxSize = 1 << 20
)

const op = "database secret"

// Parse reads v. The error is of kind Invalid, names the key and what was
// expected, and holds nothing of the content.
func Parse(v secrets.Value) (*Secret, error) {
	s := &Secret{Port: DefaultPort, src: v}
	raw := v.Reveal()
	defer clear(raw)
	var seen []string
	err := walk(raw, func(key string, val []byte, _ int) error {
		seen = append(seen, key)
		switch key {
		case "engine":
			return str(key, val, &s.Engine)
		case "host":
			return str(key, val, &s.Host)
		case "username":
			return str(key, val, &s.Username)
		case "password":
			var p string
			if err := str(key, val, &p); err != nil {
				return err
			}
			s.Password = secrets.NewString(p)
		case "port":
			return port(val, &s.Port)
		case "dbname":
			return optional(key, val, &s.DBName)
		case "masterarn":
			return optional(key, val, &s.MasterARN)
		case "probe":
			return optional(key, val, &s.Probe)
		case "ssl":
			s.SSL = ssl(val)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, key := range []string{"engine", "host", "username", "password"} {
		if !slices.Contains(seen, key) {
			return nil, fault.Newf(fault.Invalid, op, "key %q is missing; expected the keys engine, host, username and password", key)
		}
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	return s, nil
}

// check says what is wrong with the fields.
func (s *Secret) check() error {
	if !slices.Contains(engines, s.Engine) {
		return fault.Newf(fault.Invalid, op, "key \"engine\" names another engine; expected %s", strings.Join(engines, " or "))
	}
	// A path would be a Unix socket, and a list several servers.
	if strings.ContainsFunc(s.Host, func(r rune) bool {
		return r == '/' || r == '@' || r == ',' || unicode.IsSpace(r) || unicode.IsControl(r)
	}) {
		return fault.Newf(fault.Invalid, op, "key \"host\" is not a host name; expected one name or address without port, path or spaces")
	}
	return nil
}

// RequireMaster checks that the secret names a master secret, as rotation
// with alternating users needs.
func (s *Secret) RequireMaster() error {
	if s.MasterARN == "" {
		return fault.Newf(fault.Invalid, op, "key \"masterarn\" is missing; expected the name of the secret whose user may create and change the alternating users")
	}
	return nil
}

// Managed reads the two-key master secret that RDS makes, exactly username
// and password, and reports whether v is one. Where its server is must be
// found elsewhere.
func Managed(v secrets.Value) (username string, password secrets.Value, ok bool) {
	raw := v.Reveal()
	defer clear(raw)
	n := 0
	err := walk(raw, func(key string, val []byte, _ int) error {
		n++
		switch key {
		case "username":
			return str(key, val, &username)
		case "password":
			var p string
			if err := str(key, val, &p); err != nil {
				return err
			}
			password = secrets.NewString(p)
			return nil
		}
		return errOther
	})
	if err != nil || n != 2 || username == "" || password.IsZero() {
		return "", secrets.Value{}, false
	}
	return username, password, true
}

var errOther = fault.Newf(fault.Invalid, op, "another key")

// walk calls f with each key, raw value and the value's place in raw, of one
// JSON object, in order. Keys must be unique: which of two passwords a reader takes is anybody's guess.
func walk(raw []byte, f func(key string, val []byte, at int) error) error {
	notJSON := func() error {
		// The parser's own error quotes what it read, so it is dropped.
		return fault.Newf(fault.Invalid, op, "not one JSON object in UTF-8; expected {\"engine\": \"postgres\", \"host\": ..., \"username\": ..., \"password\": ...}")
	}
	if len(raw) > maxSize {
		return fault.Newf(fault.Invalid, op, "%d bytes; expected at most %d", len(raw), maxSize)
	}
	if !utf8.Valid(raw) {
		return notJSON()
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return notJSON()
	}
	seen := map[string]bool{}
	for dec.More() {
		tok, err := dec.Token()
		key, isString := tok.(string)
		if err != nil || !isString {
			return notJSON()
		}
		var val json.RawMessage
		if dec.Decode(&val) != nil {
			return notJSON()
		}
		if seen[key] {
			return fault.Newf(fault.Invalid, op, "a key appears twice; expected each once")
		}
		seen[key] = true
		// A part of raw, so that whoever wipes raw wipes this too.
		end := int(dec.InputOffset())
		start := end - len(val)
		if start < 0 || !bytes.Equal(raw[start:end], val) {
			return notJSON()
		}
		clear(val)
		if err := f(key, raw[start:end:end], start); err != nil {
			return err
		}
	}
	if tok, err := dec.Token(); err != nil || tok != json.Delim('}') {
		return notJSON()
	}
	if rest := raw[dec.InputOffset():]; len(bytes.TrimSpace(rest)) != 0 {
		return notJSON()
	}
	return nil
}

// str reads a string that must not be empty.
func str(key string, val []byte, to *string) error {
	if err := json.Unmarshal(val, to); err != nil || val[0] != '"' || *to == "" {
		return fault.Newf(fault.Invalid, op, "key %q is not a string, or empty; expected a string", key)
	}
	// No PostgreSQL name or password holds a zero byte; on the wire it would
	// end the string early and make it another one.
	if strings.ContainsRune(*to, 0) {
		return fault.Newf(fault.Invalid, op, "key %q holds a zero character; expected none", key)
	}
	// Half a surrogate pair decodes to U+FFFD: not what was written.
	if n := strings.Count(*to, "\uFFFD"); n > bytes.Count(val, []byte("\uFFFD"))+bytes.Count(bytes.ToLower(val), []byte(`\ufffd`)) {
		return fault.Newf(fault.Invalid, op, "key %q holds half a surrogate pair; expected whole characters", key)
	}
	return nil
}

// optional reads a string; null and "" are as good as absent.
func optional(key string, val []byte, to *string) error {
	if string(val) == "null" || string(val) == `""` {
		return nil
	}
	return str(key, val, to)
}

// port reads a port, which the console writes as a number and people as a
// string.
func port(val []byte, to *int) error {
	text := string(val)
	if text == "null" {
		return nil
	}
	if val[0] == '"' && json.Unmarshal(val, &text) != nil {
		text = ""
	}
	n, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil || n < 1 || n > 65535 {
		return fault.Newf(fault.Invalid, op, "key \"port\" is not a port; expected a number from 1 to 65535, as number or string")
	}
	*to = n
	return nil
}

func ssl(val []byte) SSL {
	text := string(val)
	if val[0] == '"' {
		if json.Unmarshal(val, &text) != nil {
			return SSLPrefer
		}
		text = strings.ToLower(text)
	}
	switch text {
	case "true":
		return SSLRequire
	case "false":
		return SSLDisable
	}
	return SSLPrefer
}

// Addr returns host and port for messages.
func (s *Secret) Addr() string { return fmt.Sprintf("%s:%d", s.Host, s.Port) }
