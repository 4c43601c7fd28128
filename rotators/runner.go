package rotators

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// Options of a [Runner]. The zero value of each field means its default.
type Options struct {
	// Publisher hears of rotations; nil announces nothing.
	Publisher events.Publisher
	// Tenant names the tenant of a secret in announcements.
	Tenant func(ref.Ref) string
	// Logger gets one line a phase. The default discards.
	Logger *slog.Logger
	// Observe is called after each phase, for those who show progress. It
	// must not block.
	Observe func(Progress)
	// Budget is the least time that a phase must have before the deadline of
	// its context: with less it is not begun, so that a function is not killed
	// half-way. 2 s by default.
	Budget time.Duration
	// PhaseTimeout bounds a phase whose context has no nearer deadline. 60 s
	// by default.
	PhaseTimeout time.Duration
	// KeepPrevious leaves the superseded credential alone. By default a
	// rotation begins with retiring, at the target, what the one before it
	// superseded: the overlap is one period and a two-slot issuer has a free
	// slot.
	KeepPrevious bool
}

// A Progress is one phase that ended.
type Progress struct {
	Ref   ref.Ref
	Token string
	Phase Phase
	Took  time.Duration
	Err   error
}

// A Runner runs rotations of the secrets of one store with one rotator. It is
// safe for concurrent use: rotations of one secret queue up within a process,
// and across processes the store's compare-and-swap and the rotator's
// idempotence decide.
type Runner struct {
	store   secrets.Store
	rotator Rotator
	opts    Options
	locks   keyedLocks
}

// NewRunner returns a Runner. opts may be nil.
func NewRunner(store secrets.Store, rotator Rotator, opts *Options) *Runner {
	r := &Runner{store: store, rotator: rotator}
	if opts != nil {
		r.opts = *opts
	}
	if r.opts.Logger == nil {
		r.opts.Logger = slog.New(slog.DiscardHandler)
	}
	if r.opts.Tenant == nil {
		r.opts.Tenant = func(ref.Ref) string { return "default" }
	}
	if r.opts.Observe == nil {
		r.opts.Observe = func(Progress) {}
	}
	if r.opts.Budget == 0 {
		r.opts.Budget = 2 * time.Second
	}
	if r.opts.PhaseTimeout == 0 {
		r.opts.PhaseTimeout = time.Minute
	}
	return r
}

// A Result is what a rotation did.
type Result struct {
	Ref   ref.Ref
	Token string
	// Version is the id of the version that is current now, Previous that of
	// the one that it superseded, if known.
	Version, Previous string
	// Resumed reports that a pending version of an earlier, unfinished
	// rotation was rolled forward; Token is that rotation's.
	Resumed bool
}

// NewToken returns a fresh rotation token: a version 4 UUID, which is what
// AWS makes and what its 32 to 64 character limit wants.
func NewToken() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand since Go 1.24
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Step runs one phase, as a service that drives the rotation asks for it. A
// token that is current already is a finished rotation: every step succeeds
// and changes nothing, and finish announces once more, in case the first
// announcement was lost. step is checked last, as the samples of AWS do.
func (r *Runner) Step(ctx context.Context, id ref.Ref, token, step string) error {
	unlock, err := r.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()

	d, err := r.store.Describe(ctx, id)
	if err != nil {
		return fmt.Errorf("describe %s: %w", id, err)
	}
	if d.RotationDisabled {
		return fault.Newf(fault.Invalid, "rotate", "%s is not enabled for rotation; enable rotation of the secret first", id)
	}
	phase, perr := ParsePhase(step)
	if d.Has(token, secrets.Current) {
		r.opts.Logger.InfoContext(ctx, "already current, nothing to do", "secret", id.String(), "token", token, "step", step)
		if perr != nil || phase != Finish {
			return nil
		}
		// A service that opens rotations clears its own label.
		if !d.Opened {
			if err := r.cleanUp(ctx, id, d, token); err != nil {
				return err
			}
		}
		return r.announceFinish(ctx, id, token, d.Holder(secrets.Current).ID, holderID(d, secrets.Previous))
	}
	if d.Opened {
		if !d.Known(token) {
			return fault.Newf(fault.Invalid, "rotate", "version %s has no stage for rotation of %s; start a rotation instead of calling the step by hand", token, id)
		}
		if !d.Has(token, secrets.Pending) {
			return fault.Newf(fault.Invalid, "rotate", "version %s is not pending for rotation of %s; found pending on %q", token, id, holderID(d, secrets.Pending))
		}
	}
	if perr != nil {
		return perr
	}
	if phase == Create {
		r.announce(ctx, r.event(events.RotationStarted, id, token))
	}
	if err := r.phase(ctx, id, d, token, phase); err != nil {
		r.announceFailure(ctx, id, token, phase, err)
		return err
	}
	return nil
}

