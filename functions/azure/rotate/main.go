// Command rotate is the custom handler of Azure Functions that rotates a secret
// of Key Vault when SecretNearExpiry asks for it. docs/azure.md says how to
// deploy it.
package main

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/eventgrid"
	"github.com/keyturn/keyturn/internal/funcenv"
	"github.com/keyturn/keyturn/internal/triggers"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets/azurekv"
)

// minAge keeps a version that is valid for 30 days or less, of which Key Vault
// says at once that it is near its expiry, from being rotated for that.
const minAge = 24 * time.Hour

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
	env, err := triggers.ParseEnv(environ, ref.Azure, "FUNCTIONS_CUSTOMHANDLER_PORT", minAge, func(p *funcenv.Parser) {
		triggers.Vaults(p, &o.Validity, &o.VaultURL)
		// Who chose an age knows that a schedule has to do the rest.
		o.ShortValidity = p.Get("KEYTURN_MIN_AGE") != ""
	})
	if err != nil {
		return env, nil, err
	}
	r, err := triggers.NewRotation(env, azurekv.New(cred, o), events.SecretNearExpiry, log)
	if err != nil {
		return env, nil, err
	}
	decode := func(_ func(string) string, body []byte, received time.Time) ([]events.Event, error) {
		return eventgrid.DecodeTrigger(body, received)
	}
	return env, triggers.Handler(triggers.OnNotice(decode, r), triggers.HostAnswer, log), nil
}
