package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
)

// doctorCmd looks for states that secrets should not stay in.
type doctorCmd struct {
	Ref   []string      `arg:"" optional:"" help:"Secrets to examine; all configured ones by default."`
	Fix   bool          `help:"Do the one repair that each finding proposes."`
	Stuck time.Duration `help:"Age from which an unfinished rotation is a problem and not under way." default:"10m"`
	JSON  bool          `help:"One JSON object a line."`
	Limit time.Duration `help:"Longest time for all." default:"5m"`
}

// findingOut is a finding as JSON.
type findingOut struct {
	Ref     ref.Ref          `json:"ref"`
	Problem rotators.Problem `json:"problem"`
	Detail  string           `json:"detail"`
	Repair  string           `json:"repair"`
	Fixed   bool             `json:"fixed,omitempty"`
	Error   string           `json:"error,omitempty"`
}

func (c *doctorCmd) Run(e *env) error {
	ctx, p, done, err := e.open(c.Limit, nil, func(o *rotators.Options) { o.Force = c.Fix })
	if err != nil {
		return err
	}
	defer done()
	refs, err := selectRefs(p.cfg, c.Ref)
	if err != nil {
		return err
	}
	var open, fixed, unknown int
	scopes := map[string]bool{}
	for _, r := range refs {
		found, err := p.examine(ctx, r, c.Stuck, scopes)
		for _, f := range found {
			out := findingOut{Ref: f.Ref, Problem: f.Problem, Detail: f.Detail, Repair: f.Repair}
			if c.Fix && f.Fix != nil {
				if ferr := p.fix(ctx, f); ferr != nil {
					out.Error = oneLine(ferr)
				}
				out.Fixed = out.Error == ""
			}
			if out.Fixed {
				fixed++
			} else {
				open++
			}
			c.print(e, out)
		}
		if err != nil {
			unknown++
			if c.JSON {
				c.print(e, findingOut{Ref: r, Error: oneLine(err)})
			} else {
				_, _ = fmt.Fprintf(e.stdout, "%s\n  cannot be examined: %s\n", r, oneLine(err))
			}
		} else if len(found) == 0 && !c.JSON {
			_, _ = fmt.Fprintf(e.stdout, "%s\n  sound\n", r)
		}
	}
	switch {
	case open > 0 && c.Fix:
		return fmt.Errorf("%d findings are left, %d were mended", open, fixed)
	case open > 0:
		return fmt.Errorf("%d findings; --fix does what is proposed", open)
	case unknown > 0:
		return fmt.Errorf("%d of %d secrets could not be examined", unknown, len(refs))
	}
	return nil
}

func (c *doctorCmd) print(e *env, f findingOut) {
	if c.JSON {
		_ = json.NewEncoder(e.stdout).Encode(f)
		return
	}
	_, _ = fmt.Fprintf(e.stdout, "%s\n  %s: %s\n", f.Ref, f.Problem, f.Detail)
	switch {
	case f.Fixed:
		_, _ = fmt.Fprintf(e.stdout, "  mended: %s\n", f.Repair)
	case f.Error != "":
		_, _ = fmt.Fprintf(e.stdout, "  repair failed: %s: %s\n", f.Repair, f.Error)
	default:
		_, _ = fmt.Fprintf(e.stdout, "  repair: %s\n", f.Repair)
	}
}

// examine looks at a secret, and once at each scope that one is in.
func (p *pipeline) examine(ctx context.Context, r ref.Ref, stuck time.Duration, scopes map[string]bool) ([]rotators.Finding, error) {
	runner, err := p.runner(ctx, r)
	if err != nil {
		return nil, err
	}
	found, err := runner.Examine(ctx, r, stuck)
	scope := string(r.Provider) + "://" + r.Scope
	if scopes[scope] {
		return found, err
	}
	scopes[scope] = true
	store, serr := p.stores.of(ctx, r)
	if serr != nil {
		return found, errors.Join(err, serr)
	}
	left, serr := rotators.ExamineStore(ctx, store, r)
	return append(found, left...), errors.Join(err, serr)
}

// fix repairs with the secret held against rotations elsewhere.
func (p *pipeline) fix(ctx context.Context, f rotators.Finding) error {
	held, unlock, err := p.hold(ctx, f.Ref)
	if err != nil {
		return err
	}
	defer unlock()
	return f.Fix(held)
}
