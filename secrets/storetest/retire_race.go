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
