package rotators

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// A Problem is a state that a secret should not stay in.
type Problem string

// The problems.
const (
	// StuckPending: a rotation began long ago, and its credential is not
	// honoured yet.
	StuckPending Problem = "stuck pending"
	// PendingForeign: pending names another target than current, and no
	// rotation will ever set it.
	PendingForeign Problem = "pending for another target"
	// PendingWithoutValue: a rotation was opened and never stored anything.
	PendingWithoutValue Problem = "pending without a value"
	// PendingNotPromoted: the target honours pending, and readers still get
	// the version before it.
	PendingNotPromoted Problem = "pending works but is not current"
	// CurrentUnreadable: the store refuses to give what plain readers ask for.
	CurrentUnreadable Problem = "current cannot be read"
	// CurrentRefused: the target refuses what readers get.
	CurrentRefused Problem = "current does not sign in"
	// OrphanKeys: the target honours credentials that no version holds.
	OrphanKeys Problem = "orphan credentials at the target"
	// OrphanSibling: the store keeps a pending version of a secret that is gone.
	OrphanSibling Problem = "orphan sibling"
	// RetireOverdue: a gate's hard limit has passed, and the superseded
	// credential is still in use.
	RetireOverdue Problem = "superseded version past its gate's limit"
)

// A Finding is one problem with exactly one repair.
type Finding struct {
	Ref     ref.Ref
	Problem Problem
	Detail  string
	// Repair says what mends it, as a command where there is one.
	Repair string
	// Fix does it. It is nil where only a person can.
	Fix func(context.Context) error
}

// Examine looks for problems of a secret and changes nothing. A pending
// version that is younger than stuck is a rotation under way, not a problem.
// What is found may be gone a moment later; a Fix decides again by itself.
func (r *Runner) Examine(ctx context.Context, id ref.Ref, stuck time.Duration) ([]Finding, error) {
	unlock, err := r.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	x := &examination{r: r, id: id, stuck: stuck}
	err = x.run(ctx)
	return x.findings, err
}

// An examination is one call of Examine.
type examination struct {
	r        *Runner
	id       ref.Ref
	stuck    time.Duration
	findings []Finding

	d *secrets.Description
	c Change
}

func (x *examination) find(p Problem, repair string, fix func(context.Context) error, format string, args ...any) {
	x.findings = append(x.findings, Finding{Ref: x.id, Problem: p, Detail: fmt.Sprintf(format, args...), Repair: repair, Fix: fix})
}

func (x *examination) run(ctx context.Context) (err error) {
	if x.d, err = x.r.store.Describe(ctx, x.id); err != nil {
		return fmt.Errorf("describe %s: %w", x.id, err)
	}
	x.c = Change{Ref: x.id}
	current, err := x.r.store.Get(ctx, x.id, secrets.Current)
	switch {
	case fault.Is(err, fault.Unavailable):
		return fmt.Errorf("read current of %s: %w", x.id, err)
	case err != nil:
		x.find(CurrentUnreadable, "by hand: "+repairOf(err), nil, "%v", err)
		return nil
	}
	x.c.Token, x.c.Current = current.Token, current.Value
	if x.c.Previous, err = x.r.previous(ctx, x.id); err != nil {
		return err
	}
	currentRefused, err := x.refused(ctx, current.Value)
	if err != nil {
		return err
	}
	explained, err := x.pending(ctx, current, currentRefused)
	if err != nil {
		return err
	}
	if currentRefused && !explained {
		if err := x.current(ctx); err != nil {
			return err
		}
	}
	if err := x.orphans(ctx, currentRefused); err != nil {
		return err
	}
	x.overdue(ctx)
	return nil
}

// repairOf says what an error that names its own cure wants.
func repairOf(err error) string {
	if fault.Is(err, fault.Denied) {
		return "give this process the right to read it, or make its newest version readable"
	}
	return "give it a version with a value that works"
}

// refused reports whether the target refuses v. A rotator that cannot tell
// never does.
func (x *examination) refused(ctx context.Context, v secrets.Value) (bool, error) {
	vf, ok := x.r.rotator.(Verifier)
	if !ok {
		return false, nil
	}
	err := vf.Verify(ctx, x.c, v)
	switch {
	case err == nil:
		return false, nil
	case refusesCredential(err):
		return true, nil
	}
	return false, fmt.Errorf("sign in to the target of %s: %w", x.id, err)
}

