package main

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/internal/natslock"
)

// lockTTL is how long the rotation of a process that was killed keeps the next
// one waiting, which for a single database user is how long it cannot sign in.
const lockTTL = 6 * time.Second

// openLocks opens what keeps secrets apart across processes.
func openLocks(ctx context.Context, nc *nats.Conn, replicas int, log *slog.Logger) (*natslock.Locks, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("JetStream: %w", err)
	}
	return natslock.Open(ctx, js, &natslock.Options{Replicas: replicas, Logger: log, TTL: lockTTL})
}
