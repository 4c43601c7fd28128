package funcnotify

import (
	"context"
	"errors"
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
	readTime  = 30 * time.Second
	writeTime = time.Minute
	// stopTime is what is left of an invocation when the platform ends the
	// process: Cloud Run kills it 10 s after its signal.
	// https://cloud.google.com/run/docs/container-contract#instance-shutdown
	stopTime = 9 * time.Second
)

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
// delivered again. An error means that it could not listen, or not finish.
func Serve(ctx context.Context, address string, h http.Handler, log *slog.Logger) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return fault.New(fault.Invalid, "listen", err)
	}
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: readTime, WriteTimeout: writeTime,
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
