package main

import (
	"strings"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/cloudevents"
	"github.com/keyturn/keyturn/events/eventbridge"
	"github.com/keyturn/keyturn/events/eventgrid"
	"github.com/keyturn/keyturn/events/pubsub"
	"github.com/keyturn/keyturn/events/vault"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

// decodeAny reads a notice of a provider in any of its shapes, told apart by
// content. cluster is what refs call a Vault cluster.
func (g *gcpConfig) decodeAny(from, cluster string, body []byte, now time.Time) ([]events.Event, error) {
	switch from {
	case "eventgrid":
		return eventgrid.DecodeAny(body, now)
	case "pubsub":
		return g.decoder().DecodeAny(body, now)
	case "vault":
		return vault.Decoder{Cluster: cluster}.Decode(body, now)
	case "cloudevents":
		return cloudevents.Decode(body)
	default:
		return eventbridge.DecodeAny(body, now)
	}
}

// decoder maps the numbers of projects to their ids.
func (g *gcpConfig) decoder() pubsub.Decoder {
	ids := make(map[string]string, len(g.Projects))
	for id, number := range g.Projects {
		ids[number] = id
	}
	return pubsub.Decoder{Project: func(number string) string { return ids[number] }}
}

// decoders returns how the notices of each configured way in are read, by its
// name.
func (c *config) decoders() map[string]notifier.Decoder {
	out := map[string]notifier.Decoder{}
	for _, r := range c.Notifier.Routes {
		if r.Kind != wayVaultAudit { // its notices come from the source that it feeds
			out[r.Name] = c.reader(r.Kind, "")
		}
	}
	for _, s := range c.Notifier.Sources {
		if s.Kind == wayPubSub {
			out[s.Name] = c.GCP.pulled()
		} else {
			out[s.Name] = c.reader(s.Kind, s.Cluster)
		}
	}
	return out
}

// reader returns how notices of a kind of way in are read: a provider's are
// the same whether they are pushed or pulled, but for those of Pub/Sub, which
// here are pushed.
func (c *config) reader(kind, cluster string) notifier.Decoder {
	switch kind {
	case wayEventGrid:
		return func(d notifier.Delivery) ([]events.Event, error) { return eventgrid.DecodeAny(d.Body, d.Received) }
	case wayPubSub:
		dec := c.GCP.decoder()
		return func(d notifier.Delivery) ([]events.Event, error) {
			return dec.DecodeRequest(header(d), d.Body, d.Received)
		}
	case wayCloudEvents:
		return func(d notifier.Delivery) ([]events.Event, error) { return cloudevents.DecodeHTTP(header(d), d.Body) }
	case wayVaultAudit, wayVaultEvents:
		dec := vault.Decoder{Cluster: cluster}
		return func(d notifier.Delivery) ([]events.Event, error) { return dec.Decode(d.Body, d.Received) }
	default: // eventbridge, sns, sqs
		return func(d notifier.Delivery) ([]events.Event, error) { return eventbridge.DecodeAny(d.Body, d.Received) }
	}
}

// pulled reads messages of Pub/Sub as a pull client has them.
func (g *gcpConfig) pulled() notifier.Decoder {
	dec := g.decoder()
	return func(d notifier.Delivery) ([]events.Event, error) {
		m := pubsub.Message{Attributes: d.Attributes, Data: d.Body, ID: d.ID}
		m.Published, _ = time.Parse(time.RFC3339Nano, d.Attributes["publishtime"])
		return dec.Decode(m, d.Received)
	}
}

// decoder returns how the notices of the way in of that name are read.
func (c *config) decoder(name string) (notifier.Decoder, error) {
	if strings.HasPrefix(name, "triggers-") {
		return nil, fault.Newf(fault.Invalid, "replay", "this is an event that a rotation was started by and could not be; mend the cause and use keyturn rotate")
	}
	if dec, ok := c.decoders()[name]; ok {
		return dec, nil
	}
	return nil, fault.Newf(fault.Invalid, "config", "no way in is called %.60q; name one of the configuration with --as", name)
}

// header reads the headers that a route has put into a delivery's attributes.
func header(d notifier.Delivery) func(string) string {
	return func(name string) string { return d.Attributes[strings.ToLower(name)] }
}
