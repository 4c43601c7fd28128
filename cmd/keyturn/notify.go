package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"go.opentelemetry.io/otel/trace"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/telemetry"
	"github.com/keyturn/keyturn/notifier"
	"github.com/keyturn/keyturn/notifier/webhook"
)

// A notify is the notifier of one process: every way in of the configuration,
// one handler for all of them, and what measures it.
type notify struct {
	p       *pipeline
	ways    *ways
	hook    *webhook.Source // nil without routes
	handler notifier.Handler
	metrics *telemetry.Metrics
	scrape  net.Listener // nil without metrics
	flush   func(context.Context) error
}

// openNotifier opens ports, queues and files, so that what cannot work is an
// error before anything runs.
func (p *pipeline) openNotifier(ctx context.Context) (_ *notify, err error) {
	n := &notify{p: p, metrics: telemetry.New(version, p.cfg.Tenants.quarantine())}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.close())
		}
	}()
	n.metrics.Gauge("nats_connected", "1 while connected to NATS.", func() float64 {
		if p.nc.IsConnected() {
			return 1
		}
		return 0
	})
	var tp trace.TracerProvider
	if tp, n.flush, err = telemetry.Tracing(ctx, version); err != nil {
		return n, err
	}
	tenant, err := newTenants(p.cfg, p.stores.tags, p.log)
	if err != nil {
		return n, err
	}
	inner := notifier.New(p.bus, p.bus, &notifier.Options{
		Tenant: tenant, Logger: p.log, Observe: n.metrics.Observe, Redact: p.cfg.Notifier.RedactDeadLetters,
	})
	decoders := p.cfg.decoders()
	for name := range decoders {
		n.metrics.Source(name)
	}
	n.handler = telemetry.Trace(tp, inner.Handler(func(d notifier.Delivery) ([]events.Event, error) {
		dec, ok := decoders[d.Source]
		if !ok {
			return nil, fault.Newf(fault.Unavailable, "decode", "no way in is called %.60q; this is a defect, please report it", d.Source)
		}
		return dec(d)
	}))
	if n.ways, err = p.openSources(ctx, n.metrics); err != nil {
		return n, err
	}
	if n.hook, err = n.listen(ctx); err != nil {
		return n, err
	}
	if addr := p.cfg.Notifier.Metrics; addr != "" {
		if n.scrape, err = (&net.ListenConfig{}).Listen(ctx, "tcp", addr); err != nil {
			return n, fault.New(fault.Unavailable, "notifier.metrics", err)
		}
	}
	return n, nil
}

// listen opens the port of the routes, if there are any.
func (n *notify) listen(ctx context.Context) (*webhook.Source, error) {
	c := &n.p.cfg.Notifier
	if c.Listen == "" {
		return nil, nil
	}
	var routes []webhook.Route
	for _, r := range c.Routes {
		route, err := r.route(n.ways.audits, n.p.log)
		if err != nil {
			return nil, fmt.Errorf("notifier route %s: %w", r.Path, err)
		}
		routes = append(routes, route)
	}
	src, err := webhook.Listen(ctx, webhook.Options{
		Addr: c.Listen, CertFile: c.CertFile, KeyFile: c.KeyFile, Routes: routes, Logger: n.p.log,
		Ready: n.p.bus.Ready, LameDuck: c.lameDuck(),
		Observe: func(r webhook.Rejection) { n.metrics.Rejected(r.Source, string(r.Reason)) },
	})
	if err != nil {
		return nil, fmt.Errorf("notifier.listen, cert_file and key_file: %w", err)
	}
	return src, nil
}

// parts is what runs, by what it is called in errors.
func (n *notify) parts() map[string]func(context.Context) error {
	parts := map[string]func(context.Context) error{}
	if n.hook != nil {
		parts["notifier"] = func(ctx context.Context) error { return n.hook.Run(ctx, n.handler) }
	}
	for name, src := range n.ways.sources {
		parts["notifier source "+name] = func(ctx context.Context) error { return src.Run(ctx, n.handler) }
	}
	if n.scrape != nil {
		parts["metrics"] = func(ctx context.Context) error { return n.metrics.Serve(ctx, n.scrape, n.p.log) }
	}
	return parts
}

// addr is where the routes are served, or "".
func (n *notify) addr() string {
	if n.hook == nil {
		return ""
	}
	return n.hook.Addr().String()
}

// flushTime bounds sending the last spans.
const flushTime = 3 * time.Second

// close gives back what is open, whether or not it ran.
func (n *notify) close() error {
	if n.hook != nil {
		_ = n.hook.Close()
	}
	if n.scrape != nil {
		_ = n.scrape.Close()
	}
	if n.ways != nil {
		n.ways.close()
	}
	if n.flush == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushTime)
	defer cancel()
	if err := n.flush(ctx); err != nil {
		n.p.log.Warn("the last spans were not sent", "err", err)
	}
	return nil
}
