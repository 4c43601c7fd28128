package natskv

import (
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

func wantKind(t *testing.T, what string, err error, k fault.Kind) {
	t.Helper()
	if !fault.Is(err, k) {
		t.Errorf("%s: %v of kind %s, expected %s", what, err, fault.KindOf(err), k)
	}
}

func holder(t *testing.T, s *Store, r ref.Ref, stage secrets.Stage) *secrets.VersionInfo {
	t.Helper()
	d, err := s.Describe(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	h := d.Holder(stage)
	if h == nil {
		t.Fatalf("nobody is %s of %s", stage, r)
	}
	return h
}

// TestRetire walks a superseded version through disable, enable and destroy.
func TestRetire(t *testing.T) {
	b := newBackend(t)
	ctx, s := t.Context(), b.seeds
	v0, v1, v2 := secrets.NewString("v0"), secrets.NewString("v1"), secrets.NewString("v2")
	r := b.Create(t, v0)
	putRotation(t, s, r, "rotation-1", "rotation-2", v1, v2)
	old := holder(t, s, r, secrets.Previous).ID

	for _, stage := range []secrets.Stage{secrets.Current, secrets.Pending} {
		id := holder(t, s, r, stage).ID
		wantKind(t, "disable of "+string(stage), s.Disable(ctx, r, id), fault.Conflict)
		wantKind(t, "destroy of "+string(stage), s.Destroy(ctx, r, id), fault.Conflict)
		if err := s.Enable(ctx, r, id); err != nil {
			t.Errorf("enable of %s, which never was disabled: %v", stage, err)
		}
	}
	wantKind(t, "disable of an unknown version", s.Disable(ctx, r, "x"), fault.NotFound)
	if err := s.Enable(ctx, r, old); err != nil || holder(t, s, r, secrets.Previous).Held {
		t.Errorf("enable of what was never disabled: %v; expected no change", err)
	}
	wantKind(t, "destroy before disable", s.Destroy(ctx, r, old), fault.Conflict)
	for range 2 {
		for range 2 {
			if err := s.Disable(ctx, r, old); err != nil {
				t.Fatal(err)
			}
			if h := holder(t, b.open(t, b.keys, nil), r, secrets.Previous); h.ID != old || !h.Disabled || h.Held {
				t.Errorf("described as %+v, expected %s disabled", h, old)
			}
			_, err := s.Get(ctx, r, secrets.Previous)
			wantKind(t, "get of a disabled version", err, fault.NotFound)
		}
		for range 2 {
			if err := s.Enable(ctx, r, old); err != nil {
				t.Fatal(err)
			}
			wantValue(t, s, r, secrets.Previous, v0)
			if h := holder(t, s, r, secrets.Previous); h.Disabled || !h.Held {
				t.Errorf("described as %+v, expected held", h)
			}
		}
	}
	if err := s.Disable(ctx, r, old); err != nil {
		t.Fatal(err)
	}
	if n, err := b.open(t, Keys{ring: append(testKeys(t).ring, b.keys.ring...)}, nil).Reseal(ctx); err != nil || n != 1 {
		t.Errorf("resealed %d, %v", n, err)
	}
	if !holder(t, s, r, secrets.Previous).Disabled {
		t.Error("a change of key enabled a disabled version")
	}
	for range 2 {
		if err := s.Destroy(ctx, r, old); err != nil {
			t.Fatal(err)
		}
		wantKind(t, "enable of a destroyed version", s.Enable(ctx, r, old), fault.NotFound)
		wantKind(t, "disable of a destroyed version", s.Disable(ctx, r, old), fault.NotFound)
		_, err := s.Get(ctx, r, secrets.Previous)
		wantKind(t, "get of a destroyed version", err, fault.NotFound)
	}
}

// TestActivated: the time of the promotion, not of the value.
func TestActivated(t *testing.T) {
	b := newBackend(t)
	ctx, s := t.Context(), b.seeds
	r := b.Create(t, secrets.NewString("v0"))
	if h := holder(t, s, r, secrets.Current); h.Activated.IsZero() || !h.Activated.Equal(h.Created) {
		t.Errorf("a fresh secret was made at %s and activated at %s", h.Created, h.Activated)
	}
	if _, err := s.PutPending(ctx, r, "rotation-1", secrets.NewString("v1")); err != nil {
		t.Fatal(err)
	}
	if h := holder(t, s, r, secrets.Pending); !h.Activated.IsZero() {
		t.Errorf("a pending version was activated at %s", h.Activated)
	}
	begun := time.Now()
	if _, err := s.Promote(ctx, r, "rotation-1"); err != nil {
		t.Fatal(err)
	}
	done := time.Now()
	h := holder(t, s, r, secrets.Current)
	if h.Activated.Before(begun.Round(0)) || h.Activated.After(done) {
		t.Errorf("activated at %s, expected between %s and %s", h.Activated, begun, done)
	}
	if h := holder(t, s, r, secrets.Previous); !h.Activated.IsZero() {
		t.Errorf("the previous version was activated at %s", h.Activated)
	}
	// Nothing but a promotion moves it.
	at := h.Activated
	if err := s.Disable(ctx, r, holder(t, s, r, secrets.Previous).ID); err != nil {
		t.Fatal(err)
	}
	if h := holder(t, s, r, secrets.Current); !h.Activated.Equal(at) {
		t.Errorf("activated at %s, and at %s after a disable", at, h.Activated)
	}
}

// TestEntriesOfBefore: an entry without standings is read, told of by the time
// of its last write, and rotated.
func TestEntriesOfBefore(t *testing.T) {
	b := newBackend(t)
	ctx, s := t.Context(), b.seeds
	r := ref.Ref{Provider: ref.NATS, Scope: b.bucket, Name: "old"}
	made := newVersion("", secrets.NewString("v0"))
	made.Created = made.Created.Add(-time.Hour)
	sealed, err := s.keys.seal("test", r, secrets.Current, made, standing{})
	if err != nil {
		t.Fatal(err)
	}
	entry, err := json.Marshal(&record{Format: recordFormat, Current: sealed})
	if err != nil || strings.Contains(string(entry), "activated") || strings.Contains(string(entry), "disabled") {
		t.Fatalf("the entry is %s, %v; expected the old form", entry, err)
	}
	before := time.Now()
	if _, err := s.kv.Create(ctx, EntryKey(r.Name), entry); err != nil {
		t.Fatal(err)
	}
	wantValue(t, s, r, secrets.Current, secrets.NewString("v0"))
	// The server runs on this machine's clock.
	if h := holder(t, s, r, secrets.Current); h.Activated.Before(before.Round(0)) {
		t.Errorf("activated at %s, expected the entry's own time", h.Activated)
	}
	putRotation(t, s, r, "rotation-1", "rotation-2", secrets.NewString("v1"), secrets.NewString("v2"))
	if err := s.Disable(ctx, r, made.ID); err != nil {
		t.Error(err)
	}
}

// TestTamperedStanding: the flag and the time are bound to the value.
func TestTamperedStanding(t *testing.T) {
	b := newBackend(t)
	ctx, s := t.Context(), b.seeds
	canary := leaktest.Canary()
	rec := &leaktest.Recorder{}
	for name, c := range map[string]struct {
		stage  secrets.Stage
		tamper func(e *record)
	}{
		"enabled by hand":         {secrets.Previous, func(e *record) { e.Previous.Disabled = false }},
		"held by hand":            {secrets.Previous, func(e *record) { e.Previous.Disabled, e.Previous.Held = false, true }},
		"activated at other time": {secrets.Current, func(e *record) { e.Current.Activated = e.Current.Activated.Add(-time.Hour) }},
		"activated never":         {secrets.Current, func(e *record) { e.Current.Activated = time.Time{} }},
		"previous activated":      {secrets.Previous, func(e *record) { e.Previous.Disabled, e.Previous.Activated = false, time.Now() }},
	} {
		r := b.Create(t, secrets.NewString(canary))
		putRotation(t, s, r, "rotation-1", "rotation-2", secrets.NewString(canary+"1"), secrets.NewString(canary+"2"))
		old := holder(t, s, r, secrets.Previous).ID
		if err := s.Disable(ctx, r, old); err != nil {
			t.Fatal(err)
		}
		entry, revision, err := s.read(ctx, "test", r)
		if err != nil {
			t.Fatal(err)
		}
		c.tamper(entry)
		if err := s.write(ctx, "test", r, EntryKey(r.Name), entry, revision); err != nil {
			t.Fatal(err)
		}
		v, err := s.Get(ctx, r, c.stage)
		rec.Record(v, err)
		wantKind(t, name, err, fault.Denied)
	}
	// A flag that was set by hand is not taken away as if it were ours.
	r := b.Create(t, secrets.NewString(canary))
	putRotation(t, s, r, "rotation-1", "rotation-2", secrets.NewString(canary), secrets.NewString(canary))
	entry, revision, err := s.read(ctx, "test", r)
	if err != nil {
		t.Fatal(err)
	}
	entry.Previous.Disabled = true
	if err := s.write(ctx, "test", r, EntryKey(r.Name), entry, revision); err != nil {
		t.Fatal(err)
	}
	err = s.Enable(ctx, r, entry.Previous.ID)
	rec.Record(err)
	wantKind(t, "enable of what was disabled by hand", err, fault.Denied)
	rec.Check(t, canary)
}

// TestDisableBesidePromotions: whichever comes first, no current version is
// disabled, and none is lost.
func TestDisableBesidePromotions(t *testing.T) {
	b := newBackend(t)
	r := b.Create(t, secrets.NewString("v0"))
	putRotation(t, b.seeds, r, "rotation-1", "rotation-2", secrets.NewString("v1"), secrets.NewString("v2"))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 3 {
		s := b.open(t, b.keys, nil)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				d, err := s.Describe(t.Context(), r)
				if err != nil {
					t.Error(err)
					return
				}
				for _, act := range []func() error{
					func() error { return s.Disable(t.Context(), r, d.Holder(secrets.Previous).ID) },
					func() error { return s.Enable(t.Context(), r, d.Holder(secrets.Previous).ID) },
				} {
					if err := act(); err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Conflict) {
						t.Errorf("beside a promotion: %v", err)
					}
				}
			}
		})
	}
	for i := 2; i < 12; i++ {
		token := fmt.Sprintf("rotation-%d", i)
		// Others write all the time: a Conflict of concurrency is repeated.
		for _, act := range []func() error{
			func() error {
				_, err := b.seeds.PutPending(t.Context(), r, token, secrets.NewString(token))
				return err
			},
			func() error { _, err := b.seeds.Promote(t.Context(), r, token); return err },
		} {
			err := act()
			for fault.ClassOf(err) == fault.ClassConcurrency {
				err = act()
			}
			if err != nil {
				t.Fatalf("%s: %v", token, err)
			}
		}
		if v, err := b.seeds.Get(t.Context(), r, secrets.Current); err != nil || v.Token != token {
			t.Errorf("current after %s: %v", token, err)
		}
	}
	close(stop)
	wg.Wait()
}

