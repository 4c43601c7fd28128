package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/ref"
)

// watchCmd prints events: first the last one of each kind for each secret,
// then what happens.
type watchCmd struct {
	Ref    []string `arg:"" optional:"" help:"Secrets to watch; all by default."`
	Tenant string   `help:"Tenant to watch; all by default."`
	JSON   bool     `help:"One JSON object a line."`
	Live   bool     `help:"Leave out what happened before."`
}

func (c *watchCmd) Run(e *env) error {
	cfg, err := loadConfig(e.config)
	if err != nil {
		return err
	}
	f := events.Filter{Tenant: c.Tenant}
	for _, s := range c.Ref {
		r, err := ref.Parse(s)
		if err != nil {
			return err
		}
		f.Refs = append(f.Refs, r)
	}
	nc, err := connect(cfg.NATS, "keyturn watch", e.log)
	if err != nil {
		return err
	}
	defer nc.Close()
	start := time.Now()
	enc := json.NewEncoder(e.stdout)
	enc.SetEscapeHTML(false)
	show := func(_ context.Context, ev events.Event) {
		if c.Live && ev.Data.Published.Before(start) {
			return
		}
		if c.JSON {
			_ = enc.Encode(outEvent(ev))
			return
		}
		_, _ = fmt.Fprintln(e.stdout, humanEvent(ev))
	}
	return natsbus.NewSubscriber(nc, &natsbus.Options{Logger: e.log}).Subscribe(e.ctx, f, once(show), nil)
}

// rememberIDs is how many ids [once] knows.
const rememberIDs = 1024

// once leaves out an event that was handed on already. The stream stores each
// id once, but a plain subscription hears every publication, a second notice
// of one change too.
func once(h events.Handler) events.Handler {
	seen := make(map[string]bool, rememberIDs)
	var order []string // oldest first; one handler call at a time
	return func(ctx context.Context, e events.Event) {
		if seen[e.ID] {
			return
		}
		if len(order) == rememberIDs {
			delete(seen, order[0])
			order = order[1:]
		}
		seen[e.ID], order = true, append(order, e.ID)
		h(ctx, e)
	}
}

// toldLater is how much later than it happened an event must be published for
// a line to tell both times.
const toldLater = time.Minute

// humanEvent is one event on one line, with when it was published.
func humanEvent(e events.Event) string {
	noun, verb := e.Type.Parts()
	at, form := e.Data.Published.Local(), "15:04:05.000"
	if time.Since(at) > 12*time.Hour {
		form = time.DateTime
	}
	s := fmt.Sprintf("%s  %-20s %s", at.Format(form), noun+"."+verb, e.Data.Ref)
	if e.Data.Version != "" {
		s += "  version " + shortID(e.Data.Version)
	}
	if e.Data.PreviousVersion != "" {
		s += " after " + shortID(e.Data.PreviousVersion)
	}
	if e.Data.Reason != "" {
		s += "  " + e.Data.Reason
	}
	s += "  tenant " + e.Data.Tenant + ", from " + e.Data.Cause
	if at.Sub(e.Time) > toldLater {
		s += ", happened " + e.Time.Local().Format(time.DateTime)
	}
	return s
}
