package gcpsm

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// Append implements [sibling.Driver]. What it does about other writers, and
// what it cannot, is in the package comment.
func (d *driver) Append(ctx context.Context, r ref.Ref, m *sibling.Main, pending sibling.Pending) (string, error) {
	const op = "gcpsm: promote"
	p, err := d.place(ctx, op, r)
	if err != nil {
		return "", err
	}
	if err := checkValue(op, pending.Value); err != nil {
		return "", err
	}
	current := ""
	if m.Current != nil {
		current = m.Current.ID
	}
	sec, err := p.get(ctx)
	if err != nil {
		return "", err
	}
	if sec.GetEtag() != m.Rev {
		return "", moved(op, r)
	}
	if err := room(op, sec, pending.Token, !d.opts.NoAliases); err != nil {
		return "", err
	}
	if c := annotation[claim](sec, annClaim); c.ID != "" && c.After == current && !d.spent(c) {
		if err := p.outlast(ctx, op, r, m.Rev, current); err != nil {
			return "", err
		}
	}
	// One deadline for all of it: who waits for this claim counts on it.
	ctx, cancel := context.WithTimeout(ctx, d.opts.Timeout)
	defer cancel()
	annotate(sec, annClaim, d.claim(current))
	if sec, err = p.update(ctx, sec, "annotations"); err != nil {
		return "", err
	}
	id, err := p.addAfter(ctx, op, r, current, pending.Value)
	if refused(err) {
		// Nothing will be added under this claim, so nobody need wait for it.
		annotate(sec, annClaim, nil)
		if _, uerr := p.update(ctx, sec, "annotations"); uerr != nil {
			d.opts.Logger.DebugContext(ctx, "could not take a claim back; it ends by itself", "ref", r.String(), "error", uerr)
		}
	}
	return id, err
}

func (d *driver) claim(current string) claim {
	return claim{ID: rand.Text(), After: current, Locked: d.opts.Locker != nil}
}

// spent reports whether the holder of a claim certainly adds nothing more: it
// had the lock that we have now. One that was made without a lock may be about
// to, whatever we hold.
func (d *driver) spent(c claim) bool { return c.Locked && d.opts.Locker != nil }

// addAfter adds v if the newest version is current.
func (p place) addAfter(ctx context.Context, op string, r ref.Ref, current string, v secrets.Value) (string, error) {
	newest, err := p.newest(ctx)
	if err != nil {
		return "", err
	}
	if idOf(newest) != current {
		return "", moved(op, r)
	}
	added, err := p.add(ctx, v)
	if err != nil {
		return "", err
	}
	return number(added.GetName()), nil
}

func idOf(v *secretmanagerpb.SecretVersion) string {
	if v == nil {
		return ""
	}
	return number(v.GetName())
}

func moved(op string, r ref.Ref) error {
	return &fault.Error{
		Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: op,
		Msg: r.String() + " was written to meanwhile; read the secret again",
	}
}

// outlast waits for the holder of a claim to add its version, which is a
// Conflict, or for so long that it cannot any more. Only our own clock counts,
// from when we first saw the claim.
func (p place) outlast(ctx context.Context, op string, r ref.Ref, etag, current string) error {
	over := time.Now().Add(p.d.opts.Timeout + p.d.opts.Timeout/4)
	pause := 20 * time.Millisecond
	for {
		left := time.Until(over)
		if left <= 0 {
			return nil
		}
		t := time.NewTimer(min(pause, left))
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return &fault.Error{
				Kind: fault.Unavailable, Class: fault.ClassConcurrency, Op: op, Err: ctx.Err(),
				Msg: fmt.Sprintf("somebody claimed %s and may be about to add a version; allow more than %s", r, p.d.opts.Timeout+p.d.opts.Timeout/4),
			}
		}
		pause = min(2*pause, time.Second)
		sec, err := p.get(ctx)
		if err != nil {
			return err
		}
		newest, err := p.newest(ctx)
		if err != nil {
			return err
		}
		if sec.GetEtag() != etag || idOf(newest) != current {
			return moved(op, r)
		}
	}
}

// recordTries bounds how often Record begins again because somebody else
// changed the secret.
const recordTries = 10

// Record implements [sibling.Driver]: one update for annotations and aliases.
func (d *driver) Record(ctx context.Context, r ref.Ref, id, token, previous string) error {
	p, err := d.place(ctx, "gcpsm: record", r)
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		sec, err := p.get(ctx)
		if err != nil {
			return err
		}
		fields := []string{"annotations"}
		if !d.opts.NoAliases {
			fields = append(fields, "version_aliases")
		}
		if !supersede(sec, id, token, previous, !d.opts.NoAliases) {
			return nil
		}
		_, err = p.update(ctx, sec, fields...)
		if !isCode(err, codes.FailedPrecondition) && !isCode(err, codes.Aborted) || try == recordTries {
			return err
		}
	}
}

// Create implements [sibling.Driver]. A global secret gets the automatic
// replication policy. The secret begins with a claim on it, so that who finds
// it without a version knows that one may be on its way.
func (d *driver) Create(ctx context.Context, r ref.Ref, v secrets.Value) (*sibling.Version, error) {
	const op = "gcpsm: create secret"
	p, err := d.place(ctx, op, r)
	if err != nil {
		return nil, err
	}
	if err := checkValue(op, v); err != nil {
		return nil, err
	}
	if d.opts.Locker != nil {
		held, unlock, err := d.opts.Locker.Lock(ctx, "secret "+r.String())
		if err != nil {
			return nil, err
		}
		defer unlock()
		ctx = held
	}
	id, err := d.createWith(ctx, op, p, r, v)
	if err != nil {
		return nil, err
	}
	if err := d.Record(ctx, r, id, "", ""); err != nil {
		return nil, err
	}
	made, err := p.info(ctx, id)
	if err != nil {
		return nil, err
	}
	return &sibling.Version{ID: id, Created: made.GetCreateTime().AsTime()}, nil
}

func (d *driver) createWith(ctx context.Context, op string, p place, r ref.Ref, v secrets.Value) (string, error) {
	sec := &secretmanagerpb.Secret{}
	if r.ScopePart(1) == "" {
		sec.Replication = &secretmanagerpb.Replication{Replication: &secretmanagerpb.Replication_Automatic_{
			Automatic: &secretmanagerpb.Replication_Automatic{},
		}}
	}
	annotate(sec, annClaim, d.claim(""))
	within, cancel := context.WithTimeout(ctx, d.opts.Timeout) // as in Append
	defer cancel()
	_, err := p.create(within, sec)
	if err == nil {
		return p.addAfter(within, op, r, "", v)
	}
	if !isCode(err, codes.AlreadyExists) {
		return "", err
	}
	m, err := d.Main(ctx, r)
	if err != nil {
		return "", err
	}
	if m.Current != nil {
		return "", fault.Newf(fault.Conflict, op, "%s exists; it was left as it is", r)
	}
	return d.Append(ctx, r, m, sibling.Pending{Value: v})
}
