package fault

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
)

// Untrusted reports whether err says that a server's certificate was not
// accepted, or that what answered does not speak TLS.
func Untrusted(err error) bool {
	var verification *tls.CertificateVerificationError
	var authority x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var record tls.RecordHeaderError
	return errors.As(err, &verification) || errors.As(err, &authority) || errors.As(err, &hostname) ||
		errors.As(err, &invalid) || errors.As(err, &record)
}

// Root is the innermost of a chain of errors. Its type may be told where its
// text could hold a value.
func Root(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
