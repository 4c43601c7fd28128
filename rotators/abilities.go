package rotators

import (
	"context"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// A Verifier is a Rotator that can tell whether the target honours a value.
type Verifier interface {
	// Verify signs in with v and changes nothing. It returns nil if v works,
	// an error of kind Denied and class auth if the target refuses just this
	// credential, and another error if that is not known. It connects only to
	// where c.Current says; a v that names another target is Invalid.
	Verify(ctx context.Context, c Change, v secrets.Value) error
}

// refusesCredential reports whether err says that the target refuses just the
// credential that it was tried with.
func refusesCredential(err error) bool {
	return fault.Is(err, fault.Denied) && fault.ClassOf(err) == fault.ClassAuth
}

// A Restorer is a [Retirer] whose Retire can be undone at the target.
type Restorer interface {
	// Restore makes the target honour old again, beside c.Current, which keeps
	// working. What is honoured already is success. A credential that is gone
	// for good, or that cannot live beside Current, is Invalid.
	Restore(ctx context.Context, c Change, old secrets.Value) error
}

// A Destroyer is a [Restorer] that can remove for good what it has retired.
type Destroyer interface {
	// Destroy removes old at the target; what is gone is success. It never
	// removes what Current or Pending is.
	Destroy(ctx context.Context, c Change, old secrets.Value) error
}

// A Comparer is a Rotator that can tell whether two values hold one credential,
// whatever else in them differs.
type Comparer interface {
	// SameCredential calls nobody. Values that it cannot read are not the same.
	SameCredential(a, b secrets.Value) bool
}

// A Check is one thing that a rotation needs. Err is nil if it holds.
type Check struct {
	What string // "sign in to db.example.com:5432 as app over verified TLS"
	Err  error
}

// A DryRunner is a Rotator that can look, without changing anything, whether a
// rotation would work.
type DryRunner interface {
	// DryRun checks what it can, in the order in which a rotation needs it:
	// reachability, TLS, sign-in, permissions at the target, and the limits of
	// names and passwords. It stops where nothing further can be told.
	DryRun(ctx context.Context, c Change) []Check
}

// An OrphanFinder is a Rotator whose target may keep credentials that an
// interrupted rotation made and no version holds.
type OrphanFinder interface {
	// Orphans returns their ids, which are not secret.
	Orphans(ctx context.Context, c Change) ([]string, error)
	// RemoveOrphans revokes them, and nothing that a version of c holds. None
	// is success.
	RemoveOrphans(ctx context.Context, c Change) error
}
