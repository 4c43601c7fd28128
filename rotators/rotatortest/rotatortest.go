// Package rotatortest is the one suite that every rotator passes: what the
// contract of rotators.Rotator promises, seen through rotators.Runner, and
// what must hold after a crash at any outward call.
//
// The names of its cases, C07 and so on, are those of the conformance cases
// of the four-phase contract of AWS Secrets Manager that are about any
// rotator. It imports no leaf: the caller brings the target and the store.
package rotatortest

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// A Target is one system, with state, whose credential a rotator changes.
// Methods other than Rotator are not under test and never fail on purpose.
type Target interface {
	// Rotator returns the rotator as a fresh process has it, every outward
	// call passing through in. A nil in fails nothing.
	Rotator(t *testing.T, in *crashtest.Injector) rotators.Rotator
	// Initial is the secret's first value; it signs in.
	Initial() secrets.Value
	// SignIn uses v as an application would: nil if it was accepted, of kind
	// Denied if it was refused. Any other error fails the test.
	SignIn(ctx context.Context, v secrets.Value) error
	// Live counts the credentials that the target honours now, -1 if it
	// cannot tell.
	Live(t *testing.T) int
}

// A Foreigner is a Target that can make a pending value which names another
// target than v does; Set refuses it before any outward call.
type Foreigner interface {
	Foreign(t *testing.T, v secrets.Value) secrets.Value
}

// A Canarier is a Target that knows which parts of its values are secret. By
// default they are the strings under JSON keys that sound like it.
type Canarier interface {
	Canaries(v secrets.Value) []string
}

// Traits say what a rotator's strategy is.
type Traits struct {
	// CurrentSurvivesSet: the current value signs in all through a rotation.
	// A single user's does not from set to finish.
	CurrentSurvivesSet bool
	// KillsCurrent: after the rotation what was current is refused.
	KillsCurrent bool
	// Issues: the target makes the credential, in create, so that it signs in
	// before set. Without it create makes no outward call.
	Issues bool
	// Slow: each call takes tens of milliseconds. All but the plainest crash
	// cases then fail calls in one mode, unless crashtest.SoakEnv is set.
	Slow bool
}

// NewTarget makes a target with a credential of its own. It is called for
// every case and every crash point, so it should be cheap: a new user on a
// server that the whole test shares.
type NewTarget = func(t *testing.T) Target

// NewStore makes a store that holds one secret, whose current value is v.
type NewStore = func(t *testing.T, v secrets.Value) (secrets.Store, ref.Ref)

// Run runs every case of the suite as a subtest. What a target cannot do is
// skipped by name, and the cases of what a rotator can do besides rotating
// (see rotators.Verifier and the others) are there for one that can.
func Run(t *testing.T, newTarget NewTarget, tr Traits, newStore NewStore) {
	cases := []named{
		{"Whole", whole},
		{"TenInARow", tenInARow},
		{"C07_CreateKeepsWhatItDoesNotKnow", createKeeps},
		{"C08_CreateRepeated", createRepeated},
		{"C10_PutRacedByTwin", putRacedByTwin},
		{"C10_PutRacedByOther", putRacedByOther},
		{"C11_CurrentIsNoSecret", currentIsNoSecret},
		{"C12_SetRepeated", setRepeated},
		{"C13_PendingNamesAnotherTarget", foreignPending},
		{"C21_TestProvesPending", testProves},
		{"C22_C23_FinishAndRepeat", finishRepeated},
		{"C24_HolderChanged", holderChanged},
		{"C29_NoTimeLeft", noTimeLeft},
		{"C29_Cancelled", cancelled},
		{"C32_SameTokenAtOnce", func(w *world) { atOnce(w, true) }},
		{"C32_TwoTokensAtOnce", func(w *world) { atOnce(w, false) }},
		{"TokenAgain", tokenAgain},
		{"RollsForward", rollsForward},
	}
	for _, c := range append(cases, abilities(newTarget(t).Rotator(t, nil))...) {
		t.Run(c.name, func(t *testing.T) { c.f(newWorld(t, newTarget, tr, newStore)) })
	}
	t.Run("C16_ConnectionLost", func(t *testing.T) { connectionLost(t, newTarget, tr, newStore) })
	t.Run("C30_NoValueLeaks", func(t *testing.T) { noLeak(t, newTarget, tr, newStore) })
}

