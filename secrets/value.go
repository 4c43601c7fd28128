package secrets

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime"
)

// redacted is what every formatter and logger gets instead of a value.
const redacted = "[redacted]"

// errEncode is what every encoder gets. A value that silently became
// "[redacted]" in a file would be a lost credential.
var errEncode = errors.New("secrets: a Value cannot be encoded; call Reveal where its bytes are really meant to leave the process")

// A Value holds the bytes of one secret so that no formatter, logger or
// encoder can print them: not with any fmt verb, not inside another struct,
// exported field or not, not through slog, encoding/json, encoding/xml or
// encoding/gob.
//
// The bytes live in a closure, because fmt reads unexported fields by
// reflection without calling their methods, and a func is the one kind that
// it shows as an address. For the same reason Values cannot be compared with
// ==; use [Value.Equal].
//
// The zero Value holds nothing. A Value may be copied; all copies share one
// buffer, so [Value.Wipe] empties them all. Reading is safe for concurrent
// use; Wipe is not safe beside a reader.
type Value struct {
	open func() *buffer
}

type buffer struct{ b []byte }

// NewValue returns a Value that holds a copy of b. The caller may wipe b.
func NewValue(b []byte) Value {
	buf := &buffer{b: append(make([]byte, 0, len(b)), b...)}
	return Value{open: func() *buffer { return buf }}
}

// NewString returns a Value that holds s. The string itself cannot be wiped.
func NewString(s string) Value { return NewValue([]byte(s)) }

func (v Value) bytes() []byte {
	if v.open == nil {
		return nil
	}
	return v.open().b
}

// Reveal returns a copy of the bytes. It is the one way out: searching for
// its callers finds every place where a value leaves the type.
func (v Value) Reveal() []byte { return append([]byte(nil), v.bytes()...) }

// Len returns the number of bytes.
func (v Value) Len() int { return len(v.bytes()) }

// IsZero reports whether v holds nothing: never set, empty or wiped.
func (v Value) IsZero() bool { return len(v.bytes()) == 0 }

// Equal compares in time that depends on the lengths only.
func (v Value) Equal(w Value) bool {
	return subtle.ConstantTimeCompare(v.bytes(), w.bytes()) == 1
}

// Wipe overwrites the bytes with zeros and empties v and every copy of it.
// Strings made from a revealed copy are the caller's affair.
func (v Value) Wipe() {
	if v.open == nil {
		return
	}
	buf := v.open()
	clear(buf.b)
	runtime.KeepAlive(buf)
	buf.b = nil
}

// String returns a placeholder.
func (Value) String() string { return redacted }

// GoString returns a placeholder.
func (Value) GoString() string { return redacted }

// Format prints a placeholder, whatever the verb.
func (Value) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// LogValue gives slog a placeholder.
func (Value) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON always fails.
func (Value) MarshalJSON() ([]byte, error) { return nil, errEncode }

// MarshalText always fails.
func (Value) MarshalText() ([]byte, error) { return nil, errEncode }

// MarshalBinary always fails.
func (Value) MarshalBinary() ([]byte, error) { return nil, errEncode }

// GobEncode always fails.
func (Value) GobEncode() ([]byte, error) { return nil, errEncode }
