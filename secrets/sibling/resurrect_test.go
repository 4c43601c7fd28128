package sibling_test

import (
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// TestFinishedRotationStaysFinished: a rotation whose promotion died does not
// come back over what somebody wrote by hand since. Where nothing tells of it
// any more it is refused rather than promoted.
func TestFinishedRotationStaysFinished(t *testing.T) {
	const tok = "rotation-1"
	unrecorded := func(t *testing.T, b *backend, r ref.Ref) { b.died(t, r) }
	uncleared := func(t *testing.T, b *backend, r ref.Ref) {
		st := b.promoteStalled(t, r, tok, "Clear")
		t.Cleanup(func() { _ = st.resume() })
	}
	plain, notes := kind{swaps: true}, kind{swaps: true, notes: true}
	forgets := kind{swaps: true, forgets: true}
	for name, c := range map[string]struct {
		kind
		dies    func(t *testing.T, b *backend, r ref.Ref)
		hand    int  // writes by hand since
		pending bool // it still looks as if it were to be promoted
	}{
		"unrecorded, one write":             {plain, unrecorded, 1, false},
		"unrecorded, two writes":            {plain, unrecorded, 2, true},
		"unrecorded but noted, two writes":  {notes, unrecorded, 2, false},
		"uncleared, one write":              {plain, uncleared, 1, false},
		"uncleared, two writes":             {plain, uncleared, 2, false},
		"uncleared, three writes":           {plain, uncleared, 3, false},
		"uncleared and noted, two writes":   {notes, uncleared, 2, false},
		"uncleared and forgotten":           {forgets, uncleared, 2, true},
		"unrecorded and forgotten, a write": {forgets, unrecorded, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(c.kind)
			r := b.Create(t, secrets.NewString("old"))
			s := b.Open(t, nil)
			if _, err := s.PutPending(t.Context(), r, tok, secrets.NewString("first")); err != nil {
				t.Fatal(err)
			}
			c.dies(t, b, r)
			for range c.hand {
				b.write(r, "by hand")
			}
			if c.pending {
				wantStage(t, s, r, secrets.Pending, tok, "first")
			} else {
				wantNone(t, s, r, secrets.Pending)
			}
			if c.hand == 1 {
				wantStage(t, s, r, secrets.Previous, tok, "first")
			}
			for range 2 {
				if v, err := s.Promote(t.Context(), r, tok); !fault.Is(err, fault.Conflict) {
					t.Errorf("promote what was promoted before: version %v, %v; expected a conflict", v, err)
				}
			}
			if err := s.Discard(t.Context(), r, tok); err != nil {
				t.Errorf("discard: %v", err)
			}
			wantStage(t, s, r, secrets.Current, "", "by hand")
			if got := b.leftover(t, r); len(got) > 0 {
				t.Errorf("the sibling still holds %q", got)
			}
			if !c.pending {
				if _, err := s.PutPending(t.Context(), r, tok, secrets.NewString("x")); !fault.Is(err, fault.Conflict) {
					t.Errorf("put pending under a token that was promoted: %v, expected a conflict", err)
				}
			}
			rotate(t, s, r, "rotation-2", "second")
			wantStage(t, s, r, secrets.Current, "rotation-2", "second")
			wantStage(t, s, r, secrets.Previous, "", "by hand")
		})
	}
}

// TestTwoWritesByHand: a rotation that was never promoted is refused just so,
// since nobody can tell.
func TestTwoWritesByHand(t *testing.T) {
	b := newBackend(kind{swaps: true})
	r := b.ref()
	b.main[r] = &item{}
	s := b.Open(t, nil).(*sibling.Store)
	if _, err := s.PutPending(t.Context(), r, "rotation-1", secrets.NewString("first")); err != nil {
		t.Fatal(err)
	}
	b.write(r, "by hand")
	b.write(r, "by hand again")
	if _, err := s.Promote(t.Context(), r, "rotation-1"); !fault.Is(err, fault.Conflict) {
		t.Errorf("promote: %v, expected a conflict", err)
	}
	if err := s.Discard(t.Context(), r, "rotation-1"); err != nil {
		t.Fatal(err)
	}
	rotate(t, s, r, "rotation-2", "second")
	wantStage(t, s, r, secrets.Previous, "", "by hand again")
}
