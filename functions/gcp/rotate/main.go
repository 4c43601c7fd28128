// Command rotate is the function that rotates a secret of GCP Secret Manager
// when SECRET_ROTATE asks for it. docs/gcp.md says how to deploy it.
package main

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/pubsub"
	"github.com/keyturn/keyturn/internal/funcenv"
	"github.com/keyturn/keyturn/internal/triggers"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets/gcpsm"
)

func main() { triggers.Main(run) }

func run(ctx context.Context, environ []string, level *slog.LevelVar, log *slog.Logger) error {
	var pool gcpsm.Pool
	defer func() { _ = pool.Close() }()
	env, h, err := handler(environ, pool.Client, log)
	if err != nil {
		return err
	}
	level.Set(env.LogLevel)
	return triggers.Serve(ctx, env.Address, h, log)
}

func handler(environ []string, clients gcpsm.Clients, log *slog.Logger) (triggers.Env, http.Handler, error) {
	numbers := map[string]string{}
	env, err := triggers.ParseEnv(environ, ref.GCP, "PORT", 0, func(p *funcenv.Parser) {
		for id, number := range p.Pairs("KEYTURN_PROJECTS") {
			numbers[number] = id
		}
	})
	if err != nil {
		return env, nil, err
	}
	decoder := pubsub.Decoder{Project: func(number string) string { return numbers[number] }}
	r, err := triggers.NewRotation(env, gcpsm.New(clients, &gcpsm.Options{Logger: log}), events.RotationRequested, log)
	if err != nil {
		return env, nil, err
	}
	return env, triggers.Handler(triggers.OnNotice(decoder.DecodeRequest, r), "", log), nil
}
