package rotators

import (
	"context"
	"errors"
	"fmt"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
)

// lock waits for the secret's lock in this process or the end of ctx.
func (r *Runner) lock(ctx context.Context, id ref.Ref) (unlock func(), err error) {
	_, unlock, err = r.locks.Lock(ctx, id.String())
	if err != nil {
		return nil, &fault.Error{
			Kind: fault.Unavailable, Class: fault.ClassConcurrency, Op: "rotate",
			Msg: fmt.Sprintf("waiting for another rotation of %s to end", id), Err: errors.Join(ctx.Err(), context.Cause(ctx)),
		}
	}
	return unlock, nil
}
