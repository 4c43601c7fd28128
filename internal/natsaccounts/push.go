package natsaccounts

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/keyturn/keyturn/fault"
)

// claimsUpdate is where a server with a full resolver takes account JWTs, from
// users of the system account. Each of a cluster's servers tells the others.
// https://docs.nats.io/running-a-nats-service/configuration/sys_accounts
const claimsUpdate = "$SYS.REQ.CLAIMS.UPDATE"

// A Request sends a NATS request as a user of the system account, and returns
// the first answer.
type Request func(ctx context.Context, subject string, body []byte) ([]byte, error)

// Push tells a running server the accounts of b, or only those that are named.
// It may be repeated: an account that is the same changes nothing. An error is
// of kind Unavailable if the server does not answer, and Denied if it refuses
// an account; those before it are taken.
func (b *Bundle) Push(ctx context.Context, send Request, names ...string) error {
	only := map[string]bool{}
	for _, n := range names {
		only[n] = true
	}
	for _, a := range b.Accounts {
		if len(only) > 0 && !only[a.Name] {
			continue
		}
		op := "push account " + a.Name
		body, err := send(ctx, claimsUpdate, []byte(a.JWT))
		if err != nil {
			return &fault.Error{Kind: fault.Unavailable, Op: op, Msg: "no answer; expected a server with a full resolver of this operator", Err: err}
		}
		var answer struct {
			Data  *struct{ Code int }
			Error *struct{ Description string }
		}
		switch err := json.Unmarshal(body, &answer); {
		case err != nil:
			return fault.New(fault.Unavailable, op, fmt.Errorf("the answer is no JSON of a server: %w", err))
		case answer.Error != nil:
			return fault.Newf(fault.Denied, op, "the server refuses it: %s", answer.Error.Description)
		case answer.Data == nil || answer.Data.Code != 200:
			return fault.Newf(fault.Unavailable, op, "the server's answer says neither yes nor no; expected nats-server 2.10 or later")
		}
	}
	return nil
}
