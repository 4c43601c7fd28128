package sibling_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/sibling"
)

// died leaves r with its pending version appended, and nothing noted.
func (b *backend) died(t *testing.T, r ref.Ref) {
	t.Helper()
	d := &driver{b: b.service}
	m, err := d.Main(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	p, _, err := d.Pending(t.Context(), r)
	if err != nil || p == nil {
		t.Fatalf("nothing is pending: %v", err)
	}
	if _, err := d.Append(t.Context(), r, m, *p); err != nil {
		t.Fatal(err)
	}
}

// leftover returns the values that the sibling still holds, of whatever age.
func (b *backend) leftover(t *testing.T, r ref.Ref) (out []string) {
	t.Helper()
	_, pending := b.Kept(t, r)
	for _, v := range pending {
		out = append(out, string(v.Reveal()))
	}
	return out
}

// noted tells what the service knows of its newest version.
func (b *backend) noted(r ref.Ref) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	v := b.main[r].newest()
	return fmt.Sprintf("%s after %s", v.token, v.previous)
}

// wantedly turns the error that is expected into none.
func wantedly(err error, kind fault.Kind) error {
	if fault.Is(err, kind) {
		return nil
	}
	return fmt.Errorf("%w; expected the kind %s", err, kind)
}

// TestUnrecordedPromotion: a promotion that died between its append and the
// note of it is seen by every reader, and noted by whoever writes next.
func TestUnrecordedPromotion(t *testing.T) {
	const tok, rival = "rotation-2", "rotation-3"
	for name, write := range map[string]func(ctx context.Context, s *sibling.Store, r ref.Ref) error{
		"promote": func(ctx context.Context, s *sibling.Store, r ref.Ref) error {
			_, err := s.Promote(ctx, r, tok)
			return err
		},
		"discard":       func(ctx context.Context, s *sibling.Store, r ref.Ref) error { return s.Discard(ctx, r, tok) },
		"discard other": func(ctx context.Context, s *sibling.Store, r ref.Ref) error { return s.Discard(ctx, r, rival) },
		"put pending": func(ctx context.Context, s *sibling.Store, r ref.Ref) error {
			_, err := s.PutPending(ctx, r, rival, secrets.NewString("third"))
			return err
		},
		"disable, enable": func(ctx context.Context, s *sibling.Store, r ref.Ref) error {
			return errors.Join(s.Disable(ctx, r, "2"), s.Enable(ctx, r, "2"))
		},
		"disable what is disabled": func(ctx context.Context, s *sibling.Store, r ref.Ref) error { return s.Disable(ctx, r, "1") },
		"enable what is enabled":   func(ctx context.Context, s *sibling.Store, r ref.Ref) error { return s.Enable(ctx, r, "2") },
		"destroy":                  func(ctx context.Context, s *sibling.Store, r ref.Ref) error { return s.Destroy(ctx, r, "1") },
		"promote other": func(ctx context.Context, s *sibling.Store, r ref.Ref) error {
			_, err := s.Promote(ctx, r, rival)
			return wantedly(err, fault.NotFound)
		},
		"put pending again": func(ctx context.Context, s *sibling.Store, r ref.Ref) error {
			_, err := s.PutPending(ctx, r, tok, secrets.NewString("third"))
			return wantedly(err, fault.Conflict)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(kind{swaps: true})
			r := b.Create(t, secrets.NewString("old"))
			s := b.Open(t, nil).(*sibling.Store)
			rotate(t, s, r, "rotation-1", "first")
			if err := s.Disable(t.Context(), r, "1"); err != nil {
				t.Fatal(err)
			}
			if _, err := s.PutPending(t.Context(), r, tok, secrets.NewString("second")); err != nil {
				t.Fatal(err)
			}
			b.died(t, r)
			for range 2 {
				wantStage(t, s, r, secrets.Current, tok, "second")
				wantStage(t, s, r, secrets.Previous, "rotation-1", "first")
			}
			wantNone(t, s, r, secrets.Pending)
			if err := write(t.Context(), s, r); err != nil {
				t.Fatal(err)
			}
			if got, want := b.noted(r), tok+" after 2"; got != want {
				t.Errorf("noted is %q, expected %q", got, want)
			}
			if got := b.leftover(t, r); slices.Contains(got, "second") {
				t.Errorf("the sibling holds %q, what was promoted among it", got)
			}
			if err := s.Disable(t.Context(), r, "3"); !fault.Is(err, fault.Conflict) {
				t.Errorf("disable current: %v, expected a conflict", err)
			}
			wantStage(t, s, r, secrets.Current, tok, "second")
			wantStage(t, s, r, secrets.Previous, "rotation-1", "first")
		})
	}
}

