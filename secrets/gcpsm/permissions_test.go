package gcpsm_test

import (
	"strings"
	"testing"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/gcpfake"
	"github.com/keyturn/keyturn/secrets"
)

const project = "projects/" + gcpfake.Project

// documented is what the package comment says that a rotation needs.
func documented() []string {
	out := []string{"secretmanager.secrets.get", "secretmanager.secrets.update"}
	for _, verb := range []string{"get", "list", "access", "add", "enable", "disable", "destroy"} {
		out = append(out, "secretmanager.versions."+verb)
	}
	return out
}

// live goes through all that is done to a secret with its credentials.
func live(t *testing.T, s secrets.Store) {
	t.Helper()
	if err := s.(secrets.Checker).Check(t.Context(), db); err != nil {
		t.Errorf("check: %v", err)
	}
	for _, token := range []string{"one", "two", "three"} {
		if _, err := s.PutPending(t.Context(), db, token, secrets.NewString("value "+token)); err != nil {
			t.Fatalf("put pending: %v", err)
		}
		if token == "two" {
			if err := s.Discard(t.Context(), db, token); err != nil {
				t.Fatalf("discard: %v", err)
			}
			continue
		}
		if _, err := s.Promote(t.Context(), db, token); err != nil {
			t.Fatalf("promote: %v", err)
		}
	}
	d := s.(secrets.Disabler)
	for _, err := range []error{d.Disable(t.Context(), db, "1"), d.Enable(t.Context(), db, "1"), d.Disable(t.Context(), db, "1"), d.Destroy(t.Context(), db, "1")} {
		if err != nil {
			t.Errorf("retire: %v", err)
		}
	}
	if err := s.(secrets.Checker).Check(t.Context(), db); err != nil {
		t.Errorf("check: %v", err)
	}
	wantValue(t, s, secrets.Current, "value three")
	wantValue(t, s, secrets.Previous, "value one")
}

// TestGrantsOnSecrets: with permissions on the secret alone, its sibling is
// denied, whether it is there or not, and the error says what to do. Once it
// was made and has them too, everything works.
func TestGrantsOnSecrets(t *testing.T) {
	fake, s := setup(t, nil, "old")
	fake.Grant(mainName, documented()...)
	wantKind(t, s.Check(t.Context(), db), fault.Denied, siblingName, "if it is there at all", "made before")
	_, err := s.PutPending(t.Context(), db, "one", secrets.NewString("new"))
	wantKind(t, err, fault.Denied, siblingName, "missing or may not be read", "make it", "condition on resource.name", "or it may not exist")
	if fault.ClassOf(err) != fault.ClassPermission {
		t.Errorf("the class is %q", fault.ClassOf(err))
	}
	_, err = s.Describe(t.Context(), db)
	wantKind(t, err, fault.Denied, "missing or may not be read")
	// Whoever reads needs nothing on the sibling.
	wantValue(t, s, secrets.Current, "old")

	fake.Create(&secretmanagerpb.Secret{Name: siblingName})
	wantKind(t, s.Check(t.Context(), db), fault.Denied, siblingName)
	fake.Grant(siblingName, documented()...)
	live(t, s)
}

// TestGrantsOnProject: with a condition on the names of the two, and the right
// to make secrets beside it, the sibling is made on demand.
func TestGrantsOnProject(t *testing.T) {
	fake, s := setup(t, nil, "old")
	fake.GrantIf(project, func(resource string) bool {
		for _, id := range []string{"db", "db--pending"} {
			name := "projects/" + gcpfake.ProjectNumber + "/secrets/" + id
			if resource == name || strings.HasPrefix(resource, name+"/versions/") {
				return true
			}
		}
		return false
	}, append(documented(), "secretmanager.secrets.create")...)
	_, err := s.PutPending(t.Context(), db, "one", secrets.NewString("new"))
	wantKind(t, err, fault.Denied, siblingName, "may not be made", "secretmanager.secrets.create on the project")
	fake.Grant(project, "secretmanager.secrets.create")
	live(t, s)
	if a := fake.Secret(siblingName).GetAnnotations(); a["keyturn-secret"] != "db" {
		t.Errorf("the sibling has the annotations %v", a)
	}
}

// TestDeniedForAnotherReason: what the service gives as its reason is not
// taken for a missing sibling.
func TestDeniedForAnotherReason(t *testing.T) {
	fake, s := setup(t, nil, "old")
	fake.FailNext("GetSecret", withReason(codes.PermissionDenied, "SERVICE_DISABLED"))
	_, err := s.PutPending(t.Context(), db, "one", secrets.NewString("new"))
	wantKind(t, err, fault.Denied, "enable the Secret Manager API")
	if strings.Contains(err.Error(), "resource.name") {
		t.Errorf("the error is %q; expected nothing of the sibling", err)
	}
}
