package gcpfake

import (
	"context"
	"fmt"
	"slices"

	"cloud.google.com/go/iam/apiv1/iampb"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A grant is a binding of permissions on a project or on one secret.
type grant struct {
	project     string  // its number, where all secrets of it are meant
	secret      *secret // else the one that is; the grant goes with it
	permissions []string
	applies     func(resourceName string) bool // the condition, nil for none
}

// Grant gives permissions on a project (projects/ID), with all its secrets, or
// on one secret, which is there. From the first Grant on the caller of the fake
// has only what was granted, as IAM has it: what is granted on a secret is
// lost with it, and a secret that is not there has the project's grants only.
// Without any, the answer is that the permission is missing, never that the
// secret is.
func (s *Server) Grant(resource string, permissions ...string) {
	s.t.Helper()
	s.GrantIf(resource, nil, permissions...)
}

// GrantIf is Grant with a condition on resource.name, the full name of what a
// request is about, with the project's number. Making and listing secrets is
// about the project, or its location. That the condition sees the name of a
// secret that is not there is this package's choice.
// https://cloud.google.com/iam/docs/conditions-resource-attributes#resource-name
func (s *Server) GrantIf(resource string, applies func(resourceName string) bool, permissions ...string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	m := nameForm.FindStringSubmatch(resource)
	if m == nil || m[4] != "" || m[2] != "" && m[3] == "" {
		s.t.Fatalf("gcpfake: %q is neither a project nor a secret", resource)
	}
	g := grant{permissions: permissions, applies: applies}
	if m[3] == "" {
		g.project = s.projects[m[1]]
	} else {
		g.secret = s.must(resource)
	}
	s.grants = append(s.grants, g)
}

// Deny takes permissions away, for one secret, or for all if the name is
// empty. Permissions are IAM's: secretmanager.versions.access and so on.
func (s *Server) Deny(secretName string, permissions ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if secretName != "" {
		secretName = s.canonical(secretName)
	}
	if s.denied[secretName] == nil {
		s.denied[secretName] = map[string]bool{}
	}
	for _, p := range permissions {
		s.denied[secretName][p] = true
	}
}

// Allow gives all permissions back.
func (s *Server) Allow() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.denied)
	s.grants = nil
}

// permitted reports whether the caller of the fake may do to n what permission
// stands for. The caller holds the lock.
func (s *Server) permitted(n name, permission string) bool {
	if s.denied[""][permission] || s.denied[n.secretName()][permission] {
		return false
	}
	sec := s.secrets[n.secretName()]
	for _, g := range s.grants {
		on := g.project == n.project || g.secret != nil && g.secret == sec
		if on && slices.Contains(g.permissions, permission) && (g.applies == nil || g.applies(n.full())) {
			return true
		}
	}
	return len(s.grants) == 0
}

// TestIamPermissions answers for the caller of the fake. A secret that does
// not exist has no permissions, whatever the project grants.
func (v *service) TestIamPermissions(_ context.Context, r *iampb.TestIamPermissionsRequest) (*iampb.TestIamPermissionsResponse, error) {
	n, err := v.parse(r.GetResource(), "")
	if err != nil {
		return nil, err
	}
	out := &iampb.TestIamPermissionsResponse{}
	if v.s.secrets[n.secretName()] == nil {
		return out, nil
	}
	for _, p := range r.GetPermissions() {
		if v.s.permitted(n, p) {
			out.Permissions = append(out.Permissions, p)
		}
	}
	return out, nil
}

// denied is a refusal as IAM words it.
func denied(permission, resource string) error {
	st := status.New(codes.PermissionDenied, fmt.Sprintf("Permission '%s' denied for resource '%s' (or it may not exist).", permission, resource))
	if with, err := st.WithDetails(&errdetails.ErrorInfo{
		Reason: "IAM_PERMISSION_DENIED", Domain: "iam.googleapis.com",
		Metadata: map[string]string{"permission": permission, "resource": resource},
	}); err == nil {
		st = with
	}
	return st.Err()
}