// Rotate runs all four phases. If a pending version of an unfinished rotation
// is there it is rolled forward under its own token; otherwise token names
// the new rotation, and an empty one is made up. A token that is current
// already is announced once more and is success, so a caller that repeats
// itself with the same token after a crash never rotates twice.
func (r *Runner) Rotate(ctx context.Context, id ref.Ref, token string) (Result, error) {
	unlock, err := r.locks.lock(ctx, id)
	if err != nil {
		return Result{}, err
	}
	defer unlock()

	if token == "" {
		token = NewToken()
	}
	res := Result{Ref: id, Token: token}
	d, err := r.store.Describe(ctx, id)
	if err != nil {
		return res, fmt.Errorf("describe %s: %w", id, err)
	}
	if d.Has(token, secrets.Current) {
		res.Version, res.Previous = d.Holder(secrets.Current).ID, holderID(d, secrets.Previous)
		if err := r.cleanUp(ctx, id, d, token); err != nil {
			return res, err
		}
		return res, r.announceFinish(ctx, id, token, res.Version, res.Previous)
	}
	pending, err := r.store.Get(ctx, id, secrets.Pending)
	switch {
	case err == nil && pending.Token == "":
		return res, fault.Newf(fault.Conflict, "rotate", "pending version %s of %s was staged by no rotation; make it current or remove its stage, then rotate again", pending.ID, id)
	case err == nil:
		if pending.Token != token {
			r.opts.Logger.InfoContext(ctx, "rolling an unfinished rotation forward", "secret", id.String(), "token", pending.Token)
			res.Token, res.Resumed = pending.Token, true
		}
	case !fault.Is(err, fault.NotFound):
		return res, fmt.Errorf("read pending of %s: %w", id, err)
	}
	token = res.Token

	r.announce(ctx, r.event(events.RotationStarted, id, token))
	for _, p := range Phases() {
		if err := r.phase(ctx, id, d, token, p); err != nil {
			r.announceFailure(ctx, id, token, p, err)
			return res, err
		}
	}
	d, err = r.store.Describe(ctx, id)
	if err != nil {
		return res, fmt.Errorf("describe %s: %w", id, err)
	}
	if h := d.Holder(secrets.Current); h != nil {
		res.Version, res.Previous = h.ID, holderID(d, secrets.Previous)
	}
	return res, nil
}

// cleanUp removes the pending stage that a finished rotation left behind.
func (r *Runner) cleanUp(ctx context.Context, id ref.Ref, d *secrets.Description, token string) error {
	if !d.Has(token, secrets.Pending) {
		return nil
	}
	if err := r.store.Discard(ctx, id, token); err != nil {
		return fmt.Errorf("clean up after rotation of %s: %w", id, err)
	}
	return nil
}

// Retire revokes the superseded credential of a secret at its target. Nothing
// superseded, and a rotator whose credentials die by themselves, are success.
func (r *Runner) Retire(ctx context.Context, id ref.Ref) error {
	unlock, err := r.locks.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	current, err := r.store.Get(ctx, id, secrets.Current)
	if err != nil {
		return fmt.Errorf("read current of %s: %w", id, err)
	}
	return r.retire(ctx, Change{Ref: id, Token: current.Token, Current: current.Value})
}

