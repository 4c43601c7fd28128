// Command retire is the function that takes superseded versions of GCP Secret
// Manager's secrets out of use once their gate is open, called by Cloud
// Scheduler. docs/gcp.md says how to deploy it.
package main

import (
	"context"
	"log/slog"
	"net/http"

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
	env, err := triggers.ParseEnv(environ, ref.GCP, "PORT", 0, nil)
	if err != nil {
		return env, nil, err
	}
	s, err := triggers.NewSweeper(env, gcpsm.New(clients, &gcpsm.Options{Logger: log}), log)
	if err != nil {
		return env, nil, err
	}
	return env, triggers.Handler(triggers.OnTimer(s), "", log), nil
}
