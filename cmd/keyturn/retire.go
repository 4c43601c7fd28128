package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// retireLimit bounds the commands of this file.
const retireLimit = time.Minute

// retireCmd takes what a rotation superseded out of use now.
type retireCmd struct {
	Ref   string `arg:"" help:"The secret."`
	Force bool   `help:"Whatever its gate says."`
}

func (c *retireCmd) Run(e *env) error {
	return e.onSecret(c.Ref, func(ctx context.Context, p *pipeline, r ref.Ref, runner *rotators.Runner) error {
		got, err := runner.Retire(ctx, r, c.Force)
		if n, waits := rotators.IsNotYet(err); waits {
			return fmt.Errorf("%w\nNothing was changed: %s. --force retires it all the same", err, nextLook(n.Until))
		}
		if err != nil {
			return err
		}
		what := "retired version %s of %s: disabled in the store; that the target refuses it was NOT seen. keyturn restore undoes it\n"
		if got.Proven {
			what = "retired version %s of %s: disabled in the store, and the target was seen to refuse it; keyturn restore undoes it\n"
		}
		switch {
		case got.Version == "":
			_, _ = fmt.Fprintf(e.stdout, "%s has no superseded version; there is nothing to retire\n", r)
			return nil
		case !got.Now:
			what = "version %s of %s was retired already\n"
		}
		_, _ = fmt.Fprintf(e.stdout, what, got.Version, r)
		return nil
	})
}

func nextLook(t time.Time) string {
	if t.IsZero() {
		return "no time alone changes that"
	}
	return "it is looked at again at " + t.UTC().Format(time.RFC3339)
}

// restoreCmd undoes retire.
type restoreCmd struct {
	Ref string `arg:"" help:"The secret."`
}

func (c *restoreCmd) Run(e *env) error {
	return e.onSecret(c.Ref, func(ctx context.Context, p *pipeline, r ref.Ref, runner *rotators.Runner) error {
		got, err := runner.Restore(ctx, r)
		if err != nil {
			return err
		}
		_, _ = fmt.Fprintf(e.stdout, "version %s of %s is enabled in the store again, and held: no rotation begins until keyturn retire lets it go\n", got.Version, r)
		switch {
		case got.Alive == nil:
			_, _ = fmt.Fprintln(e.stdout, "this rotator cannot tell whether its target honours it")
		case *got.Alive:
			_, _ = fmt.Fprintln(e.stdout, "the target honours it, beside the current one")
		default:
			_, _ = fmt.Fprintf(e.stdout, "the target does not honour it, and this rotator cannot change that beside the current one: %s\n", oneLine(got.Why))
			_, _ = fmt.Fprintf(e.stdout, "keyturn rollback %s makes it the current one again, where the target allows\n", r)
		}
		return nil
	})
}

func oneLine(err error) string {
	if err == nil {
		return "refused"
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// destroyCmd makes the value of a retired version unrecoverable.
type destroyCmd struct {
	Ref string `arg:"" help:"The secret."`
	ID  string `name:"id" help:"Id of the retired version, as this command prints it without the flag." placeholder:"ID"`
}

func (c *destroyCmd) Run(e *env) error {
	return e.onSecret(c.Ref, func(ctx context.Context, p *pipeline, r ref.Ref, runner *rotators.Runner) error {
		store, err := p.stores.of(ctx, r)
		if err != nil {
			return err
		}
		d, err := store.Describe(ctx, r)
		if err != nil {
			return err
		}
		h := d.Holder(secrets.Previous)
		switch {
		case c.ID != "":
		case h == nil:
			_, _ = fmt.Fprintf(e.stdout, "%s has no superseded version; there is nothing to destroy\n", r)
			return nil
		case !h.Disabled:
			return fault.Newf(fault.Conflict, "destroy", "version %s of %s is not retired; keyturn retire %s comes first", h.ID, r, r)
		default:
			return fault.Newf(fault.Invalid, "destroy", "version %s of %s is retired and can be restored. To make its value unrecoverable, repeat with --id %s", h.ID, r, h.ID)
		}
		if err := runner.Destroy(ctx, r, c.ID); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(e.stdout, "destroyed version %s of %s, as far as its provider allows\n", c.ID, r)
		return nil
	})
}

// onSecret opens the pipeline and calls f with the secret held against
// rotations elsewhere.
func (e *env) onSecret(text string, f func(context.Context, *pipeline, ref.Ref, *rotators.Runner) error) error {
	ctx, p, r, done, err := e.openSecret(text, retireLimit, nil)
	if err != nil {
		return err
	}
	defer done()
	return p.with(ctx, r, func(ctx context.Context, runner *rotators.Runner) error { return f(ctx, p, r, runner) })
}
