package vaultkv

import (
	"context"
	"strings"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// An AppRole signs in with a role id and a secret id, which a supervisor puts
// into a file and renews there. The file is read at each sign-in, so a secret
// id may be short-lived and good for one use: the supervisor writes another
// one for the next.
//
// Where the file holds a wrapping token instead (Wrapped), the secret id is
// seen by nobody on the way. Before it is unwrapped its creation path is
// compared: a token that somebody put in its place was made elsewhere. A
// wrapping token that does not exist any more may have been unwrapped by a
// thief, and the error says so. A secret id that was unwrapped is kept in
// memory until Vault has taken or refused it: an outage between the two does
// not lose it.
// https://developer.hashicorp.com/vault/docs/auth/approle
// https://developer.hashicorp.com/vault/docs/concepts/response-wrapping#response-wrapping-token-validation
type AppRole struct {
	// RoleID is the role's id, which is no secret by itself.
	RoleID string
	// SecretIDFile is the file with the secret id or its wrapping token. Others
	// than its owner and group may not read it.
	SecretIDFile string
	// Wrapped says that the file holds a wrapping token.
	Wrapped bool
	// Role is the role's name, which is needed with Wrapped.
	Role string
	// Mount is where AppRole is mounted, "approle" by default.
	Mount string
}

func (AppRole) owned() bool { return true }

func (a AppRole) mount() string {
	if a.Mount == "" {
		return "approle"
	}
	return strings.Trim(a.Mount, "/")
}

// An unwrapped is a secret id that was unwrapped and not used yet, and the
// wrapping token that it was in, which is good for nothing any more.
type unwrapped struct {
	secretID secrets.Value
	token    string
}

// wipe forgets the secret id.
func (u *unwrapped) wipe() { u.secretID.Wipe() }

// settle forgets the secret id once Vault has taken or refused it.
func (u *unwrapped) settle(err error) {
	// A certificate that is not trusted is Denied by us.
	if err == nil || fault.Is(err, fault.Denied) && fault.ClassOf(err) != fault.ClassTLS {
		u.wipe()
	}
}

// unused reports whether a sign-in failed with a secret id that is still good.
func (u *unwrapped) unused(err error) bool { return err != nil && !u.secretID.IsZero() }

// login implements [Method]. A sign-in whose answer was lost has used a secret
// id that is good for one use; the next needs another.
func (a AppRole) login(ctx context.Context, c *conn, ns string, u *unwrapped) (*lease, error) {
	op := "vaultkv: sign in with AppRole " + a.mount()
	if a.RoleID == "" || a.SecretIDFile == "" || a.Wrapped && a.Role == "" {
		return nil, fault.Newf(fault.Invalid, op, "expected a role id and a file for the secret id, and the role's name for a wrapped one")
	}
	if err := checkPath(op, "mount", a.mount()); err != nil {
		return nil, err
	}
	secretID, err := a.secretID(ctx, op, c, ns, u)
	if err != nil {
		return nil, err
	}
	got, err := c.putAs(ctx, op, ns, "", "auth/"+a.mount()+"/login", map[string]string{"role_id": a.RoleID, "secret_id": secretID})
	var l *lease
	if err == nil {
		l, err = got.auth(op)
	}
	u.settle(err)
	return l, err
}

// secretID returns the secret id that u keeps, or the one in the file.
func (a AppRole) secretID(ctx context.Context, op string, c *conn, ns string, u *unwrapped) (string, error) {
	if !u.secretID.IsZero() {
		return string(u.secretID.Reveal()), nil
	}
	word, err := readCredential(op, a.SecretIDFile, "a secret id or its wrapping token")
	if err != nil || !a.Wrapped {
		return word, err
	}
	if word == u.token {
		return "", &fault.Error{
			Kind: fault.Denied, Class: fault.ClassAuth, Op: op,
			Msg: "the wrapping token in " + a.SecretIDFile + " was unwrapped by this session already, and its secret id taken or refused; wrap another one",
		}
	}
	secretID, err := a.unwrap(ctx, c, ns, word)
	if err != nil {
		return "", err
	}
	u.secretID, u.token = secrets.NewString(secretID), word
	return secretID, nil
}

// unwrap exchanges a wrapping token for the secret id in it.
func (a AppRole) unwrap(ctx context.Context, c *conn, ns, token string) (string, error) {
	const op = "vaultkv: unwrap secret id"
	got, err := c.putAs(ctx, op, ns, "", "sys/wrapping/lookup", map[string]string{"token": token})
	if err != nil {
		return "", err
	}
	var info struct {
		Path string `json:"creation_path"`
	}
	if err := got.data(op, &info); err != nil {
		return "", err
	}
	want := "auth/" + a.mount() + "/role/" + a.Role + "/secret-id"
	// A path in a namespace is told from the root.
	if path := strings.TrimPrefix(info.Path, strings.Trim(ns, "/")+"/"); path != want {
		return "", &fault.Error{
			Kind: fault.Denied, Class: fault.ClassAuth, Op: op,
			Msg: "the wrapping token in " + a.SecretIDFile + " was made at " + info.Path + ", expected " + want + ": somebody may have put it there in place of the real one; it was left wrapped",
		}
	}
	got, err = c.putAs(ctx, op, ns, token, "sys/wrapping/unwrap", map[string]string{})
	if err != nil {
		return "", err
	}
	var wrapped struct {
		SecretID string `json:"secret_id"`
	}
	if err := got.data(op, &wrapped); err != nil {
		return "", err
	}
	if wrapped.SecretID == "" {
		return "", fault.Newf(fault.Invalid, op, "what was wrapped holds no secret id")
	}
	return wrapped.SecretID, nil
}
