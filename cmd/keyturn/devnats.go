package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

const natsUser = "keyturn"

// startNATS starts the embedded server, on loopback only and behind a
// password that only the owner of the state directory can read.
func (w *world) startNATS(ctx context.Context) error {
	password, err := w.secretFile("nats.password")
	if err != nil {
		return err
	}
	// The server itself would try for as long as we wait for it.
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", w.ports.NATS))
	if err != nil {
		return fmt.Errorf("embedded NATS: %w; stop what has the port, or delete %s to choose others", err, w.path("ports.json"))
	}
	if err := l.Close(); err != nil {
		return err
	}
	srv, err := server.NewServer(&server.Options{
		ServerName: "keyturn-dev", Host: "127.0.0.1", Port: w.ports.NATS, NoSigs: true,
		Users:     []*server.User{{Username: natsUser, Password: password}},
		JetStream: true, StoreDir: w.path("nats"), JetStreamMaxMemory: 64 << 20, JetStreamMaxStore: 4 << 30,
		// An acknowledgement means that the event is on disk: by default the
		// server syncs every two minutes and a power cut loses the rest.
		SyncAlways: true,
	})
	if err != nil {
		return fmt.Errorf("embedded NATS: %w", err)
	}
	srv.SetLoggerV2(natsLog{w.log}, false, false, false)
	srv.Start()
	w.onClose(func() error {
		srv.Shutdown()
		srv.WaitForShutdown()
		return nil
	})
	if !srv.ReadyForConnections(startTimeout) {
		return fmt.Errorf("embedded NATS did not start on 127.0.0.1:%d within %s; is the port taken? Delete %s to choose others", w.ports.NATS, startTimeout, w.path("ports.json"))
	}
	// Ready means that clients are served; JetStream may still be recovering.
	for deadline := time.Now().Add(startTimeout); !srv.JetStreamEnabled(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			return errors.New("embedded NATS: JetStream did not start; see --log info")
		}
	}
	return nil
}

// natsLog passes the server's own log on. Its notices are our debug.
type natsLog struct{ log *slog.Logger }

func (l natsLog) Noticef(f string, v ...any) { l.print(slog.LevelDebug, f, v) }
func (l natsLog) Warnf(f string, v ...any)   { l.print(slog.LevelInfo, f, v) }
func (l natsLog) Fatalf(f string, v ...any)  { l.print(slog.LevelError, f, v) }
func (l natsLog) Errorf(f string, v ...any)  { l.print(slog.LevelError, f, v) }
func (l natsLog) Debugf(f string, v ...any)  { l.print(slog.LevelDebug, f, v) }
func (l natsLog) Tracef(string, ...any)      {}

func (l natsLog) print(level slog.Level, f string, v []any) {
	l.log.Log(context.Background(), level, "embedded NATS", "says", fmt.Sprintf(f, v...))
}
