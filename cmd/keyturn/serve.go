package main

import (
	"context"
	"fmt"

	"github.com/keyturn/keyturn/secrets/natskv"
)

// serveCmd is the daemon: notifier and scheduled rotations, against the
// user's own NATS. Several may run; JetStream gives each firing to one.
type serveCmd struct{}

func (*serveCmd) Run(e *env) error {
	cfg, err := loadConfig(e.config)
	if err != nil {
		return err
	}
	p, err := openPipeline(e.ctx, cfg, e.log, nil, nil)
	if err != nil {
		return err
	}
	defer p.close()
	defer context.AfterFunc(e.ctx, func() { e.log.Info("stopping: taking nothing new, finishing what is under way") })()
	err = p.serve(e.ctx, func(addr string) {
		if addr == "" {
			addr = "no port (notifier.listen is not set)"
		}
		_, _ = fmt.Fprintf(e.stdout, "keyturn serves: notifier on %s, %d secrets, NATS at %s\n", addr, len(cfg.Secrets), p.nc.ConnectedUrlRedacted())
	})
	if err == nil {
		e.log.Info("stopped")
	}
	return err
}

// keygenCmd writes a sealing key. Losing it loses every value in the store.
type keygenCmd struct {
	File string `arg:"" help:"Where to; must not exist." type:"path"`
}

func (c *keygenCmd) Run(e *env) error {
	if err := natskv.GenerateKeyFile(c.File); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(e.stdout, "wrote a sealing key to %s; keep a copy where the values are worth it\n", c.File)
	return nil
}
