package storetest

import (
	"context"
	"fmt"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/secrets"
)

// testDisableRace disables a version while it becomes the previous one, and
// one while it stops being it.
func testDisableRace(ctx context.Context, t *testing.T, b Backend) {
	for range rounds {
		w := supersede(ctx, t, b)
		v, tok := value(), token()
		put(ctx, t, b, b.Open(t, nil), w.r, tok, v)
		now := must[*secrets.Version](t, "get current")(b.Open(t, nil).Get(ctx, w.r, secrets.Current))
		errs := make([]error, 2*twins)
		race(t, b, len(errs), func(i int, s secrets.Store) {
			switch i % 8 {
			case 0, 1:
				_, errs[i] = s.Promote(ctx, w.r, tok)
			case 2, 3: // current until the promotion
				errs[i] = s.(secrets.Disabler).Disable(ctx, w.r, now.ID)
			default: // previous until the promotion
				errs[i] = s.(secrets.Disabler).Disable(ctx, w.r, w.id)
			}
		})
		want := untouched
		for i, err := range errs {
			switch what := fmt.Sprintf("caller %d", i); {
			case i%8 < 2:
				if err != nil {
					wantKind(t, what+": a twin's promote", err, fault.Conflict)
				}
			case i%8 < 4:
				if err != nil {
					wantKind(t, what+": disable what is current", err, fault.Conflict)
				}
				if err == nil {
					want = disabled
				}
			default:
				if err != nil { // the store may have forgotten it
					wantKind(t, what+": disable what is no longer previous", err, fault.NotFound)
				}
			}
		}
		// A promotion that lost against its twin is finished by a retry.
		must[*secrets.Version](t, "promote again")(b.Open(t, nil).Promote(ctx, w.r, tok))
		wantStages(ctx, t, b.Open(t, nil), w.r, stages{current: v, currentToken: tok, previous: w.current, standing: want})
	}
}

// testDestroyRace destroys a disabled version while it is enabled. One comes
// first: what was enabled stays, what was destroyed is not enabled.
func testDestroyRace(ctx context.Context, t *testing.T, b Backend) {
	unfenced := false
	if l, ok := b.(Limited); ok && l.Limits().Unfenced {
		unfenced = true
		t.Log("the service may destroy what is enabled at the same time")
	}
	for range rounds {
		w := supersede(ctx, t, b)
		wantOK(t, "disable", openDisabler(t, b).Disable(ctx, w.r, w.id))
		errs := make([]error, twins)
		race(t, b, len(errs), func(i int, s secrets.Store) {
			if i/2%2 == 0 { // each process plays both parts
				errs[i] = s.(secrets.Disabler).Enable(ctx, w.r, w.id)
			} else {
				errs[i] = s.(secrets.Disabler).Destroy(ctx, w.r, w.id)
			}
		})
		enabled, destroyed := false, false
		for i, err := range errs {
			switch {
			case i/2%2 == 0 && err == nil:
				enabled = true
			case i/2%2 == 0:
				wantKind(t, "enable beside destroy", err, fault.NotFound)
			case err == nil:
				destroyed = true
			default:
				wantKind(t, "destroy beside enable", err, fault.Conflict)
			}
		}
		v, err := b.Open(t, nil).Get(ctx, w.r, secrets.Previous)
		switch {
		case !enabled && !destroyed:
			t.Error("neither an enable nor a destroy succeeded")
		case err == nil:
			wantVersion(t, "get previous", v, w.previousToken, w.previous)
			if !enabled {
				t.Error("the version can be read though only destroys succeeded")
			}
		case enabled && destroyed && unfenced:
		case enabled:
			t.Errorf("get previous, which was enabled: %v", err)
		default:
			wantGone(ctx, t, b, w)
		}
		next(ctx, t, b, w.r, w.current)
	}
}

// testEnableRace enables a version while it stops being the previous one. What
// takes its place is not held for that.
func testEnableRace(ctx context.Context, t *testing.T, b Backend) {
	for range rounds {
		w := supersede(ctx, t, b)
		wantOK(t, "disable", openDisabler(t, b).Disable(ctx, w.r, w.id))
		v, tok := value(), token()
		put(ctx, t, b, b.Open(t, nil), w.r, tok, v)
		errs := make([]error, twins)
		race(t, b, len(errs), func(i int, s secrets.Store) {
			if i/2%2 == 0 {
				_, errs[i] = s.Promote(ctx, w.r, tok)
			} else {
				errs[i] = s.(secrets.Disabler).Enable(ctx, w.r, w.id)
			}
		})
		for i, err := range errs {
			if err != nil && i/2%2 == 0 {
				wantKind(t, "promote beside enable", err, fault.Conflict)
			} else if err != nil { // the store may have forgotten it
				wantKind(t, "enable beside promote", err, fault.NotFound)
			}
		}
		must[*secrets.Version](t, "promote again")(b.Open(t, nil).Promote(ctx, w.r, tok))
		wantCleared(t, b, w.r, "a promotion beside an enable")
		wantStages(ctx, t, b.Open(t, nil), w.r, stages{current: v, currentToken: tok, previous: w.current})
	}
}

// attempt carries out f in a process that a failure ends, and again in the
// next.
func attempt(t *testing.T, b Backend, in *crashtest.Injector, f func(d secrets.Disabler) error) {
	t.Helper()
	if err := f(b.Open(t, in).(secrets.Disabler)); err != nil {
		in.Restart()
		if err := f(b.Open(t, in).(secrets.Disabler)); err != nil {
			t.Fatalf("retry after a failure at %q: %v", in.Fired(), err)
		}
	}
}

func crashDisable(ctx context.Context, t *testing.T, b Backend, in *crashtest.Injector) {
	w := supersede(ctx, t, b)
	attempt(t, b, in, func(d secrets.Disabler) error { return d.Disable(ctx, w.r, w.id) })
	w.wantPrevious(ctx, t, b.Open(t, nil), disabled)
	wantOK(t, "enable", openDisabler(t, b).Enable(ctx, w.r, w.id))
	w.wantPrevious(ctx, t, b.Open(t, nil), held)
	wantOK(t, "one more retry", openDisabler(t, b).Disable(ctx, w.r, w.id))
	next(ctx, t, b, w.r, w.current)
}

func crashEnable(ctx context.Context, t *testing.T, b Backend, in *crashtest.Injector) {
	w := supersede(ctx, t, b)
	wantOK(t, "disable", openDisabler(t, b).Disable(ctx, w.r, w.id))
	attempt(t, b, in, func(d secrets.Disabler) error { return d.Enable(ctx, w.r, w.id) })
	w.wantPrevious(ctx, t, b.Open(t, nil), held)
	wantOK(t, "one more retry", openDisabler(t, b).Enable(ctx, w.r, w.id))
	next(ctx, t, b, w.r, w.current)
}

func crashDestroy(ctx context.Context, t *testing.T, b Backend, in *crashtest.Injector) {
	w := supersede(ctx, t, b)
	wantOK(t, "disable", openDisabler(t, b).Disable(ctx, w.r, w.id))
	attempt(t, b, in, func(d secrets.Disabler) error { return d.Destroy(ctx, w.r, w.id) })
	wantGone(ctx, t, b, w)
	wantOK(t, "one more retry", openDisabler(t, b).Destroy(ctx, w.r, w.id))
	next(ctx, t, b, w.r, w.current)
}
