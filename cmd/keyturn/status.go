package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/keyturn/keyturn/internal/scheduler"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// statusCmd shows what the store holds, without reading any value.
type statusCmd struct {
	Ref  []string `arg:"" optional:"" help:"Secrets to show; all configured ones by default."`
	JSON bool     `help:"One JSON object a line."`
}

// lookLimit bounds a command that looks at the store.
const lookLimit = 30 * time.Second

type statusOut struct {
	Ref      ref.Ref   `json:"ref"`
	Tenant   string    `json:"tenant"`
	Current  string    `json:"current,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	Previous string    `json:"previous,omitempty"`
	// Gate is what is configured, Superseded where the previous version
	// stands: "retired", "held", or what its gate waits for.
	Gate       string    `json:"gate,omitempty"`
	Superseded string    `json:"superseded,omitempty"`
	Retires    time.Time `json:"retires,omitzero"`
	Pending    string    `json:"pending,omitempty"`
	Opened     time.Time `json:"pending_since,omitzero"`
	Schedule   string    `json:"schedule,omitempty"`
	Next       time.Time `json:"next_rotation,omitzero"`
	Error      string    `json:"error,omitempty"`
}

func (c *statusCmd) Run(e *env) error {
	ctx, p, done, err := e.open(lookLimit, nil)
	if err != nil {
		return err
	}
	defer done()
	refs, err := selectRefs(p.cfg, c.Ref)
	if err != nil {
		return err
	}
	next, err := p.nextRotations(ctx)
	if err != nil {
		return err
	}
	var rows []statusOut
	failed := 0
	for _, r := range refs {
		row := p.status(ctx, r, next)
		if row.Error != "" {
			failed++
		}
		rows = append(rows, row)
	}
	if c.JSON {
		err = printRowsJSON(e.stdout, rows)
	} else {
		err = printRows(e.stdout, rows)
	}
	if err != nil {
		return fmt.Errorf("write: %w", err)
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d secrets could not be read", failed, len(rows))
	}
	return nil
}

// status looks at one secret.
func (p *pipeline) status(ctx context.Context, r ref.Ref, next map[ref.Ref]time.Time) statusOut {
	row := statusOut{Ref: r, Tenant: p.cfg.tenant(r), Next: next[r]}
	s, err := p.cfg.secret(r)
	if err == nil {
		row.Schedule, row.Gate = s.Schedule, s.gate.String()
	}
	d, err := p.stores.describe(ctx, r)
	if err != nil {
		row.Error = err.Error()
		return row
	}
	if h := d.Holder(secrets.Current); h != nil {
		row.Current, row.Since = h.ID, h.Since()
	}
	if row.Next.IsZero() {
		row.Next = d.NextRotation // the provider's own schedule
	}
	row.Previous = d.HolderID(secrets.Previous)
	if h := d.Unfinished(); h != nil {
		row.Pending, row.Opened = h.ID, h.Created
	}
	if runner, err := p.runner(ctx, r); err == nil && row.Previous != "" {
		st := runner.Standing(ctx, d)
		row.Retires = st.Next
		switch {
		case st.Retired:
			row.Superseded = "retired"
		case d.Holder(secrets.Previous).Held:
			row.Superseded = "held"
		default:
			row.Superseded = strings.Join(st.Waiting, "; ")
		}
	}
	return row
}

// nextRotations tells when JetStream fires next for each secret, be it the
// schedule or a repetition.
func (p *pipeline) nextRotations(ctx context.Context) (map[ref.Ref]time.Time, error) {
	set, err := p.bus.ListSchedules(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	next := map[ref.Ref]time.Time{}
	for _, sc := range set {
		r, err := ref.Parse(sc.Target)
		if err != nil {
			continue // a gate's deadline, or a sweep
		}
		at := sc.Spec.At
		if at.IsZero() {
			var ok bool
			if at, ok = nextFiring(sc.Spec, sc.Set, now); !ok {
				continue
			}
			if s, err := p.cfg.secret(r); err == nil {
				at = at.Add(scheduler.Offset(r, s.Jitter))
				if opens, ok := s.calendar.Next(at); ok {
					at = opens
				}
			}
		}
		if old, ok := next[r]; !ok || at.Before(old) {
			next[r] = at
		}
	}
	return next, nil
}

func printRowsJSON(w io.Writer, rows []statusOut) error {
	enc := json.NewEncoder(w)
	for _, row := range rows {
		if err := enc.Encode(row); err != nil {
			return err
		}
	}
	return nil
}

func printRows(w io.Writer, rows []statusOut) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(tw, "SECRET\tTENANT\tCURRENT\tSINCE\tPREVIOUS\tSTATE\tPENDING\tNEXT")
	for _, row := range rows {
		if row.Error != "" {
			_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\n", row.Ref, row.Tenant, row.Error)
			continue
		}
		pending := shortID(row.Pending)
		if row.Pending != "" {
			pending += " for " + age(row.Opened)
		}
		state := "-"
		switch {
		case row.Previous == "":
		case row.Superseded == "retired", row.Superseded == "held":
			state = row.Superseded
		case row.Retires.IsZero():
			state = "in use, gate: " + row.Gate
		case time.Until(row.Retires) <= 0:
			state = "in use, gate: " + row.Gate + ", asked now"
		default:
			state = "in use, gate: " + row.Gate + ", asked in " + until(row.Retires)
		}
		_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.Ref, row.Tenant, shortID(row.Current), age(row.Since), shortID(row.Previous), state, pending, until(row.Next))
	}
	return tw.Flush()
}

// until is how long it takes to t.
func until(t time.Time) string {
	switch d := time.Until(t).Round(time.Second); {
	case t.IsZero():
		return "-"
	case d <= 0:
		return "now"
	default:
		return d.String()
	}
}

func age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return time.Since(t).Round(time.Second).String()
}

// selectRefs parses the named refs, or returns every configured one.
func selectRefs(cfg *config, names []string) ([]ref.Ref, error) {
	var refs []ref.Ref
	for _, s := range names {
		r, err := cfg.find(s)
		if err != nil {
			return nil, err
		}
		refs = append(refs, r)
	}
	if len(names) == 0 {
		for i := range cfg.Secrets {
			refs = append(refs, cfg.Secrets[i].ref)
		}
		if len(refs) == 0 {
			return nil, errors.New("no secret is configured; add some under secrets: in the configuration file")
		}
	}
	return refs, nil
}
