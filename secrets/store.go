// Package secrets is the vocabulary of staged secrets: a [Ref] names one, a
// [Value] holds its bytes unprintably, a [Version] is one value with its
// stages, a [Reader] is all that an agent needs, and a [Store] stages a new
// version beside the current one and moves it into place.
//
// Each backend is one package below this one; all of them pass storetest.
package secrets

import (
	"context"
	"time"

	"github.com/keyturn/keyturn/ref"
)

// A Ref is the canonical name of one secret; see package ref.
type Ref = ref.Ref

// A Stage is a label that at most one version of a secret holds. The names
// generalize the staging labels of AWS Secrets Manager (AWSCURRENT,
// AWSPENDING, AWSPREVIOUS).
type Stage string

// The stages.
const (
	Current  Stage = "current"  // what every plain reader gets
	Pending  Stage = "pending"  // written by a rotation, not yet proven
	Previous Stage = "previous" // what was current before
)

// A Version is one value of a secret.
type Version struct {
	// ID is the store's own (a UUID, a number), opaque. It may change when a
	// pending version is promoted.
	ID string
	// Token is the rotation token of the rotation that wrote the version, and
	// survives promotion. On AWS it equals ID. It may be empty for a version
	// that no rotation wrote.
	Token   string
	Value   Value
	Created time.Time
}

// A Reader is all that an agent needs, and all that its policy should allow.
type Reader interface {
	// Get returns the version that holds stage. It always asks the provider
	// by stage, so a pending version is never returned as Current. A version
	// that holds Pending without having a value, or that is also Current, is
	// NotFound as Pending. Get is safe for concurrent use, does not retry
	// beyond what the provider's client does, and changes nothing.
	Get(ctx context.Context, ref Ref, stage Stage) (*Version, error)
}

// A Store stages versions. Methods are safe for concurrent use, by several
// processes too; they may be repeated with the same arguments after any
// failure, including one whose effect took place.
type Store interface {
	Reader

	// PutPending stores v as the pending version of the rotation named token.
	// Repeated with the same token it returns the version as first stored,
	// whatever v is now: pending is never overwritten, and the returned value
	// is the truth. Another rotation's pending version, or a token that was
	// promoted already, is a Conflict. A ref that does not exist is NotFound.
	PutPending(ctx context.Context, ref Ref, token string, v Value) (*Version, error)

	// Promote makes token's pending version Current and the version that was
	// current Previous, in one step for every reader: at no instant is there
	// no current version. Repeated after success it returns the current
	// version and changes nothing. Conflict if another rotation's version is
	// pending or was promoted meanwhile, NotFound if token has no version.
	Promote(ctx context.Context, ref Ref, token string) (*Version, error)

	// Discard drops token's pending version. Nothing pending is success;
	// another rotation's is a Conflict. On a token that is already current it
	// only clears what the rotation left behind.
	Discard(ctx context.Context, ref Ref, token string) error

	// Describe tells the stages of a secret without reading any value.
	Describe(ctx context.Context, ref Ref) (*Description, error)
}

// A Succeeder is a Store that can bind a pending version to the current one
// that it was made from.
type Succeeder interface {
	// PutPendingAfter is PutPending, and a Conflict if the version with the id
	// current is not Current any more: what was made from it would succeed a
	// version that is gone. natskv and memstore decide both in one step; awssm
	// looks right before AWSPENDING is taken, since AWS has no write that
	// depends on another label.
	PutPendingAfter(ctx context.Context, ref Ref, token, current string, v Value) (*Version, error)
}

// A Disabler is a Store that can take a superseded version out of use. All of
// it may be repeated after any failure, and is safe for concurrent use, by
// several processes too.
type Disabler interface {
	// Disable makes a version unreadable in the store, so that it can be
	// undone. A version that holds Previous still does: Describe shows it with
	// Disabled, and Get is NotFound. Repeated it changes nothing. Current and
	// Pending are a Conflict; a version that is not there is NotFound.
	Disable(ctx context.Context, ref Ref, version string) error

	// Enable undoes Disable, and Describe shows the version as Held from then
	// on until it is disabled again. Repeated, or for a version that was never
	// disabled, it changes nothing. A version that is not there, or was
	// destroyed, is NotFound.
	Enable(ctx context.Context, ref Ref, version string) error

	// Destroy makes the value of a disabled version unrecoverable, as far as
	// the provider allows; the store's documentation says how far. A version
	// that is not disabled is a Conflict; one that is not there any more is
	// success.
	Destroy(ctx context.Context, ref Ref, version string) error
}

// A Checker is a Store that can tell whether this process may do what a
// rotation of a secret does.
type Checker interface {
	// Check changes nothing. What is missing is one Denied error that names
	// each permission; a secret that does not exist is NotFound.
	Check(ctx context.Context, ref Ref) error
}