// phase runs one phase with its deadline, log line and observer. d is the
// secret as it was when the rotation was decided on. The caller holds the
// secret's lock.
func (r *Runner) phase(ctx context.Context, id ref.Ref, d *secrets.Description, token string, p Phase) error {
	start := time.Now()
	err := r.checkBudget(ctx, p)
	if err == nil {
		pctx, cancel := context.WithTimeout(ctx, r.opts.PhaseTimeout)
		switch p {
		case Create:
			err = r.create(pctx, id, token, holderID(d, secrets.Current))
		case Set:
			err = r.withChange(pctx, id, token, r.rotator.Set)
		case Test:
			err = r.withChange(pctx, id, token, r.rotator.Test)
		case Finish:
			err = r.finish(pctx, id, token)
		}
		cancel()
	}
	took := time.Since(start)
	log := r.opts.Logger.With("secret", id.String(), "token", token, "step", string(p), "took", took)
	if err != nil {
		err = fmt.Errorf("%s %s: %w", p, id, err)
		log.ErrorContext(ctx, "phase failed", "kind", fault.KindOf(err).String(), "class", string(fault.ClassOf(err)), "err", err)
	} else {
		log.InfoContext(ctx, "phase done")
	}
	r.opts.Observe(Progress{Ref: id, Token: token, Phase: p, Took: took, Err: err})
	return err
}

func (r *Runner) checkBudget(ctx context.Context, p Phase) error {
	if err := ctx.Err(); err != nil {
		return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassTimeout, Op: string(p), Err: err}
	}
	deadline, ok := ctx.Deadline()
	if left := time.Until(deadline); ok && left < r.opts.Budget {
		return &fault.Error{
			Kind: fault.Unavailable, Class: fault.ClassTimeout, Op: string(p),
			Msg: fmt.Sprintf("%s left before the deadline, not begun; expected at least %s; raise the function's time-out", left.Round(time.Millisecond), r.opts.Budget),
		}
	}
	return nil
}

// create makes and stores pending, if the version with the id seen is still
// current: a rotation that ended meanwhile was the one wanted, and what it
// superseded a moment ago is not to be retired yet.
func (r *Runner) create(ctx context.Context, id ref.Ref, token, seen string) error {
	current, err := r.store.Get(ctx, id, secrets.Current)
	switch {
	case err != nil:
		return fmt.Errorf("read current: %w", err)
	case finished(current, token):
		return nil
	case current.ID != seen:
		return moved(id, "nothing was made")
	}
	pending, err := r.store.Get(ctx, id, secrets.Pending)
	switch {
	case err == nil && pending.Token == token:
		return nil // stored by an earlier attempt: never overwritten
	case err == nil:
		return fault.Newf(fault.Conflict, "create", "another rotation (token %s) of %s is unfinished; let it finish, or discard it", pending.Token, id)
	case !fault.Is(err, fault.NotFound):
		// Only "there is none" means make one: a refused or throttled read
		// must not lead to a second credential.
		return fmt.Errorf("read pending: %w", err)
	}
	c := Change{Ref: id, Token: token, Current: current.Value}
	if c.Previous, err = r.previous(ctx, id); err != nil {
		return err
	}
	if !r.opts.KeepPrevious {
		if err := r.retire(ctx, c); err != nil {
			return fmt.Errorf("retire the superseded credential: %w", err)
		}
	}
	v, err := r.rotator.Create(ctx, c)
	if err != nil {
		return err
	}
	stored, err := r.store.PutPending(ctx, id, token, v)
	switch {
	case fault.Is(err, fault.Conflict):
		// Another rotation was faster; for any other error v may be stored.
		return errors.Join(fmt.Errorf("store pending: %w", err), r.drop(ctx, c, v))
	case err != nil:
		return fmt.Errorf("store pending: %w", err)
	case !stored.Value.Equal(v):
		return r.drop(ctx, c, v) // a twin was faster, and what it stored is the truth
	}
	return r.checkCurrent(ctx, c, current.ID, v)
}