// TestSuperseded: the previous version of a promotion that was not noted is
// what readers had before it.
func TestSuperseded(t *testing.T) {
	for name, c := range map[string]struct {
		between  func(t *testing.T, b *backend, r ref.Ref)
		previous string
	}{
		"nothing between":      {func(*testing.T, *backend, ref.Ref) {}, "old"},
		"a twin's append":      {func(t *testing.T, b *backend, r ref.Ref) { b.died(t, r) }, "old"},
		"two twins' appends":   {func(t *testing.T, b *backend, r ref.Ref) { b.died(t, r); b.died(t, r) }, "old"},
		"a write by hand":      {func(_ *testing.T, b *backend, r ref.Ref) { b.write(r, "by hand") }, "by hand"},
		"by hand, then a twin": {func(t *testing.T, b *backend, r ref.Ref) { b.write(r, "by hand"); b.died(t, r) }, "old"},
		"two writes by hand":   {func(_ *testing.T, b *backend, r ref.Ref) { b.write(r, "x"); b.write(r, "by hand") }, "by hand"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBackend(kind{swaps: true})
			r := b.Create(t, secrets.NewString("old"))
			s := b.Open(t, nil)
			if _, err := s.PutPending(t.Context(), r, "rotation-1", secrets.NewString("first")); err != nil {
				t.Fatal(err)
			}
			c.between(t, b, r)
			b.died(t, r)
			for range 2 {
				wantStage(t, s, r, secrets.Current, "rotation-1", "first")
				wantStage(t, s, r, secrets.Previous, "", c.previous)
				if _, err := s.Promote(t.Context(), r, "rotation-1"); err != nil {
					t.Fatal(err)
				}
			}
			wantNone(t, s, r, secrets.Pending)
		})
	}
}

// TestWrittenByHand: what somebody writes beside a rotation is superseded by
// it, and a finished rotation does not come back over what was written since.
func TestWrittenByHand(t *testing.T) {
	b := newBackend(kind{swaps: true})
	r := b.Create(t, secrets.NewString("old"))
	s := b.Open(t, nil)
	if _, err := s.PutPending(t.Context(), r, "rotation-1", secrets.NewString("first")); err != nil {
		t.Fatal(err)
	}
	b.write(r, "by hand")
	wantStage(t, s, r, secrets.Current, "", "by hand")
	wantStage(t, s, r, secrets.Pending, "rotation-1", "first")
	wantStage(t, s, r, secrets.Previous, "", "old")

	// The promotion dies before it clears the sibling.
	st := b.promoteStalled(t, r, "rotation-1", "Clear")
	b.write(r, "by hand again")
	if _, err := s.Promote(t.Context(), r, "rotation-1"); !fault.Is(err, fault.Conflict) {
		t.Errorf("promote what was superseded by hand: %v, expected a conflict", err)
	}
	wantNone(t, s, r, secrets.Pending)
	if err := st.resume(); err != nil {
		t.Fatal(err)
	}
	wantStage(t, s, r, secrets.Current, "", "by hand again")
	wantStage(t, s, r, secrets.Previous, "rotation-1", "first")
	rotate(t, s, r, "rotation-2", "second")
	wantStage(t, s, r, secrets.Previous, "", "by hand again")
}

// TestNoVersionYet: a secret that was made without a value gets its first one
// from a rotation.
func TestNoVersionYet(t *testing.T) {
	b := newBackend(kind{swaps: true})
	r := b.ref()
	b.main[r] = &item{}
	s := b.Open(t, nil)
	wantNone(t, s, r, secrets.Current)
	if _, err := s.PutPending(t.Context(), r, "rotation-1", secrets.NewString("first")); err != nil {
		t.Fatal(err)
	}
	b.died(t, r)
	for range 2 {
		wantStage(t, s, r, secrets.Current, "rotation-1", "first")
		wantNone(t, s, r, secrets.Previous)
		if _, err := s.Promote(t.Context(), r, "rotation-1"); err != nil {
			t.Fatal(err)
		}
	}
}

