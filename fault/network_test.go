package fault_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"testing"

	"github.com/keyturn/keyturn/fault"
)

func TestUntrusted(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"nil":                    {nil, false},
		"another":                {io.EOF, false},
		"unknown authority":      {fmt.Errorf("get: %w", x509.UnknownAuthorityError{}), true},
		"another host":           {x509.HostnameError{Certificate: &x509.Certificate{}, Host: "x"}, true},
		"expired":                {x509.CertificateInvalidError{Reason: x509.Expired}, true},
		"verification":           {&tls.CertificateVerificationError{Err: io.EOF}, true},
		"the answer is not TLS":  {tls.RecordHeaderError{Msg: "x"}, true},
		"an alert of the server": {tls.AlertError(42), false},
	} {
		if got := fault.Untrusted(c.err); got != c.want {
			t.Errorf("%s: %t, expected %t", name, got, c.want)
		}
	}
}

func TestRoot(t *testing.T) {
	if got := fault.Root(fmt.Errorf("a: %w", fault.New(fault.Denied, "b", io.EOF))); got != io.EOF { //nolint:errorlint // it is io.EOF itself
		t.Errorf("%v, expected EOF", got)
	}
}
