package main

import (
	"fmt"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// discardCmd drops a pending version. It is for a rotation that can never
// finish; any other is finished by rotating again.
type discardCmd struct {
	Ref   string `arg:"" help:"The secret."`
	Token string `help:"Token of the rotation to give up, as this command prints it without the flag." placeholder:"TOKEN"`
}

func (c *discardCmd) Run(e *env) error {
	ctx, p, r, done, err := e.openSecret(c.Ref, lookLimit, nil)
	if err != nil {
		return err
	}
	defer done()
	store, err := p.stores.of(ctx, r)
	if err != nil {
		return err
	}
	// Not beside a rotation: what it has just set would lose its only copy.
	ctx, unlock, err := p.hold(ctx, r)
	if err != nil {
		return err
	}
	defer unlock()
	d, err := store.Describe(ctx, r)
	if err != nil {
		return err
	}
	h := d.Holder(secrets.Pending)
	switch {
	case h == nil || d.Has(h.Token, secrets.Current):
		_, _ = fmt.Fprintf(e.stdout, "%s has no pending version; there is nothing to discard\n", r)
		return nil
	case c.Token == "":
		return fault.Newf(fault.Invalid, "discard", "rotation %s of %s is unfinished since %s. If the target honours its credential already, as a single database user does after set, this is its only copy: try keyturn rotate first. To drop it, repeat with --token %s", h.Token, r, h.Created.Format(time.RFC3339), h.Token)
	}
	if err := store.Discard(ctx, r, c.Token); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(e.stdout, "discarded pending version %s of %s\n", h.ID, r)
	return nil
}
