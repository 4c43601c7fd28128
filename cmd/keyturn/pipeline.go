package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/eventbridge"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
	"github.com/keyturn/keyturn/notifier/webhook"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
)

// A pipeline is everything that one configuration describes, opened: the bus,
// the stores and one runner a secret. Commands that do a single thing open it
// too; serve and dev also run its notifier and schedules.
type pipeline struct {
	cfg     *config
	log     *slog.Logger
	nc      *nats.Conn
	bus     *natsbus.Bus
	stores  *stores
	runners map[ref.Ref]*rotators.Runner
}

// connect opens a NATS connection that outlives outages.
func connect(c natsConfig, name string, log *slog.Logger) (*nats.Conn, error) {
	opts := []nats.Option{
		nats.Name(name), nats.MaxReconnects(-1), nats.ReconnectWait(250 * time.Millisecond),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil {
				log.Warn("NATS is away", "err", err)
			}
		}),
		nats.ReconnectHandler(func(*nats.Conn) { log.Info("NATS is back") }),
	}
	if c.User != "" {
		password, err := readKeyFile(c.PasswordFile)
		if err != nil {
			return nil, fmt.Errorf("nats.password_file: %w", err)
		}
		opts = append(opts, nats.UserInfo(c.User, password))
	}
	if c.CredsFile != "" {
		opts = append(opts, nats.UserCredentials(c.CredsFile))
	}
	if c.CAFile != "" {
		opts = append(opts, nats.RootCAs(c.CAFile))
	}
	nc, err := nats.Connect(c.URL, opts...)
	if err != nil {
		return nil, &fault.Error{
			Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: "connect to NATS",
			Msg: fmt.Sprintf("no server answers at %s; is keyturn dev running, or nats.url right?", c.URL), Err: err,
		}
	}
	return nc, nil
}

// openPipeline opens what cfg describes. observe may be nil.
func openPipeline(ctx context.Context, cfg *config, log *slog.Logger, observe func(rotators.Progress)) (_ *pipeline, err error) {
	p := &pipeline{cfg: cfg, log: log, runners: map[ref.Ref]*rotators.Runner{}}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.nc, err = connect(cfg.NATS, "keyturn", log); err != nil {
		return nil, err
	}
	if p.bus, err = natsbus.Open(ctx, p.nc, &natsbus.Options{Replicas: cfg.NATS.Replicas, Logger: log}); err != nil {
		return nil, err
	}
	p.stores = &stores{cfg: cfg, nc: p.nc, log: log}
	for i := range cfg.Secrets {
		s := &cfg.Secrets[i]
		store, err := p.stores.of(ctx, s.ref)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", s.ref, err)
		}
		rot, err := newRotator(s, p.stores.value)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", s.ref, err)
		}
		p.runners[s.ref] = rotators.NewRunner(store, rot, &rotators.Options{
			Publisher: p.bus, Tenant: cfg.tenant, Logger: log, Observe: observe,
		})
	}
	return p, nil
}

// open opens what the configuration describes, for a command that ends by
// itself within limit. The caller calls done.
func (e *env) open(limit time.Duration, observe func(rotators.Progress)) (ctx context.Context, p *pipeline, done func(), err error) {
	cfg, err := loadConfig(e.config)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(e.ctx, limit)
	if p, err = openPipeline(ctx, cfg, e.log, observe); err != nil {
		cancel()
		return nil, nil, nil, err
	}
	return ctx, p, func() { p.close(); cancel() }, nil
}

func (p *pipeline) close() {
	if p.nc != nil {
		p.nc.Close()
	}
}

// rotate rotates a configured secret; see [rotators.Runner.Rotate].
func (p *pipeline) rotate(ctx context.Context, r ref.Ref, token string) (rotators.Result, error) {
	runner, ok := p.runners[r]
	if !ok {
		_, err := p.cfg.secret(r)
		return rotators.Result{Ref: r, Token: token}, err
	}
	return runner.Rotate(ctx, r, token)
}

