package awssm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/aws/smithy-go"

	"github.com/keyturn/keyturn/fault"
)

// Codes that methods tell apart. The first comes from UpdateSecretVersionStage
// when the version that a label is to leave does not hold it.
const (
	codeParameter = "InvalidParameterException"
	codeExists    = "ResourceExistsException"
)

// kindOf is the one table of the service's codes.
// https://docs.aws.amazon.com/secretsmanager/latest/apireference/CommonErrors.html
func kindOf(code string) (fault.Kind, fault.Class) {
	switch code {
	case "ResourceNotFoundException":
		return fault.NotFound, ""
	case codeExists:
		return fault.Conflict, fault.ClassConcurrency
	case "InvalidRequestException", "PreconditionNotMetException":
		// The secret's state does not allow the call: marked for deletion, or
		// a label that has moved on.
		return fault.Conflict, ""
	case codeParameter, "ValidationException", "ValidationError", "SerializationException", "MalformedPolicyDocumentException",
		"InvalidParameterValue", "InvalidParameterCombination", "UnknownOperationException", "InvalidAction", "RequestEntityTooLargeException":
		return fault.Invalid, ""
	case "AccessDeniedException", "AccessDenied", "UnauthorizedOperation", "NotAuthorized", "OptInRequired", "PublicPolicyException",
		"DecryptionFailure", "EncryptionFailure": // the key's policy, or the key is disabled
		return fault.Denied, fault.ClassPermission
	case "UnrecognizedClientException", "InvalidClientTokenId", "InvalidAccessKeyId", "ExpiredTokenException", "ExpiredToken", "RequestExpired",
		"InvalidSignatureException", "SignatureDoesNotMatch", "IncompleteSignature", "IncompleteSignatureException",
		"MissingAuthenticationToken", "MissingAuthenticationTokenException", "RequestTimeTooSkewed":
		return fault.Denied, fault.ClassAuth
	case "ThrottlingException", "Throttling", "ThrottledException", "RequestThrottled", "TooManyRequestsException", "RequestLimitExceeded",
		"LimitExceededException", "SlowDown":
		return fault.Unavailable, fault.ClassQuota
	case "InternalServiceError", "InternalFailure", "InternalServerError", "ServiceUnavailable", "ServiceUnavailableException", "RequestTimeout", "RequestTimeoutException":
		return fault.Unavailable, ""
	}
	return fault.Unknown, ""
}

func advice(code string, kind fault.Kind, class fault.Class) string {
	switch {
	case code == "DecryptionFailure" || code == "EncryptionFailure":
		return "; allow kms:Decrypt and kms:GenerateDataKey on the secret's key, and see that it is enabled"
	case class == fault.ClassPermission:
		return "; allow the action for the secret, in the caller's policy and, from another account, in the secret's own"
	case class == fault.ClassAuth:
		return "; the AWS credentials are wrong or have expired, or the clock is off"
	case code == "LimitExceededException":
		return "; the secret has too many versions or labels, or the account too many secrets"
	case code == "InvalidRequestException":
		return "; the secret may be marked for deletion: restore it first"
	case kind == fault.NotFound:
		return "; check the name, account and region; a secret of another account is found by its full ARN only"
	}
	return ""
}

// classify turns a client's error into one of package fault. It keeps nothing
// of the client's own: a deserialization error holds the answer that could not
// be read, and the service's texts may repeat what was sent. Only a refusal's
// text is kept, which is made from names and says which policy is missing.
func classify(ctx context.Context, op, what string, err error) error {
	e := &fault.Error{Kind: fault.Unknown, Op: op, Msg: what}
	var api smithy.APIError
	var status interface{ HTTPStatusCode() int }
	code := 0
	if errors.As(err, &status) {
		code = status.HTTPStatusCode()
	}
	var request interface{ ServiceRequestID() string }
	if errors.As(err, &request) && request.ServiceRequestID() != "" {
		e.Msg += " (request " + request.ServiceRequestID() + ")"
	}
	var network net.Error
	var sent *url.Error
	isSent := errors.As(err, &sent)
	switch {
	case strings.Contains(err.Error(), "get identity:"):
		// The SDK has no type for it: the credentials, not the service, failed.
		e.Kind, e.Class = fault.Denied, fault.ClassAuth
		if errors.As(err, &network) || ctx.Err() != nil {
			e.Kind, e.Class = fault.Unavailable, fault.ClassNetwork
		}
		e.Msg += ": no AWS credentials could be had; set AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
		e.Err = ctx.Err()
	case errors.As(err, &api):
		e.Kind, e.Class = kindOf(api.ErrorCode())
		if e.Kind == fault.Unknown && code >= http.StatusInternalServerError {
			e.Kind = fault.Unavailable
		}
		text := api.ErrorCode()
		if text == "AccessDeniedException" || text == "AccessDenied" {
			text += ": " + api.ErrorMessage()
		}
		e.Err = &answer{api.ErrorCode(), text + advice(api.ErrorCode(), e.Kind, e.Class)}
	case ctx.Err() != nil:
		e.Kind, e.Class, e.Err = fault.Unavailable, fault.ClassTimeout, ctx.Err()
	case fault.Untrusted(err):
		e.Kind, e.Class, e.Msg = fault.Denied, fault.ClassTLS, e.Msg+": the endpoint's certificate is not trusted, or it does not speak TLS"
		if isSent {
			e.Err = sent.Err
		}
	case isSent:
		e.Kind, e.Class, e.Err = fault.Unavailable, fault.ClassNetwork, sent.Err
		if sent.Timeout() {
			e.Class = fault.ClassTimeout
		}
	case errors.As(err, &network):
		e.Kind, e.Class = fault.Unavailable, fault.ClassNetwork
		e.Msg += ": the connection to Secrets Manager failed"
	case code != 0:
		e.Kind = fault.Unavailable
		e.Msg += fmt.Sprintf(": the answer (HTTP status %d) could not be read; is the endpoint Secrets Manager?", code)
	default:
		e.Msg += fmt.Sprintf(": the AWS client failed (%T)", fault.Root(err))
	}
	return e
}

// An answer is an error of the service: its code, and what we say of it.
type answer struct{ code, text string }

func (a *answer) Error() string { return a.text }

// isCode reports whether err, made by classify, comes from the code.
func isCode(err error, code string) bool {
	var a *answer
	return errors.As(err, &a) && a.code == code
}
