package gcpsm_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/gcpfake"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/gcpsm"
	"github.com/keyturn/keyturn/secrets/sibling"
)

const (
	mainName    = "projects/" + gcpfake.Project + "/secrets/db"
	siblingName = mainName + sibling.Suffix
)

var db = ref.Ref{Provider: ref.GCP, Scope: gcpfake.Project, Name: "db"}

// setup makes a fake with the secret db, whose versions hold values.
func setup(t *testing.T, opts *gcpsm.Options, values ...string) (*gcpfake.Server, *gcpsm.Store) {
	t.Helper()
	fake := gcpfake.New(t)
	fake.Create(&secretmanagerpb.Secret{Name: mainName}, values...)
	return fake, gcpsm.New(fake.Clients(t), opts)
}

// rotate stores and promotes.
func rotate(t *testing.T, s *gcpsm.Store, r ref.Ref, token, value string) *secrets.Version {
	t.Helper()
	if _, err := s.PutPending(t.Context(), r, token, secrets.NewString(value)); err != nil {
		t.Fatalf("put pending: %v", err)
	}
	v, err := s.Promote(t.Context(), r, token)
	if err != nil {
		t.Fatalf("promote: %v", err)
	}
	return v
}

func wantKind(t *testing.T, err error, kind fault.Kind, says ...string) {
	t.Helper()
	if !fault.Is(err, kind) {
		t.Errorf("the error is %v, of kind %s; expected %s", err, fault.KindOf(err), kind)
		return
	}
	for _, part := range says {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error is %q; expected it to say %q", err, part)
		}
	}
}

func wantValue(t *testing.T, r secrets.Reader, stage secrets.Stage, want string) {
	t.Helper()
	v, err := r.Get(t.Context(), db, stage)
	if err != nil {
		t.Errorf("get %s: %v", stage, err)
	} else if !v.Value.Equal(secrets.NewString(want)) {
		t.Errorf("%s is another value than %q", stage, want)
	}
}

// on calls f before each call of a method.
func on(method string, f func(ctx context.Context)) grpc.UnaryClientInterceptor {
	return func(ctx context.Context, full string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
		if strings.HasSuffix(full, "/"+method) {
			f(ctx)
		}
		return invoke(ctx, full, req, reply, cc, opts...)
	}
}

// captureStderr returns what f wrote to the standard error, where the client
// library logs.
func captureStderr(t *testing.T, f func()) string {
	t.Helper()
	path := t.TempDir() + "/stderr"
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	old := os.Stderr
	os.Stderr = file
	defer func() { os.Stderr = old }()
	f()
	_ = file.Close()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