// checkCurrent takes back v, which was stored as pending, if current has moved
// since it was read: v succeeds a version that is not current any more (of
// two users that alternate it would be the one in use), and nothing could
// ever set it.
func (r *Runner) checkCurrent(ctx context.Context, c Change, readID string, v secrets.Value) error {
	now, err := r.store.Get(ctx, c.Ref, secrets.Current)
	if err != nil {
		return fmt.Errorf("read current again: %w", err)
	}
	if now.ID == readID || finished(now, c.Token) {
		return nil
	}
	err = moved(c.Ref, "pending was discarded")
	if derr := r.store.Discard(ctx, c.Ref, c.Token); derr != nil {
		return errors.Join(err, fmt.Errorf("discard pending: %w", derr))
	}
	return errors.Join(err, r.drop(ctx, c, v))
}

// finished reports whether a twin has ended the rotation named token.
func finished(current *secrets.Version, token string) bool {
	return token != "" && current.Token == token
}

func moved(id ref.Ref, what string) error {
	return &fault.Error{
		Kind: fault.Conflict, Class: fault.ClassConcurrency, Op: "create",
		Msg: fmt.Sprintf("another rotation of %s ended meanwhile; %s, rotate again if it is still wanted", id, what),
	}
}

// drop revokes v, which was made and is no version: an issued key would stay
// alive unseen. It looks at the store once more, since a store's client that
// repeated a call by itself may have been told of its own success as a
// conflict.
func (r *Runner) drop(ctx context.Context, c Change, v secrets.Value) error {
	rt, ok := r.rotator.(Retirer)
	if !ok {
		return nil
	}
	for stage, held := range map[secrets.Stage]*secrets.Value{secrets.Current: &c.Current, secrets.Pending: &c.Pending} {
		now, err := r.store.Get(ctx, c.Ref, stage)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read %s to revoke a credential that is not stored: %w", stage, err)
		}
		if now.Value.Equal(v) {
			return nil
		}
		*held = now.Value
	}
	if err := rt.Retire(ctx, c, v); err != nil {
		return fmt.Errorf("revoke a credential that is not stored: %w", err)
	}
	return nil
}

// previous returns the previous value, zero if there is none.
func (r *Runner) previous(ctx context.Context, id ref.Ref) (secrets.Value, error) {
	v, err := r.store.Get(ctx, id, secrets.Previous)
	if fault.Is(err, fault.NotFound) {
		return secrets.Value{}, nil
	}
	if err != nil {
		return secrets.Value{}, fmt.Errorf("read previous: %w", err)
	}
	return v.Value, nil
}

// retire revokes what c.Current superseded.
func (r *Runner) retire(ctx context.Context, c Change) error {
	rt, ok := r.rotator.(Retirer)
	if !ok {
		return nil
	}
	previous, err := r.store.Get(ctx, c.Ref, secrets.Previous)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read previous: %w", err)
	}
	if previous.Value.Equal(c.Current) {
		return nil // a restored value: retiring it would kill the current one
	}
	if err := rt.Retire(ctx, c, previous.Value); err != nil {
		return err
	}
	e := events.New(events.VersionRetired, c.Ref, time.Now(), previous.ID)
	e.Data.Version = previous.ID
	r.announce(ctx, r.fill(e))
	return nil
}

// withChange loads what a rotation knows and calls f.
func (r *Runner) withChange(ctx context.Context, id ref.Ref, token string, f func(context.Context, Change) error) error {
	current, err := r.store.Get(ctx, id, secrets.Current)
	if err != nil {
		return fmt.Errorf("read current: %w", err)
	}
	if finished(current, token) {
		return nil
	}
	pending, err := r.store.Get(ctx, id, secrets.Pending)
	if err != nil {
		return fmt.Errorf("read pending: %w", err)
	}
	if pending.Token != token {
		return fault.Newf(fault.Conflict, "rotate", "pending of %s belongs to rotation %s, not %s; let that one finish, or discard it", id, pending.Token, token)
	}
	c := Change{Ref: id, Token: token, Current: current.Value, Pending: pending.Value}
	if c.Previous, err = r.previous(ctx, id); err != nil {
		return err
	}
	return f(ctx, c)
}

// promoteTries bounds how often finish looks again after somebody moved
// current between its look and its move.
const promoteTries = 3

