package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

// deadlettersCmd is what operators do with notices that could not be handed on.
type deadlettersCmd struct {
	List   deadlettersListCmd   `cmd:"" help:"List dead letters, oldest first."`
	Show   deadlettersShowCmd   `cmd:"" help:"Show one dead letter with the notice in it."`
	Replay deadlettersReplayCmd `cmd:"" help:"Hand dead letters on again, and remove those that went through."`
	Remove deadlettersRemoveCmd `cmd:"" help:"Remove dead letters that nobody needs."`
}

type deadlettersListCmd struct {
	Source string `help:"Only of this way in."`
	Limit  int    `help:"At most so many." default:"100"`
	JSON   bool   `help:"One JSON object a line, without the notices."`
}

// letterOut is a letter without its notice.
type letterOut struct {
	Seq      uint64    `json:"seq"`
	Parked   time.Time `json:"parked"`
	Source   string    `json:"source"`
	ID       string    `json:"id,omitempty"`
	Kind     string    `json:"kind"`
	Attempt  int       `json:"attempt,omitempty"`
	Size     int       `json:"size"`
	Redacted bool      `json:"redacted,omitempty"`
	Reason   string    `json:"reason"`
}

func outLetter(l *natsbus.StoredLetter) letterOut {
	return letterOut{
		Seq: l.Seq, Parked: l.Parked, Source: l.Source, ID: l.ID, Kind: l.Kind.String(),
		Attempt: l.Attempt, Size: l.Size, Redacted: l.Redacted, Reason: l.Reason,
	}
}

func (c *deadlettersListCmd) Run(e *env) error {
	bus, _, done, err := e.openBus("keyturn deadletters")
	if err != nil {
		return err
	}
	defer done()
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	enc := json.NewEncoder(e.stdout)
	enc.SetEscapeHTML(false)
	n := 0
	for l, err := range letters(e.ctx, bus, c.Source) {
		if err != nil {
			return err
		}
		if n++; n > c.Limit {
			break
		}
		if c.JSON {
			if err := enc.Encode(outLetter(&l)); err != nil {
				return fmt.Errorf("write: %w", err)
			}
			continue
		}
		if n == 1 {
			_, _ = fmt.Fprintln(w, "SEQ\tPARKED\tSOURCE\tATTEMPT\tBYTES\tREASON")
		}
		attempt := "-"
		if l.Attempt > 0 {
			attempt = fmt.Sprint(l.Attempt)
		}
		_, _ = fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%d\t%s\n", l.Seq, l.Parked.Local().Format(time.DateTime), l.Source, attempt, l.Size, l.Reason)
	}
	if c.JSON {
		return nil
	}
	if n == 0 {
		_, _ = fmt.Fprintln(w, "no dead letters")
	} else if n > c.Limit {
		_, _ = fmt.Fprintf(w, "and more; see --limit\n")
	}
	return w.Flush()
}

type deadlettersShowCmd struct {
	Seq  uint64 `arg:"" help:"Sequence number, as list shows it."`
	JSON bool   `help:"The whole letter as JSON, the notice in base64."`
}

func (c *deadlettersShowCmd) Run(e *env) error {
	bus, _, done, err := e.openBus("keyturn deadletters")
	if err != nil {
		return err
	}
	defer done()
	l, err := letter(e.ctx, bus, c.Seq)
	if err != nil {
		return err
	}
	if c.JSON {
		enc := json.NewEncoder(e.stdout)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(struct {
			Seq uint64 `json:"seq"`
			notifier.DeadLetter
		}{l.Seq, l.DeadLetter})
	}
	w := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintf(w, "sequence\t%d\nsource\t%s\nid\t%s\nreceived\t%s\nparked\t%s\nattempt\t%d\nkind\t%s\nreason\t%s\n",
		l.Seq, l.Source, printable(l.ID), l.Received.Local().Format(time.RFC3339), l.Parked.Local().Format(time.RFC3339), l.Attempt, l.Kind, l.Reason)
	for k, v := range l.Attributes {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", printable(k), printable(v))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	switch {
	case l.Redacted:
		_, _ = fmt.Fprintf(e.stdout, "\nthe shape of the notice (%d bytes), which was not kept:\n", l.Size)
	case len(l.Body) < l.Size:
		_, _ = fmt.Fprintf(e.stdout, "\nthe first %d of %d bytes of the notice:\n", len(l.Body), l.Size)
	default:
		_, _ = fmt.Fprintf(e.stdout, "\nthe notice (%d bytes):\n", l.Size)
	}
	_, err = fmt.Fprintln(e.stdout, printable(string(l.Body)))
	return err
}

