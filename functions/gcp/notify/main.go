// Command notify is the service on Cloud Run that publishes on NATS what GCP
// Secret Manager says about secrets. docs/gcp.md says how to deploy it.
package main

import (
	"context"
	"log/slog"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/pubsub"
	"github.com/keyturn/keyturn/internal/funcenv"
	"github.com/keyturn/keyturn/internal/funcnotify"
	"github.com/keyturn/keyturn/notifier"
)

func main() { funcnotify.Main(run) }

func run(ctx context.Context, environ []string, level *slog.LevelVar, log *slog.Logger) error {
	numbers := map[string]string{}
	env, err := funcnotify.ParseEnv(environ, funcnotify.Form{
		Source: "pubsub", Port: "PORT", LogLevel: "KEYTURN_LOG_LEVEL",
		More: func(p *funcenv.Parser) bool {
			for id, number := range p.Pairs("KEYTURN_PROJECTS") {
				numbers[number] = id
			}
			return false
		},
	})
	if err != nil {
		return err
	}
	level.Set(env.LogLevel)
	bus := funcnotify.NewBus(env, nil, log)
	defer bus.Close()
	decoder := pubsub.Decoder{Project: func(number string) string { return numbers[number] }}
	h, err := funcnotify.NewHandler(env, bus, func(d notifier.Delivery) ([]events.Event, error) {
		return decoder.DecodeRequest(funcnotify.Header(d), d.Body, d.Received)
	}, log)
	if err != nil {
		return err
	}
	push, err := funcnotify.Push(env, h, log)
	if err != nil {
		return err
	}
	return funcnotify.Serve(ctx, env.Address, push, log)
}