func (r *Runner) finish(ctx context.Context, id ref.Ref, token string) error {
	var before *secrets.Description
	var v *secrets.Version
	err := error(nil)
	for range promoteTries {
		if before, err = r.store.Describe(ctx, id); err != nil {
			return fmt.Errorf("describe: %w", err)
		}
		if v, err = r.store.Promote(ctx, id, token); !fault.Is(err, fault.Conflict) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("promote: %w", err)
	}
	previous := holderID(before, secrets.Current)
	if before.Has(token, secrets.Current) {
		previous = holderID(before, secrets.Previous)
	}
	return r.announceFinish(ctx, id, token, v.ID, previous)
}

func holderID(d *secrets.Description, s secrets.Stage) string {
	if h := d.Holder(s); h != nil {
		return h.ID
	}
	return ""
}

// announceFinish says that version is current. It is a part of finish: an
// announcement that fails is an error, the caller repeats the phase, and the
// ids make the repetition harmless.
func (r *Runner) announceFinish(ctx context.Context, id ref.Ref, token, version, previous string) error {
	activated := r.fill(events.New(events.VersionActivated, id, time.Now(), version))
	activated.Data.Version, activated.Data.PreviousVersion = version, previous
	done := r.event(events.RotationSucceeded, id, token)
	done.Data.Version, done.Data.PreviousVersion = version, previous
	if r.opts.Publisher == nil {
		return nil
	}
	if err := r.opts.Publisher.Publish(ctx, activated, done); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	return nil
}

func (r *Runner) announceFailure(ctx context.Context, id ref.Ref, token string, p Phase, err error) {
	now := time.Now()
	e := r.fill(events.New(events.RotationFailed, id, now, token, string(p), now.UTC().Format(time.RFC3339Nano)))
	e.Data.Reason = string(p) + ": " + fault.KindOf(err).String()
	if c := fault.ClassOf(err); c != "" {
		e.Data.Reason += "/" + string(c)
	}
	// The rotation may have failed because its deadline passed; whoever
	// watches must hear of it all the same.
	actx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	r.announce(actx, e)
}

// announce publishes what nobody depends on; a failure is logged.
func (r *Runner) announce(ctx context.Context, e events.Event) {
	if r.opts.Publisher == nil {
		return
	}
	if err := r.opts.Publisher.Publish(ctx, e); err != nil {
		r.opts.Logger.WarnContext(ctx, "announcement failed", "secret", e.Data.Ref.String(), "event", string(e.Type), "err", err)
	}
}

func (r *Runner) event(t events.Type, id ref.Ref, token string) events.Event {
	return r.fill(events.New(t, id, time.Now(), token))
}

func (r *Runner) fill(e events.Event) events.Event {
	e.Data.Tenant, e.Data.Cause = r.opts.Tenant(e.Data.Ref), "rotator"
	return e
}

// keyedLocks is one lock a secret, kept only while somebody wants it.
type keyedLocks struct {
	mu sync.Mutex
	m  map[ref.Ref]*keyedLock
}

type keyedLock struct {
	ch    chan struct{} // holds one token while unlocked
	users int
}

// lock waits for the secret's lock or the end of ctx.
func (l *keyedLocks) lock(ctx context.Context, id ref.Ref) (unlock func(), err error) {
	l.mu.Lock()
	if l.m == nil {
		l.m = map[ref.Ref]*keyedLock{}
	}
	k := l.m[id]
	if k == nil {
		k = &keyedLock{ch: make(chan struct{}, 1)}
		k.ch <- struct{}{}
		l.m[id] = k
	}
	k.users++
	l.mu.Unlock()
	leave := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if k.users--; k.users == 0 {
			delete(l.m, id)
		}
	}
	select {
	case <-k.ch:
		return func() { k.ch <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, &fault.Error{
			Kind: fault.Unavailable, Class: fault.ClassConcurrency, Op: "rotate",
			Msg: fmt.Sprintf("waiting for another rotation of %s to end", id), Err: errors.Join(ctx.Err(), context.Cause(ctx)),
		}
	}
}
