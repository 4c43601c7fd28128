package gcpsm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/googleapis/gax-go/v2/apierror"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyturn/keyturn/fault"
)

// A meaning is what an error of the service means here.
type meaning struct {
	kind  fault.Kind
	class fault.Class
	hint  string
}

// meanings is the table of gRPC's codes as the service uses them.
// https://cloud.google.com/apis/design/errors#handling_errors
var meanings = map[codes.Code]meaning{
	codes.NotFound:      {fault.NotFound, "", "create it, or correct the project, the location and the name"},
	codes.AlreadyExists: {fault.Conflict, fault.ClassConcurrency, ""},
	codes.Aborted:       {fault.Conflict, fault.ClassConcurrency, "somebody else wrote meanwhile"},
	// A stale etag, or a state that does not allow the call.
	// https://cloud.google.com/secret-manager/docs/etags
	codes.FailedPrecondition: {fault.Conflict, fault.ClassConcurrency, "it was changed meanwhile, or its state does not allow this"},
	codes.PermissionDenied:   {fault.Denied, fault.ClassPermission, "grant the permission on the secret, or correct its name: the service does not tell one from the other"},
	codes.Unauthenticated:    {fault.Denied, fault.ClassAuth, "the Google credentials are missing, wrong or expired"},
	codes.InvalidArgument:    {fault.Invalid, "", ""},
	codes.OutOfRange:         {fault.Invalid, "", ""},
	codes.Unimplemented:      {fault.Invalid, "", "the endpoint is not Secret Manager"},
	codes.ResourceExhausted:  {fault.Unavailable, fault.ClassQuota, "slow down, or raise the quota of the project"},
	codes.Unavailable:        {fault.Unavailable, fault.ClassNetwork, ""},
	codes.DeadlineExceeded:   {fault.Unavailable, fault.ClassTimeout, ""},
	codes.Canceled:           {fault.Unavailable, "", ""},
	codes.Internal:           {fault.Unavailable, "", ""},
	codes.DataLoss:           {fault.Unavailable, "", ""},
}

// reasons is the table of ErrorInfo.reason, which says more than the code.
// https://github.com/googleapis/googleapis/blob/master/google/api/error_reason.proto
var reasons = map[string]meaning{
	"SERVICE_DISABLED":                {fault.Denied, fault.ClassPermission, "enable the Secret Manager API (secretmanager.googleapis.com) in the project"},
	"BILLING_DISABLED":                {fault.Denied, fault.ClassPermission, "enable billing for the project"},
	"CONSUMER_SUSPENDED":              {fault.Denied, fault.ClassPermission, "the project is suspended"},
	"CONSUMER_INVALID":                {fault.Denied, fault.ClassPermission, "the project does not exist, or may not be used for quota"},
	"USER_PROJECT_DENIED":             {fault.Denied, fault.ClassPermission, "grant serviceusage.services.use on the quota project"},
	"ACCESS_TOKEN_SCOPE_INSUFFICIENT": {fault.Denied, fault.ClassAuth, "the credentials need the scope cloud-platform"},
	"ACCESS_TOKEN_EXPIRED":            {fault.Denied, fault.ClassAuth, "the credentials have expired"},
	"CREDENTIALS_MISSING":             {fault.Denied, fault.ClassAuth, "no credentials were sent"},
	"SECURITY_POLICY_VIOLATED":        {fault.Denied, fault.ClassPermission, "VPC Service Controls forbid it"},
	"ORG_RESTRICTION_VIOLATION":       {fault.Denied, fault.ClassPermission, "a restriction of the organization forbids it"},
	"LOCATION_ORG_POLICY_VIOLATED":    {fault.Denied, fault.ClassPermission, "the organization's policy forbids the location"},
	"RATE_LIMIT_EXCEEDED":             {fault.Unavailable, fault.ClassQuota, "slow down, or raise the quota of the project"},
	"RESOURCE_QUOTA_EXCEEDED":         {fault.Unavailable, fault.ClassQuota, "raise the quota of the project"},
}

// classify makes an error of package fault of one of the client's. quiet drops
// the service's text, which could repeat what was sent: it is set for the one
// call that sends a value, and for the one that gets one.
func classify(ctx context.Context, op string, quiet bool, err error) error {
	e := &fault.Error{Kind: fault.Unknown, Op: op}
	st, known := statusOf(err)
	switch {
	case known:
		m, named := meanings[st.Code()], false
		var api *apierror.APIError
		if errors.As(err, &api) {
			if r, ok := reasons[api.Reason()]; ok {
				m, named = r, true
			}
		}
		if untrusted(st) {
			m = meaning{fault.Denied, fault.ClassTLS, "the endpoint's certificate is not trusted, or it does not speak TLS"}
		}
		e.Kind, e.Class, e.Msg = m.kind, m.class, m.hint
		text := st.Code().String()
		if !quiet || st.Code() == codes.PermissionDenied {
			text += ": " + st.Message() // made of names
		}
		e.Err = &answer{st.Code(), named, text}
		if ctx.Err() != nil && (st.Code() == codes.DeadlineExceeded || st.Code() == codes.Canceled) {
			e.Err = ctx.Err()
		}
	case ctx.Err() != nil:
		e.Kind, e.Err = fault.Unavailable, ctx.Err()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			e.Class = fault.ClassTimeout
		}
	default:
		// Not the service's: keep no text, but say what it was.
		e.Msg = fmt.Sprintf("the client failed (%T)", fault.Root(err))
	}
	return e
}

// statusOf finds the status in a chain. Other errors have none: what package
// status makes of them would be a code that nobody sent.
func statusOf(err error) (*status.Status, bool) {
	var has interface{ GRPCStatus() *status.Status }
	if err == nil || !errors.As(err, &has) || has.GRPCStatus() == nil {
		return nil, false
	}
	return has.GRPCStatus(), true
}

// untrusted reports a handshake that failed. The transport has no type for it.
func untrusted(st *status.Status) bool {
	return st.Code() == codes.Unavailable && strings.Contains(st.Message(), "authentication handshake failed") &&
		(strings.Contains(st.Message(), "tls: ") || strings.Contains(st.Message(), "x509: "))
}

// An answer is an error of the service: its code, whether its reason is one
// that the table knows, and what is told of it.
type answer struct {
	code  codes.Code
	named bool
	text  string
}

func (a *answer) Error() string { return a.text }

// isCode reports whether err, made by classify, is the service's answer with
// the code.
func isCode(err error, code codes.Code) bool {
	var a *answer
	return errors.As(err, &a) && a.code == code
}

// advise tells what to do about a permission that the policies lack. A refusal
// for another reason, such as an API that is not enabled, says so already.
func advise(err error, op, msg string) error {
	var a *answer
	if !errors.As(err, &a) || a.code != codes.PermissionDenied || a.named {
		return err
	}
	return &fault.Error{Kind: fault.Denied, Class: fault.ClassPermission, Op: op, Msg: msg, Err: a}
}

// refused reports whether a call that failed with err certainly had no effect.
func refused(err error) bool {
	switch fault.KindOf(err) {
	case fault.NotFound, fault.Conflict, fault.Denied, fault.Invalid:
		return true
	case fault.Unavailable, fault.Unknown:
	}
	return false
}
