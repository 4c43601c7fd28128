package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/keyturn/keyturn/fault"
)

// A meaning is what an SQLSTATE says to the caller.
type meaning struct {
	kind  fault.Kind
	class fault.Class
	hint  string
}

// states maps SQLSTATEs, and classes of them by their first two characters.
// The server's own message is shown for these only: it names users, databases
// and hosts, but for other errors it may quote data.
// https://www.postgresql.org/docs/current/errcodes-appendix.html
var states = map[string]meaning{
	"28P01": {fault.Denied, fault.ClassAuth, ""},
	"28000": {fault.Denied, fault.ClassAuth, ""},
	"3D000": {fault.NotFound, "", "correct the key dbname"},
	"42501": {fault.Denied, fault.ClassPermission, ""},
	"0LP01": {fault.Denied, fault.ClassPermission, ""},
	"22023": {fault.Invalid, fault.ClassPolicy, "the server's own rules refuse it"},
	"42704": {fault.NotFound, "", ""},
	"42":    {fault.Invalid, "", ""},
	"42710": {fault.Unavailable, fault.ClassConcurrency, "somebody else made it meanwhile"},
	"25006": {fault.Unavailable, "", "the host is a replica, or the server is read-only"},
	"53":    {fault.Unavailable, fault.ClassQuota, "the server has no room"},
	"55P03": {fault.Unavailable, fault.ClassConcurrency, "another rotation of this user, or a long transaction, holds a lock"},
	"40":    {fault.Unavailable, fault.ClassConcurrency, ""},
	"57014": {fault.Unavailable, fault.ClassTimeout, ""},
	"57P":   {fault.Unavailable, fault.ClassNetwork, "the server is starting or stopping"},
	"08":    {fault.Unavailable, fault.ClassNetwork, ""},
}

// errRefused is the cause of errors that speak about the credential itself.
var errRefused = errors.New("the server refused the credential")

// errFull is the cause of errors about a user whose credential was accepted
// and who has no connection left. The server looks at that limit when it has
// authenticated.
// https://github.com/postgres/postgres/blob/REL_15_STABLE/src/backend/utils/init/miscinit.c InitializeSessionUserId
var errFull = errors.New("the user has no connection left")

// errWeakAuth is why a server that signs everybody in, or wants a password
// in a form that gives it away, is not spoken to.
var errWeakAuth = errors.New("the server asks for no password or, without TLS, for it in a form that others could use; expected scram-sha-256 in pg_hba.conf")

// classify makes an error of package fault of what pgconn returned while
// doing something. It keeps no error of pgconn: their fields hold the
// configuration with its password, and messages may quote data.
func classify(op, doing string, err error) error {
	e := &fault.Error{Op: op, Msg: doing}
	var known *fault.Error
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &known):
		return err
	case errors.As(err, &pg):
		m, ok := lookup(pg.Code)
		e.Kind, e.Class = m.kind, m.class
		if pg.Code == "XX000" && pg.Message == "tuple concurrently updated" {
			e.Kind, e.Class = fault.Unavailable, fault.ClassConcurrency
		}
		// The other reason for 28000 is pg_hba.conf, which says nothing about
		// the password; the function's name tells them apart in any language.
		if pg.Code == "28P01" || pg.Code == "28000" && pg.Routine == "InitializeSessionUserId" {
			e.Err = errRefused
		}
		if pg.Code == "53300" && pg.Routine == "InitializeSessionUserId" {
			e.Err = errFull
		}
		e.Msg += ": "
		if ok {
			e.Msg += pg.Message + " "
		}
		e.Msg += "(SQLSTATE " + pg.Code + ")"
		if pg.Code == "25006" && doing == probe {
			m.kind, m.hint = fault.Invalid, "a probe may only read"
			e.Kind = m.kind
		}
		if m.hint != "" {
			e.Msg += "; " + m.hint
		}
	case pgconn.Timeout(err) || errors.Is(err, context.DeadlineExceeded):
		e.Kind, e.Class, e.Err = fault.Unavailable, fault.ClassTimeout, context.DeadlineExceeded
		e.Msg += ": no answer in time; check security groups, routes and firewalls"
	case errors.Is(err, context.Canceled):
		e.Kind, e.Err = fault.Unavailable, context.Canceled
	case strings.Contains(err.Error(), "require_auth check failed"):
		e.Kind, e.Class, e.Err = fault.Denied, fault.ClassAuth, errWeakAuth
	case refusedTLS(err):
		e.Kind, e.Class = fault.Denied, fault.ClassTLS
		e.Msg += ": the server has no TLS; turn it on, or say ssl false in the secret to do without"
	case tlsCause(err) != nil:
		e.Kind, e.Class, e.Err = fault.Denied, fault.ClassTLS, tlsCause(err)
	case strings.Contains(err.Error(), "failed SASL auth"):
		e.Kind, e.Class = fault.Denied, fault.ClassAuth
		e.Msg += ": the SCRAM exchange failed: the server does not know the password's verifier, or is another server"
	default:
		return network(e, err)
	}
	return e
}

func lookup(code string) (meaning, bool) {
	for n := len(code); n >= 2; n-- {
		if m, ok := states[code[:n]]; ok {
			return m, true
		}
	}
	return meaning{}, false
}

// tlsCause returns the part of err that says what is wrong with TLS, or nil.
func tlsCause(err error) error {
	var (
		verify *tls.CertificateVerificationError
		record tls.RecordHeaderError
		alert  tls.AlertError
		ca     x509.UnknownAuthorityError
		host   x509.HostnameError
		cert   x509.CertificateInvalidError
		roots  x509.SystemRootsError
	)
	switch {
	case errors.As(err, &verify):
		return verify.Err
	case errors.As(err, &ca):
		return ca
	case errors.As(err, &host):
		return host
	case errors.As(err, &cert):
		return cert
	case errors.As(err, &roots):
		return roots
	case errors.As(err, &alert):
		return alert
	case errors.As(err, &record):
		// Its connection field is of no use to anybody.
		return errors.New("tls: the answer is not TLS")
	}
	return nil
}

// network completes e for what happened to the connection itself.
func network(e *fault.Error, err error) error {
	var (
		dns   *net.DNSError
		netop *net.OpError
	)
	switch {
	case errors.As(err, &dns):
		e.Kind, e.Class, e.Err = fault.Unavailable, fault.ClassNetwork, dns
	case errors.As(err, &netop):
		e.Kind, e.Class, e.Err = fault.Unavailable, fault.ClassNetwork, netop
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, pgconn.ErrConnClosed):
		e.Kind, e.Class = fault.Unavailable, fault.ClassNetwork
		e.Msg += ": the connection ended"
	default:
		var pgc *pgconn.ConnectError
		if errors.As(err, &pgc) {
			e.Kind, e.Class = fault.Unavailable, fault.ClassNetwork
			e.Msg += ": the server does not speak PostgreSQL's protocol"
			return e
		}
		// Not pgconn's: what a hook or dialer says.
		e.Err = err
	}
	return e
}
