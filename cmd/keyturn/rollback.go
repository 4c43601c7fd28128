package main

import (
	"context"
	"fmt"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
)

// rollbackCmd makes the previous credential current again.
type rollbackCmd struct {
	Ref  string `arg:"" help:"The secret."`
	Undo bool   `help:"Roll the rollback itself back."`
}

func (c *rollbackCmd) Run(e *env) error {
	r, err := ref.Parse(c.Ref)
	if err != nil {
		return err
	}
	ctx, p, done, err := e.open(2*retireLimit, e.printPhase)
	if err != nil {
		return err
	}
	defer done()
	var res rotators.Result
	err = p.with(ctx, r, func(ctx context.Context, runner *rotators.Runner) (err error) {
		res, err = runner.Rollback(ctx, r, c.Undo)
		return err
	})
	switch {
	case err != nil && fault.Retryable(err) && res.Token != "":
		return fmt.Errorf("%w\nNothing is lost: repeat the command, or leave it to the next rotation", err)
	case err != nil:
		return err
	case res.Already:
		_, _ = fmt.Fprintf(e.stdout, "%s was rolled back already: version %s is current; --undo goes back to %s\n", r, res.Version, res.Previous)
		return nil
	}
	p.sched.AskGate(ctx, r)
	_, _ = fmt.Fprintf(e.stdout, "rolled %s back: version %s is current, %s is previous\n", r, res.Version, orDash(res.Previous))
	return nil
}
