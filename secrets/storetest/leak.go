package storetest

import (
	"context"
	"fmt"
	"log"
	"log/slog"
	"os"
	"testing"

	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
)

// leak plants canaries as values, walks every path that fails, with a
// transport that works and with one that fails at each call, and searches
// everything that a store returned or logged.
func leak(t *testing.T, b Backend, _ abilities) {
	rec := &leaktest.Recorder{}
	old, flags := slog.Default(), log.Flags()
	slog.SetDefault(rec.Logger()) // package log too
	defer func() {
		slog.SetDefault(old)
		log.SetOutput(os.Stderr)
		log.SetFlags(flags)
	}()
	canaries := []string{leaktest.Canary(), leaktest.Canary(), leaktest.Canary()}

	walk(tctx(t), t, b, nil, rec, canaries)
	crashtest.Run(t, func(t *testing.T, in *crashtest.Injector) {
		walk(tctx(t), t, b, in, rec, canaries)
	})
	if l, ok := b.(Logged); ok {
		_, _ = fmt.Fprintln(rec, l.Logs())
	}
	rec.Check(t, canaries...)
}

// walk calls everything, mostly wrongly, and records what comes back.
func walk(ctx context.Context, t *testing.T, b Backend, in *crashtest.Injector, rec *leaktest.Recorder, canaries []string) {
	v0, v1, v2 := secrets.NewString(canaries[0]), secrets.NewString(canaries[1]), secrets.NewString(canaries[2])
	tok, rival := token(), token()
	r := b.Create(t, v0)
	b.Begin(t, r, tok)
	s := b.Open(t, in)
	rec.Record(s)
	look := func(r ref.Ref) {
		for _, st := range []secrets.Stage{secrets.Current, secrets.Pending, secrets.Previous, "latest"} {
			v, err := s.Get(ctx, r, st)
			rec.Record(v, err)
		}
		d, err := s.Describe(ctx, r)
		rec.Record(d, err)
	}
	act := func(r ref.Ref, tok string, v secrets.Value) {
		got, err := s.PutPending(ctx, r, tok, v)
		rec.Record(got, err)
		look(r)
		for _, other := range []string{rival, "", tok} {
			rec.Record(s.Discard(ctx, r, other+"x"))
			got, err = s.Promote(ctx, r, other)
			rec.Record(got, err)
			got, err = s.PutPending(ctx, r, other, v)
			rec.Record(got, err)
		}
		look(r)
	}
	act(r, tok, v1)
	if d, ok := s.(secrets.Disabler); ok {
		leakRetire(ctx, t, d, rec, b.Open(t, nil), r, in == nil)
		look(r)
	}
	if in != nil {
		in.Restart()
		rec.Record(s.Discard(ctx, r, tok), s)
		return
	}
	// What fails whatever the transport does is walked once.
	unknown := r
	unknown.Name += "-unknown"
	for _, r := range []ref.Ref{unknown, {}, {Provider: "no such", Scope: "a/b", Name: "c"}} {
		act(r, tok, v2)
	}
	act(r, token(), secrets.NewValue(append(binary(1<<20).Reveal(), canaries[2]...)))
	ended, cancel := context.WithCancel(ctx)
	cancel()
	calls(ended, s, r, rival, v2, func(_ string, err error) { rec.Record(err) })
	if c, ok := s.(secrets.Creator); ok {
		v, err := c.CreateSecret(ctx, r, v2)
		rec.Record(v, err)
		v, err = c.CreateSecret(ctx, ref.Ref{}, v2)
		rec.Record(v, err)
	}
	rec.Record(s)
}
