// Command retire is the custom handler of Azure Functions that takes superseded
// versions of Key Vault's secrets out of use once their gate is open, called by
// a timer. docs/azure.md says how to deploy it.
package main

import (
	"context"
	"log/slog"
	"net/http"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/keyturn/keyturn/internal/funcenv"
	"github.com/keyturn/keyturn/internal/triggers"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets/azurekv"
)

func main() { triggers.Main(run) }

func run(ctx context.Context, environ []string, level *slog.LevelVar, log *slog.Logger) error {
	cred, err := azidentity.NewDefaultAzureCredential(nil)
	if err != nil {
		return err
	}
	env, h, err := handler(environ, cred, &azurekv.Options{Logger: log}, log)
	if err != nil {
		return err
	}
	level.Set(env.LogLevel)
	return triggers.Serve(ctx, env.Address, h, log)
}

func handler(environ []string, cred azcore.TokenCredential, o *azurekv.Options, log *slog.Logger) (triggers.Env, http.Handler, error) {
	env, err := triggers.ParseEnv(environ, ref.Azure, "FUNCTIONS_CUSTOMHANDLER_PORT", 0, func(p *funcenv.Parser) { triggers.Vaults(p, &o.Validity, &o.VaultURL) })
	if err != nil {
		return env, nil, err
	}
	s, err := triggers.NewSweeper(env, azurekv.New(cred, o), log)
	if err != nil {
		return env, nil, err
	}
	return env, triggers.Handler(triggers.OnTimer(s), triggers.HostAnswer, log), nil
}
