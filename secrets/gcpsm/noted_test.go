package gcpsm_test

import (
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// TestFinishedRotationStaysFinished: a promotion that died before it cleared
// the sibling is known by its mark, however much was written by hand since.
func TestFinishedRotationStaysFinished(t *testing.T) {
	fake, s := setup(t, nil, "old")
	if _, err := s.PutPending(t.Context(), db, "t1", secrets.NewString("first")); err != nil {
		t.Fatal(err)
	}
	fake.FailNext("DestroySecretVersion", status.Error(codes.PermissionDenied, "x"))
	_, err := s.Promote(t.Context(), db, "t1")
	wantKind(t, err, fault.Denied)
	fake.Add(mainName, "by hand")
	fake.Add(mainName, "by hand again")

	_, err = s.Get(t.Context(), db, secrets.Pending)
	wantKind(t, err, fault.NotFound)
	_, err = s.Promote(t.Context(), db, "t1")
	wantKind(t, err, fault.Conflict)
	wantValue(t, s, secrets.Current, "by hand again")
	for _, v := range fake.Versions(siblingName) {
		if len(v.Value) > 0 {
			t.Errorf("version %s still has its value", v.GetName())
		}
	}
	rotate(t, s, db, "t2", "second")
	wantValue(t, s, secrets.Current, "second")
}
