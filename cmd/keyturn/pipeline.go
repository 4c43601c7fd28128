package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/scheduler"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/secrets"
)

// A pipeline is everything that one configuration describes, opened: the bus,
// the stores and one runner a secret. Commands that do a single thing open it
// too; serve and dev also run its notifier and schedules.
type pipeline struct {
	cfg    *config
	log    *slog.Logger
	nc     *nats.Conn
	bus    *natsbus.Bus
	stores *stores
	sched  *scheduler.Scheduler

	mu      sync.Mutex
	runners map[ref.Ref]*rotators.Runner
	// open makes the runner of a configured secret.
	open map[ref.Ref]func(context.Context) (*rotators.Runner, secrets.Store, error)
}

// openPipeline opens what cfg describes. observe may be nil, and edit, which
// has the last word on the runners' options.
func openPipeline(ctx context.Context, cfg *config, log *slog.Logger, observe func(rotators.Progress), edit func(*rotators.Options)) (_ *pipeline, err error) {
	p := &pipeline{
		cfg: cfg, log: log, runners: map[ref.Ref]*rotators.Runner{},
		open: map[ref.Ref]func(context.Context) (*rotators.Runner, secrets.Store, error){},
	}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	if p.nc, err = connect(cfg.NATS, "keyturn", log); err != nil {
		return nil, err
	}
	if p.bus, err = natsbus.Open(ctx, p.nc, cfg.NATS.bus(log)); err != nil {
		return nil, err
	}
	locks, err := openLocks(ctx, p.nc, cfg.NATS.Replicas, log)
	if err != nil {
		return nil, err
	}
	p.stores = &stores{cfg: cfg, nc: p.nc, log: log, locks: locks}
	var jobs []*scheduler.Job
	for i := range cfg.Secrets {
		j, err := p.job(ctx, &cfg.Secrets[i], observe, edit)
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", cfg.Secrets[i].ref, err)
		}
		jobs = append(jobs, j)
	}
	p.sched, err = scheduler.New(p.bus, locks, cfg.Name, jobs, &scheduler.Options{Logger: log, Canonical: p.stores.canonical})
	return p, err
}

// job says when a secret is rotated, and how. A store that is away or denies
// is tried again whenever it is needed: it must not keep the secrets of
// others from being served.
func (p *pipeline) job(ctx context.Context, s *secretConfig, observe func(rotators.Progress), edit func(*rotators.Options)) (*scheduler.Job, error) {
	rot, err := newRotator(s, p.stores.value, p.log)
	if err != nil {
		return nil, err
	}
	opts := rotators.Options{
		Publisher: p.bus, Tenant: p.cfg.tenant, Logger: p.log, Observe: observe,
		Gate: s.gate, MinAge: s.MinAge,
		// Two users that alternate need no room: set replaces the password of
		// the one that is superseded. Only a gate takes it away earlier.
		KeepPrevious: s.gate.IsZero() && s.Rotator == rotatorPostgresAlternating,
	}
	if edit != nil {
		edit(&opts)
	}
	p.open[s.ref] = func(ctx context.Context) (*rotators.Runner, secrets.Store, error) {
		store, err := p.stores.of(ctx, s.ref)
		if err != nil {
			return nil, nil, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.runners[s.ref] == nil {
			p.runners[s.ref] = rotators.NewRunner(store, rot, &opts)
		}
		return p.runners[s.ref], store, nil
	}
	if s.ref.Provider == ref.NATS {
		// It is where the schedules are too: without it there is nothing to
		// serve, and a wrong key is said at once.
		if _, _, err := p.open[s.ref](ctx); err != nil {
			return nil, err
		}
	}
	return &scheduler.Job{
		Ref: s.ref, Tenant: s.Tenant, Spec: s.spec, Calendar: s.calendar, Jitter: s.Jitter, After: s.after,
		Retry: scheduler.Retry{First: s.Retry.First, Longest: s.Retry.Longest, Limit: s.Retry.Limit},
		Gated: !s.gate.IsZero(),
		Open: func(ctx context.Context) (scheduler.Runner, secrets.Store, error) {
			runner, store, err := p.open[s.ref](ctx)
			return runner, store, err
		},
	}, nil
}

// open opens what the configuration describes, for a command that ends by
// itself within limit. The caller calls done.
func (e *env) open(limit time.Duration, observe func(rotators.Progress), edit ...func(*rotators.Options)) (ctx context.Context, p *pipeline, done func(), err error) {
	cfg, err := loadConfig(e.config)
	if err != nil {
		return nil, nil, nil, err
	}
	ctx, cancel := context.WithTimeout(e.ctx, limit)
	all := func(o *rotators.Options) {
		for _, f := range edit {
			f(o)
		}
	}
	if p, err = openPipeline(ctx, cfg, e.log, observe, all); err != nil {
		cancel()
		return nil, nil, nil, err
	}
	return ctx, p, func() { p.close(); cancel() }, nil
}

// openSecret is open for a command that is about one secret, which text names
// as [config.find] reads it.
func (e *env) openSecret(text string, limit time.Duration, observe func(rotators.Progress), edit ...func(*rotators.Options)) (ctx context.Context, p *pipeline, r ref.Ref, done func(), err error) {
	ctx, p, done, err = e.open(limit, observe, edit...)
	if err != nil {
		return nil, nil, ref.Ref{}, nil, err
	}
	if r, err = p.cfg.find(text); err != nil {
		done()
		return nil, nil, ref.Ref{}, nil, err
	}
	return ctx, p, r, done, nil
}

func (p *pipeline) close() {
	if p.stores != nil {
		if err := p.stores.close(); err != nil {
			p.log.Warn("a store was not closed", "err", err)
		}
	}
	if p.nc != nil {
		p.nc.Close()
	}
}

// runner returns the runner of a configured secret.
func (p *pipeline) runner(ctx context.Context, r ref.Ref) (*rotators.Runner, error) {
	open, ok := p.open[r]
	if !ok {
		return nil, p.cfg.errNotConfigured(r)
	}
	runner, _, err := open(ctx)
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", r, err)
	}
	return runner, nil
}

