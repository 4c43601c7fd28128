package crashtest

import (
	"context"

	"github.com/keyturn/keyturn/secrets"
)

// Store passes each call to s through the injector. What it returns is a
// [secrets.Succeeder], a [secrets.Creator] and a [secrets.Disabler] just where
// s is. It is no Checker and no OrphanFinder: those belong to no rotation.
func (in *Injector) Store(s secrets.Store) secrets.Store {
	c := &store{s, in}
	succeeds, canSucceed := s.(secrets.Succeeder)
	creates, canCreate := s.(secrets.Creator)
	disables, canDisable := s.(secrets.Disabler)
	su, cr, di := &succeeder{succeeds, in}, &creator{creates, in}, &disabler{disables, in}
	// A method set cannot be put together at run time, so that each combination
	// is a type.
	switch {
	case canSucceed && canCreate && canDisable:
		return &struct {
			*store
			*succeeder
			*creator
			*disabler
		}{c, su, cr, di}
	case canSucceed && canCreate:
		return &struct {
			*store
			*succeeder
			*creator
		}{c, su, cr}
	case canSucceed && canDisable:
		return &struct {
			*store
			*succeeder
			*disabler
		}{c, su, di}
	case canCreate && canDisable:
		return &struct {
			*store
			*creator
			*disabler
		}{c, cr, di}
	case canSucceed:
		return &struct {
			*store
			*succeeder
		}{c, su}
	case canCreate:
		return &struct {
			*store
			*creator
		}{c, cr}
	case canDisable:
		return &struct {
			*store
			*disabler
		}{c, di}
	}
	return c
}

type store struct {
	s  secrets.Store
	in *Injector
}

type succeeder struct {
	s  secrets.Succeeder
	in *Injector
}

type creator struct {
	s  secrets.Creator
	in *Injector
}

type disabler struct {
	s  secrets.Disabler
	in *Injector
}

func call[T any](in *Injector, name string, do func() (T, error)) (T, error) {
	var out T
	err := in.Call(name, func() (err error) {
		out, err = do()
		return err
	})
	if err != nil {
		var zero T
		return zero, err
	}
	return out, nil
}

func (c *store) Get(ctx context.Context, r secrets.Ref, st secrets.Stage) (*secrets.Version, error) {
	return call(c.in, "store.Get "+string(st), func() (*secrets.Version, error) { return c.s.Get(ctx, r, st) })
}

func (c *store) PutPending(ctx context.Context, r secrets.Ref, token string, v secrets.Value) (*secrets.Version, error) {
	return call(c.in, "store.PutPending", func() (*secrets.Version, error) { return c.s.PutPending(ctx, r, token, v) })
}

func (c *store) Promote(ctx context.Context, r secrets.Ref, token string) (*secrets.Version, error) {
	return call(c.in, "store.Promote", func() (*secrets.Version, error) { return c.s.Promote(ctx, r, token) })
}

func (c *store) Discard(ctx context.Context, r secrets.Ref, token string) error {
	return c.in.Call("store.Discard", func() error { return c.s.Discard(ctx, r, token) })
}

func (c *store) Describe(ctx context.Context, r secrets.Ref) (*secrets.Description, error) {
	return call(c.in, "store.Describe", func() (*secrets.Description, error) { return c.s.Describe(ctx, r) })
}

func (c *succeeder) PutPendingAfter(ctx context.Context, r secrets.Ref, token, current string, v secrets.Value) (*secrets.Version, error) {
	return call(c.in, "store.PutPendingAfter", func() (*secrets.Version, error) { return c.s.PutPendingAfter(ctx, r, token, current, v) })
}

func (c *creator) CreateSecret(ctx context.Context, r secrets.Ref, v secrets.Value) (*secrets.Version, error) {
	return call(c.in, "store.CreateSecret", func() (*secrets.Version, error) { return c.s.CreateSecret(ctx, r, v) })
}

func (c *disabler) Disable(ctx context.Context, r secrets.Ref, version string) error {
	return c.in.Call("store.Disable", func() error { return c.s.Disable(ctx, r, version) })
}

func (c *disabler) Enable(ctx context.Context, r secrets.Ref, version string) error {
	return c.in.Call("store.Enable", func() error { return c.s.Enable(ctx, r, version) })
}

func (c *disabler) Destroy(ctx context.Context, r secrets.Ref, version string) error {
	return c.in.Call("store.Destroy", func() error { return c.s.Destroy(ctx, r, version) })
}
