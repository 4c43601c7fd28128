package lambdarotate

import (
	"context"

	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// byStrategy is the rotator of a function that does either strategy. It is no
// [rotators.Retirer]: createSecret of the samples touches no database, and
// with alternating users the superseded user is the one that the next
// rotation takes.
type byStrategy struct {
	strategy            Strategy
	single, alternating rotators.Rotator
}

var _ rotators.Rotator = (*byStrategy)(nil)

// of decides by the current value, which no rotation in progress can change,
// so all four steps take the same way; never by the pending one.
func (b *byStrategy) of(c rotators.Change) rotators.Rotator {
	switch b.strategy {
	case Single:
		return b.single
	case Alternating:
		return b.alternating
	}
	// What cannot be parsed is reported by whichever rotator gets it.
	if s, err := dbsecret.Parse(c.Current); err == nil && s.MasterARN != "" {
		return b.alternating
	}
	return b.single
}

func (b *byStrategy) Create(ctx context.Context, c rotators.Change) (secrets.Value, error) {
	return b.of(c).Create(ctx, c)
}

func (b *byStrategy) Set(ctx context.Context, c rotators.Change) error { return b.of(c).Set(ctx, c) }

func (b *byStrategy) Test(ctx context.Context, c rotators.Change) error { return b.of(c).Test(ctx, c) }
