// Package natsaccounts keeps tenants apart on the NATS side: the platform and
// each tenant are accounts, and what passes between them is exported to one
// tenant and imported by it alone.
//
// The account KEYTURN owns the streams. A tenant hears its own events, reads
// the last one of a literal subject, and publishes its own adoption; its users
// may do just that and have no JetStream. So what a tenant cannot name it
// cannot ask for, whatever its agents try.
//
// There are two forms of the same layout: accounts as JWTs under an operator,
// which a running server takes without a reload, and a plain fragment of
// nats-server.conf. Both are pure functions of a [State]; a [Store] keeps the
// state and the keys on disk.
//
//   - https://docs.nats.io/running-a-nats-service/configuration/securing_nats/accounts
//   - https://docs.nats.io/running-a-nats-service/configuration/securing_nats/auth_intro/jwt
package natsaccounts

import (
	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier/tenants"
)

// The accounts of the platform.
const (
	Platform = "KEYTURN"
	System   = "SYS"
)

const (
	// AdoptionPrefix starts the subjects on which agents say which version
	// they use.
	AdoptionPrefix = "keyturn.adoption.v1."
	// directGet reads the last event of the subject that follows. The subject
	// is part of the request's own subject, so the server's permissions and
	// imports decide about it; a request that names subjects in its body goes
	// to the same subject without an ending, which no tenant may publish on.
	directGet = "$JS.API.DIRECT.GET.KEYTURN_EVENTS."
	// inboxPrefix and a user's name start the user's inboxes. Without a prefix
	// of its own every user of an account could listen to the answers for all.
	inboxPrefix = "_INBOX_"
)

// EventSubjects is what a tenant hears.
func EventSubjects(tenant string) string { return events.SubjectPrefix + events.Token(tenant) + ".>" }

// LastEventSubjects is where a tenant asks for the last event of a subject.
func LastEventSubjects(tenant string) string { return directGet + EventSubjects(tenant) }

// AdoptionSubjects is what a tenant publishes. Whoever takes them in must never
// answer to a message's reply subject: the tenant chooses it, and inside the
// platform's account it could be a subject of another tenant. So a stream of
// them has no_ack set, or its acknowledgement would be another tenant's last
// event.
func AdoptionSubjects(tenant string) string { return AdoptionPrefix + events.Token(tenant) + ".>" }

// InboxPrefix is the inbox prefix of a user, which its client must set
// (nats.CustomInboxPrefix) since it may subscribe to no other.
func InboxPrefix(user string) string { return inboxPrefix + user }

// Permissions are subjects that a user may use; all others are refused.
type Permissions struct{ Subscribe, Publish []string }

// AgentPermissions are the rights of one user of a tenant.
func AgentPermissions(tenant, user string) Permissions {
	return Permissions{
		Subscribe: []string{EventSubjects(tenant), InboxPrefix(user) + ".>"},
		Publish:   []string{LastEventSubjects(tenant), AdoptionSubjects(tenant)},
	}
}

// Limits bound what one tenant takes of a server. Zero means the default.
type Limits struct {
	Connections   int64 `json:"connections,omitempty"`   // default 1000
	Subscriptions int64 `json:"subscriptions,omitempty"` // of one connection; default 4096
	Payload       int64 `json:"payload,omitempty"`       // bytes of one message; default 16 KiB
}

func (l Limits) withDefaults() Limits {
	if l.Connections <= 0 {
		l.Connections = 1000
	}
	if l.Subscriptions <= 0 {
		l.Subscriptions = 4096
	}
	if l.Payload <= 0 {
		l.Payload = 16 << 10
	}
	return l
}

// checkUser reports whether name can be a user: the rules are those of a
// tenant's name, since it is a subject token and a file name too.
func checkUser(name string) error {
	if err := tenants.CheckName(name); err != nil {
		return fault.New(fault.Invalid, "user", err)
	}
	return nil
}
