package storetest

import (
	"context"
	"fmt"
	"testing"
	"unicode/utf8"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/secrets"
)

// Limits say what the service behind a store cannot do, though others can. The
// suite logs them. It checks that a value which the service does not take is
// refused as Invalid with nothing changed.
type Limits struct {
	MaxValue int  // in bytes; 0 for what the suite asks of every store, 64 KiB
	TextOnly bool // values are UTF-8
	// Unfenced: the service destroys a version whatever became of it, so that
	// it may destroy one that was enabled at the same time, unless a Locker
	// keeps the two apart.
	Unfenced bool
}

// Limited is a [Backend] whose service can do less than others.
type Limited interface {
	Limits() Limits
}

// lacking says why the stores of b need not take v, or "".
func lacking(b Backend, v secrets.Value) string {
	lb, ok := b.(Limited)
	if !ok {
		return ""
	}
	l := lb.Limits()
	if l.MaxValue > 0 && v.Len() > l.MaxValue {
		return fmt.Sprintf("values of more than %d bytes", l.MaxValue)
	}
	raw := v.Reveal()
	defer clear(raw)
	if l.TextOnly && !utf8.Valid(raw) {
		return "values that are not UTF-8"
	}
	return ""
}

// testRefused checks that v is refused, by whatever stores a value.
func testRefused(ctx context.Context, t *testing.T, b Backend, s secrets.Store, v secrets.Value) {
	v0, v1, tok := value(), value(), token()
	r := b.Create(t, v0)
	b.Begin(t, r, tok)
	_, err := s.PutPending(ctx, r, tok, v)
	wantKind(t, "put pending of a value that the service does not take", err, fault.Invalid)
	wantStages(ctx, t, s, r, stages{current: v0, begun: tok})
	if c, ok := s.(secrets.Creator); ok {
		fresh := r
		fresh.Name += "-refused-" + token()[:8]
		_, err := c.CreateSecret(ctx, fresh, v)
		wantKind(t, "create a secret with a value that the service does not take", err, fault.Invalid)
		_, err = s.Describe(ctx, fresh)
		wantKind(t, "describe what was not created", err, fault.NotFound)
	}
	// The rotation goes on with another value.
	put(ctx, t, b, s, r, tok, v1)
	must[*secrets.Version](t, "promote")(s.Promote(ctx, r, tok))
	wantStages(ctx, t, b.Open(t, nil), r, stages{current: v1, currentToken: tok, previous: v0})
}
