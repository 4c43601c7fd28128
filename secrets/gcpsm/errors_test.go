package gcpsm_test

import (
	"context"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/api/option"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/gcpsm"
)

func withReason(code codes.Code, reason string) error {
	st, err := status.New(code, "the service says no").WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: "googleapis.com"})
	if err != nil {
		panic(err)
	}
	return st.Err()
}

func TestErrors(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	for _, c := range []struct {
		err   error
		kind  fault.Kind
		class fault.Class
		says  string
	}{
		{status.Error(codes.NotFound, "x"), fault.NotFound, "", "correct the project"},
		{status.Error(codes.PermissionDenied, "Permission 'p' denied"), fault.Denied, fault.ClassPermission, "Permission 'p' denied"},
		{status.Error(codes.Unauthenticated, "x"), fault.Denied, fault.ClassAuth, "credentials"},
		{status.Error(codes.InvalidArgument, "x"), fault.Invalid, "", "InvalidArgument"},
		{status.Error(codes.Unimplemented, "x"), fault.Invalid, "", "not Secret Manager"},
		{status.Error(codes.FailedPrecondition, "x"), fault.Conflict, fault.ClassConcurrency, ""},
		{status.Error(codes.Aborted, "x"), fault.Conflict, fault.ClassConcurrency, ""},
		{status.Error(codes.ResourceExhausted, "x"), fault.Unavailable, fault.ClassQuota, "quota"},
		{status.Error(codes.Unavailable, "x"), fault.Unavailable, fault.ClassNetwork, ""},
		{status.Error(codes.Internal, "x"), fault.Unavailable, "", ""},
		{status.Error(codes.DataLoss, "x"), fault.Unavailable, "", ""},
		{status.Error(codes.DeadlineExceeded, "x"), fault.Unavailable, fault.ClassTimeout, ""},
		{status.Error(codes.Unknown, "x"), fault.Unknown, "", "Unknown"},
		{status.Error(codes.Code(99), "x"), fault.Unknown, "", ""},
		{withReason(codes.PermissionDenied, "SERVICE_DISABLED"), fault.Denied, fault.ClassPermission, "enable the Secret Manager API"},
		{withReason(codes.PermissionDenied, "BILLING_DISABLED"), fault.Denied, fault.ClassPermission, "billing"},
		{withReason(codes.PermissionDenied, "ACCESS_TOKEN_SCOPE_INSUFFICIENT"), fault.Denied, fault.ClassAuth, "cloud-platform"},
		{withReason(codes.PermissionDenied, "SECURITY_POLICY_VIOLATED"), fault.Denied, fault.ClassPermission, "VPC Service Controls"},
		{withReason(codes.ResourceExhausted, "RATE_LIMIT_EXCEEDED"), fault.Unavailable, fault.ClassQuota, "quota"},
		{withReason(codes.PermissionDenied, "SOMETHING_NEW"), fault.Denied, fault.ClassPermission, "the service says no"},
	} {
		fake.FailNext("GetSecret", c.err)
		_, err := s.Canonical(t.Context(), db)
		wantKind(t, err, c.kind, c.says, "gcpsm: get secret "+mainName)
		if fault.ClassOf(err) != c.class {
			t.Errorf("%v: the class is %q; expected %q", err, fault.ClassOf(err), c.class)
		}
	}
}

// TestErrorsOfValues: what the service says to the one call that sends a value
// is not repeated, whatever it says.
func TestErrorsOfValues(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	canary := leaktest.Canary()
	var rec leaktest.Recorder
	for _, code := range []codes.Code{codes.InvalidArgument, codes.FailedPrecondition, codes.Internal, codes.Unknown, codes.Unavailable} {
		fake.FailNext("AddSecretVersion", status.Error(code, "found "+canary))
		_, err := s.PutPending(t.Context(), db, "one", secrets.NewString(canary))
		// A failed precondition is a Conflict, which is tried again at once.
		if err == nil && code != codes.FailedPrecondition {
			t.Errorf("%s: no error", code)
		}
		rec.Record(err)
		if err := s.Discard(t.Context(), db, "one"); err != nil {
			t.Fatal(err)
		}
	}
	rec.Check(t, canary)
}

// TestBounded: a service that does not answer is left after the timeout, and
// when the caller gives up.
func TestBounded(t *testing.T) {
	fake, _ := setup(t, nil, "v1")
	hang := on("GetSecret", func(ctx context.Context) { <-ctx.Done() })
	s := gcpsm.New(fake.Clients(t, hang), &gcpsm.Options{Timeout: 20 * time.Millisecond})
	_, err := s.Get(t.Context(), db, secrets.Current)
	wantKind(t, err, fault.Unavailable)
	if fault.ClassOf(err) != fault.ClassTimeout {
		t.Errorf("the class is %q", fault.ClassOf(err))
	}
	s = gcpsm.New(fake.Clients(t, hang), &gcpsm.Options{Timeout: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = s.Get(ctx, db, secrets.Current)
	wantKind(t, err, fault.Unavailable)
}

// TestPool: the production constructor, aimed at a loopback port.
func TestPool(t *testing.T) {
	// Nobody speaks TLS there.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	plain := grpc.NewServer()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = plain.Serve(l)
	}()
	defer func() {
		plain.Stop()
		<-done
	}()
	p := &gcpsm.Pool{Options: []option.ClientOption{option.WithEndpoint(l.Addr().String()), option.WithoutAuthentication()}}
	s := gcpsm.New(p.Client, &gcpsm.Options{Timeout: 5 * time.Second})
	_, err = s.Canonical(t.Context(), db)
	wantKind(t, err, fault.Denied, "does not speak TLS")
	if fault.ClassOf(err) != fault.ClassTLS {
		t.Errorf("the class is %q; expected %q", fault.ClassOf(err), fault.ClassTLS)
	}
	if err := p.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	_, err = p.Client(t.Context(), "")
	wantKind(t, err, fault.Invalid, "closed")
}

// TestPoolLogsNothing: the client library logs payloads when its environment
// variable says so; ours do not.
func TestPoolLogsNothing(t *testing.T) {
	t.Setenv("GOOGLE_SDK_GO_LOGGING_LEVEL", "debug")
	fake, _ := setup(t, nil, "v1")
	p := &gcpsm.Pool{Options: append(fake.ClientOptions(""), option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())))}
	defer func() { _ = p.Close() }()
	out := captureStderr(t, func() {
		rotate(t, gcpsm.New(p.Client, nil), db, "one", "v2")
	})
	if strings.Contains(out, "payload") || strings.Contains(out, "AddSecretVersion") {
		t.Errorf("the client logged %d bytes", len(out))
	}
}
