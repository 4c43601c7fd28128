package awssm_test

import (
	"maps"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/awsfake"
)

// One call of DescribeSecret, which holds no value, and AWS's own tags too.
func TestTags(t *testing.T) {
	f, s, r, _ := open(t, nil)
	want := map[string]string{"Tenant": "acme", "aws:cloudformation:stack-name": "agents", "empty": ""}
	f.SetTags(name, want)
	f.ForgetCalls()
	got, err := s.Tags(t.Context(), r)
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("tags %v, %v; expected %v", got, err, want)
	}
	if calls := f.Calls(); len(calls) != 1 || calls[0].Op != "DescribeSecret" {
		t.Errorf("calls %v; expected one of DescribeSecret", calls)
	}
	// A notice of a deletion has a tenant as well.
	if _, err := f.SecretsManager().DeleteSecret(t.Context(), &secretsmanager.DeleteSecretInput{SecretId: aws.String(name)}); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Tags(t.Context(), r); err != nil || !maps.Equal(got, want) {
		t.Errorf("marked for deletion: tags %v, %v; expected %v", got, err, want)
	}
	for code, c := range map[string]struct {
		kind  fault.Kind
		class fault.Class
	}{
		"AccessDeniedException": {fault.Denied, fault.ClassPermission}, "ThrottlingException": {fault.Unavailable, fault.ClassQuota},
	} {
		f.FailNext("DescribeSecret", code)
		_, err := s.Tags(t.Context(), r)
		wantKind(t, code, err, c.kind, c.class)
	}
	_, err = s.Tags(t.Context(), f.Ref(awsfake.Token()))
	wantKind(t, "a secret that is not there", err, fault.NotFound, "")
}
