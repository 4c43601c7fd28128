// Package sibling keeps the pending version of a secret in a secret of its
// own, beside the one that everybody reads, for stores whose newest version
// is what a plain read returns: GCP Secret Manager, Azure Key Vault and Vault
// KV v2. A backend implements [Driver]; [Store] makes a secrets.Store of it.
//
// Promoting appends the pending value to the main secret, so a plain reader
// sees the tested value from one instant on and never another. Between the
// append and the bookkeeping that follows it a process may die: the append is
// then recognized, since the newest version holds the pending value and is
// not the version that pending was made from.
package sibling

import (
	"context"
	"time"

	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// Suffix is appended to the name of a secret to name its sibling.
const Suffix = "--pending"

// A Main is what a backend tells of the main secret, without values.
type Main struct {
	// ID is the provider's own full identifier of the secret, or "".
	ID string
	// Rev names the state that this was read from, for the compare-and-swap
	// of Append and Record; "" where the backend has none.
	Rev string
	// Current is the version that a plain read returns, whoever wrote it, and
	// nil if there is none. Its Token is what Record or Append noted for just
	// this version, else "".
	Current *Version
	// Previous is the version that Record noted as superseded by Current, or,
	// where nothing is noted for Current, the newest version before it that is
	// not destroyed. A disabled one is told with Disabled.
	Previous *Version
	// Noted reports whether Record or Append noted token for any version that
	// the backend knows of, one that holds no stage any more too. It makes no
	// call. Nil where nothing tells, and a backend that forgets may say no:
	// [Store] then refuses to promote what may have been promoted before.
	Noted func(token string) bool
	// RotationDisabled and NextRotation are as in [secrets.Description].
	RotationDisabled bool
	NextRotation     time.Time
}

// A Version is one version of the main secret.
type Version struct {
	ID, Token string
	Created   time.Time
	Disabled  bool
	Held      bool // was disabled and enabled again
}

// A Pending is what the sibling holds. It is one unit: token, the version it
// was made from, and the value are written together or recognizably not at
// all.
type Pending struct {
	// ID names the version in the sibling. It may be the id of a version of
	// the main secret too: [Store] tells the two apart.
	ID    string
	Token string
	// After is the id of the main version that was current when it was made,
	// or "" if there was none.
	After string
	// Created is told by the backend; PutPending ignores it.
	Created time.Time
	Value   secrets.Value
}

// A Driver is one backend. Every method may be repeated, is safe for
// concurrent use, and returns errors of package fault: NotFound, Conflict for
// a lost compare-and-swap, and so on. It validates refs of its provider, token
// and value limits; an ended context is Unavailable. A value that it returns is
// a buffer of the caller's own, who wipes it; one that it is given it does not
// keep.
type Driver interface {
	// Main describes the main secret; NotFound if there is none.
	Main(ctx context.Context, r ref.Ref) (*Main, error)
	// Read returns the value of a version of the main secret; NotFound if it
	// is not there, disabled or destroyed. The version that is Current must be
	// read by what Main told, so that a value and its id belong together.
	Read(ctx context.Context, r ref.Ref, id string) (secrets.Value, error)

	// Pending reads the sibling. rev is the state that it was read from, for
	// PutPending and Clear. No sibling, an empty one, one whose newest version
	// was cleared, and one that is half written are all a nil Pending.
	Pending(ctx context.Context, r ref.Ref) (p *Pending, rev string, err error)
	// PutPending writes p to the sibling, which it makes if need be with the
	// replication, labels and encryption settings of the main secret. With
	// compare-and-swap it is a Conflict if the sibling is not at rev any more.
	PutPending(ctx context.Context, r ref.Ref, rev string, p Pending) error
	// Clear makes what was read at rev unreadable, and nothing that was written
	// after it: rev tells that even without compare-and-swap. Cleared already
	// is success.
	Clear(ctx context.Context, r ref.Ref, rev string) error

	// Append adds p's value as the newest version of the main secret, keeping
	// what its versions carry, and returns the new version's id. With
	// compare-and-swap it is a Conflict if the main secret is not at m.Rev.
	Append(ctx context.Context, r ref.Ref, m *Main, p Pending) (id string, err error)
	// Record notes that version id was written under token and superseded the
	// version previous, and moves what else names them (aliases). It is called
	// after Append, and again whenever an append is found that was not
	// recorded. Where Append notes both, Record does nothing. It may come late,
	// from a process that stalled: where a newer version is there, nothing that
	// names the current one is moved back, and that is success. previous is ""
	// where there was none.
	Record(ctx context.Context, r ref.Ref, id, token, previous string) error

	// SetDisabled takes a version of the main secret out of use or back into
	// it, and in the latter case notes that it is held: in the same step or
	// before, since a version that is in use is left as it is. A disabled one
	// is not held. The newest version is never disabled, which is a Conflict.
	// NotFound if it is not there or destroyed. Done already is success.
	SetDisabled(ctx context.Context, r ref.Ref, id string, disabled bool) error
	// Destroy makes a version's value unrecoverable, as far as the backend
	// can. One that is in use is a Conflict: somebody enabled it just now. It
	// is compared in the same step, or, where the backend cannot, looked at
	// right before. One that is not there is success.
	Destroy(ctx context.Context, r ref.Ref, id string) error

	// Create makes the main secret with v as its first version; Conflict if
	// there is one. A main secret without any version, which a crash between
	// two calls leaves, is given v.
	Create(ctx context.Context, r ref.Ref, v secrets.Value) (*Version, error)
}
