package gcpsm_test

import (
	"context"
	"testing"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/gcpfake"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/gcpsm"
)

// TestPendingDisabledByHand: somebody disabled a pending version, whose
// credential may be set at its target already. It is the only copy, so it is
// not taken for a discarded one.
func TestPendingDisabledByHand(t *testing.T) {
	begin := func(t *testing.T) (*gcpfake.Server, *gcpsm.Store) {
		t.Helper()
		fake, s := setup(t, nil, "old")
		if _, err := s.PutPending(t.Context(), db, "one", secrets.NewString("live at the target")); err != nil {
			t.Fatal(err)
		}
		fake.SetState(siblingName, 1, secretmanagerpb.SecretVersion_DISABLED)
		return fake, s
	}
	says := []string{"version 1 of " + siblingName, "rotation one", "gcloud secrets versions enable", "gcloud secrets versions destroy"}
	fake, s := begin(t)
	for what, f := range map[string]func(context.Context) error{
		"get": func(ctx context.Context) error { _, err := s.Get(ctx, db, secrets.Pending); return err },
		"put again": func(ctx context.Context) error {
			_, err := s.PutPending(ctx, db, "one", secrets.NewString("x"))
			return err
		},
		"put another": func(ctx context.Context) error {
			_, err := s.PutPending(ctx, db, "two", secrets.NewString("x"))
			return err
		},
		"promote":         func(ctx context.Context) error { _, err := s.Promote(ctx, db, "one"); return err },
		"discard":         func(ctx context.Context) error { return s.Discard(ctx, db, "one") },
		"discard another": func(ctx context.Context) error { return s.Discard(ctx, db, "two") },
	} {
		t.Run(what, func(t *testing.T) { wantKind(t, f(t.Context()), fault.Conflict, says...) })
	}
	if all := fake.Versions(siblingName); len(all) != 1 || string(all[0].Value) != "live at the target" {
		t.Errorf("the sibling has %d versions, the first with %q; expected it as it was", len(all), all[0].Value)
	}
	// The current version is none of its business.
	wantValue(t, s, secrets.Current, "old")

	t.Run("enabled again", func(t *testing.T) {
		fake.SetState(siblingName, 1, secretmanagerpb.SecretVersion_ENABLED)
		if _, err := s.Promote(t.Context(), db, "one"); err != nil {
			t.Fatal(err)
		}
		wantValue(t, s, secrets.Current, "live at the target")
	})
	t.Run("destroyed", func(t *testing.T) {
		fake, s := begin(t)
		fake.SetState(siblingName, 1, secretmanagerpb.SecretVersion_DESTROYED)
		_, err := s.Get(t.Context(), db, secrets.Pending)
		wantKind(t, err, fault.NotFound)
		rotate(t, s, db, "two", "new")
	})
	t.Run("destroyed with a delay", func(t *testing.T) {
		fake, s := begin(t)
		fake.Change(siblingName, func(pb *secretmanagerpb.Secret) { pb.VersionDestroyTtl = durationpb.New(48 * time.Hour) })
		c := fake.Client(t, "")
		if _, err := c.DestroySecretVersion(t.Context(), &secretmanagerpb.DestroySecretVersionRequest{Name: siblingName + "/versions/1"}); err != nil {
			t.Fatal(err)
		}
		_, err := s.Get(t.Context(), db, secrets.Pending)
		wantKind(t, err, fault.NotFound)
		rotate(t, s, db, "two", "new")
	})
}

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