// holdWait is how long a command waits for a rotation elsewhere.
const holdWait = 30 * time.Second

// with calls f with the runner of r while no other process rotates r or what
// r's rotation depends on.
func (p *pipeline) with(ctx context.Context, r ref.Ref, f func(context.Context, *rotators.Runner) error) error {
	runner, err := p.runner(ctx, r)
	if err != nil {
		return err
	}
	held, unlock, err := p.hold(ctx, r)
	if err != nil {
		return err
	}
	defer unlock()
	return f(held, runner)
}

// hold keeps everybody else from rotating r, and says so if that takes a while.
func (p *pipeline) hold(ctx context.Context, r ref.Ref) (context.Context, func(), error) {
	told := time.AfterFunc(2*time.Second, func() {
		p.log.WarnContext(ctx, "another process works on this secret, or died while it did; waiting", "secret", r.String(), "at most", holdWait)
	})
	defer told.Stop()
	return p.sched.Hold(ctx, r, holdWait)
}

// rotate rotates a configured secret; see [rotators.Runner.Rotate].
func (p *pipeline) rotate(ctx context.Context, r ref.Ref, token string) (res rotators.Result, err error) {
	res = rotators.Result{Ref: r, Token: token}
	err = p.with(ctx, r, func(ctx context.Context, runner *rotators.Runner) (err error) {
		res, err = runner.Rotate(ctx, r, token)
		return err
	})
	if err == nil {
		p.sched.AskGate(ctx, r)
	}
	return res, err
}

// serve runs the notifier and the scheduled rotations until ctx is done, then
// lets what is under way end. ready is called with the notifier's address
// once everything runs; it may be nil.
func (p *pipeline) serve(ctx context.Context, ready func(addr string)) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	n, err := p.openNotifier(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	done, err := p.sched.Reconcile(ctx, p.bus)
	if err != nil {
		return err
	}
	if done.Removed > 0 {
		p.log.WarnContext(ctx, "schedules removed: their secrets are not in the configuration any more, or have none", "removed", done.Removed)
	}
	parts := n.parts()
	if file := p.cfg.NATS.CredsFile; file != "" {
		// Renewed credentials are taken up before the server cuts the old ones.
		parts["NATS credentials"] = func(ctx context.Context) error {
			return natsbus.WatchCredentials(ctx, p.nc, file, &natsbus.CredentialsOptions{Logger: p.log})
		}
	}
	parts["schedules"] = func(ctx context.Context) error {
		return p.bus.RunSchedules(ctx, func(ctx context.Context, f natsbus.Firing) error {
			ctx, cancel := outlast(ctx, stopGrace)
			defer cancel()
			return p.sched.Fire(ctx, f)
		})
	}
	parts["triggers"] = func(ctx context.Context) error {
		return p.bus.Work(ctx, workName(p.cfg.Name), events.Filter{Types: scheduler.Wanted()}, p.sched.Hear)
	}
	var wg sync.WaitGroup
	wg.Go(func() { p.tryStores(ctx) })
	errs := make(chan error, len(parts))
	for what, run := range parts {
		wg.Go(func() {
			if err := run(ctx); err != nil {
				errs <- fmt.Errorf("%s: %w", what, err)
				cancel() // one part gone is all of it gone: a supervisor restarts us whole
			}
		})
	}
	if ready != nil {
		ready(n.addr())
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// tryStores opens every store once, so that what is wrong with one is said at
// the start and not at the first rotation.
func (p *pipeline) tryStores(ctx context.Context) {
	tried := map[string]bool{}
	for i := range p.cfg.Secrets {
		r := p.cfg.Secrets[i].ref
		scope := string(r.Provider) + "://" + r.Scope
		if tried[scope] {
			continue
		}
		tried[scope] = true
		octx, cancel := context.WithTimeout(ctx, holdWait)
		if _, err := p.stores.of(octx, r); err != nil && ctx.Err() == nil {
			p.log.ErrorContext(ctx, "a store cannot be opened; it is tried again whenever it is needed", "secret", r.String(), "err", err)
		}
		cancel()
	}
}

// workName is the deployment's name as a durable consumer may have it.
func workName(deployment string) string {
	clean := strings.Map(func(r rune) rune {
		if r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '_'
	}, deployment)
	if clean == deployment && len(clean) <= 40 {
		return "triggers-" + clean
	}
	// Two names that look alike once cleaned stay two.
	sum := sha256.Sum256([]byte(deployment))
	return fmt.Sprintf("triggers-%.40s-%x", clean, sum[:6])
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

// clientTrusting returns an HTTP client that verifies servers by the
// authorities in a bundle; no path means the system's.
func clientTrusting(caFile string) (*http.Client, error) {
	pool, err := rootCAs(caFile)
	if err != nil {
		return nil, err
	}
	tr := http.DefaultTransport.(*http.Transport).Clone()
	tr.TLSClientConfig = clientTLS(pool, "")
	return &http.Client{Transport: tr}, nil
}
