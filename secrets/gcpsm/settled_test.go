package gcpsm_test

import (
	"testing"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyturn/keyturn/secrets"
)

// TestSettledByRetry: a promotion that dies after its version was added leaves
// aliases and the sibling behind. Discarding its token, as a retry does that
// finds it current, makes up for it.
func TestSettledByRetry(t *testing.T) {
	cut := status.Error(codes.Internal, "cut")
	for name, at := range map[string]struct {
		method string
		errs   []error
	}{
		"before it was noted":       {"UpdateSecret", []error{nil, cut}}, // the first is the claim
		"before it was cleared":     {"DestroySecretVersion", []error{cut}},
		"before that was noted too": {"UpdateSecret", []error{nil, nil, cut}},
	} {
		t.Run(name, func(t *testing.T) {
			fake, s := setup(t, nil, "v1")
			rotate(t, s, db, "zero", "v2")
			if _, err := s.PutPending(t.Context(), db, "one", secrets.NewString("v3")); err != nil {
				t.Fatal(err)
			}
			fake.FailNext(at.method, at.errs...)
			_, err := s.Promote(t.Context(), db, "one")
			t.Logf("promote: %v", err)
			for range 2 {
				d, err := s.Describe(t.Context(), db)
				if err != nil || !d.Has("one", secrets.Current) {
					t.Fatalf("described as %+v, %v; expected rotation one to be current", d, err)
				}
				if err := s.Discard(t.Context(), db, "one"); err != nil {
					t.Fatalf("discard: %v", err)
				}
			}
			sec := fake.Secret(mainName)
			if a := sec.GetVersionAliases(); a["current"] != 3 || a["previous"] != 2 {
				t.Errorf("the aliases are %v; expected current 3 and previous 2", a)
			}
			if c := sec.GetAnnotations()["keyturn-claim"]; c != "" {
				t.Errorf("the claim %s is still there", c)
			}
			for i, v := range fake.Versions(siblingName) {
				if v.GetState() != secretmanagerpb.SecretVersion_DESTROYED {
					t.Errorf("version %d of the sibling is %s; expected it to be destroyed", i+1, v.GetState())
				}
			}
			wantValue(t, s, secrets.Current, "v3")
			wantValue(t, s, secrets.Previous, "v2")
		})
	}
}