// TestRetireLostAnswers: a write whose answer was lost is found to be done.
func TestRetireLostAnswers(t *testing.T) {
	b := newBackend(t)
	r := b.Create(t, secrets.NewString("v0"))
	putRotation(t, b.seeds, r, "rotation-1", "rotation-2", secrets.NewString("v1"), secrets.NewString("v2"))
	old := holder(t, b.seeds, r, secrets.Previous).ID
	s := b.open(t, b.keys, nil)
	s.kv = &lossyKV{s.kv}
	for what, act := range map[string]func() error{
		"1 disable": func() error { return s.Disable(t.Context(), r, old) },
		"2 enable":  func() error { return s.Enable(t.Context(), r, old) },
	} {
		if err := act(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := b.seeds.Disable(t.Context(), r, old); err != nil {
		t.Fatal(err)
	}
	if err := s.Destroy(t.Context(), r, old); err != nil {
		t.Errorf("destroy: %v", err)
	}
}

// TestRetireCrashes fails each call of disable, enable and destroy.
func TestRetireCrashes(t *testing.T) {
	b := newBackend(t)
	points := crashtest.Run(t, func(t *testing.T, in *crashtest.Injector) {
		r := b.Create(t, secrets.NewString("v0"))
		putRotation(t, b.seeds, r, "rotation-1", "rotation-2", secrets.NewString("v1"), secrets.NewString("v2"))
		old := holder(t, b.seeds, r, secrets.Previous).ID
		s := b.Open(t, in).(*Store)
		for _, step := range []func() error{
			func() error { return s.Disable(t.Context(), r, old) },
			func() error { return s.Enable(t.Context(), r, old) },
			func() error { return s.Disable(t.Context(), r, old) },
			func() error { return s.Destroy(t.Context(), r, old) },
		} {
			if err := step(); err != nil {
				in.Restart()
				if err := step(); err != nil {
					t.Fatalf("retry after a failure at %q: %v", in.Fired(), err)
				}
			}
		}
		wantValue(t, b.seeds, r, secrets.Current, secrets.NewString("v1"))
		wantValue(t, b.seeds, r, secrets.Pending, secrets.NewString("v2"))
		_, err := b.seeds.Get(t.Context(), r, secrets.Previous)
		wantKind(t, "previous", err, fault.NotFound)
	})
	t.Logf("crash points of retiring: %d", points)
}

// TestStoredStandings pins what is on the server of a version's standing.
func TestStoredStandings(t *testing.T) {
	const current = `"current":{"id":"ID","token":"T","created":"2026-01-02T03:04:05.000000006Z","activated":"2026-01-02T04:04:05.000000006Z","key":"79f2ecab187c","box":"zzKzHtjwu0VPSe1Bi5dcCTF2fugDqv5epPBa4llItV1NpUsVv7RvorWEu8sXlV2+an2vk5RptIbj+Q=="}`
	keys, err := ParseKeys([]byte("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="))
	if err != nil {
		t.Fatal(err)
	}
	r := ref.Ref{Provider: ref.NATS, Scope: "keyturn", Name: "acme/db"}
	for _, previous := range []string{
		`"previous":{"id":"OLD","token":"T","created":"2026-01-02T03:04:05.000000006Z","disabled":true,"key":"79f2ecab187c","box":"g9SpqZs1i9qt7wGsn0ymForIPEH/KmNDpfkHDCvdoy6ZdZRF7uTSVHV6LHZYKleS2GGco6iIyerExw=="}`,
		`"previous":{"id":"OLD","token":"T","created":"2026-01-02T03:04:05.000000006Z","held":true,"key":"79f2ecab187c","box":"T9jruZh9FOVe6Ru8fPCyGrO91JBmI7kZcohdVGtdiFrx0ESWlrDdylWEYAj8tHWuDESfi53sdgKMow=="}`,
	} {
		text := `{"format":1,` + current + "," + previous + "}"
		rec, err := decodeRecord("test", r, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		for _, stage := range []secrets.Stage{secrets.Current, secrets.Previous} {
			if v, err := keys.open("test", r, stage, rec.at(stage)); err != nil || !v.Value.Equal(secrets.NewString("stored by format 1")) {
				t.Errorf("open %s: %v", stage, err)
			}
		}
		if b, err := json.Marshal(rec); err != nil || string(b) != text {
			t.Errorf("stored again as %s, %v", b, err)
		}
	}
}