// guarded refuses the sibling, as the policy of a plain reader does.
type guarded struct{ sibling.Driver }

func (guarded) Pending(context.Context, ref.Ref) (*sibling.Pending, string, error) {
	return nil, "", fault.Newf(fault.Denied, "mem: pending", "not allowed")
}

// TestReaderWithoutSibling: an agent needs no permission on the sibling.
func TestReaderWithoutSibling(t *testing.T) {
	b := newBackend(kind{swaps: true})
	r := b.Create(t, secrets.NewString("old"))
	s, reader := b.Open(t, nil), sibling.New(guarded{&driver{b: b.service}}, nil)
	want := func(token, value string) {
		t.Helper()
		got, err := reader.Get(t.Context(), r, secrets.Current)
		if err != nil || got.Token != token || !got.Value.Equal(secrets.NewString(value)) {
			t.Errorf("get current: %+v, %v; expected %q of rotation %q", got, err, value, token)
		}
	}
	want("", "old")
	if _, err := s.PutPending(t.Context(), r, "rotation-1", secrets.NewString("first")); err != nil {
		t.Fatal(err)
	}
	want("", "old")
	b.died(t, r)
	want("", "first")
	if _, err := s.Promote(t.Context(), r, "rotation-1"); err != nil {
		t.Fatal(err)
	}
	want("rotation-1", "first")
	if _, err := reader.Describe(t.Context(), r); !fault.Is(err, fault.Denied) {
		t.Errorf("describe: %v, expected denied", err)
	}
}

// TestSiblingIsNoSecret: a secret whose name is that of a sibling would share
// its pending version with another.
func TestSiblingIsNoSecret(t *testing.T) {
	b := newBackend(kind{swaps: true})
	r := b.Create(t, secrets.NewString("old"))
	r.Name += sibling.Suffix
	s := b.Open(t, nil).(*sibling.Store)
	canary := leaktest.Canary()
	_, create := s.CreateSecret(t.Context(), r, secrets.NewString(canary))
	_, get := s.Get(t.Context(), r, secrets.Current)
	_, put := s.PutPending(t.Context(), r, "rotation-1", secrets.NewString(canary))
	_, promote := s.Promote(t.Context(), r, "rotation-1")
	_, describe := s.Describe(t.Context(), r)
	for what, err := range map[string]error{
		"create": create, "get": get, "put pending": put, "promote": promote, "describe": describe,
		"discard": s.Discard(t.Context(), r, "rotation-1"), "disable": s.Disable(t.Context(), r, "1"),
		"enable": s.Enable(t.Context(), r, "1"), "destroy": s.Destroy(t.Context(), r, "1"),
	} {
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, expected invalid", what, err)
		}
	}
}

// TestCurrentDisabledByHand: what a plain reader should get is never destroyed,
// though it cannot be read and so looks retired.
func TestCurrentDisabledByHand(t *testing.T) {
	b := newBackend(kind{swaps: true})
	r := b.Create(t, secrets.NewString("old"))
	s := b.Open(t, nil).(*sibling.Store)
	rotate(t, s, r, "rotation-1", "first")
	b.main[r].newest().disabled = true
	for what, err := range map[string]error{"disable": s.Disable(t.Context(), r, "2"), "destroy": s.Destroy(t.Context(), r, "2")} {
		if !fault.Is(err, fault.Conflict) {
			t.Errorf("%s: %v, expected a conflict", what, err)
		}
	}
	if _, err := s.Get(t.Context(), r, secrets.Current); !fault.Is(err, fault.NotFound) {
		t.Errorf("get current: %v, expected not found", err)
	}
	if d, err := s.Describe(t.Context(), r); err != nil || !d.Holder(secrets.Current).Disabled {
		t.Errorf("described as %+v, %v; expected a disabled current version", d, err)
	}
	if err := s.Enable(t.Context(), r, "2"); err != nil {
		t.Errorf("enable: %v", err)
	}
	wantStage(t, s, r, secrets.Current, "rotation-1", "first")
}
