// Command notify is the custom handler of Azure Functions that publishes on NATS
// what Key Vault says about secrets. docs/azure.md says how to deploy it.
package main

import (
	"context"
	"log/slog"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/eventgrid"
	"github.com/keyturn/keyturn/internal/funcnotify"
	"github.com/keyturn/keyturn/notifier"
)

func main() { funcnotify.Main(run) }

func run(ctx context.Context, environ []string, level *slog.LevelVar, log *slog.Logger) error {
	env, err := funcnotify.ParseEnv(environ, funcnotify.Form{
		Source: "eventgrid", Port: "FUNCTIONS_CUSTOMHANDLER_PORT", LogLevel: "KEYTURN_LOG_LEVEL",
	})
	if err != nil {
		return err
	}
	level.Set(env.LogLevel)
	bus := funcnotify.NewBus(env, nil, log)
	defer bus.Close()
	h, err := funcnotify.NewHandler(env, bus, func(d notifier.Delivery) ([]events.Event, error) {
		return eventgrid.DecodeAny(d.Body, d.Received)
	}, log)
	if err != nil {
		return err
	}
	return funcnotify.Serve(ctx, env.Address, funcnotify.Trigger(env, h, log), log)
}
