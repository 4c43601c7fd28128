package gcpsm_test

import (
	"maps"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyturn/keyturn/fault"
)

// One call, which holds no value; what the store keeps is in annotations, so a
// label may be called anything.
func TestTags(t *testing.T) {
	fake, s := setup(t, nil, "v1")
	want := map[string]string{"tenant": "acme", "keyturn-tenant": "acme", "empty": ""}
	fake.SetLabels(mainName, want)
	rotate(t, s, db, "token-1", "v2")
	fake.ForgetCalls()
	got, err := s.Tags(t.Context(), db)
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("tags %v, %v; expected %v", got, err, want)
	}
	if calls := fake.Calls(); len(calls) != 1 || calls[0].Method != "GetSecret" {
		t.Errorf("calls %v; expected one of GetSecret", calls)
	}
	fake.FailNext("GetSecret", status.Error(codes.PermissionDenied, "no"))
	_, err = s.Tags(t.Context(), db)
	wantKind(t, err, fault.Denied)
}
