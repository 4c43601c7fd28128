// Package fault names what went wrong by what the caller does next.
//
// A leaf that talks to a provider maps the provider's codes to a [Kind] in
// one table; nothing above the leaf reads a provider's errors. An error made
// here may be shown, logged and stored: it must never hold a secret value, so
// a cause whose text could quote one (a parser's, a DSN's) is dropped, not
// wrapped.
package fault

import (
	"context"
	"errors"
	"fmt"
)

// A Kind says what the caller of a failed operation does next. The zero value
// means that nobody classified the error; it is retried, but not for ever.
type Kind uint8

// The kinds, each with what its reader does about it.
const (
	Unknown     Kind = iota // not classified: retry, bounded
	NotFound                // nothing there: create it, or correct the name
	Conflict                // somebody was faster: read again, then decide
	Denied                  // credentials or permissions are wrong: a human acts
	Invalid                 // the input can never work: do not retry
	Unavailable             // the other side is away or busy: back off, retry
)

// String returns the kind's lower-case name, which is also its metric label.
func (k Kind) String() string {
	switch k {
	case NotFound:
		return "not_found"
	case Conflict:
		return "conflict"
	case Denied:
		return "denied"
	case Invalid:
		return "invalid"
	case Unavailable:
		return "unavailable"
	case Unknown:
		return "unknown"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// A Class narrows an [Error] for people and metrics: two errors of one kind
// that need different repairs (a refused password and an untrusted
// certificate are both Denied). It is a bounded set, and empty when nothing
// finer than the kind is known.
type Class string

// The classes.
const (
	ClassAuth        Class = "auth"        // the credential was refused
	ClassPermission  Class = "permission"  // signed in, but not allowed
	ClassNetwork     Class = "network"     // no connection: DNS, refused, reset
	ClassTLS         Class = "tls"         // certificate or protocol trouble
	ClassTimeout     Class = "timeout"     // the deadline came first
	ClassPolicy      Class = "policy"      // the target's own rules refuse the value
	ClassQuota       Class = "quota"       // too many connections, requests or keys
	ClassConcurrency Class = "concurrency" // another writer was at work
)

// An Error carries a kind, an optional class, the operation that failed, and
// what was expected, found and to be done.
type Error struct {
	Kind  Kind
	Class Class
	Op    string // "postgres: set", "awssm: promote"
	Msg   string // for people; no secret value
	Err   error  // the cause; nil where its text could hold a value
}

// Error joins what is known, in the order operation, message, cause.
func (e *Error) Error() string {
	s := e.Op
	if e.Msg != "" {
		s = join(s, e.Msg)
	}
	if e.Err != nil {
		s = join(s, e.Err.Error())
	}
	if e.Msg == "" && e.Err == nil {
		s = join(s, e.Kind.String())
	}
	return s
}

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + ": " + b
}

// Unwrap gives the cause to errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of kind k. err may be nil, and must be nil when its
// text could hold a secret value.
func New(k Kind, op string, err error) error {
	return &Error{Kind: k, Op: op, Err: err}
}

// Newf returns an error of kind k with a message and no cause. The arguments
// must not hold a secret value.
func Newf(k Kind, op, format string, args ...any) error {
	return &Error{Kind: k, Op: op, Msg: fmt.Sprintf(format, args...)}
}

// KindOf returns the kind of the outermost [*Error] in err's chain. A context
// that ended is Unavailable: the work may succeed another time. A nil error
// and an unclassified one are Unknown.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) && e.Kind != Unknown {
		return e.Kind
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return Unavailable
	}
	return Unknown
}

// ClassOf returns the class of the outermost classified [*Error] in err's
// chain, ClassTimeout for a context deadline, or "".
func ClassOf(err error) Class {
	for cur := err; cur != nil; {
		var e *Error
		if !errors.As(cur, &e) {
			break
		}
		if e.Class != "" {
			return e.Class
		}
		cur = e.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return ClassTimeout
	}
	return ""
}

// Is reports whether err is of kind k.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// Retryable reports whether the same call may succeed later without anybody
// changing the input: false only for nil and Invalid.
func Retryable(err error) bool { return err != nil && KindOf(err) != Invalid }
