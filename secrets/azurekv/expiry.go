package azurekv

import (
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// nearExpiry is how long before its expiry a version's SecretNearExpiry comes.
// https://learn.microsoft.com/azure/event-grid/event-schema-key-vault
const nearExpiry = 30 * 24 * time.Hour

// NearExpiryLoop reports whether rotations that SecretNearExpiry starts would
// never end with versions that are valid so long. Key Vault raises that event
// 30 days before a version expires, and at once for one that is valid no
// longer than that: each rotation would ask for the next.
//
// minAge is the way out for who wants a short validity: start no rotation
// while the current version is younger, which is two thirds of the validity.
// The rotation then has to be started by a schedule, since the event came when
// it was too early and does not come again. A [Store] refuses such a validity
// unless [Options.ShortValidity] says that this was seen to.
//
// https://learn.microsoft.com/azure/key-vault/secrets/tutorial-rotation
func NearExpiryLoop(validity time.Duration) (minAge time.Duration, loops bool) {
	if validity <= 0 || validity > nearExpiry {
		return 0, false
	}
	return validity / 3 * 2, true
}

// expiry says when a version that succeeds cur expires, or nil if it does not.
// cur may be nil.
func (d *driver) expiry(op string, r ref.Ref, cur *item) (*time.Time, error) {
	validity := d.opts.Validity
	if validity == 0 && cur != nil && cur.expires != nil {
		validity = cur.expires.Sub(cur.created)
		if validity <= 0 {
			return nil, fault.Newf(fault.Invalid, op,
				"version %s of %s had expired when it was made, so it does not tell how long the next one is valid; set the store's validity", cur.version, r)
		}
	}
	if validity == 0 {
		return nil, nil //nolint:nilnil // it never expires
	}
	if minAge, loops := NearExpiryLoop(validity); loops && !d.opts.ShortValidity {
		return nil, fault.Newf(fault.Invalid, op,
			"a new version of %s would be valid for %s, and Key Vault announces SecretNearExpiry at once for all that expire within 30 days, which starts the next rotation; "+
				"make the validity longer, or allow a short one and rotate no version that is younger than %s", r, validity, minAge)
	}
	at := time.Now().Add(validity).UTC().Truncate(time.Second)
	return &at, nil
}
