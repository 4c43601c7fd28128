package azurekv

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// pendingType is the content type of a sibling, for whoever looks at a vault
// and wonders.
const pendingType = "pending version of a rotation; not tested yet"

// Pending implements [sibling.Driver]. Token, predecessor and value are of one
// version, which one call made, so there are no halves. A disabled newest
// version was cleared, or is a Conflict; which of them a list of versions
// tells, 25 a page.
func (d *driver) Pending(ctx context.Context, r ref.Ref) (*sibling.Pending, string, error) {
	const op = "azurekv: read pending"
	name := r.Name + sibling.Suffix
	it, err := d.get(ctx, op, r, name, "")
	switch {
	case isCode(err, codeNotFound):
		return nil, "", nil
	case isCode(err, codeDisabled):
		return nil, "", d.cleared(ctx, op, r, name)
	case err != nil:
		return nil, "", err
	case it.tags[tagPendingOf] != r.Name:
		return nil, "", foreign(op, r, name, it)
	case it.tags[tagCleared] != "" || it.tags[tagToken] == "":
		return nil, it.version, nil
	}
	return &sibling.Pending{ID: it.version, Token: it.tags[tagToken], After: it.tags[tagAfter], Created: it.created, Value: it.take()}, it.version, nil
}

func foreign(op string, r ref.Ref, name string, it *item) error {
	return fault.Newf(fault.Conflict, op,
		"secret %s in vault %s is not the sibling of %s, whose pending version would be kept there: its tag %s is %q; rename one of them", name, r.ScopePart(0), r, tagPendingOf, it.tags[tagPendingOf])
}

// cleared tells a sibling whose newest version was cleared from one that
// somebody disabled by hand, which is a Conflict: what is pending in it may be
// the only copy of a credential that is live, so nobody may be told that there
// is none. Of versions that were made in one second nobody can tell which is
// the newest, and one that was not cleared counts.
func (d *driver) cleared(ctx context.Context, op string, r ref.Ref, name string) error {
	all, err := d.versions(ctx, op, r, name)
	if isCode(err, codeNotFound) {
		return nil // deleted meanwhile, with what it held
	}
	if err != nil {
		return err
	}
	newest := latest(slices.DeleteFunc(slices.Clone(all), func(it *item) bool { return !it.disabled }))
	for _, it := range all {
		switch {
		case newest != nil && it.created.Before(newest.created) || it.tags[tagCleared] != "":
		case it.tags[tagPendingOf] != r.Name:
			return foreign(op, r, name, it)
		case it.tags[tagToken] == "": // made beforehand, and never used
		case it.disabled:
			at := fmt.Sprintf("az keyvault secret set-attributes --vault-name %s --name %s --version %s", r.ScopePart(0), name, it.version)
			return fault.Newf(fault.Conflict, op,
				"the version of rotation %s of %s, which is pending, was disabled by hand, though it may be in use; enable it with %s --enabled true, or, if you know that it is not, discard it with %s --tags %s=%s %s=by-hand",
				it.tags[tagToken], r, at, at, tagPendingOf, r.Name, tagCleared)
		default:
			// One that is enabled is not the newest, unless that has changed.
			if _, err := d.get(ctx, op, r, name, ""); err == nil {
				return &fault.Error{
					Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: op, Msg: "the pending version of " + r.String() + " was enabled or replaced meanwhile; read it again",
				}
			} else if !isCode(err, codeDisabled) {
				return err
			}
		}
	}
	return nil
}

// PutPending implements [sibling.Driver]. What would be refused when it is
// promoted is refused here, where no target knows of it yet. Conflict if the
// main secret moved on, or if a deleted sibling was recovered that holds a
// pending version.
func (d *driver) PutPending(ctx context.Context, r ref.Ref, _ string, p sibling.Pending) error {
	const op = "azurekv: put pending"
	if err := checkToken(op, p.Token); err != nil {
		return err
	}
	if err := checkValue(op, p.Value); err != nil {
		return err
	}
	cur, _, err := d.newest(ctx, op, r)
	if err != nil {
		return err
	}
	if cur.version != p.After {
		return moved(op, r, cur)
	}
	params, _, err := d.next(op, r, cur)
	if err != nil {
		return err
	}
	kind := pendingType
	params.ContentType = &kind
	params.Tags = pointers(map[string]string{tagPendingOf: r.Name, tagToken: p.Token, tagAfter: p.After})
	name := r.Name + sibling.Suffix
	_, err = d.set(ctx, op, r, name, p.Value, params)
	if !isCode(err, codeDeleted) && !isCode(err, codeBeingDeleted) && !isCode(err, codeBeingRecovered) {
		return err
	}
	return d.revive(ctx, op, r, p, params)
}