// An Orphan is what a store's bookkeeping left behind: a secret that keeps
// the pending version of one that is gone.
type Orphan struct {
	Ref Ref    // of the secret that is gone
	ID  string // of what is left, in the provider's words
}

// An OrphanFinder is a Store with bookkeeping that can be left behind.
type OrphanFinder interface {
	// Orphans lists what is left in the scope of r, whatever its name.
	Orphans(ctx context.Context, r Ref) ([]Orphan, error)
	// RemoveOrphan removes one, if the secret still is gone: Conflict if it
	// is back. What is removed already is success.
	RemoveOrphan(ctx context.Context, o Orphan) error
}

// A Locker keeps one writer a secret where the store itself cannot.
type Locker interface {
	// Lock waits until nobody else holds name, or until ctx ends, which is
	// Unavailable. The context that it returns is derived from ctx and ends
	// when the lock is lost: what runs under it must stop then. unlock may be
	// called more than once.
	Lock(ctx context.Context, name string) (held context.Context, unlock func(), err error)
}

// A Creator can make a secret that does not exist yet.
type Creator interface {
	// CreateSecret stores v as the first, current version. A secret that
	// exists is a Conflict and left as it is.
	CreateSecret(ctx context.Context, ref Ref, v Value) (*Version, error)
}

// A Tagger is a Store that can tell the tags of a secret: what people and
// tools note beside it, such as whose it is. Providers call them tags, labels
// or custom metadata. They belong to the secret and stay with it when it is
// rotated.
type Tagger interface {
	// Tags returns the tags of a secret, with the provider's own spelling of
	// keys. Where there are none it returns an empty map, and the caller may
	// change what it gets. What the store notes there for itself is left out.
	// No value is read, so it needs no permission to. It changes nothing, is
	// safe for concurrent use, and does not retry beyond what the provider's
	// client does. A secret that is not there is NotFound; one that is only
	// marked for deletion tells its tags if the provider still does.
	Tags(ctx context.Context, ref Ref) (map[string]string, error)
}

// A Description is what a store tells of a secret without its values.
type Description struct {
	Ref Ref
	// ID is the provider's own full identifier, such as an ARN, or "".
	ID string
	// Versions that hold a stage, in no order. Versions without any are left
	// out.
	Versions []VersionInfo
	// Opened reports that the store's own service opens rotations: it labels
	// the token pending before the first phase, and a token without that
	// label belongs to no rotation.
	Opened bool
	// RotationDisabled reports that the service says so explicitly.
	RotationDisabled bool
	// NextRotation is when the service will start the next rotation, or zero.
	NextRotation time.Time
}

// A VersionInfo is a version without its value.
type VersionInfo struct {
	ID, Token string
	Stages    []Stage
	Created   time.Time // zero when the store does not tell
	// Activated is when the current version became current, which may be long
	// after it was made. A store that does not know exactly tells a later
	// time, never an earlier one. Zero for other stages.
	Activated time.Time
	// Disabled reports that [Disabler] took it out of use.
	Disabled bool
	// Held reports that it was disabled and enabled again: somebody wanted it
	// back, so nothing but a person takes it out of use once more.
	Held bool
}

// Holder returns the version that holds stage, or nil.
func (d *Description) Holder(stage Stage) *VersionInfo {
	for i := range d.Versions {
		for _, s := range d.Versions[i].Stages {
			if s == stage {
				return &d.Versions[i]
			}
		}
	}
	return nil
}

// HolderID returns the id of the version that holds stage, or "".
func (d *Description) HolderID(stage Stage) string {
	if h := d.Holder(stage); h != nil {
		return h.ID
	}
	return ""
}

// Unfinished returns the version that a rotation which is half-way has
// pending, or nil. A service may leave the pending label on the version that
// it promoted, which is no such version.
func (d *Description) Unfinished() *VersionInfo {
	p, c := d.Holder(Pending), d.Holder(Current)
	if p == nil || c != nil && p.ID == c.ID {
		return nil
	}
	return p
}

// Since is when v became current, as far as the store tells: for one that does
// not, when it was made.
func (v *VersionInfo) Since() time.Time {
	if v.Activated.IsZero() {
		return v.Created
	}
	return v.Activated
}

// Has reports whether the version written under token holds stage.
func (d *Description) Has(token string, stage Stage) bool {
	h := d.Holder(stage)
	return h != nil && token != "" && h.Token == token
}

// Known reports whether some staged version was written under token.
func (d *Description) Known(token string) bool {
	for i := range d.Versions {
		if token != "" && d.Versions[i].Token == token {
			return true
		}
	}
	return false
}