// serve runs the notifier and the scheduled rotations until ctx is done, then
// lets what is under way end. ready is called with the notifier's address
// once everything runs; it may be nil.
func (p *pipeline) serve(ctx context.Context, ready func(addr string)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var src *webhook.Source
	if p.cfg.Notifier.Listen != "" {
		var err error
		if src, err = p.webhook(ctx); err != nil {
			return err
		}
	}
	if err := p.reconcileSchedules(ctx); err != nil {
		if src != nil {
			err = errors.Join(err, src.Close())
		}
		return err
	}
	var wg sync.WaitGroup
	errs := make(chan error, 2)
	run := func(what string, f func() error) {
		wg.Go(func() {
			if err := f(); err != nil {
				errs <- fmt.Errorf("%s: %w", what, err)
				cancel() // one part gone is all of it gone: a supervisor restarts us whole
			}
		})
	}
	run("schedules", func() error { return p.bus.RunSchedules(ctx, p.scheduled) })
	addr := ""
	if src != nil {
		n := notifier.New(p.bus, p.bus, &notifier.Options{Tenant: p.cfg.tenant, Logger: p.log})
		handler := n.Handler(func(d notifier.Delivery) ([]events.Event, error) {
			return eventbridge.Decode(d.Body, d.Received)
		})
		addr = src.Addr().String()
		run("notifier", func() error { return src.Run(ctx, handler) })
	}
	if ready != nil {
		ready(addr)
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// webhook binds the notifier's port, so that a port in use is an error before
// anything runs.
func (p *pipeline) webhook(ctx context.Context) (*webhook.Source, error) {
	key, err := readKeyFile(p.cfg.Notifier.APIKeyFile)
	if err != nil {
		return nil, fmt.Errorf("notifier.api_key_file: %w", err)
	}
	return webhook.Listen(ctx, webhook.Options{
		Addr: p.cfg.Notifier.Listen, CertFile: p.cfg.Notifier.CertFile, KeyFile: p.cfg.Notifier.KeyFile,
		APIKeys: []string{key}, Logger: p.log,
		Ready: func(context.Context) error {
			if !p.nc.IsConnected() {
				return errors.New("NATS is away")
			}
			return nil
		},
	})
}

// reconcileSchedules makes the schedules in JetStream those of the
// configuration. Those of another deployment, told by the name that each
// carries, are left alone.
func (p *pipeline) reconcileSchedules(ctx context.Context) error {
	want := map[string]bool{}
	for i := range p.cfg.Secrets {
		s := &p.cfg.Secrets[i]
		if s.Schedule == "" {
			continue
		}
		want[s.ref.String()] = true
		if err := p.bus.Schedule(ctx, s.ref.String(), s.spec, []byte(p.cfg.Name)); err != nil {
			return fmt.Errorf("schedule %s: %w", s.ref, err)
		}
	}
	have, err := p.bus.ListSchedules(ctx)
	if err != nil {
		return fmt.Errorf("list schedules: %w", err)
	}
	for _, h := range have {
		if !want[h.Name] && string(h.Payload) == p.cfg.Name {
			p.log.WarnContext(ctx, "schedule removed: its secret is not in the configuration any more", "secret", h.Name)
			if err := p.bus.Unschedule(ctx, h.Name); err != nil {
				return fmt.Errorf("unschedule %s: %w", h.Name, err)
			}
		}
	}
	return nil
}

// stopGrace is how long a rotation under way may go on after the end was asked
// for. One that is cut off is rolled forward by the next start.
const stopGrace = 15 * time.Second

// outlast returns a context that ends a grace period after ctx.
func outlast(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		t := time.AfterFunc(grace, cancel)
		context.AfterFunc(out, func() { t.Stop() })
	})
	return out, func() { stop(); cancel() }
}

// scheduled rotates because a schedule fired. The token is the firing's, so
// that a firing which is delivered again, after a crash or a lost answer, is
// the same rotation. What can never work is logged and not asked again until
// the next firing.
func (p *pipeline) scheduled(ctx context.Context, f natsbus.Firing) error {
	ctx, cancel := outlast(ctx, stopGrace)
	defer cancel()
	r, err := ref.Parse(f.Name)
	if err != nil {
		return err
	}
	if _, ok := p.runners[r]; !ok {
		// Another replica may have a newer configuration, or another
		// deployment may share the server: it is theirs.
		return fault.Newf(fault.Unavailable, "schedule", "%s is not in the configuration of this process", r)
	}
	_, err = p.rotate(ctx, r, rotators.TokenOf(f.ID))
	if fault.Is(err, fault.NotFound) {
		p.log.ErrorContext(ctx, "scheduled rotation cannot work", "secret", f.Name, "err", err)
		return nil
	}
	return err
}

// rootCAs reads a bundle; no path means the system's.
func rootCAs(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.Invalid, "CA file", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fault.Newf(fault.Invalid, "CA file", "%s holds no PEM certificate", path)
	}
	return pool, nil
}

// clientTLS verifies a server's name and chain.
func clientTLS(pool *x509.CertPool, host string) *tls.Config {
	return &tls.Config{RootCAs: pool, ServerName: host, MinVersion: tls.VersionTLS12}
}
