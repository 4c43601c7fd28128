package main

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/fault"
)

// connect opens a NATS connection that outlives outages.
func connect(c natsConfig, name string, log *slog.Logger) (*nats.Conn, error) {
	opts := []nats.Option{
		nats.Name(name), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond),
		// Two refusals in a row, as while credentials are exchanged, must not end
		// the connection for good.
		nats.IgnoreAuthErrorAbort(),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("NATS is away", "err", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("NATS is back") }),
		// What asked for something that is not allowed says so itself; the
		// client's own handler would print it once more.
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Debug("NATS client", "err", err) }),
	}
	auth, err := c.auth()
	if err != nil {
		return nil, err
	}
	if auth != nil {
		opts = append(opts, auth)
	}
	if c.InboxPrefix != "" {
		opts = append(opts, nats.CustomInboxPrefix(c.InboxPrefix))
	}
	if c.CAFile != "" {
		opts = append(opts, nats.RootCAs(c.CAFile))
	}
	nc, err := nats.Connect(c.URL, opts...)
	if err == nil {
		return nc, nil
	}
	out := &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: "connect to NATS", Err: err}
	if errors.Is(err, nats.ErrAuthorization) || errors.Is(err, nats.ErrAuthExpired) || errors.Is(err, nats.ErrAuthRevoked) {
		out.Kind, out.Class = fault.Denied, fault.ClassAuth
		out.Msg = fmt.Sprintf("the server at %s refuses the credentials; see nats.creds_file, nats.nkey_file, nats.user and nats.password_file", c.URL)
	} else {
		out.Msg = fmt.Sprintf("no server answers at %s; is it running, and nats.url right?", c.URL)
	}
	return nil, out
}

// auth is how the server knows us, or nil.
func (n natsConfig) auth() (nats.Option, error) {
	var out []nats.Option
	if n.CredsFile != "" {
		if _, err := readKeyFile(n.CredsFile); err != nil {
			return nil, fmt.Errorf("nats.creds_file: %w", err)
		}
		out = append(out, nats.UserCredentials(n.CredsFile))
	}
	if n.NKeyFile != "" {
		if _, err := readKeyFile(n.NKeyFile); err != nil {
			return nil, fmt.Errorf("nats.nkey_file: %w", err)
		}
		seed, err := nats.NkeyOptionFromSeed(n.NKeyFile)
		if err != nil { // its text could quote the seed
			return nil, fault.Newf(fault.Invalid, "config", "nats.nkey_file: %s holds no nkey seed; expected a file that keyturn tenants creds has written", n.NKeyFile)
		}
		out = append(out, seed)
	}
	if n.PasswordFile != "" {
		user := n.User
		password, err := readKeyFile(n.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("nats.password_file: %w", err)
		}
		if user == "" { // as keyturn tenants creds --kind password writes it
			var ok bool
			if user, password, ok = strings.Cut(password, ":"); !ok {
				return nil, fault.Newf(fault.Invalid, "config", "nats.user is missing; expected it, or NAME:PASSWORD in nats.password_file")
			}
		}
		out = append(out, nats.UserInfo(user, password))
	} else if n.User != "" {
		return nil, fault.Newf(fault.Invalid, "config", "nats.user is set and nats.password_file is missing")
	}
	switch len(out) {
	case 0:
		return nil, nil
	case 1:
		return out[0], nil
	}
	return nil, fault.Newf(fault.Invalid, "config", "nats has several kinds of credentials; expected one of creds_file, nkey_file and password_file")
}
