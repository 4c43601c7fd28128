package gcpsm

import (
	"context"
	"fmt"
	"strings"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// revPrefix begins the rev of a sibling that exists; the rest is the text of
// its pointer, which may be empty. The etag would not do: it says that something
// changed, and labels may.
const revPrefix = "pointer "

// Pending implements [sibling.Driver]. A sibling that is denied may hold a
// pending version or not be there at all; what is unknown is not taken for
// nothing pending.
func (d *driver) Pending(ctx context.Context, r ref.Ref) (*sibling.Pending, string, error) {
	const op = "gcpsm: read pending"
	p, err := d.place(ctx, op, r)
	if err != nil {
		return nil, "", err
	}
	p = p.sibling()
	sec, err := p.get(ctx)
	if fault.Is(err, fault.NotFound) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", advise(err, op, fmt.Sprintf("the service does not tell whether %s is missing or may not be read; "+
			"make it, with the replication of %s, and grant on it what is granted there; or grant secretmanager.secrets.get on the project, with a condition on resource.name", p.name(), r))
	}
	rev := revPrefix + sec.GetAnnotations()[annPending]
	at := annotation[pointer](sec, annPending)
	if at.Cleared || at.Token == "" || !versionForm.MatchString(at.Version) {
		return nil, rev, nil
	}
	v, state, err := p.enabled(ctx, at.Version)
	switch {
	case fault.Is(err, fault.NotFound) || err == nil && ended(state):
		return nil, rev, nil // cleared by somebody who died before noting it
	case err != nil:
		return nil, "", err
	case state != nil:
		return nil, "", fault.Newf(fault.Conflict, op, "version %s of %s, which rotation %s has pending, was disabled by somebody else, and its credential may be in use; "+
			"enable it (gcloud secrets versions enable) to go on, or destroy it (gcloud secrets versions destroy) to discard it", at.Version, p.name(), at.Token)
	}
	return &sibling.Pending{ID: at.Version, Token: at.Token, After: at.After, Created: at.Created, Value: v}, rev, nil
}

// PutPending implements [sibling.Driver]. The value is added first, and pending
// once the pointer names it.
func (d *driver) PutPending(ctx context.Context, r ref.Ref, rev string, pending sibling.Pending) error {
	const op = "gcpsm: put pending"
	main, err := d.place(ctx, op, r)
	if err != nil {
		return err
	}
	if err := checkToken(op, pending.Token); err != nil {
		return err
	}
	if err := checkValue(op, pending.Value); err != nil {
		return err
	}
	sec, err := main.get(ctx)
	if err != nil {
		return err
	}
	if err := room(op, sec, pending.Token, !d.opts.NoAliases); err != nil {
		return err
	}
	p := main.sibling()
	if rev == "" {
		if _, err := p.create(ctx, siblingOf(sec, main.id)); err != nil {
			// One that is there by now is a Conflict.
			return advise(err, op, fmt.Sprintf("%s is not there and may not be made; make it, with the replication of %s, and grant on it what is granted there; "+
				"or grant secretmanager.secrets.create on the project, and the rest there too", p.name(), r))
		}
		rev = revPrefix
	}
	v, err := p.add(ctx, pending.Value)
	if err != nil {
		return err
	}
	at := pointer{Version: number(v.GetName()), Token: pending.Token, After: pending.After, Created: v.GetCreateTime().AsTime()}
	err = p.point(ctx, main.id, rev, at)
	if refused(err) {
		p.drop(ctx, at.Version)
	}
	return err
}

// siblingOf says what the sibling of a secret is made like; the package comment
// says why it lacks the rest.
func siblingOf(sec *secretmanagerpb.Secret, id string) *secretmanagerpb.Secret {
	out := &secretmanagerpb.Secret{
		Labels:                    sec.GetLabels(),
		CustomerManagedEncryption: sec.GetCustomerManagedEncryption(),
		Annotations:               map[string]string{annSecret: id},
	}
	if sec.GetReplication() != nil {
		out.Replication = proto.CloneOf(sec.GetReplication())
	}
	return out
}

