package triggers

import (
	"context"
	"io"
	"log/slog"
	"os"

	"github.com/keyturn/keyturn/fault"
)

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

// Main runs a function, and ends the process with status 1 if it cannot start:
// the platform then says that the deployment failed, and shows the log.
func Main(run func(ctx context.Context, environ []string, level *slog.LevelVar, log *slog.Logger) error) {
	var level slog.LevelVar
	log := NewLogger(os.Stderr, &level)
	slog.SetDefault(log)
	if err := run(context.Background(), os.Environ(), &level, log); err != nil {
		log.Error("the function ended", "kind", fault.KindOf(err).String(), "err", err)
		os.Exit(1)
	}
}
