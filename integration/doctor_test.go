package integration_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
)

// stuckAtOnce takes every pending version for an old one, also where the
// platform's clock is ahead of ours by the rest of a second.
const stuckAtOnce = -time.Minute

// A deaf store fails one of its methods, as a process that is killed there.
type deaf struct {
	secrets.Store
	put, promote bool
}

func (d deaf) PutPending(ctx context.Context, r ref.Ref, token string, v secrets.Value) (*secrets.Version, error) {
	if d.put {
		return nil, fault.Newf(fault.Unavailable, "put pending", "the process was killed")
	}
	return d.Store.PutPending(ctx, r, token, v)
}

func (d deaf) Promote(ctx context.Context, r ref.Ref, token string) (*secrets.Version, error) {
	if d.promote {
		return nil, fault.Newf(fault.Unavailable, "promote", "the process was killed")
	}
	return d.Store.Promote(ctx, r, token)
}

// A lame rotator sets nothing.
type lame struct{ rotators.Rotator }

func (lame) Set(context.Context, rotators.Change) error {
	return fault.Newf(fault.Unavailable, "set", "the process was killed")
}

// A ward is one secret that the doctor looks at.
type ward struct {
	t       *testing.T
	p       platform
	store   secrets.Store
	rotator rotators.Rotator
	runner  *rotators.Runner
	ref     ref.Ref
	db      *database
	log     *leaktest.Recorder
	secret  canaries
}

func newWard(t *testing.T, p platform, db *database, user string) *ward {
	t.Helper()
	w := &ward{t: t, p: p, store: p.open(t, nil), db: db, log: &leaktest.Recorder{}, secret: canaries{t: t, seen: map[string]bool{}}}
	w.ref, w.rotator = pair(t, p, w.store, db, user, true, &postgres.Options{})
	w.runner = rotators.NewRunner(w.store, w.rotator, &rotators.Options{KeepPrevious: true, Logger: w.log.Logger()})
	w.secret.collect(w.store, w.ref)
	return w
}

// interrupted begins a rotation that has to end with an error.
func (w *ward) interrupted(s secrets.Store, r rotators.Rotator) {
	w.t.Helper()
	if _, err := rotators.NewRunner(s, r, &rotators.Options{KeepPrevious: true}).Rotate(w.t.Context(), w.ref, ""); !fault.Is(err, fault.Unavailable) {
		w.t.Fatalf("the rotation that was to be killed gave %v", err)
	}
}

// finds examines, records what is shown, and wants exactly one finding that says what is wrong.
func (w *ward) finds(want rotators.Problem, says string) rotators.Finding {
	w.t.Helper()
	all, err := w.runner.Examine(w.t.Context(), w.ref, stuckAtOnce)
	must(w.t, err)
	w.log.Record(all)
	w.secret.collect(w.store, w.ref)
	if len(all) != 1 || all[0].Problem != want || all[0].Ref != w.ref || all[0].Repair == "" || !strings.Contains(all[0].Detail, says) {
		w.t.Fatalf("found %+v; want %q alone, with %q and a repair", all, want, says)
	}
	return all[0]
}

// mends does what the finding proposes, and wants a sound secret that plain
// readers can sign in with.
func (w *ward) mends(f rotators.Finding) {
	w.t.Helper()
	if f.Fix == nil {
		w.t.Fatalf("%s has no fix; its repair is %q", f.Problem, f.Repair)
	}
	must(w.t, f.Fix(w.t.Context()))
	w.sound()
}

// sound wants nothing found, what plain readers get to sign in, and no value in
// anything that was shown so far.
func (w *ward) sound() {
	w.t.Helper()
	all, err := w.runner.Examine(w.t.Context(), w.ref, stuckAtOnce)
	must(w.t, err)
	w.log.Record(all)
	w.secret.collect(w.store, w.ref)
	w.log.Check(w.t, w.secret.all...)
	if len(all) > 0 {
		w.t.Fatalf("still found: %+v", all)
	}
	if v, err := w.p.plain(w.t.Context(), w.ref); err != nil || !w.db.accepts(w.t, v) {
		w.t.Fatalf("found sound, and what plain readers get does not sign in (%v)", err)
	}
}

// lock changes the password of current's user behind everybody's back, and
// returns the user and the password that the store has.
func (w *ward) lock() (user, password string) {
	w.t.Helper()
	s, err := dbsecret.Parse(get(w.t, w.store, w.ref, secrets.Current).Value)
	must(w.t, err)
	w.db.sql(w.t, "ALTER ROLE "+s.Username+" PASSWORD '"+w.secret.plant()+"'")
	return s.Username, string(s.Password.Reveal())
}

