package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

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
	Pending  string    `json:"pending,omitempty"`
	Opened   time.Time `json:"pending_since,omitzero"`
	Schedule string    `json:"schedule,omitempty"`
	Error    string    `json:"error,omitempty"`
}

func (c *statusCmd) Run(e *env) error {
	ctx, p, done, err := e.open(lookLimit, nil)
	if err != nil {
		return err
	}
	defer done()
	cfg := p.cfg
	refs, err := selectRefs(cfg, c.Ref)
	if err != nil {
		return err
	}

	var rows []statusOut
	failed := 0
	for _, r := range refs {
		row := statusOut{Ref: r, Tenant: cfg.tenant(r)}
		if s, err := cfg.secret(r); err == nil {
			row.Schedule = s.Schedule
		}
		d, err := p.stores.describe(ctx, r)
		if err != nil {
			row.Error = err.Error()
			failed++
		} else {
			row.Current, row.Since = holder(d, secrets.Current)
			row.Previous, _ = holder(d, secrets.Previous)
			row.Pending, row.Opened = holder(d, secrets.Pending)
		}
		rows = append(rows, row)
	}
	if c.JSON {
		enc := json.NewEncoder(e.stdout)
		for _, row := range rows {
			if err := enc.Encode(row); err != nil {
				return fmt.Errorf("write: %w", err)
			}
		}
	} else {
		tw := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(tw, "SECRET\tTENANT\tCURRENT\tSINCE\tPREVIOUS\tPENDING\tSCHEDULE")
		for _, row := range rows {
			if row.Error != "" {
				_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\n", row.Ref, row.Tenant, row.Error)
				continue
			}
			pending := shortID(row.Pending)
			if row.Pending != "" {
				pending += " for " + age(row.Opened)
			}
			_, _ = fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", row.Ref, row.Tenant, shortID(row.Current), age(row.Since), shortID(row.Previous), pending, orDash(row.Schedule))
		}
		if err := tw.Flush(); err != nil {
			return fmt.Errorf("write: %w", err)
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d secrets could not be read", failed, len(rows))
	}
	return nil
}

func holder(d *secrets.Description, s secrets.Stage) (string, time.Time) {
	if h := d.Holder(s); h != nil {
		return h.ID, h.Created
	}
	return "", time.Time{}
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
		r, err := ref.Parse(s)
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
