package sibling_test

import (
	"context"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// lossy loses the answer to every write but those that come after an append.
type lossy struct{ *driver }

var errLost = fault.Newf(fault.Unavailable, "mem", "no answer")

func (d lossy) PutPending(ctx context.Context, r ref.Ref, rev string, p sibling.Pending) error {
	if err := d.driver.PutPending(ctx, r, rev, p); err != nil {
		return err
	}
	return errLost
}

func (d lossy) Append(ctx context.Context, r ref.Ref, m *sibling.Main, p sibling.Pending) (string, error) {
	if _, err := d.driver.Append(ctx, r, m, p); err != nil {
		return "", err
	}
	return "", errLost
}

func (d lossy) Clear(ctx context.Context, r ref.Ref, rev string) error {
	if err := d.driver.Clear(ctx, r, rev); err != nil {
		return err
	}
	return errLost
}

func (d lossy) SetDisabled(ctx context.Context, r ref.Ref, id string, disabled bool) error {
	if err := d.driver.SetDisabled(ctx, r, id, disabled); err != nil {
		return err
	}
	return errLost
}

// TestLostAnswers: a write that took effect, whose answer was lost, is found
// to be done by the store itself.
func TestLostAnswers(t *testing.T) {
	for name, k := range kinds {
		t.Run(name, func(t *testing.T) {
			b := newBackend(k)
			r := b.Create(t, secrets.NewString("old"))
			s := sibling.New(lossy{&driver{b: b.service}}, nil)
			for range 2 {
				if got, err := s.PutPending(t.Context(), r, "rotation-1", secrets.NewString("first")); err != nil || !got.Value.Equal(secrets.NewString("first")) {
					t.Fatalf("put pending: %v", err)
				}
			}
			for range 2 {
				if got, err := s.Promote(t.Context(), r, "rotation-1"); err != nil || !got.Value.Equal(secrets.NewString("first")) {
					t.Fatalf("promote: %v", err)
				}
			}
			if n := len(b.main[r].versions); n != 2 {
				t.Errorf("there are %d versions, expected 2", n)
			}
			if _, err := s.PutPending(t.Context(), r, "rotation-2", secrets.NewString("second")); err != nil {
				t.Fatalf("put pending: %v", err)
			}
			if err := s.Discard(t.Context(), r, "rotation-2"); err != nil {
				t.Errorf("discard: %v", err)
			}
			if err := s.Disable(t.Context(), r, "1"); err != nil {
				t.Errorf("disable: %v", err)
			}
			if err := s.Enable(t.Context(), r, "1"); err != nil {
				t.Errorf("enable: %v", err)
			}
			wantStage(t, s, r, secrets.Current, "rotation-1", "first")
			wantStage(t, s, r, secrets.Previous, "", "old")
			wantNone(t, s, r, secrets.Pending)
		})
	}
}

// TestOtherWriters: a write that somebody else's came before is begun again,
// but not for ever.
func TestOtherWriters(t *testing.T) {
	b := newBackend(kind{swaps: true})
	r := b.Create(t, secrets.NewString("old"))
	left := 0
	s := sibling.New(&driver{b: b.service, before: func(name string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		if left == 0 || name != "Append" && name != "PutPending" {
			return
		}
		left--
		b.main[r].rev++ // a label that somebody sets
		if b.side[r] == nil {
			b.side[r] = &item{}
		}
		b.side[r].rev++
	}}, nil)
	left = 3
	if _, err := s.PutPending(t.Context(), r, "rotation-1", secrets.NewString("first")); err != nil {
		t.Errorf("put pending: %v", err)
	}
	left = 3
	if _, err := s.Promote(t.Context(), r, "rotation-1"); err != nil {
		t.Errorf("promote: %v", err)
	}
	wantStage(t, s, r, secrets.Current, "rotation-1", "first")
	left = 1 << 30
	_, err := s.PutPending(t.Context(), r, "rotation-2", secrets.NewString("second"))
	if !fault.Is(err, fault.Conflict) || fault.ClassOf(err) != fault.ClassConcurrency {
		t.Errorf("put pending that is always late: %v of kind %s, class %q", err, fault.KindOf(err), fault.ClassOf(err))
	}
	ctx, cancel := context.WithCancel(t.Context())
	s = sibling.New(&driver{b: b.service, before: func(name string) {
		if name == "PutPending" {
			cancel()
		}
	}}, nil)
	if _, err := s.PutPending(ctx, r, "rotation-2", secrets.NewString("second")); !fault.Is(err, fault.Unavailable) {
		t.Errorf("put pending whose context ends: %v, expected unavailable", err)
	}
	wantNone(t, s, r, secrets.Pending)
}

// TestIDs: both secrets count from 1, and an id means one version only.
func TestIDs(t *testing.T) {
	b := newBackend(kind{swaps: true})
	r := b.Create(t, secrets.NewString("old"))
	s := b.Open(t, nil).(*sibling.Store)
	rotate(t, s, r, "rotation-1", "first")
	pending, err := s.PutPending(t.Context(), r, "rotation-2", secrets.NewString("second"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	d, err := s.Describe(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range d.Versions {
		if seen[v.ID] {
			t.Errorf("two versions have the id %s", v.ID)
		}
		seen[v.ID] = true
	}
	if !seen[pending.ID] {
		t.Errorf("the pending version is %s when stored and another when described", pending.ID)
	}
	if err := s.Discard(t.Context(), r, "rotation-2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Disable(t.Context(), r, pending.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("disable what was discarded: %v, expected not found", err)
	}
	if err := s.Enable(t.Context(), r, pending.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("enable what was discarded: %v, expected not found", err)
	}
	if err := s.Destroy(t.Context(), r, pending.ID); err != nil {
		t.Errorf("destroy what was discarded: %v", err)
	}
}
