package integration_test

import (
	"context"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// Disable implements [secrets.Disabler], as do the two below.
func (s fused) Disable(ctx context.Context, r ref.Ref, version string) error {
	return s.f.call("disable", func() error { return s.Store.(secrets.Disabler).Disable(ctx, r, version) })
}

func (s fused) Enable(ctx context.Context, r ref.Ref, version string) error {
	return s.f.call("enable", func() error { return s.Store.(secrets.Disabler).Enable(ctx, r, version) })
}

func (s fused) Destroy(ctx context.Context, r ref.Ref, version string) error {
	return s.f.call("destroy", func() error { return s.Store.(secrets.Disabler).Destroy(ctx, r, version) })
}

// commands are what a person does with a secret besides rotating it. Each
// returns what it would show.
func commands(runner *rotators.Runner, store secrets.Store, r ref.Ref) map[string]func(context.Context) (any, error) {
	return map[string]func(context.Context) (any, error){
		"retire":   func(ctx context.Context) (any, error) { return runner.Retire(ctx, r, true) },
		"restore":  func(ctx context.Context) (any, error) { return runner.Restore(ctx, r) },
		"rollback": func(ctx context.Context) (any, error) { return runner.Rollback(ctx, r, false) },
		"dry run":  func(ctx context.Context) (any, error) { return runner.DryRun(ctx, r), nil },
		"doctor": func(ctx context.Context) (any, error) {
			found, err := runner.Examine(ctx, r, stuckAtOnce)
			return found, err
		},
		"doctor --fix": func(ctx context.Context) (any, error) {
			found, err := runner.Examine(ctx, r, stuckAtOnce)
			for _, f := range found {
				if f.Fix != nil && err == nil {
					err = f.Fix(ctx)
				}
			}
			return found, err
		},
		"doctor of the store": func(ctx context.Context) (any, error) {
			found, err := rotators.ExamineStore(ctx, store, r)
			return found, err
		},
	}
}

// showAll records what each command shows, errors one by one. after is called
// after each.
func showAll(t *testing.T, runner *rotators.Runner, store secrets.Store, r ref.Ref, log *leaktest.Recorder, after func()) (failed int) {
	t.Helper()
	for _, do := range commands(runner, store, r) {
		out, err := do(t.Context())
		log.Record(out)
		if checks, ok := out.([]rotators.Check); ok {
			for _, c := range checks {
				log.Record(c.What, c.Err)
				if c.Err != nil {
					err = c.Err
				}
			}
		}
		if re, ok := out.(rotators.Restoration); ok {
			log.Record(re.Why)
		}
		if err != nil {
			log.Record(err)
			failed++
		}
		after()
	}
	return failed
}

// showFailures has every command fail at some of its calls, and afterwards
// rotates, so that the secret is sound again.
func showFailures(t *testing.T, c *canaries, f *fuse, runner *rotators.Runner, store secrets.Store, r ref.Ref, log *leaktest.Recorder) (failed int) {
	t.Helper()
	for n := 0; n < 18; n += 3 {
		blow := func() { f.set(n, n%2 == 1) }
		blow()
		failed += showAll(t, runner, store, r, log, func() { f.set(-1, false); c.collect(store, r); blow() })
		f.set(-1, false)
		res, err := runner.Rotate(t.Context(), r, "")
		if fault.Is(err, fault.Invalid) { // a rollback to a key that is dead was given up
			log.Record(res, err)
			res, err = runner.Rotate(t.Context(), r, "")
		}
		if _, held := rotators.IsNotYet(err); held { // by the restore above
			log.Record(res, err)
			_, err = runner.Retire(t.Context(), r, true)
			must(t, err)
			res, err = runner.Rotate(t.Context(), r, "")
		}
		must(t, err)
		log.Record(res)
		c.collect(store, r)
	}
	return failed
}
