package natsbus

import (
	"context"

	"github.com/keyturn/keyturn/events"
)

// Due reports whether a firing of that name waits or is at work: no replica
// has ended it yet.
func (b *Bus) Due(ctx context.Context, name string) (bool, error) {
	return b.holds(ctx, duePrefix, name)
}

// Scheduled reports whether a schedule of that name is set. A one-shot is
// gone once it has fired.
func (b *Bus) Scheduled(ctx context.Context, name string) (bool, error) {
	return b.holds(ctx, specPrefix, name)
}

func (b *Bus) holds(ctx context.Context, prefix, name string) (bool, error) {
	if err := validName("look at schedules", "the name", name); err != nil {
		return false, err
	}
	m, err := b.lastOf(ctx, prefix+events.Token(name))
	return m != nil, err
}
