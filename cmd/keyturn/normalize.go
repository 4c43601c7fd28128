package main

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// normalizeCmd checks a mapping without a bus. The notice may be any of a
// provider's shapes: bare, in an envelope, or a batch; its content decides.
type normalizeCmd struct {
	From    string            `help:"Who sent the notice: ${enum}." enum:"eventbridge,eventgrid,pubsub,vault,cloudevents" required:""`
	Tenant  string            `help:"Tenant to print in the events and their subjects." default:"default"`
	Cluster string            `help:"What refs call the Vault cluster, which notices do not name." default:"vault"`
	Project map[string]string `help:"Ids of Google's projects by number, which notices name." placeholder:"NUMBER=ID"`
}

// maxNotice bounds standard input. No provider sends more than 256 KiB.
const maxNotice = 1 << 20

// eventOut is an event as commands print it: the CloudEvents attributes, the
// subject, and the data.
type eventOut struct {
	ID      string      `json:"id"`
	Type    events.Type `json:"type"`
	Source  string      `json:"source"`
	Time    time.Time   `json:"time"`
	Subject string      `json:"nats_subject"`
	Data    events.Data `json:"data"`
}

func outEvent(e events.Event) eventOut {
	return eventOut{ID: e.ID, Type: e.Type, Source: e.Source(), Time: e.Time, Subject: e.Subject(), Data: e.Data}
}

// Run prints nothing and succeeds for a notice that means no event.
func (c *normalizeCmd) Run(e *env) error {
	body, err := io.ReadAll(io.LimitReader(e.stdin, maxNotice+1))
	if err != nil {
		return fmt.Errorf("read standard input: %w", err)
	}
	if len(body) > maxNotice {
		return fault.Newf(fault.Invalid, "normalize", "standard input is over %d bytes; expected one notice", maxNotice)
	}
	gcp := gcpConfig{Projects: map[string]string{}}
	for number, id := range c.Project {
		gcp.Projects[id] = number
	}
	es, err := gcp.decodeAny(c.From, c.Cluster, body, time.Now())
	if err != nil {
		return err
	}
	enc := json.NewEncoder(e.stdout)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	for _, ev := range es {
		ev.Data.Tenant = c.Tenant
		if err := enc.Encode(outEvent(ev)); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	return nil
}
