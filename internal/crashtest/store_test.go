package crashtest

import (
	"errors"
	"testing"

	"github.com/keyturn/keyturn/secrets"
)

// TestStoreAbilities: the injected store can do what the store can, no less and
// no more: code that asks for an ability goes the same way with and without an
// injector.
func TestStoreAbilities(t *testing.T) {
	type (
		su = secrets.Succeeder
		cr = secrets.Creator
		di = secrets.Disabler
	)
	for name, s := range map[string]secrets.Store{
		"none": struct{ secrets.Store }{},
		"succeeder": struct {
			secrets.Store
			su
		}{},
		"creator": struct {
			secrets.Store
			cr
		}{},
		"disabler": struct {
			secrets.Store
			di
		}{},
		"succeeder, creator": struct {
			secrets.Store
			su
			cr
		}{},
		"succeeder, disabler": struct {
			secrets.Store
			su
			di
		}{},
		"creator, disabler": struct {
			secrets.Store
			cr
			di
		}{},
		"all": struct {
			secrets.Store
			su
			cr
			di
		}{},
	} {
		in := &Injector{dead: true} // no call reaches the store
		got := in.Store(s)
		if _, err := got.Describe(t.Context(), secrets.Ref{}); !errors.Is(err, ErrInjected) {
			t.Errorf("%s: describe does not pass through the injector: %v", name, err)
		}
		_, want := s.(su)
		if c, ok := got.(su); ok != want {
			t.Errorf("%s: is a Succeeder: %t, expected %t", name, ok, want)
		} else if ok {
			if _, err := c.PutPendingAfter(t.Context(), secrets.Ref{}, "", "", secrets.Value{}); !errors.Is(err, ErrInjected) {
				t.Errorf("%s: put pending after does not pass through the injector: %v", name, err)
			}
		}
		_, want = s.(cr)
		if c, ok := got.(cr); ok != want {
			t.Errorf("%s: is a Creator: %t, expected %t", name, ok, want)
		} else if ok {
			if _, err := c.CreateSecret(t.Context(), secrets.Ref{}, secrets.Value{}); !errors.Is(err, ErrInjected) {
				t.Errorf("%s: create does not pass through the injector: %v", name, err)
			}
		}
		_, want = s.(di)
		if c, ok := got.(di); ok != want {
			t.Errorf("%s: is a Disabler: %t, expected %t", name, ok, want)
		} else if ok {
			for what, err := range map[string]error{
				"disable": c.Disable(t.Context(), secrets.Ref{}, ""),
				"enable":  c.Enable(t.Context(), secrets.Ref{}, ""),
				"destroy": c.Destroy(t.Context(), secrets.Ref{}, ""),
			} {
				if !errors.Is(err, ErrInjected) {
					t.Errorf("%s: %s does not pass through the injector: %v", name, what, err)
				}
			}
		}
	}
}
