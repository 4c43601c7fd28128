package gridpull

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"

	"github.com/keyturn/keyturn/fault"
)

// over reports whether the code of a lock token says that its lock is over.
func over(code string) bool {
	switch code {
	case "TokenLost", "BadToken", "InvalidToken", "LockTokenExpired":
		return true
	}
	return false
}

// A tokenError says that the credential, not the service, failed.
type tokenError struct{ err error }

func (e *tokenError) Error() string { return "no token" }
func (e *tokenError) Unwrap() error { return e.err }

// NonRetriable tells the SDK not to try the request again.
func (e *tokenError) NonRetriable() {}

type credential struct{ azcore.TokenCredential }

func (c credential) GetToken(ctx context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	t, err := c.TokenCredential.GetToken(ctx, o)
	if err != nil {
		return t, &tokenError{err}
	}
	return t, nil
}

// kindOf is the one table of the service's statuses.
func kindOf(status int) (fault.Kind, fault.Class, string) {
	switch status {
	case http.StatusUnauthorized:
		return fault.Denied, fault.ClassAuth, "the namespace does not take this credential's tokens; check the tenant"
	case http.StatusForbidden:
		return fault.Denied, fault.ClassPermission, "give the caller the role EventGrid Data Receiver on the topic; a new role takes minutes to work"
	case http.StatusNotFound:
		return fault.NotFound, "", "there is no such topic or subscription, or it is not of queue kind; check the endpoint and the names"
	case http.StatusTooManyRequests:
		return fault.Unavailable, fault.ClassQuota, ""
	case http.StatusRequestTimeout, http.StatusGatewayTimeout:
		return fault.Unavailable, fault.ClassTimeout, ""
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusRequestEntityTooLarge:
		return fault.Invalid, "", "is the endpoint an Event Grid namespace?"
	}
	return fault.Unavailable, fault.ClassNetwork, ""
}

// classify turns a client's error into one of package fault. It keeps nothing
// of the client's own: its text quotes the whole answer.
func classify(ctx context.Context, what string, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: op + ": " + what}
	var api *azcore.ResponseError
	var token *tokenError
	var network net.Error
	var dial *net.OpError
	switch {
	case errors.As(err, &token):
		e.Msg = fmt.Sprintf("the Azure credential gave no token (%T)", fault.Root(token.err))
		if !errors.As(err, &network) && ctx.Err() == nil {
			e.Kind, e.Class = fault.Denied, fault.ClassAuth
			e.Msg += "; give this machine an identity, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and its secret or certificate"
		}
	case errors.As(err, &api):
		var advice string
		e.Kind, e.Class, advice = kindOf(api.StatusCode)
		e.Msg = fmt.Sprintf("the service answered %d %s", api.StatusCode, clean(api.ErrorCode))
		if advice != "" {
			e.Msg += "; " + advice
		}
	case ctx.Err() != nil:
		e.Class, e.Err = fault.ClassTimeout, ctx.Err()
	case fault.Untrusted(err):
		e.Kind, e.Class, e.Msg = fault.Denied, fault.ClassTLS, "the endpoint's certificate is not trusted, or it does not speak TLS"
	case errors.Is(err, context.DeadlineExceeded):
		e.Class, e.Msg = fault.ClassTimeout, "no answer in time"
	case errors.As(err, &dial):
		e.Err = dial
	default:
		e.Msg = fmt.Sprintf("no usable answer; the error is a %T", fault.Root(err))
	}
	return e
}

// clean cuts a code to what a code may hold.
func clean(code string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, code[:min(len(code), 80)])
}
