package funcnotify

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/keyturn/keyturn/internal/funcserve"
)

// writeTime bounds one call: a notice is published within seconds, or fails.
const writeTime = time.Minute

// Main is [funcserve.Main].
func Main(run func(ctx context.Context, environ []string, level *slog.LevelVar, log *slog.Logger) error) {
	funcserve.Main(run)
}

// Serve is [funcserve.Serve] with time enough for a notice.
func Serve(ctx context.Context, address string, h http.Handler, log *slog.Logger) error {
	return funcserve.Serve(ctx, address, h, writeTime, log)
}
