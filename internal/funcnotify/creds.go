package funcnotify

import (
	"bytes"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/keyturn/keyturn/fault"
)

// parseCredentials returns the option with which credentials sign in, told
// apart by content, in the three forms that keyturn tenants creds writes:
//
//   - a creds file, of a JWT and a seed;
//   - the seed of an nkey;
//   - name:password.
//
// Without any it is nil. The error is of kind Invalid and quotes nothing.
// https://docs.nats.io/using-nats/developer/connecting/creds
func parseCredentials(text []byte) (nats.Option, error) {
	const op = "NATS credentials"
	text = bytes.TrimSpace(text)
	if len(text) == 0 {
		return nil, nil
	}
	jwt := bytes.Contains(text, []byte("BEGIN NATS USER JWT"))
	if !jwt && !bytes.HasPrefix(text, []byte("SU")) {
		user, password, ok := strings.Cut(string(text), ":")
		if !ok || user == "" || password == "" || strings.ContainsAny(string(text), "\r\n") {
			return nil, fault.Newf(fault.Invalid, op, "found %d bytes; expected a creds file, the seed of an nkey, or name:password on one line", len(text))
		}
		return nats.UserInfo(user, password), nil
	}
	// The errors of nkeys are constants, and quote nothing.
	key, err := nkeys.ParseDecoratedUserNKey(text)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, err)
	}
	public, err := key.PublicKey()
	if err != nil {
		return nil, fault.New(fault.Invalid, op, err)
	}
	if !jwt {
		return nats.Nkey(public, key.Sign), nil
	}
	token, err := nkeys.ParseDecoratedJWT(text)
	if err != nil {
		return nil, fault.New(fault.Invalid, op, err)
	}
	return nats.UserJWT(func() (string, error) { return token, nil }, key.Sign), nil
}
