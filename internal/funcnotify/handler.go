package funcnotify

import (
	"io"
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

// NewLogger returns a logger of one JSON object a line, with the keys and
// levels that Cloud Logging reads, and that are as good as others elsewhere.
// https://cloud.google.com/logging/docs/structured-logging
func NewLogger(w io.Writer, level slog.Leveler) *slog.Logger {
	return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		switch {
		case len(groups) > 0:
		case a.Key == slog.MessageKey:
			a.Key = "message"
		case a.Key == slog.LevelKey:
			a.Key = "severity"
			if l, ok := a.Value.Any().(slog.Level); ok && l == slog.LevelWarn {
				a.Value = slog.StringValue("WARNING")
			}
		}
		return a
	}}))
}