// pending looks at what an unfinished rotation left. It reports whether that
// explains that current is refused.
func (x *examination) pending(ctx context.Context, current *secrets.Version, currentRefused bool) (explains bool, err error) {
	holder := x.d.Holder(secrets.Pending)
	if holder == nil || holder.ID == current.ID {
		return false, nil
	}
	pending, err := x.r.store.Get(ctx, x.id, secrets.Pending)
	since := holder.Created
	if err == nil && since.IsZero() {
		since = pending.Created
	}
	if !since.IsZero() && time.Since(since) < x.stuck {
		return currentRefused, nil // it is under way, and between set and finish current may be refused
	}
	if fault.Is(err, fault.NotFound) {
		x.find(PendingWithoutValue, "keyturn discard "+x.id.String()+" --token "+holder.Token, func(ctx context.Context) error {
			return x.r.discardEmpty(ctx, x.id, holder.Token)
		}, "rotation %s was opened and stored nothing", holder.Token)
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read pending of %s: %w", x.id, err)
	}
	x.c.Pending = pending.Value
	forward := func(ctx context.Context) error { return x.r.rollForward(ctx, x.id, pending.Token) }
	rotate := "keyturn rotate " + x.id.String()
	if _, ok := x.r.rotator.(Verifier); !ok {
		x.find(StuckPending, rotate, forward, "rotation %s is unfinished since %s", pending.Token, stamp(since))
		return false, nil
	}
	refused, err := x.refused(ctx, pending.Value)
	switch {
	case fault.Is(err, fault.Invalid):
		x.find(PendingForeign, "keyturn discard "+x.id.String()+" --token "+pending.Token, func(ctx context.Context) error {
			return x.r.store.Discard(ctx, x.id, pending.Token)
		}, "%v", err)
		return false, nil
	case err != nil:
		return false, err
	case refused:
		x.find(StuckPending, rotate, forward, "rotation %s is unfinished since %s, and the target does not honour its credential yet", pending.Token, stamp(since))
		if !currentRefused || x.c.Previous.IsZero() {
			return false, nil
		}
		// The target is behind the store: set signs in as previous.
		behind, err := x.refused(ctx, x.c.Previous)
		return err == nil && !behind, err
	}
	what := "readers get the version before it"
	if currentRefused {
		what = "readers get one that the target refuses"
	}
	x.find(PendingNotPromoted, rotate, forward, "the target honours the credential of rotation %s, unfinished since %s, and %s", pending.Token, stamp(since), what)
	return true, nil
}

// discardEmpty discards a pending version that has no value, and nothing that
// got one since it was looked at: that may be the only copy of a credential.
func (r *Runner) discardEmpty(ctx context.Context, id ref.Ref, token string) error {
	_, err := r.store.Get(ctx, id, secrets.Pending)
	if err == nil {
		return fault.Newf(fault.Conflict, "doctor", "rotation %s of %s has stored its value meanwhile; it is under way, and nothing was discarded", token, id)
	}
	if !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("read pending of %s: %w", id, err)
	}
	return r.store.Discard(ctx, id, token)
}

// rollForward finishes an unfinished rotation. One whose credential the
// target refuses for good, as an issued key that somebody revoked, is given up
// if current works.
func (r *Runner) rollForward(ctx context.Context, id ref.Ref, token string) error {
	_, err := r.Rotate(ctx, id, token)
	if !refusesCredential(err) {
		return err
	}
	unlock, lerr := r.lock(ctx, id)
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	defer unlock()
	if !r.onlyCurrentWorks(ctx, id, token) {
		return err
	}
	return r.store.Discard(ctx, id, token)
}

// onlyCurrentWorks reports whether the target refuses the pending credential
// of the rotation named token, and honours the current one: then the pending
// version is no one's only copy.
func (r *Runner) onlyCurrentWorks(ctx context.Context, id ref.Ref, token string) bool {
	v, ok := r.rotator.(Verifier)
	if !ok {
		return false
	}
	current, err := r.store.Get(ctx, id, secrets.Current)
	if err != nil || current.Token == token {
		return false
	}
	pending, err := r.store.Get(ctx, id, secrets.Pending)
	if err != nil || pending.Token != token {
		return false
	}
	c := Change{Ref: id, Token: token, Current: current.Value, Pending: pending.Value}
	if err := v.Verify(ctx, c, current.Value); err != nil {
		return false
	}
	return refusesCredential(v.Verify(ctx, c, pending.Value))
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return "an unknown time"
	}
	return t.UTC().Format(time.RFC3339)
}

