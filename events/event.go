// Package events is the one schema into which every cloud's secret events are
// turned: an [Event] says that something happened to a secret, is named by
// what happened and not by who reported it, and never carries a value.
//
// Decoders, one package a provider, are pure functions from bytes to events.
// Package natsbus carries events over NATS JetStream. This package does not
// import package secrets, so nothing on the event path can hold a value.
package events

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"io"
	"strings"
	"time"

	"github.com/keyturn/keyturn/ref"
)

// A Type is a CloudEvents type: dev.keyturn.<noun>.<verb>.v1.
type Type string

// The types. [VersionActivated] is the one that an agent must hear: what a
// plain reader of the secret gets may now be this version.
const (
	VersionCreated   Type = "dev.keyturn.version.created.v1"   // a version that no plain reader gets
	VersionActivated Type = "dev.keyturn.version.activated.v1" // a plain reader may now get this version
	VersionDisabled  Type = "dev.keyturn.version.disabled.v1"
	VersionEnabled   Type = "dev.keyturn.version.enabled.v1"
	VersionDestroyed Type = "dev.keyturn.version.destroyed.v1"
	VersionRevoked   Type = "dev.keyturn.version.revoked.v1"
	VersionRetired   Type = "dev.keyturn.version.retired.v1"

	RotationRequested Type = "dev.keyturn.rotation.requested.v1"
	RotationStarted   Type = "dev.keyturn.rotation.started.v1"
	RotationSucceeded Type = "dev.keyturn.rotation.succeeded.v1"
	RotationFailed    Type = "dev.keyturn.rotation.failed.v1"
	RotationAbandoned Type = "dev.keyturn.rotation.abandoned.v1"

	SecretNearExpiry Type = "dev.keyturn.secret.near_expiry.v1"
	SecretExpired    Type = "dev.keyturn.secret.expired.v1"
	SecretDeleted    Type = "dev.keyturn.secret.deleted.v1"
	SecretRestored   Type = "dev.keyturn.secret.restored.v1"
	SecretChanged    Type = "dev.keyturn.secret.changed.v1"
)

const (
	typePrefix = "dev.keyturn."
	typeSuffix = ".v1"
)

// Types lists every type.
func Types() []Type {
	return []Type{
		VersionCreated, VersionActivated, VersionDisabled, VersionEnabled, VersionDestroyed, VersionRevoked, VersionRetired,
		RotationRequested, RotationStarted, RotationSucceeded, RotationFailed, RotationAbandoned,
		SecretNearExpiry, SecretExpired, SecretDeleted, SecretRestored, SecretChanged,
	}
}

// Parts returns the noun and the verb, which are the last two subject tokens.
func (t Type) Parts() (noun, verb string) {
	s := strings.TrimSuffix(strings.TrimPrefix(string(t), typePrefix), typeSuffix)
	noun, verb, _ = strings.Cut(s, ".")
	return noun, verb
}

// Valid reports whether t is one of [Types].
func (t Type) Valid() bool {
	for _, k := range Types() {
		if t == k {
			return true
		}
	}
	return false
}

// An Event is one CloudEvents 1.0 event about one secret.
type Event struct {
	// ID names what happened, not the notice of it: every notice of one
	// change, by whatever route, has the same ID. See [SemanticID].
	ID   string
	Type Type
	// Time is when the provider says that it happened, in UTC.
	Time time.Time
	Data Data
}

// Source is the CloudEvents source: the account, project, vault, cluster or
// bucket that holds the secret.
func (e *Event) Source() string {
	return string(e.Data.Ref.Provider) + "://" + e.Data.Ref.Scope
}

// Data is an event's payload: an allow-list, nothing is copied from a
// provider's message beyond these fields.
type Data struct {
	Ref    ref.Ref `json:"ref"`
	Tenant string  `json:"tenant,omitempty"`
	// Version is the provider's version id, or "" when the notice does not
	// tell: who needs it reads the store.
	Version         string `json:"version,omitempty"`
	PreviousVersion string `json:"previous_version,omitempty"`
	// Cause is which notice this is: "eventbridge", "cloudtrail", "rotator".
	Cause string `json:"cause,omitempty"`
	// Reason is a short classified reason on failures, such as "denied/auth".
	Reason string `json:"reason,omitempty"`
	// Label is the provider's staging label where one moved.
	Label    string   `json:"label,omitempty"`
	Provider Provider `json:"provider"`
	// Received is when the notifier got the notice, Published when it was
	// handed to the bus.
	Received    time.Time `json:"received,omitzero"`
	Published   time.Time `json:"published,omitzero"`
	TraceParent string    `json:"traceparent,omitempty"`
}

// Provider is what the provider itself called the notice.
type Provider struct {
	EventID string    `json:"event_id,omitempty"`
	Type    string    `json:"type,omitempty"`
	Time    time.Time `json:"time,omitzero"`
	// ID is the secret's full provider identifier where the notice had it, as
	// an ARN.
	ID string `json:"id,omitempty"`
}

// SemanticID returns the id of "t happened to r", further named by key: a
// version where there is one, else the provider's own id of the occurrence.
// It is deterministic, so that every notice of one change gives one id, on
// every replica and by every route.
func SemanticID(t Type, r ref.Ref, key ...string) string {
	h := sha256.New()
	for _, s := range append([]string{string(t), r.String()}, key...) {
		// A separator that no part holds unescaped keeps ("a","b") and
		// ("ab","") apart.
		_, _ = io.WriteString(h, s)
		_, _ = h.Write([]byte{0})
	}
	return idEncoding.EncodeToString(h.Sum(nil)[:20])
}

var idEncoding = base32.HexEncoding.WithPadding(base32.NoPadding)

// New returns an event of type t about r with its semantic id. key names the
// occurrence; see [SemanticID].
func New(t Type, r ref.Ref, at time.Time, key ...string) Event {
	return Event{ID: SemanticID(t, r, key...), Type: t, Time: at.UTC(), Data: Data{Ref: r}}
}

// A Publisher hands events to a bus.
type Publisher interface {
	// Publish returns nil only after the bus has persisted every event; one
	// whose ID the bus has seen within its duplicate window counts as
	// persisted. It may be repeated, does not retry by itself, is safe for
	// concurrent use, and does not keep es.
	Publish(ctx context.Context, es ...Event) error
}

// A Handler is called with each event, one at a time for one subscription.
// Events arrive at least once and in any order, so a handler treats each as a
// hint to look at the store.
type Handler func(ctx context.Context, e Event)

// A Filter selects events. Zero fields match everything.
type Filter struct {
	Tenant string
	Refs   []ref.Ref
	Types  []Type
}

// A Subscriber delivers events from a bus.
type Subscriber interface {
	// Subscribe calls h with matching events until ctx is done, which it
	// returns as nil. It listens first and then replays the last stored event
	// of each matching subject, at the start and after each reconnect, so
	// that nothing that is still true is missed. ready, if not nil, is called
	// once the first replay is through. An error means that the subscription
	// could not be set up or was refused for good.
	Subscribe(ctx context.Context, f Filter, h Handler, ready func()) error
}