// printable keeps what somebody sent from steering the terminal.
func printable(s string) string {
	if !utf8.ValidString(s) {
		return fmt.Sprintf("%d bytes that are not text; see --json", len(s))
	}
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && !unicode.IsPrint(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

type deadlettersReplayCmd struct {
	Seq    []uint64 `arg:"" optional:"" help:"Sequence numbers, as list shows them."`
	All    bool     `help:"All that there are, or all of --source."`
	Source string   `help:"Only of this way in."`
	As     string   `help:"Read them as notices of this way in of the configuration, for letters whose own way in is not there any more."`
}

func (c *deadlettersReplayCmd) Run(e *env) error {
	if c.All == (len(c.Seq) > 0) {
		return fault.Newf(fault.Invalid, "deadletters replay", "expected sequence numbers, or --all")
	}
	bus, cfg, done, err := e.openBus("keyturn deadletters")
	if err != nil {
		return err
	}
	defer done()
	st := &stores{cfg: cfg, log: e.log} // for tags alone
	defer func() { _ = st.close() }()
	tenant, err := newTenants(cfg, st.tags, e.log)
	if err != nil {
		return err
	}
	var passed, stay int
	if c.All {
		// What is parked meanwhile is not of this run.
		var all []uint64
		for l, err := range letters(e.ctx, bus, c.Source) {
			if err != nil {
				return err
			}
			all = append(all, l.Seq)
		}
		c.Seq = all
	}
	for _, seq := range c.Seq {
		l, err := letter(e.ctx, bus, seq)
		if err != nil {
			return err
		}
		// One whose tenant cannot be told at present does not stop the others; an
		// outage of NATS ends it at the next letter.
		what, err := c.replay(e, cfg, bus, tenant, &l)
		if err != nil {
			stay++
			_, _ = fmt.Fprintf(e.stdout, "%d\tstays: %v\n", l.Seq, err)
			continue
		}
		passed++
		_, _ = fmt.Fprintf(e.stdout, "%d\t%s\n", l.Seq, what)
	}
	_, _ = fmt.Fprintf(e.stdout, "%d handed on, %d stay\n", passed, stay)
	if stay > 0 {
		return fault.Newf(fault.Invalid, "deadletters replay", "%d of %d letters could not be handed on; see their reasons above, and keyturn deadletters show", stay, stay+passed)
	}
	return nil
}

// stays is where the poison of a replay goes: nowhere, since the letter is
// there already.
type stays struct{ why string }

func (s *stays) Park(_ context.Context, l notifier.DeadLetter) error {
	s.why = l.Reason
	return fault.Newf(l.Kind, "replay", "it stays: %s", l.Reason)
}

// replay hands one letter on and removes it.
func (c *deadlettersReplayCmd) replay(e *env, cfg *config, bus *natsbus.Bus, tenant func(context.Context, events.Event) (string, error), l *natsbus.StoredLetter) (string, error) {
	switch {
	case c.Source != "" && l.Source != c.Source:
		return "", fault.Newf(fault.Invalid, "replay", "it is of %s", l.Source)
	case l.Redacted:
		return "", fault.Newf(fault.Invalid, "replay", "the notice was not kept (notifier.redact_deadletters); let its provider send it again")
	case len(l.Body) < l.Size:
		return "", fault.Newf(fault.Invalid, "replay", "only %d of %d bytes of the notice were kept; let its provider send it again", len(l.Body), l.Size)
	}
	way := l.Source
	if c.As != "" {
		way = c.As
	}
	dec, err := cfg.decoder(way)
	if err != nil {
		return "", err
	}
	var out notifier.Outcome
	var again stays
	n := notifier.New(bus, &again, &notifier.Options{Tenant: tenant, Observe: func(o notifier.Outcome) { out = o }})
	d := l.Delivery
	d.Attempt = 0
	if err := n.Handler(dec)(e.ctx, d); err != nil {
		if again.why != "" {
			return "", errors.New(again.why)
		}
		return "", err
	}
	if err := bus.DeleteDeadLetter(e.ctx, l.Seq); err != nil {
		return "", err
	}
	r := out.Receipt
	return fmt.Sprintf("handed on: %d events stored, %d known before, %d late, %d of nobody", r.Stored, r.Duplicates, r.Late, out.Dropped), nil
}

type deadlettersRemoveCmd struct {
	Seq []uint64 `arg:"" help:"Sequence numbers, as list shows them."`
}

func (c *deadlettersRemoveCmd) Run(e *env) error {
	bus, _, done, err := e.openBus("keyturn deadletters")
	if err != nil {
		return err
	}
	defer done()
	for _, seq := range c.Seq {
		if _, err := letter(e.ctx, bus, seq); err != nil {
			return err
		}
		if err := bus.DeleteDeadLetter(e.ctx, seq); err != nil {
			return err
		}
		_, _ = fmt.Fprintf(e.stdout, "%d\tremoved\n", seq)
	}
	return nil
}