// world is one target with one secret, as seen from outside the processes
// that rotate it.
type world struct {
	*testing.T
	target Target
	tr     Traits
	store  secrets.Store
	id     ref.Ref
	bus    *bus
	rec    *leaktest.Recorder
	canary string // under a key of the secret that no rotator knows
	// fresh returns another world of the same kind.
	fresh func(t *testing.T) *world
}

func newWorld(t *testing.T, newTarget NewTarget, tr Traits, newStore NewStore) *world {
	t.Helper()
	w := &world{T: t, target: newTarget(t), tr: tr, bus: &bus{}, rec: &leaktest.Recorder{}, canary: leaktest.Canary()}
	w.fresh = func(t *testing.T) *world { return newWorld(t, newTarget, tr, newStore) }
	w.store, w.id = newStore(t, w.withUnknown(w.target.Initial()))
	return w
}

// A process is one run of the program that rotates.
type process struct {
	*rotators.Runner
	rotator rotators.Rotator
	in      *crashtest.Injector
}

// process starts one. With an injector the store, the rotator's calls and the
// announcements pass through it.
func (w *world) process(in *crashtest.Injector) process { return w.processOn(w.store, in) }

func (w *world) processOn(s secrets.Store, in *crashtest.Injector) process {
	w.Helper()
	if in != nil {
		s = in.Store(s)
	}
	p := process{rotator: w.target.Rotator(w.T, in), in: in}
	p.Runner = rotators.NewRunner(s, p.rotator, &rotators.Options{
		Publisher: &publisher{bus: w.bus, in: in}, Logger: w.rec.Logger(),
		Budget: time.Millisecond, PhaseTimeout: 30 * time.Second,
	})
	return p
}

func (w *world) rotate(p process, token string) {
	w.Helper()
	if _, err := p.Rotate(w.Context(), w.id, token); err != nil {
		w.Fatalf("rotate: %v", err)
	}
}

func (w *world) step(p process, token, step string) {
	w.Helper()
	if err := p.Step(w.Context(), w.id, token, step); err != nil {
		w.Fatalf("%s: %v", step, err)
	}
}

// get returns the version that holds stage, or nil if none does.
func (w *world) get(stage secrets.Stage) *secrets.Version {
	w.Helper()
	v, err := w.store.Get(context.Background(), w.id, stage)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		w.Fatalf("read %s: %v", stage, err)
	}
	return v
}

// must returns the version that holds stage.
func (w *world) must(stage secrets.Stage) *secrets.Version {
	w.Helper()
	v := w.get(stage)
	if v == nil {
		w.Fatalf("no version is %s", stage)
	}
	return v
}

// accepts reports whether v signs in.
func (w *world) accepts(v secrets.Value) bool {
	w.Helper()
	err := w.target.SignIn(context.Background(), v)
	if err != nil && !fault.Is(err, fault.Denied) {
		w.Fatalf("sign in: %v; expected nil or an error of kind denied", err)
	}
	return err == nil
}

func (w *world) signsIn(what string, v secrets.Value) {
	w.Helper()
	if !w.accepts(v) {
		w.Fatalf("the target refuses %s", what)
	}
}

func (w *world) refused(what string, v secrets.Value) {
	w.Helper()
	if w.accepts(v) {
		w.Fatalf("the target accepts %s", what)
	}
}

// live fails the test unless the target honours want credentials.
func (w *world) live(what string, want int) {
	w.Helper()
	if got := w.target.Live(w.T); got != want {
		w.Fatalf("%s: the target honours %d credentials; want %d", what, got, want)
	}
}

// settled checks what must hold whenever no rotation is under way.
func (w *world) settled() {
	w.Helper()
	w.signsIn("current", w.must(secrets.Current).Value)
	if p := w.get(secrets.Pending); p != nil {
		w.Fatalf("pending is still there, of rotation %s", p.Token)
	}
}