// current finds the repair for a current version that the target refuses.
func (x *examination) current(ctx context.Context) error {
	const detail = "the target refuses the credential that readers get"
	if !x.c.Previous.IsZero() && x.c.Pending.IsZero() {
		refused, err := x.refused(ctx, x.c.Previous)
		if err != nil && !fault.Is(err, fault.Invalid) {
			return err
		}
		if err == nil && !refused {
			x.find(CurrentRefused, "keyturn rollback "+x.id.String(), func(ctx context.Context) error {
				_, err := x.r.Rollback(ctx, x.id, false)
				return err
			}, detail+", and honours the previous one")
			return nil
		}
	}
	x.find(CurrentRefused, "by hand: give the target's user the password that the store has, or the secret a value that works; then keyturn rotate "+x.id.String(), nil,
		detail+", and no other version is known to work")
	return nil
}

func (x *examination) orphans(ctx context.Context, currentRefused bool) error {
	f, ok := x.r.rotator.(OrphanFinder)
	if !ok || currentRefused {
		return nil
	}
	ids, err := f.Orphans(ctx, x.c)
	if err != nil {
		return fmt.Errorf("list the credentials of %s at its target: %w", x.id, err)
	}
	if len(ids) > 0 {
		c := x.c
		x.find(OrphanKeys, "keyturn doctor "+x.id.String()+" --fix", func(ctx context.Context) error { return x.r.removeOrphans(ctx, f, c) },
			"the target honours %d that no version holds: %s", len(ids), strings.Join(ids, ", "))
	}
	return nil
}

// removeOrphans looks at the versions once more, since a rotation may have
// stored what was an orphan when it was found.
func (r *Runner) removeOrphans(ctx context.Context, f OrphanFinder, c Change) error {
	unlock, err := r.lock(ctx, c.Ref)
	if err != nil {
		return err
	}
	defer unlock()
	for stage, v := range map[secrets.Stage]*secrets.Value{secrets.Current: &c.Current, secrets.Pending: &c.Pending, secrets.Previous: &c.Previous} {
		now, err := r.store.Get(ctx, c.Ref, stage)
		switch {
		case fault.Is(err, fault.NotFound) && stage != secrets.Current:
			*v = secrets.Value{}
		case err != nil:
			return fmt.Errorf("read %s of %s: %w", stage, c.Ref, err)
		default:
			*v = now.Value
		}
	}
	return f.RemoveOrphans(ctx, c)
}

// overdue finds what a gate holds beyond its limit.
func (x *examination) overdue(ctx context.Context) {
	previous := x.d.Holder(secrets.Previous)
	if previous == nil || previous.Disabled || previous.Held || x.r.opts.Gate.Max == 0 || x.d.Holder(secrets.Current) == nil {
		return
	}
	if v := x.r.ask(ctx, x.id, x.d, byTime); v.overdue {
		x.find(RetireOverdue, "keyturn retire "+x.id.String()+" --force", func(ctx context.Context) error {
			_, err := x.r.Retire(ctx, x.id, true)
			return err
		}, "version %s: %s", previous.ID, strings.Join(v.waiting, "; "))
	}
}

// ExamineStore looks for what a store's bookkeeping left behind in the scope
// of near. A store without bookkeeping has nothing.
func ExamineStore(ctx context.Context, store secrets.Store, near ref.Ref) ([]Finding, error) {
	f, ok := store.(secrets.OrphanFinder)
	if !ok {
		return nil, nil
	}
	left, err := f.Orphans(ctx, near)
	if err != nil {
		return nil, fmt.Errorf("list the siblings beside %s: %w", near, err)
	}
	var out []Finding
	for _, o := range left {
		out = append(out, Finding{
			Ref: o.Ref, Problem: OrphanSibling, Detail: o.ID + " keeps the pending version of a secret that is gone",
			Repair: "keyturn doctor --fix", Fix: func(ctx context.Context) error { return f.RemoveOrphan(ctx, o) },
		})
	}
	return out, nil
}
