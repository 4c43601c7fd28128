package vaultkv

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hashicorp/vault/api"

	"github.com/keyturn/keyturn/fault"
)

// A meaning is what a status of Vault's means here. Where text is set it must
// be in one of the errors that came with the status.
type meaning struct {
	status int
	text   string
	kind   fault.Kind
	class  fault.Class
	hint   string
}

// meanings is the table of statuses, the first match counts. Vault has no
// codes beside them, so some are told apart by the text.
// https://developer.hashicorp.com/vault/api-docs#http-status-codes
var meanings = []meaning{
	{http.StatusBadRequest, "check-and-set parameter did not match", fault.Conflict, fault.ClassConcurrency, "another writer was faster; read the secret again"},
	{http.StatusBadRequest, "custom_metadata validation failed", fault.Invalid, "", "the custom metadata of the secret was refused; expected at most 64 keys, of 128 bytes, with values of 512 bytes"},
	{http.StatusBadRequest, "wrapping token is not valid or does not exist", fault.Denied, fault.ClassAuth, "the wrapping token is expired, or was unwrapped already: if not by you, somebody else has what it held"},
	{http.StatusBadRequest, "invalid role or secret ID", fault.Denied, fault.ClassAuth, "the role id or the secret id was refused: the secret id may be used up or expired; issue a new one"},
	{http.StatusBadRequest, "invalid secret_id", fault.Denied, fault.ClassAuth, "the secret id is used up; issue a new one"},
	{http.StatusBadRequest, "", fault.Invalid, "", "Vault refused the request"},
	{http.StatusForbidden, "invalid token", fault.Denied, fault.ClassAuth, "the token is unknown, expired or revoked; sign in again"},
	{http.StatusForbidden, "bad token", fault.Denied, fault.ClassAuth, "the token is unknown, expired or revoked; sign in again"},
	{http.StatusForbidden, "", fault.Denied, fault.ClassPermission, "the token's policies do not allow it, the token is expired, or nothing is mounted there; Policy renders what is needed"},
	// Not NotFound: that would say that a secret is missing, and invite to
	// create it.
	{http.StatusNotFound, "no handler for route", fault.Invalid, "", "nothing is mounted there; correct the ref's mount or namespace"},
	{http.StatusNotFound, "unsupported path", fault.Invalid, "", "the mount is no key-value engine of version 2; run vault kv enable-versioning on it, or correct the ref's mount"},
	{http.StatusNotFound, "", fault.NotFound, "", "there is no such secret"},
	{http.StatusMethodNotAllowed, "", fault.Invalid, "", "the mount is no key-value engine of version 2; run vault kv enable-versioning on it, or correct the ref's mount"},
	{http.StatusPreconditionFailed, "", fault.Unavailable, fault.ClassConcurrency, "the standby that answered lags behind; try again"},
	{http.StatusRequestEntityTooLarge, "", fault.Invalid, fault.ClassQuota, "the request is longer than the listener's max_request_size"},
	{http.StatusTooManyRequests, "", fault.Unavailable, fault.ClassQuota, "a rate limit quota of Vault's was reached; try again later"},
	{472, "", fault.Unavailable, "", "the server is a disaster recovery secondary; correct the address"},
	{473, "", fault.Unavailable, "", "the server is a performance standby that does not forward; correct the address"},
	{http.StatusInternalServerError, "exceeds allowed", fault.Invalid, fault.ClassQuota, "the value is deeper or longer than the listener's limits on JSON allow; raise max_json_depth and those beside it"},
	{http.StatusNotImplemented, "", fault.Unavailable, "", "Vault is not initialized; run vault operator init"},
	{http.StatusServiceUnavailable, "sealed", fault.Unavailable, "", "Vault is sealed; unseal it"},
	{http.StatusServiceUnavailable, "", fault.Unavailable, "", "Vault is in maintenance, or overloaded; try again"},
}

// classify makes an error of package fault of one of the client's. The text
// of an answer is dropped, since Vault quotes what it refuses, secret ids
// among it.
func classify(op string, err error) error {
	if err == nil {
		return nil
	}
	var re *api.ResponseError
	if !errors.As(err, &re) {
		return network(op, err)
	}
	if re.StatusCode == http.StatusNotFound && !nothing(re) && !noRoute(re) {
		return fault.Newf(fault.Unavailable, op, "a 404 that is not Vault's, so nobody knows what is there; look at the address, and for a proxy in between")
	}
	for _, m := range meanings {
		if m.status == re.StatusCode && says(re, m.text) {
			return &fault.Error{Kind: m.kind, Class: m.class, Op: op, Msg: fmt.Sprintf("%s (status %d)", m.hint, re.StatusCode)}
		}
	}
	if re.StatusCode >= 500 {
		return fault.Newf(fault.Unavailable, op, "Vault failed; its log says why (status %d)", re.StatusCode)
	}
	return fault.Newf(fault.Unknown, op, "an answer that Vault does not give (status %d); look for a proxy in between", re.StatusCode)
}

// network classifies what kept an answer from arriving. Such errors name the
// URL, which holds no value.
func network(op string, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: op, Err: err}
	switch {
	case errors.Is(err, errLong):
		e.Kind, e.Class = fault.Invalid, fault.ClassQuota
	case errors.Is(err, context.Canceled):
		e.Class = ""
	case errors.Is(err, context.DeadlineExceeded):
		e.Class = fault.ClassTimeout
	case fault.Untrusted(err):
		e.Kind, e.Class, e.Msg = fault.Denied, fault.ClassTLS, "the server's certificate was not accepted; set the cluster's CA (VAULT_CACERT)"
	}
	return e
}

// says reports whether text is in one of the answer's errors.
func says(re *api.ResponseError, text string) bool {
	for _, s := range re.Errors {
		if strings.Contains(s, text) {
			return true
		}
	}
	return text == ""
}

// nothing reports whether Vault says that nothing is there: a list of errors
// without one. A proxy that has lost its Vault says 404 too, and must not be
// taken for that: a live version would be given up, or an orphan removed that
// is none.
// https://developer.hashicorp.com/vault/api-docs#error-response
func nothing(re *api.ResponseError) bool {
	return re.StatusCode == http.StatusNotFound && !re.RawError && re.Errors != nil && len(re.Errors) == 0
}

// noRoute tells a path that Vault does not have from a secret that is not
// there.
func noRoute(re *api.ResponseError) bool {
	return !re.RawError && (says(re, "no handler for route") || says(re, "unsupported path"))
}
