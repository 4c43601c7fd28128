package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/keyturn/keyturn/fault"
)

var kinds = map[fault.Kind]string{
	fault.Unknown: "unknown", fault.NotFound: "not_found", fault.Conflict: "conflict",
	fault.Denied: "denied", fault.Invalid: "invalid", fault.Unavailable: "unavailable",
}

func TestKindNames(t *testing.T) {
	for k, want := range kinds {
		if got := k.String(); got != want {
			t.Errorf("kind %d is called %q, expected %q", k, got, want)
		}
	}
	if got := fault.Kind(99).String(); got != "kind(99)" {
		t.Errorf("a kind that does not exist is called %q", got)
	}
}

func TestKindOf(t *testing.T) {
	wrap := func(err error) error { return fmt.Errorf("create x: %w", err) }
	for name, c := range map[string]struct {
		err  error
		want fault.Kind
	}{
		"nil":                     {nil, fault.Unknown},
		"foreign":                 {io.EOF, fault.Unknown},
		"plain":                   {fault.New(fault.Denied, "op", io.EOF), fault.Denied},
		"with a message":          {fault.Newf(fault.Invalid, "op", "x"), fault.Invalid},
		"wrapped":                 {wrap(wrap(fault.New(fault.NotFound, "op", nil))), fault.NotFound},
		"joined":                  {errors.Join(io.EOF, fault.New(fault.Conflict, "op", nil)), fault.Conflict},
		"the outermost counts":    {fault.New(fault.Unavailable, "a", wrap(fault.New(fault.Invalid, "b", nil))), fault.Unavailable},
		"deadline":                {wrap(context.DeadlineExceeded), fault.Unavailable},
		"cancelled":               {wrap(context.Canceled), fault.Unavailable},
		"unclassified deadline":   {fault.New(fault.Unknown, "op", context.DeadlineExceeded), fault.Unavailable},
		"classified cancellation": {fault.New(fault.Denied, "op", context.Canceled), fault.Denied},
		"unclassified":            {fault.New(fault.Unknown, "op", io.EOF), fault.Unknown},
	} {
		t.Run(name, func(t *testing.T) {
			if got := fault.KindOf(c.err); got != c.want {
				t.Errorf("kind of %v is %s, expected %s", c.err, got, c.want)
			}
			for k := range kinds {
				if got, want := fault.Is(c.err, k), c.err != nil && k == c.want; got != want {
					t.Errorf("Is(%v, %s) is %t, expected %t", c.err, k, got, want)
				}
			}
			if got, want := fault.Retryable(c.err), c.err != nil && c.want != fault.Invalid; got != want {
				t.Errorf("Retryable(%v) is %t, expected %t", c.err, got, want)
			}
		})
	}
}

func TestClassOf(t *testing.T) {
	tls := &fault.Error{Kind: fault.Denied, Class: fault.ClassTLS, Op: "connect"}
	for name, c := range map[string]struct {
		err  error
		want fault.Class
	}{
		"nil":                    {nil, ""},
		"foreign":                {io.EOF, ""},
		"none":                   {fault.New(fault.Denied, "op", nil), ""},
		"own":                    {tls, fault.ClassTLS},
		"wrapped":                {fmt.Errorf("set: %w", tls), fault.ClassTLS},
		"of the cause":           {fault.New(fault.Unavailable, "op", fmt.Errorf("x: %w", tls)), fault.ClassTLS},
		"the outermost counts":   {&fault.Error{Kind: fault.Denied, Class: fault.ClassAuth, Err: tls}, fault.ClassAuth},
		"deadline":               {fmt.Errorf("x: %w", context.DeadlineExceeded), fault.ClassTimeout},
		"deadline as the cause":  {fault.New(fault.Unavailable, "op", context.DeadlineExceeded), fault.ClassTimeout},
		"cancelled is no class":  {context.Canceled, ""},
		"joined with the others": {errors.Join(io.EOF, tls), fault.ClassTLS},
	} {
		if got := fault.ClassOf(c.err); got != c.want {
			t.Errorf("%s: class of %v is %q, expected %q", name, c.err, got, c.want)
		}
	}
}

func TestErrorText(t *testing.T) {
	for want, err := range map[string]error{
		"op: denied":     fault.New(fault.Denied, "op", nil),
		"op: EOF":        fault.New(fault.Denied, "op", io.EOF),
		"op: no 1":       fault.Newf(fault.Invalid, "op", "no %d", 1),
		"op: msg: EOF":   &fault.Error{Kind: fault.Denied, Op: "op", Msg: "msg", Err: io.EOF},
		"EOF":            &fault.Error{Kind: fault.Denied, Err: io.EOF},
		"msg":            &fault.Error{Msg: "msg"},
		"unknown":        &fault.Error{},
		"a: b: conflict": fault.New(fault.Unavailable, "a", fault.New(fault.Conflict, "b", nil)),
	} {
		if got := err.Error(); got != want {
			t.Errorf("the text is %q, expected %q", got, want)
		}
	}
}

// TestCauses: what was wrapped is still found, so a caller may ask for it.
func TestCauses(t *testing.T) {
	inner := fault.New(fault.Denied, "inner", io.ErrUnexpectedEOF)
	err := fmt.Errorf("x: %w", fault.New(fault.Unavailable, "outer", inner))
	if !errors.Is(err, io.ErrUnexpectedEOF) || !errors.Is(err, inner) {
		t.Error("a cause is lost")
	}
	var e *fault.Error
	if !errors.As(err, &e) || e.Op != "outer" {
		t.Errorf("found %v, expected the outer error", e)
	}
	if errors.Unwrap(fault.New(fault.Denied, "op", nil)) != nil {
		t.Error("no cause unwraps to something")
	}
}
