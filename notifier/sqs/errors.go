package sqs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/aws/smithy-go"

	"github.com/keyturn/keyturn/fault"
)

// over reports whether the code of an entry of a batch says that its receipt
// handle is of no more use: it expired, or the message is not in flight.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
func over(code string) bool {
	switch strings.TrimPrefix(code, "AWS.SimpleQueueService.") {
	case "ReceiptHandleIsInvalid", "InvalidParameterValue", "MessageNotInflight":
		return true
	}
	return false
}

// kindOf is the one table of the service's codes. A code may come in the
// spelling of the older query protocol, with a prefix.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
func kindOf(code string) (fault.Kind, fault.Class, string) {
	switch strings.TrimPrefix(code, "AWS.SimpleQueueService.") {
	case "QueueDoesNotExist", "NonExistentQueue", "QueueDeletedRecently":
		return fault.NotFound, "", "there is no such queue; check the queue URL and the region, or create the queue"
	case "AccessDenied", "AccessDeniedException", "KmsAccessDenied", "NotAuthorized":
		return fault.Denied, fault.ClassPermission, "allow sqs:ReceiveMessage, sqs:DeleteMessage and sqs:ChangeMessageVisibility on the queue, and kms:Decrypt on its key if it has one"
	case "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch",
		"InvalidSignatureException", "MissingAuthenticationToken", "IncompleteSignature", "InvalidAccessKeyId", "OptInRequired", "RequestExpired", "InvalidSecurity":
		return fault.Denied, fault.ClassAuth, "renew the credentials or the role of this process, and check its clock"
	case "RequestThrottled", "ThrottlingException", "Throttling", "OverLimit", "KmsThrottled":
		return fault.Unavailable, fault.ClassQuota, ""
	case "InvalidParameterValue", "InvalidAddress", "UnsupportedOperation", "ValidationError", "MalformedQueryString", "InvalidParameterCombination",
		"KmsDisabled", "KmsInvalidState", "KmsNotFound", "KmsInvalidKeyUsage":
		return fault.Invalid, "", "check the queue URL, the region and the key of the queue"
	case "InternalFailure", "InternalError", "ServiceUnavailable":
		return fault.Unavailable, fault.ClassNetwork, ""
	}
	return fault.Unknown, "", ""
}

// classify turns a client's error into one of package fault. It keeps nothing
// of the client's own text: an answer that cannot be read may be quoted there.
func (q *queue) classify(ctx context.Context, what string, err error) error {
	e := &fault.Error{Kind: fault.Unavailable, Op: op + ": " + what}
	var api smithy.APIError
	var sent *url.Error
	var status interface{ HTTPStatusCode() int }
	switch {
	case errors.As(err, &api):
		var advice string
		e.Kind, e.Class, advice = kindOf(api.ErrorCode())
		if e.Kind == fault.Unknown && errors.As(err, &status) && status.HTTPStatusCode() >= http.StatusInternalServerError {
			e.Kind = fault.Unavailable
		}
		e.Msg = "the service answered " + clean(api.ErrorCode())
		if advice != "" {
			e.Msg += "; " + advice
		}
	case ctx.Err() != nil:
		e.Class, e.Err = fault.ClassTimeout, ctx.Err()
	case strings.Contains(err.Error(), "get identity:"):
		// The SDK has no type for it: the credentials, not the service, failed.
		e.Kind, e.Class = fault.Denied, fault.ClassAuth
		e.Msg = "no AWS credentials could be had; set AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
	case fault.Untrusted(err):
		e.Kind, e.Class, e.Msg = fault.Denied, fault.ClassTLS, "the endpoint's certificate is not trusted, or it does not speak TLS"
	case errors.Is(err, context.DeadlineExceeded):
		e.Class, e.Msg = fault.ClassTimeout, "no answer in time"
	case errors.As(err, &sent):
		e.Class, e.Err = fault.ClassNetwork, sent.Err
	default:
		e.Class, e.Msg = fault.ClassNetwork, "no usable answer; the error is a "+typeName(err)
	}
	return e
}

// clean cuts a code to what a code may hold.
func clean(code string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' {
			return r
		}
		return -1
	}, code[:min(len(code), 80)])
}

// typeName names the type of an error whose text is not kept.
func typeName(err error) string { return fmt.Sprintf("%T", fault.Root(err)) }
