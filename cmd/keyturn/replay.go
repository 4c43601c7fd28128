package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
)

// replayCmd gives stored events to a consumer again: on standard output, or on
// a subject that it listens to. The streams stay as they are.
type replayCmd struct {
	Since   time.Duration `help:"Events that were stored within this time." default:"1h"`
	Until   time.Duration `help:"And not within this one." default:"0s"`
	Subject []string      `help:"Subjects, with wildcards; all events by default." placeholder:"keyturn.v1.acme.>"`
	To      string        `help:"Publish each event there, with its headers, for a consumer that subscribes to it. It must lie outside of keyturn.>, so that nothing is stored twice." placeholder:"SUBJECT"`
	Late    bool          `help:"Events that came when newer ones of their secret were known, instead of the others."`
	JSON    bool          `help:"One JSON object a line."`
}

func (c *replayCmd) Run(e *env) error {
	if c.Since <= c.Until {
		return fault.Newf(fault.Invalid, "replay", "--since is %s and --until %s; expected --since to reach further back", c.Since, c.Until)
	}
	if c.To != "" && (strings.HasPrefix(c.To, "keyturn.") || strings.HasPrefix(c.To, "$") || strings.ContainsAny(c.To, "*> \t\r\n") || strings.Contains("."+c.To+".", "..")) {
		return fault.Newf(fault.Invalid, "replay", "--to is %.80q; expected a subject without wildcards, outside of keyturn.> and $, such as replay.billing", c.To)
	}
	bus, cfg, done, err := e.openBus("keyturn replay")
	if err != nil {
		return err
	}
	defer done()
	var to *nats.Conn
	if c.To != "" {
		if to, err = connect(cfg.NATS, "keyturn replay", e.log); err != nil {
			return err
		}
		defer to.Close()
	}
	now := time.Now()
	q := natsbus.EventsQuery{Since: now.Add(-c.Since), Until: now.Add(-c.Until), Subjects: c.Subject, Late: c.Late}
	enc := json.NewEncoder(e.stdout)
	enc.SetEscapeHTML(false)
	n := 0
	for st, err := range bus.Events(e.ctx, q) {
		if err != nil {
			return err
		}
		n++
		switch {
		case to != nil:
			m, err := natsbus.Copy(c.To, st.Event)
			if err == nil {
				err = to.PublishMsg(m)
			}
			if err != nil {
				return fmt.Errorf("publish on %s: %w", c.To, err)
			}
		case c.JSON:
			if err := enc.Encode(outEvent(st.Event)); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		default:
			if _, err := fmt.Fprintln(e.stdout, humanEvent(st.Event)); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		}
	}
	if to != nil {
		if err := to.FlushTimeout(10 * time.Second); err != nil {
			return fault.New(fault.Unavailable, "replay: publish", err)
		}
		_, _ = fmt.Fprintf(e.stdout, "%d events published on %s\n", n, c.To)
	}
	return nil
}