// TestDoctor builds each state that a secret can be stuck in by hand, on each
// platform, and wants it named, mended, and sound afterwards.
func TestDoctor(t *testing.T) {
	db := newDatabase(t)
	for name, newPlatform := range platforms(&oneProcess{}) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlatform(t)
			n := 0
			ward := func(t *testing.T) *ward {
				n++
				return newWard(t, p, db, name+"_"+string(rune('a'+n)))
			}
			t.Run("sound", func(t *testing.T) {
				w := ward(t)
				w.sound()
				_, err := w.runner.Rotate(t.Context(), w.ref, "")
				must(t, err)
				w.sound()
			})
			t.Run("stuck pending", func(t *testing.T) {
				w := ward(t)
				w.interrupted(w.store, lame{w.rotator})
				token := get(t, w.store, w.ref, secrets.Pending).Token
				w.mends(w.finds(rotators.StuckPending, token))
				if got := get(t, w.store, w.ref, secrets.Current).Token; got != token {
					t.Errorf("current is of rotation %q; want %s, rolled forward", got, token)
				}
			})
			t.Run("pending works and is not current", func(t *testing.T) {
				w := ward(t)
				w.interrupted(deaf{Store: w.store, promote: true}, w.rotator)
				token := get(t, w.store, w.ref, secrets.Pending).Token
				w.mends(w.finds(rotators.PendingNotPromoted, token))
				if got := get(t, w.store, w.ref, secrets.Current).Token; got != token {
					t.Errorf("current is of rotation %q; want %s, promoted", got, token)
				}
			})
			t.Run("current does not sign in, previous does", func(t *testing.T) {
				w := ward(t)
				before := get(t, w.store, w.ref, secrets.Current).Value
				_, err := w.runner.Rotate(t.Context(), w.ref, "")
				must(t, err)
				w.lock()
				w.mends(w.finds(rotators.CurrentRefused, "previous"))
				if !same(t, before, get(t, w.store, w.ref, secrets.Current).Value) {
					t.Error("the credential that works is not current")
				}
			})
			t.Run("nothing signs in", func(t *testing.T) {
				w := ward(t)
				user, password := w.lock()
				if f := w.finds(rotators.CurrentRefused, "no other version"); f.Fix != nil || !strings.HasPrefix(f.Repair, "by hand") {
					t.Errorf("the repair is %q, with a fix: %t; want that only a person can", f.Repair, f.Fix != nil)
				}
				w.db.sql(t, "ALTER ROLE "+user+" PASSWORD '"+password+"'") // what the repair says
				w.sound()
			})
			t.Run("orphan keys", func(t *testing.T) { orphanKeys(t, p) })
			if aws, ok := p.(*awsPlatform); ok {
				t.Run("pending without a value", func(t *testing.T) {
					w := ward(t)
					token := rotators.NewToken()
					aws.fake.StartRotation(w.ref.Name, token)
					w.mends(w.finds(rotators.PendingWithoutValue, token))
					if h := aws.fake.Holder(w.ref.Name, "AWSPENDING"); h == token {
						t.Error("AWSPENDING is still on the version without a value")
					}
				})
			}
			if slices.Contains([]string{"gcp", "azure", "vault"}, name) {
				t.Run("orphan sibling", func(t *testing.T) { orphanSibling(t, p, ward(t)) })
			}
		})
	}
}

// orphanKeys has an issuer honour a key that no version holds.
func orphanKeys(t *testing.T, p platform) {
	t.Helper()
	iss := newIssuer(t, 4)
	store, r := p.open(t, nil), p.create(t, iss.first)
	rot := iss.Rotator(t, nil)
	runner := rotators.NewRunner(store, rot, nil)
	if _, err := rotators.NewRunner(deaf{Store: store, put: true}, rot, nil).Rotate(t.Context(), r, ""); !fault.Is(err, fault.Unavailable) {
		t.Fatalf("the rotation that was to be killed gave %v", err)
	}
	keys := iss.Issuer.Keys("acme", "")
	if len(keys) != 2 {
		t.Fatalf("the issuer has %d keys; want 2, one of them an orphan", len(keys))
	}
	found, err := runner.Examine(t.Context(), r, stuckAtOnce)
	must(t, err)
	if len(found) != 1 || found[0].Problem != rotators.OrphanKeys || found[0].Fix == nil {
		t.Fatalf("found %+v; want orphan keys alone, with a fix", found)
	}
	must(t, found[0].Fix(t.Context()))
	if found, err = runner.Examine(t.Context(), r, stuckAtOnce); err != nil || len(found) > 0 {
		t.Errorf("still found: %+v, %v", found, err)
	}
	if n := len(iss.Issuer.Keys("acme", "")); n != 1 {
		t.Errorf("the issuer has %d keys; want the one in use", n)
	}
	v, err := p.plain(t.Context(), r)
	must(t, err)
	must(t, iss.SignIn(t.Context(), v))
}

// orphanSibling removes a secret in the middle of its rotation.
func orphanSibling(t *testing.T, p platform, w *ward) {
	t.Helper()
	other := p.create(t, secrets.NewString(`{"kept":"beside it"}`))
	w.interrupted(w.store, lame{w.rotator})
	if found, err := rotators.ExamineStore(t.Context(), w.store, other); err != nil || len(found) > 0 {
		t.Fatalf("found %+v, %v while the secret is there; want nothing", found, err)
	}
	p.remove(t, w.ref)
	found, err := rotators.ExamineStore(t.Context(), w.store, other)
	must(t, err)
	if len(found) != 1 || found[0].Problem != rotators.OrphanSibling || found[0].Ref != w.ref || found[0].Fix == nil {
		t.Fatalf("found %+v; want one orphan sibling of %s, with a fix", found, w.ref)
	}
	must(t, found[0].Fix(t.Context()))
	must(t, found[0].Fix(t.Context())) // repeated it changes nothing
	if found, err = rotators.ExamineStore(t.Context(), w.store, other); err != nil || len(found) > 0 {
		t.Errorf("still found: %+v, %v", found, err)
	}
	if _, err := p.plain(t.Context(), other); err != nil {
		t.Errorf("the secret beside it: %v", err)
	}
}