// pointTries bounds how often point begins again because something else on the
// sibling changed.
const pointTries = 10

// point sets the pointer, if it still is what was read at rev.
func (p place) point(ctx context.Context, mainID, rev string, at pointer) error {
	for try := 0; ; try++ {
		sec, err := p.get(ctx)
		if err != nil {
			return err
		}
		if revPrefix+sec.GetAnnotations()[annPending] != rev {
			return &fault.Error{
				Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: "gcpsm: update secret " + p.name(),
				Msg: "another rotation stored or cleared its pending version meanwhile; read the secret again",
			}
		}
		annotate(sec, annPending, at)
		sec.Annotations[annSecret] = mainID // one that somebody made before has none
		_, err = p.update(ctx, sec, "annotations")
		if !isCode(err, codes.FailedPrecondition) && !isCode(err, codes.Aborted) || try == pointTries {
			return err
		}
	}
}

// Clear implements [sibling.Driver]. With delayed destruction the version is
// disabled at once and destroyed later, which is as good: the pointer says that
// it was cleared, so enabling it does not bring it back.
func (d *driver) Clear(ctx context.Context, r ref.Ref, rev string) error {
	p, err := d.place(ctx, "gcpsm: clear pending", r)
	if err != nil {
		return err
	}
	p = p.sibling()
	at := annotation[pointer](&secretmanagerpb.Secret{
		Annotations: map[string]string{annPending: strings.TrimPrefix(rev, revPrefix)},
	}, annPending)
	if !versionForm.MatchString(at.Version) {
		return nil
	}
	if err := p.destroy(ctx, at.Version, anyState); err != nil {
		return err
	}
	if at.Cleared {
		return nil
	}
	// From here on nothing is pending. What follows is repeated by nobody and
	// may fail: it saves the next reader a call, and tidies up.
	p.tidy(ctx, at.Version)
	mainID := strings.TrimSuffix(p.id, sibling.Suffix)
	at.Cleared = true
	if err := p.point(ctx, mainID, rev, at); err != nil && !fault.Is(err, fault.Conflict) {
		d.opts.Logger.WarnContext(ctx, "could not note that a pending version was cleared; it is", "ref", r.String(), "version", at.Version, "error", err)
	}
	return nil
}

// tidy destroys what was added before version id and never became pending: who
// added it died, or came second.
func (p place) tidy(ctx context.Context, id string) {
	var stale []string
	err := p.versions(ctx, func(v *secretmanagerpb.SecretVersion) bool {
		n := number(v.GetName())
		if after(id, n) && v.GetState() != secretmanagerpb.SecretVersion_DESTROYED && v.GetScheduledDestroyTime() == nil {
			stale = append(stale, n)
		}
		// A row of destroyed ones has been tidied before.
		return ordinal(id)-ordinal(n) < 50
	})
	for _, n := range stale {
		if err == nil {
			err = p.destroy(ctx, n, anyState)
		}
	}
	if err != nil {
		p.d.opts.Logger.WarnContext(ctx, "could not destroy versions that never became pending", "secret", p.name(), "error", err)
	}
}

// drop destroys a version that lost, as far as that is possible.
func (p place) drop(ctx context.Context, id string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.d.opts.Timeout)
	defer cancel()
	if err := p.destroy(ctx, id, anyState); err != nil {
		p.d.opts.Logger.WarnContext(ctx, "could not destroy a version that never became pending; the next rotation will", "secret", p.name(), "version", id, "error", err)
	}
}

// anyState lets a version of the sibling be destroyed that can still be read.
func anyState(*secretmanagerpb.SecretVersion) error { return nil }

func checkToken(op, token string) error {
	if token == "" || len(token) > maxToken {
		return fault.Newf(fault.Invalid, op, "the rotation token has %d bytes; expected 1 to %d, such as a UUID", len(token), maxToken)
	}
	return nil
}

func checkValue(op string, v secrets.Value) error {
	if n := v.Len(); n == 0 || n > MaxValue {
		return fault.Newf(fault.Invalid, op, "the value has %d bytes; expected 1 to %d", n, MaxValue)
	}
	return nil
}
