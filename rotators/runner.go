package rotators

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"log/slog"
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
	// KeepPrevious leaves the superseded credential alone when a rotation
	// begins, and never waits for its gate. By default a rotation begins with
	// retiring, at the target, what the one before it superseded: the overlap
	// is one period and a two-slot issuer has a free slot.
	KeepPrevious bool
	// Gate must be open before a superseded credential is taken out of use. A
	// rotation does not begin before either, since it would take away what is
	// still in use.
	Gate Gate
	// Adoption answers for Gate.Adopted; without it that condition never
	// holds.
	Adoption Adoption
	// MinAge is how long a version is current before a rotation replaces it:
	// a provider that asks too often, as Azure's near-expiry event does for
	// short-lived secrets, does not turn into a loop.
	MinAge time.Duration
	// Force takes gates and MinAge as if they held. It is for a person who
	// knows that a credential has leaked.
	Force bool
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
	locks   *secrets.Locks
}

// NewRunner returns a Runner. opts may be nil.
func NewRunner(store secrets.Store, rotator Rotator, opts *Options) *Runner {
	r := &Runner{store: store, rotator: rotator, locks: secrets.NewLocks()}
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
	// Already reports that there was nothing to do.
	Already bool
}

// NewToken returns a fresh rotation token: a version 4 UUID, which is what
// AWS makes and what its 32 to 64 character limit wants.
func NewToken() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails: crypto/rand since Go 1.24
	return uuid(b, 4)
}

// TokenOf returns the rotation token of an occasion, such as one firing of a
// schedule: the same occasion delivered twice is one rotation. It has the form
// of a UUID, version 8 (RFC 9562, section 5.8).
func TokenOf(occasion string) string {
	sum := sha256.Sum256([]byte("keyturn rotation token\x00" + occasion))
	return uuid([16]byte(sum[:16]), 8)
}

// uuid writes b as a UUID, with the bits that tell version and variant set.
func uuid(b [16]byte, version byte) string {
	b[6] = b[6]&0x0f | version<<4
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// Step runs one phase, as a service that drives the rotation asks for it. A
// token that is current already is a finished rotation: every step succeeds
// and changes nothing, and finish announces once more, in case the first
// announcement was lost. step is checked last, as the samples of AWS do.
func (r *Runner) Step(ctx context.Context, id ref.Ref, token, step string) error {
	unlock, err := r.lock(ctx, id)
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
		return r.announceFinish(ctx, id, token, d.Holder(secrets.Current).ID, d.HolderID(secrets.Previous))
	}
	if d.Opened {
		if !d.Known(token) {
			return fault.Newf(fault.Invalid, "rotate", "version %s has no stage for rotation of %s; start a rotation instead of calling the step by hand", token, id)
		}
		if !d.Has(token, secrets.Pending) {
			return fault.Newf(fault.Invalid, "rotate", "version %s is not pending for rotation of %s; found pending on %q", token, id, d.HolderID(secrets.Pending))
		}
	}
	if perr != nil {
		return perr
	}
	if phase == Create {
		if err := r.mayBegin(ctx, id, d); err != nil {
			return err
		}
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
	unlock, err := r.lock(ctx, id)
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
		res.Version, res.Previous = d.Holder(secrets.Current).ID, d.HolderID(secrets.Previous)
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
	default:
		if err := r.mayBegin(ctx, id, d); err != nil {
			return res, err
		}
	}
	r.announce(ctx, r.event(events.RotationStarted, id, res.Token))
	return r.runPhases(ctx, d, res, Phases()...)
}

// runPhases runs phases of the rotation that res names, and tells in it what
// holds then. d is the secret as it was when the rotation was decided on. The
// caller holds the secret's lock.
func (r *Runner) runPhases(ctx context.Context, d *secrets.Description, res Result, phases ...Phase) (Result, error) {
	for _, p := range phases {
		if err := r.phase(ctx, res.Ref, d, res.Token, p); err != nil {
			if isRollback(res.Ref, res.Token, d.HolderID(secrets.Current)) {
				err = r.giveUpRollback(ctx, res.Ref, res.Token, p, err)
			}
			r.announceFailure(ctx, res.Ref, res.Token, p, err)
			return res, err
		}
	}
	d, err := r.store.Describe(ctx, res.Ref)
	if err != nil {
		return res, fmt.Errorf("describe %s: %w", res.Ref, err)
	}
	if h := d.Holder(secrets.Current); h != nil {
		res.Version, res.Previous = h.ID, d.HolderID(secrets.Previous)
	}
	return res, nil
}
