package triggers

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/keyturn/keyturn/internal/funcserve"
)

// NewLogger is [funcserve.NewLogger].
func NewLogger(w io.Writer, level slog.Leveler) *slog.Logger { return funcserve.NewLogger(w, level) }

// Main is [funcserve.Main].
func Main(run func(ctx context.Context, environ []string, level *slog.LevelVar, log *slog.Logger) error) {
	funcserve.Main(run)
}

// Serve is [funcserve.Serve] with time enough for a rotation.
func Serve(ctx context.Context, address string, h http.Handler, log *slog.Logger) error {
	return funcserve.Serve(ctx, address, h, callTime+30*time.Second, log)
}
