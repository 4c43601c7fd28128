package natsaccounts

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/keyturn/keyturn/fault"
)

// ServerConfig is the fragment of nats-server.conf for a full resolver: the
// server keeps the accounts in dir, starts with those of the bundle, and takes
// newer ones over the system account. The preloaded ones are only for a dir
// that does not have them yet.
// https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt/resolver
func (b *Bundle) ServerConfig(dir string) string {
	var w strings.Builder
	_, _ = fmt.Fprintf(&w, "# Written by keyturn tenants; include it from nats-server.conf.\noperator: %s\nsystem_account: %s\n", b.Operator, b.System)
	_, _ = fmt.Fprintf(&w, "resolver: {type: full, dir: %s, allow_delete: false, interval: \"2m\"}\n", strconv.Quote(dir))
	b.preload(&w)
	return w.String()
}

// MemoryConfig is the same for a server that reads the accounts from its
// configuration alone: after each change it must be written and reloaded.
func (b *Bundle) MemoryConfig() string {
	var w strings.Builder
	_, _ = fmt.Fprintf(&w, "# Written by keyturn tenants; include it from nats-server.conf.\noperator: %s\nsystem_account: %s\nresolver: MEMORY\n", b.Operator, b.System)
	b.preload(&w)
	return w.String()
}

func (b *Bundle) preload(w *strings.Builder) {
	_, _ = w.WriteString("resolver_preload: {\n")
	for _, a := range b.Accounts {
		_, _ = fmt.Fprintf(w, "  # %s\n  %s: %s\n", a.Name, a.Key, a.JWT)
	}
	_, _ = w.WriteString("}\n")
}

// PlainConfig is the fragment of nats-server.conf of the form [Config]: the
// same accounts, with users by public key or bcrypt hash. After each change it
// must be written and reloaded.
func (s *State) PlainConfig() (string, error) {
	if s.Form != Config {
		return "", fault.Newf(fault.Invalid, "plain config", "the accounts are JWTs of an operator; expected the form %q", Config)
	}
	var w strings.Builder
	line := func(indent int, format string, args ...any) {
		_, _ = fmt.Fprintf(&w, strings.Repeat("  ", indent)+format+"\n", args...)
	}
	q := strconv.Quote
	line(0, "# Written by keyturn tenants; include it from nats-server.conf.")
	line(0, "accounts: {")
	line(1, "%s: {", q(Platform))
	line(2, "jetstream: enabled")
	line(2, "users: [")
	for i := range s.Platform.Users {
		for _, l := range s.Platform.Users[i].Logins {
			line(3, "{%s}", login(l))
		}
	}
	line(2, "]")
	line(2, "exports: [")
	for i := range s.Tenants {
		t := s.Tenants[i].Name
		line(3, "{stream: %s, accounts: [%s]}", q(EventSubjects(t)), q(t))
		line(3, "{service: %s, accounts: [%s]}", q(LastEventSubjects(t)), q(t))
	}
	line(2, "]")
	line(2, "imports: [")
	for i := range s.Tenants {
		t := s.Tenants[i].Name
		line(3, "{stream: {account: %s, subject: %s}}", q(t), q(AdoptionSubjects(t)))
	}
	line(2, "]")
	line(1, "}")
	for i := range s.Tenants {
		a := &s.Tenants[i]
		l := a.Limits.withDefaults()
		line(1, "%s: {", q(a.Name))
		line(2, "limits: {max_connections: %d, max_subscriptions: %d, max_payload: %d, max_leafnodes: 0}", l.Connections, l.Subscriptions, l.Payload)
		line(2, "exports: [{stream: %s, accounts: [%s]}]", q(AdoptionSubjects(a.Name)), q(Platform))
		line(2, "imports: [")
		line(3, "{stream: {account: %s, subject: %s}}", q(Platform), q(EventSubjects(a.Name)))
		line(3, "{service: {account: %s, subject: %s}}", q(Platform), q(LastEventSubjects(a.Name)))
		line(2, "]")
		line(2, "users: [")
		for j := range a.Users {
			p := AgentPermissions(a.Name, a.Users[j].Name)
			for _, l := range a.Users[j].Logins {
				line(3, "{%s, allowed_connection_types: [STANDARD, WEBSOCKET]", login(l))
				line(4, "permissions: {subscribe: {allow: %s}, publish: {allow: %s}}}", list(p.Subscribe), list(p.Publish))
			}
		}
		line(2, "]")
		line(1, "}")
	}
	line(0, "}")
	return w.String(), nil
}

func login(l Login) string {
	if l.Key != "" {
		return "nkey: " + l.Key
	}
	return "user: " + strconv.Quote(l.Name) + ", password: " + strconv.Quote(l.Hash)
}

func list(ss []string) string {
	qs := make([]string, len(ss))
	for i, s := range ss {
		qs[i] = strconv.Quote(s)
	}
	return "[" + strings.Join(qs, ", ") + "]"
}
