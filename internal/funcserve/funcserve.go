// Package funcserve is the process of a function on a platform that calls by
// HTTP: its log, its start and its end. It knows nothing of what the function
// does, and links no database, bus or cloud.
package funcserve

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/keyturn/keyturn/fault"
)

const (
	headerTime = 10 * time.Second
	readTime   = 30 * time.Second
	// stopTime is what is left of an invocation when the platform ends the
	// process: Cloud Run kills it 10 s after its signal.
	// https://cloud.google.com/run/docs/container-contract#instance-shutdown
	stopTime = 9 * time.Second
)

// HostAnswer is what the host of Azure Functions wants to read of an
// invocation that succeeded.
// https://learn.microsoft.com/azure/azure-functions/functions-custom-handlers#response-payload
const HostAnswer = `{"Outputs":{},"Logs":[],"ReturnValue":null}`

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

// Serve answers on address until the platform ends the process with SIGTERM,
// and lets what runs finish within what the platform leaves. What is cut off is
// delivered again. writeTime bounds a call, from the end of its headers to the
// end of its answer. An error means that it could not listen (Invalid), or
// could not finish (Unavailable).
func Serve(ctx context.Context, address string, h http.Handler, writeTime time.Duration, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fault.New(fault.Invalid, "listen", err)
	}
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTime, ReadTimeout: readTime, WriteTimeout: writeTime,
		MaxHeaderBytes: 64 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	log.InfoContext(ctx, "ready", "address", l.Addr().String())
	select {
	case err := <-done:
		return fault.New(fault.Unavailable, "serve", err)
	case <-ctx.Done():
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	if err := s.Shutdown(end); err != nil {
		return errors.Join(fault.New(fault.Unavailable, "stop", err), s.Close())
	}
	return nil
}