// usable checks what must hold at any instant: current signs in, or, where
// the strategy has a window, pending does and closes it.
func (w *world) usable() {
	w.Helper()
	if w.accepts(w.must(secrets.Current).Value) {
		return
	}
	if w.tr.CurrentSurvivesSet {
		w.Fatal("the target refuses current")
	}
	if p := w.get(secrets.Pending); p == nil || !w.accepts(p.Value) {
		w.Fatal("the target refuses current, and pending too")
	}
}

// unknown are members that no rotator knows. The numbers do not survive
// a float64.
func (w *world) unknown() map[string]json.RawMessage {
	return map[string]json.RawMessage{
		"zz_note":   json.RawMessage(`"` + w.canary + `"`),
		"zz_number": json.RawMessage(`12345678901234567890`),
		"zz_nested": json.RawMessage(`{"a":[1.50,null,"<&>"],"b":{}}`),
	}
}

// withUnknown adds members to v that no rotator knows, if it is an object.
func (w *world) withUnknown(v secrets.Value) secrets.Value {
	m, ok := object(v)
	if !ok {
		return v
	}
	for k, raw := range w.unknown() {
		m[k] = raw
	}
	b, err := json.Marshal(m)
	if err != nil {
		w.Fatal("the initial value cannot be written as JSON")
	}
	return secrets.NewValue(b)
}

func object(v secrets.Value) (m map[string]json.RawMessage, ok bool) {
	return m, json.Unmarshal(v.Reveal(), &m) == nil && m != nil
}

// canaries are the parts of v that may never be printed.
func (w *world) canaries(v secrets.Value) []string {
	out := []string{w.canary}
	if c, ok := w.target.(Canarier); ok {
		return append(out, c.Canaries(v)...)
	}
	m, ok := object(v)
	if !ok {
		return append(out, string(v.Reveal()))
	}
	n := len(out)
	for k, raw := range m {
		var s string
		if json.Unmarshal(raw, &s) != nil || s == "" {
			continue
		}
		for _, word := range []string{"password", "key", "secret", "token"} {
			if strings.Contains(strings.ToLower(k), word) {
				out = append(out, s)
				break
			}
		}
	}
	if len(out) == n {
		w.Fatal("the target's value has no member that sounds secret; implement Canarier")
	}
	return out
}

// bus keeps events as JetStream does: one of each id.
type bus struct {
	mu sync.Mutex
	m  map[string]events.Event
}

func (b *bus) put(es []events.Event) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.m == nil {
		b.m = map[string]events.Event{}
	}
	for _, e := range es {
		if had, ok := b.m[e.ID]; ok && (had.Type != e.Type || had.Data.Version != e.Data.Version) {
			return fmt.Errorf("two events have the id %s: %s of %q, %s of %q", e.ID, had.Type, had.Data.Version, e.Type, e.Data.Version)
		}
		b.m[e.ID] = e
	}
	return nil
}

// count returns how many events of type t there are.
func (b *bus) count(t events.Type) (n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.m {
		if e.Type == t {
			n++
		}
	}
	return n
}

func (b *bus) all() (out []events.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.m {
		out = append(out, e)
	}
	return out
}

// publisher is one process's way to the bus.
type publisher struct {
	bus *bus
	in  *crashtest.Injector
}

func (p *publisher) Publish(ctx context.Context, es ...events.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return p.in.Call("publish", func() error { return p.bus.put(es) })
}

// changed wraps a store and runs something before one of its calls.
type changed struct {
	secrets.Store
	beforePut     func()
	beforePromote func() error
}

func (c *changed) PutPending(ctx context.Context, r ref.Ref, token string, v secrets.Value) (*secrets.Version, error) {
	if c.beforePut != nil {
		c.beforePut()
	}
	return c.Store.PutPending(ctx, r, token, v)
}

func (c *changed) Promote(ctx context.Context, r ref.Ref, token string) (*secrets.Version, error) {
	if c.beforePromote != nil {
		if err := c.beforePromote(); err != nil {
			return nil, err
		}
	}
	return c.Store.Promote(ctx, r, token)
}
