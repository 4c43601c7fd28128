package main

import (
	"context"
	"fmt"

	"github.com/keyturn/keyturn/rotators"
)

// rollbackCmd makes the previous credential current again.
type rollbackCmd struct {
	Ref  string `arg:"" help:"The secret."`
	Undo bool   `help:"Roll the rollback itself back."`
}

func (c *rollbackCmd) Run(e *env) error {
	ctx, p, r, done, err := e.openSecret(c.Ref, 2*retireLimit, e.printPhase)
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
	case err != nil && resumable(err) && res.Token != "":
		return fmt.Errorf("%w\nNothing is lost: repeat the command, or leave it to the next rotation", err)
	case err != nil:
		return err
	case res.Already:
		_, _ = fmt.Fprintf(e.stdout, "%s: nothing to do, that was done already: version %s is current, %s is previous\n", r, res.Version, res.Previous)
		return nil
	}
	p.sched.AskGate(ctx, r)
	how := "rolled %s back: version %s is current, %s is previous\n"
	if c.Undo {
		how = "undid the rollback of %s: version %s is current, %s is previous\n"
	}
	_, _ = fmt.Fprintf(e.stdout, how, r, res.Version, orDash(res.Previous))
	return nil
}
