package main

import (
	"fmt"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/rotators"
)

// rotateCmd rotates one secret in this process. A running serve or dev may
// rotate the same one: the store's compare-and-swap and the rotators'
// idempotence make both end with one result.
type rotateCmd struct {
	Ref     string        `arg:"" help:"The secret, such as nats://keyturn/acme/llm-key."`
	Token   string        `help:"Rotation token. The same one twice rotates once; made up by default."`
	Timeout time.Duration `help:"Longest time for all four phases." default:"2m"`
	DryRun  bool          `help:"Change nothing: check the store, the gate, and what can be told of the target."`
	Force   bool          `help:"Do not wait for the gate of the superseded credential or the minimum age: a leak is worse."`
}

func (c *rotateCmd) Run(e *env) error {
	if c.DryRun {
		return c.dryRun(e)
	}
	ctx, p, r, done, err := e.openSecret(c.Ref, c.Timeout, e.printPhase, func(o *rotators.Options) { o.Force = c.Force })
	if err != nil {
		return err
	}
	defer done()
	res, err := p.rotate(ctx, r, c.Token)
	if _, waits := rotators.IsNotYet(err); waits {
		return fmt.Errorf("%w\nNothing was changed. --force rotates all the same", err)
	}
	if err != nil && res.Token != "" && resumable(err) {
		return fmt.Errorf("%w\nNothing is lost: repeat with --token %s to finish this rotation, or leave it to the next one", err, res.Token)
	}
	if err != nil {
		return err
	}
	how := "rotated"
	if res.Resumed {
		how = "finished the unfinished rotation of"
	}
	_, _ = fmt.Fprintf(e.stdout, "%s %s: version %s is current, %s is previous (token %s)\n", how, r, res.Version, orDash(res.Previous), res.Token)
	return nil
}

// printPhase prints a phase that ended.
func (e *env) printPhase(pr rotators.Progress) {
	state := "done"
	if pr.Err != nil {
		state = "failed: " + failureText(pr.Err)
	}
	_, _ = fmt.Fprintf(e.stdout, "%-7s %-8s %s\n", pr.Phase, short(pr.Took), state)
}

// dryRun prints every check, and fails if one does.
func (c *rotateCmd) dryRun(e *env) error {
	ctx, p, r, done, err := e.openSecret(c.Ref, c.Timeout, nil, func(o *rotators.Options) { o.Force = c.Force })
	if err != nil {
		return err
	}
	defer done()
	runner, err := p.runner(ctx, r)
	if err != nil {
		return err
	}
	failed := 0
	for _, check := range runner.DryRun(ctx, r) {
		if check.Err != nil {
			failed++
			_, _ = fmt.Fprintf(e.stdout, "FAILED  %s: %v\n", check.What, check.Err)
			continue
		}
		_, _ = fmt.Fprintf(e.stdout, "ok      %s\n", check.What)
	}
	if failed > 0 {
		return fmt.Errorf("%d checks failed; nothing was changed", failed)
	}
	_, _ = fmt.Fprintln(e.stdout, "a rotation should work; nothing was changed")
	return nil
}

// resumable reports whether the same command may finish what err ended.
func resumable(err error) bool {
	switch fault.KindOf(err) {
	case fault.Unavailable, fault.Denied, fault.Unknown:
		return true
	case fault.NotFound, fault.Conflict, fault.Invalid:
	}
	return false
}

func orDash(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// failureText is an error with what kind it is.
func failureText(err error) string {
	s := fault.KindOf(err).String()
	if c := fault.ClassOf(err); c != "" {
		s += "/" + string(c)
	}
	return s
}
