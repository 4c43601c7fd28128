package main

import (
	"fmt"
	"io"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// createCmd puts the first value of a secret into its store. What is there
// already is left alone: rotations replace values, nothing else does.
type createCmd struct {
	Ref string `arg:"" help:"The secret, as a whole ref. It need not be configured."`
}

// maxFirst bounds standard input; stores take 64 KiB at most.
const maxFirst = 64 << 10

func (c *createCmd) Run(e *env) error {
	r, err := ref.Parse(c.Ref)
	if err != nil {
		return err
	}
	b, err := io.ReadAll(io.LimitReader(e.stdin, maxFirst+1))
	if err != nil {
		return fmt.Errorf("read standard input: %w", err)
	}
	defer clear(b)
	if len(b) == 0 || len(b) > maxFirst {
		return fault.Newf(fault.Invalid, "create", "standard input has %d bytes or more; expected the value, 1 to %d bytes", len(b), maxFirst)
	}
	ctx, p, done, err := e.open(lookLimit, nil)
	if err != nil {
		return err
	}
	defer done()
	store, err := p.stores.of(ctx, r)
	if err != nil {
		return err
	}
	s, ok := store.(secrets.Creator)
	if !ok {
		return fault.Newf(fault.Invalid, "create", "the store of %s makes no secrets; make it with its provider's own tools", r)
	}
	v, err := s.CreateSecret(ctx, r, secrets.NewValue(b))
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(e.stdout, "created %s: version %s, %d bytes\n", r, v.ID, len(b))
	return nil
}
