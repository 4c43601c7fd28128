package main

import (
	"context"
	"iter"
	"math"

	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
)

// openBus connects for a command that needs the streams and nothing else. The
// caller calls done.
func (e *env) openBus(name string) (bus *natsbus.Bus, cfg *config, done func(), err error) {
	if cfg, err = loadConfig(e.config); err != nil {
		return nil, nil, nil, err
	}
	nc, err := connect(cfg.NATS, name, e.log)
	if err != nil {
		return nil, nil, nil, err
	}
	bus, err = natsbus.Open(e.ctx, nc, cfg.NATS.bus(e.log))
	if err != nil {
		nc.Close()
		return nil, nil, nil, err
	}
	return bus, cfg, nc.Close, nil
}

// letters yields the dead letters of a source, or all for "".
func letters(ctx context.Context, bus *natsbus.Bus, source string) iter.Seq2[natsbus.StoredLetter, error] {
	return func(yield func(natsbus.StoredLetter, error) bool) {
		for l, err := range bus.DeadLetters(ctx, 0, math.MaxInt) {
			if err == nil && source != "" && l.Source != source {
				continue
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

// letter returns the dead letter of that sequence.
func letter(ctx context.Context, bus *natsbus.Bus, seq uint64) (natsbus.StoredLetter, error) {
	l, err := bus.DeadLetter(ctx, seq)
	if fault.Is(err, fault.NotFound) {
		return l, fault.Newf(fault.NotFound, "dead letter", "there is no dead letter %d; see keyturn deadletters list", seq)
	}
	return l, err
}
