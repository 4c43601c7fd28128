package funcnotify

import (
	"log/slog"

	"github.com/keyturn/keyturn/notifier"
)

// NewHandler returns the handler of a function: what it is given is decoded by
// dec, given the tenants of env, and published on bus. Errors are of kind
// Invalid.
func NewHandler(env Env, bus *Bus, dec notifier.Decoder, log *slog.Logger) (notifier.Handler, error) {
	for _, name := range env.Unknown {
		log.Warn("environment variable means nothing to this function", "name", name)
	}
	tenant, err := env.Tenants(log)
	if err != nil {
		return nil, err
	}
	return notifier.New(bus, bus, &notifier.Options{Tenant: tenant, Logger: log, Redact: env.Redact}).Handler(dec), nil
}
