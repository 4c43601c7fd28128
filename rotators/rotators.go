// Package rotators changes credentials in four phases, each of which may be
// interrupted anywhere and repeated with the same rotation token.
//
//	create  the next credential is made and stored as pending
//	set     the target is made to honour pending
//	test    pending is proven by using it
//	finish  pending becomes current
//
// The phases are those of AWS Secrets Manager (createSecret, setSecret,
// testSecret, finishSecret), whichever store and target are used. A [Rotator]
// knows one kind of target; [Runner] owns order, idempotence, locks, logging
// and announcements, so that no rotator can get them wrong. Pending is the
// only journal: it is written before the target is touched and never
// overwritten, so a rotation that died is rolled forward.
// https://docs.aws.amazon.com/secretsmanager/latest/userguide/rotate-secrets_lambda-functions.html
package rotators

import (
	"context"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// A Change is what one rotation knows. Pending is zero in Create; Previous is
// zero when there is none.
type Change struct {
	Ref   ref.Ref
	Token string // the rotation token: names this rotation across retries

	Current, Pending, Previous secrets.Value

	// StillPending, if not nil, reads the store again and returns nil if
	// Pending still is what this rotation has staged. A rotator whose target
	// has a lock calls it under that lock, right before the change: a process
	// that stalled must not undo what others have rotated to meanwhile.
	StillPending func(context.Context) error
}

// A Rotator knows one kind of target. Every method may be called again with
// the same Token after any failure, including one whose effect took place,
// and concurrently for one or several secrets, by several processes. Methods
// keep to the deadline of ctx, do not retry by themselves, and return errors
// of package fault that never hold a value.
type Rotator interface {
	// Create returns the next credential, keeping whatever it does not
	// understand of Current. If the caller chooses the value it does not touch
	// the target. If the target issues it, the new credential is tagged with
	// Token, so that Set can remove those that an interrupted Create left.
	Create(ctx context.Context, c Change) (secrets.Value, error)

	// Set makes the target honour Pending. It refuses, before it connects
	// anywhere, a Pending that names another target than Current. Where the
	// target allows it Current keeps working; the package comment says if not.
	Set(ctx context.Context, c Change) error

	// Test proves Pending by using it, read-only, and where the strategy
	// revokes Current in Set proves that Current is dead.
	Test(ctx context.Context, c Change) error
}

// A Retirer is a Rotator that can revoke a superseded credential at the
// target. Retire revokes old, and besides it only what an interrupted rotation
// left and no version holds, using c.Current for authority where it needs any.
// It never revokes what Current or Pending is, whatever old says: a value that
// somebody edited is another value with the same credential. What is revoked
// already, or cannot be revoked on its own, is success.
type Retirer interface {
	Retire(ctx context.Context, c Change, old secrets.Value) error
}

// A Phase is one of the four.
type Phase string

// The phases, in order.
const (
	Create Phase = "create"
	Set    Phase = "set"
	Test   Phase = "test"
	Finish Phase = "finish"
)

// Phases returns the four in order.
func Phases() []Phase { return []Phase{Create, Set, Test, Finish} }

// ParsePhase reads a phase's name, or a Secrets Manager step in either of the
// spellings that AWS prints (createSecret, create_secret). The error is of
// kind Invalid.
func ParsePhase(s string) (Phase, error) {
	name, camel := strings.CutSuffix(s, "Secret")
	if !camel {
		name = strings.TrimSuffix(s, "_secret")
	}
	switch p := Phase(name); p {
	case Create, Set, Test, Finish:
		return p, nil
	}
	return "", fault.Newf(fault.Invalid, "rotation step", "%q is not a step; expected createSecret, setSecret, testSecret or finishSecret", s)
}
