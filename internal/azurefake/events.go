package azurefake

import (
	"encoding/json"
	"fmt"
	"time"
)

// The event types of secrets. Nothing is told of what is disabled, deleted,
// recovered or updated.
// https://learn.microsoft.com/azure/event-grid/event-schema-key-vault
const (
	newVersionCreated = "Microsoft.KeyVault.SecretNewVersionCreated"
	nearExpiry        = "Microsoft.KeyVault.SecretNearExpiry"
	expired           = "Microsoft.KeyVault.SecretExpired"
)

// An Event is what Event Grid delivers of a vault.
type Event struct {
	ID, Type             string
	Time                 time.Time
	Vault, Name, Version string
	NotBefore, Expires   *int64
}

// topic is the resource that Event Grid names as the source.
func (e Event) topic() string {
	return "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/rg-agents/providers/Microsoft.KeyVault/vaults/" + e.Vault
}

func (e Event) data() map[string]any {
	return map[string]any{
		"Id":        "https://" + e.Vault + "." + Domain + "/secrets/" + e.Name + "/" + e.Version,
		"VaultName": e.Vault, "ObjectType": "Secret", "ObjectName": e.Name, "Version": e.Version, "NBF": e.NotBefore, "EXP": e.Expires,
	}
}

// stamp has seven digits of a second, as Event Grid writes them.
func (e Event) stamp() string { return e.Time.UTC().Format("2006-01-02T15:04:05.0000000Z") }

// EventGrid is the event in the Event Grid schema: an array, of one too.
func (e Event) EventGrid() []byte {
	return encode([]any{map[string]any{
		"id": e.ID, "topic": e.topic(), "subject": e.Name, "eventType": e.Type, "eventTime": e.stamp(),
		"data": e.data(), "dataVersion": "1", "metadataVersion": "1",
	}})
}

// CloudEvent is the event in the CloudEvents 1.0 schema.
func (e Event) CloudEvent() []byte {
	return encode(map[string]any{
		"id": e.ID, "source": e.topic(), "subject": e.Name, "type": e.Type, "time": e.stamp(), "data": e.data(), "specversion": "1.0",
	})
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("azurefake: %v", err)) // strings and numbers only
	}
	return b
}

func (s *Server) event(v *vault, x *secret, ver *version, kind string) Event {
	id := hexID()
	return Event{
		ID: id[:8] + "-" + id[8:12] + "-4" + id[13:16] + "-8" + id[17:20] + "-" + id[20:], Type: kind, Time: s.now(),
		Vault: v.name, Name: x.name, Version: ver.id, NotBefore: ver.nbf, Expires: ver.exp,
	}
}

// emit tells of a version once the request has let go of the state.
func (r *request) emit(x *secret, v *version, kind string) {
	r.events = append(r.events, r.s.event(r.v, x, v, kind))
}

// OnEvent calls f with every event. f runs before the request that caused the
// event is answered; it may use the Server, and must not wait for the caller.
func (s *Server) OnEvent(f func(Event)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notify = f
}

// NearExpiry raises SecretNearExpiry for the newest version of a secret, as
// the service does 30 days before it expires.
func (s *Server) NearExpiry(vault, name string) Event { return s.raise(vault, name, nearExpiry) }

// Expired raises SecretExpired.
func (s *Server) Expired(vault, name string) Event { return s.raise(vault, name, expired) }

func (s *Server) raise(vault, name, kind string) Event {
	s.t.Helper()
	s.mu.Lock()
	v, x := s.must(vault, name)
	e, notify := s.event(v, x, x.newest(), kind), s.notify
	s.mu.Unlock()
	if notify != nil {
		notify(e)
	}
	return e
}