// revive recovers a sibling that somebody deleted, waits until it can be used,
// and stores p in it. Both take some seconds at the service, and a secret that
// is found already may still refuse to be written.
// https://github.com/Azure/azure-sdk-for-net/issues/31581
//
// What comes back may be a pending version, and that is not overwritten: it is
// the only trace of a credential that may be live.
func (d *driver) revive(ctx context.Context, op string, r ref.Ref, p sibling.Pending, params azsecrets.SetSecretParameters) error {
	name := r.Name + sibling.Suffix
	ctx, cancel := context.WithTimeout(ctx, d.opts.RecoveryWait)
	defer cancel()
	late := func(err error) error {
		if ctx.Err() == nil {
			return err
		}
		return &fault.Error{
			Kind: fault.Unavailable, Class: fault.ClassTimeout, Op: op,
			Msg: "secret " + name + " in vault " + r.ScopePart(0) + " was deleted and is not back yet after its recovery; try again", Err: ctx.Err(),
		}
	}
	for try := 0; ; try++ {
		if err := d.recover(ctx, op, r, name); err != nil {
			return late(err)
		}
		_, err := d.get(ctx, op, r, name, "")
		if err == nil || isCode(err, codeDisabled) {
			found, _, err := d.Pending(ctx, r)
			if err != nil {
				return late(err)
			}
			if found != nil {
				found.Value.Wipe()
				return fault.Newf(fault.Conflict, op, "secret %s in vault %s had been deleted while rotation %s was pending, and was recovered; read the secret again", name, r.ScopePart(0), found.Token)
			}
			_, err = d.set(ctx, op, r, name, p.Value, params)
			if !isCode(err, codeDeleted) && !isCode(err, codeBeingDeleted) && !isCode(err, codeBeingRecovered) {
				return late(err)
			}
		} else if !isCode(err, codeNotFound) {
			return late(err)
		}
		if err := pause(ctx, try); err != nil {
			return late(err)
		}
	}
}

// recover asks for the recovery of a sibling. One that is not deleted any more,
// or not yet, is no error: the caller looks again.
func (d *driver) recover(ctx context.Context, op string, r ref.Ref, name string) error {
	ctx, cancel, c, err := d.begin(ctx, op, r)
	if err != nil {
		return err
	}
	defer cancel()
	_, err = c.RecoverDeletedSecret(ctx, name, nil)
	if err == nil {
		return nil
	}
	err = classify(ctx, op, "recover the deleted secret "+name+" in vault "+r.ScopePart(0), err)
	if isCode(err, codeNotFound) || fault.Is(err, fault.Conflict) {
		return nil
	}
	return err
}

// pause waits a random while that grows with the number of tries, up to some
// seconds.
func pause(ctx context.Context, try int) error {
	limit := 10 * time.Millisecond << min(try, 8)
	t := time.NewTimer(time.Duration(rand.Int64N(int64(limit)) + int64(limit)/2)) //nolint:gosec // jitter, not a secret
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Clear implements [sibling.Driver]. It names the version that was read, so it
// cannot hit one that came later. A version that was cleared before has no
// rev.
func (d *driver) Clear(ctx context.Context, r ref.Ref, rev string) error {
	const op = "azurekv: clear pending"
	if rev == "" {
		return nil
	}
	enabled := false
	tags := map[string]string{tagPendingOf: r.Name, tagCleared: time.Now().UTC().Format(time.RFC3339)}
	err := d.update(ctx, op, r, r.Name+sibling.Suffix, rev, &enabled, tags)
	if isCode(err, codeNotFound) {
		return nil // deleted with what it held
	}
	return err
}
