package azurekv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"

	"github.com/keyturn/keyturn/fault"
)

// Codes that methods tell apart. All but the first are inner codes: the outer
// one is Forbidden or Conflict.
const (
	codeNotFound       = "SecretNotFound"
	codeDisabled       = "SecretDisabled"
	codeDeleted        = "ObjectIsDeletedButRecoverable"
	codeBeingDeleted   = "ObjectIsBeingDeleted"
	codeBeingRecovered = "ObjectIsBeingRecovered"
)

// kindOf is the one table of the service's codes, the inner code first where
// there is one. A 404 of another code does not come from a vault that answers
// about a secret, and must not pass for "there is none".
// https://learn.microsoft.com/azure/key-vault/general/rest-error-codes
func kindOf(code string, status int) (fault.Kind, fault.Class) {
	switch code {
	case codeNotFound:
		return fault.NotFound, ""
	case codeDeleted, codeBeingDeleted, codeBeingRecovered:
		return fault.Conflict, ""
	case codeDisabled, "ForbiddenByPolicy", "ForbiddenByRbac", "ForbiddenByFirewall", "ForbiddenByConnection", "AccessDenied":
		return fault.Denied, fault.ClassPermission
	}
	switch status {
	case http.StatusUnauthorized:
		return fault.Denied, fault.ClassAuth
	case http.StatusForbidden:
		return fault.Denied, fault.ClassPermission
	case http.StatusConflict:
		return fault.Conflict, fault.ClassConcurrency
	case http.StatusTooManyRequests:
		return fault.Unavailable, fault.ClassQuota
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return fault.Unavailable, fault.ClassTimeout
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusMethodNotAllowed:
		return fault.Invalid, ""
	}
	return fault.Unavailable, ""
}

// advice says what to do about a code.
func advice(code string, status int) string {
	switch {
	case code == codeNotFound:
		return "check the name; if the secret was deleted, recover it"
	case code == codeDisabled:
		return "the newest version is what every plain reader asks for, and it is disabled; enable it, or rotate"
	case code == codeDeleted:
		return "the secret was deleted and keeps its name until it is purged; recover it, or purge it"
	case code == codeBeingDeleted || code == codeBeingRecovered:
		return "wait a moment and try again"
	case code == "ForbiddenByFirewall" || code == "ForbiddenByConnection":
		return "the vault's network rules refuse this client; allow its address, or use a private endpoint"
	case status == http.StatusForbidden:
		return "allow the action to the caller, by a role such as Key Vault Secrets Officer or by an access policy; a new role takes minutes to work"
	case status == http.StatusUnauthorized:
		return "the vault does not take this credential's tokens; check the tenant"
	case status == http.StatusTooManyRequests:
		return "too many requests were made to the vault; try again later"
	case status == http.StatusNotFound:
		return "is the endpoint Key Vault?"
	}
	return ""
}

// classify turns a client's error into one of package fault. It keeps nothing
// of the client's own: its text quotes the whole answer. Only a refusal's text
// is kept, which is made from names and says which action is missing.
func classify(ctx context.Context, op, what string, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Op: op, Msg: what}
	var api *azcore.ResponseError
	var token *tokenError
	var refused *refusal
	var dns *net.DNSError
	var network net.Error
	switch {
	case errors.As(err, &token):
		e.Kind, e.Class = fault.Denied, fault.ClassAuth
		if errors.As(err, &network) || ctx.Err() != nil {
			e.Kind, e.Class = fault.Unavailable, fault.ClassNetwork
		}
		e.Msg += fmt.Sprintf(": the Azure credential gave no token (%T); sign in, give this machine an identity, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and its secret or certificate", fault.Root(token.err))
		e.Err = ctx.Err()
	case errors.As(err, &api):
		a := explain(api)
		e.Kind, e.Class = kindOf(a.code, api.StatusCode)
		e.Err = a
	case ctx.Err() != nil:
		e.Class, e.Err = fault.ClassTimeout, ctx.Err()
	case errors.As(err, &refused):
		e.Msg += ": " + refused.why + "; is the endpoint Key Vault?"
	case fault.Untrusted(err):
		e.Kind, e.Class = fault.Denied, fault.ClassTLS
		e.Msg += ": the vault's certificate is not trusted, or it does not speak TLS; is there a proxy in between?"
	case errors.As(err, &dns) && dns.IsNotFound:
		// Not NotFound: a name server that does not answer for a private
		// endpoint says the same, and there may well be a pending version.
		e.Class = fault.ClassNetwork
		e.Msg += ": there is no host " + dns.Name + "; check the vault's name and cloud, whether it was deleted, and the DNS zone of its private endpoint"
	case errors.As(err, &network):
		e.Class = fault.ClassNetwork
		if network.Timeout() {
			e.Class = fault.ClassTimeout
		}
		e.Msg += ": the connection to the vault failed"
	case strings.Contains(err.Error(), "challenge resource"):
		// The client has no type for it.
		e.Kind, e.Class = fault.Denied, fault.ClassAuth
		e.Msg += ": the host asks for tokens of another service than Key Vault; is the vault's URL right?"
	default:
		e.Class = fault.ClassNetwork
		e.Msg += fmt.Sprintf(": the call failed, or its answer could not be read (%T)", fault.Root(err))
	}
	return e
}

// An answer is an error of the service: its innermost code, and what we say.
type answer struct{ code, text string }

func (a *answer) Error() string { return a.text }

// explain reads the code, and the inner code that tells apart what the outer
// one throws together.
func explain(api *azcore.ResponseError) *answer {
	var body struct {
		Error struct {
			Code, Message string
			InnerError    struct{ Code string }
		}
	}
	if api.RawResponse != nil {
		if b, err := runtime.Payload(api.RawResponse); err == nil {
			_ = json.Unmarshal(b, &body) // what is no JSON has no codes
		}
	}
	code := body.Error.InnerError.Code
	if code == "" {
		code = body.Error.Code
	}
	if code = word(code); code == "" {
		code = fmt.Sprintf("HTTP status %d", api.StatusCode)
	}
	text := code
	if api.StatusCode == http.StatusForbidden && code != codeDisabled {
		if m := strings.Join(strings.Fields(body.Error.Message), " "); m != "" {
			text += ": " + m[:min(len(m), 600)]
		}
	}
	if api.RawResponse != nil {
		if id := word(api.RawResponse.Header.Get("X-Ms-Request-Id")); id != "" {
			text += " (request " + id + ")"
		}
	}
	if s := advice(code, api.StatusCode); s != "" {
		text += "; " + s
	}
	return &answer{code, text}
}

// word returns s if it looks like a code or an id: a proxy may answer
// anything.
func word(s string) string {
	if len(s) > 64 || strings.ContainsFunc(s, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && r != '-'
	}) {
		return ""
	}
	return s
}

// isCode reports whether err, made by classify, comes from the code.
func isCode(err error, code string) bool {
	var a *answer
	return errors.As(err, &a) && a.code == code
}
