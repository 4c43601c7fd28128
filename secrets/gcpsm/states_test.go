package gcpsm_test

import (
	"context"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/gcpsm"
)

// TestDestroyBesideEnable: a version that somebody enables while it is about to
// be destroyed is left alone, at whichever call that happens.
func TestDestroyBesideEnable(t *testing.T) {
	for n := 1; ; n++ {
		fake, other := setup(t, nil, "v1")
		rotate(t, other, db, "one", "v2")
		if err := other.Disable(t.Context(), db, "1"); err != nil {
			t.Fatal(err)
		}
		calls, enabled := 0, false
		var enabling error
		count := func(ctx context.Context) {
			if calls++; calls == n {
				enabled = true
				enabling = other.Enable(ctx, db, "1")
			}
		}
		s := gcpsm.New(fake.Clients(t, on("GetSecretVersion", count), on("AccessSecretVersion", count), on("DestroySecretVersion", count)), nil)
		err := s.Destroy(t.Context(), db, "1")
		if !enabled {
			if n < 4 {
				t.Errorf("only %d calls were disturbed", n-1)
			}
			return
		}
		if enabling != nil {
			t.Fatalf("call %d: enable: %v", n, enabling)
		}
		wantKind(t, err, fault.Conflict, "not disabled")
		wantValue(t, other, secrets.Previous, "v1")
	}
}
