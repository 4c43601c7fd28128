// Package telemetry measures the notifier for Prometheus, and carries traces
// through it with OpenTelemetry.
//
// Labels have few values: the names of configured sources, and constants. No
// name of a secret, tenant or account is a label: their number has no bound,
// and who may read metrics is not who may read names.
package telemetry

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

// Buckets of the two histograms, in seconds. Receipt to acknowledgement is
// milliseconds, unless something is wrong; a provider may be minutes late, as
// CloudTrail is, and a redelivery a day.
var (
	handleBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5}
	lagBuckets    = []float64{.01, .05, .1, .25, .5, 1, 2.5, 5, 15, 60, 300, 900, 3600, 86400}
)

// Metrics are those of one process. It is safe for concurrent use.
type Metrics struct {
	reg        *prometheus.Registry
	quarantine string

	deliveries  *prometheus.CounterVec
	rejected    *prometheus.CounterVec
	events      *prometheus.CounterVec
	lost        *prometheus.CounterVec
	quarantined *prometheus.CounterVec
	handle      *prometheus.HistogramVec
	lag         *prometheus.HistogramVec
}

// New returns metrics in a registry of their own, beside those of the Go
// runtime and the process. quarantine is the tenant whose events are counted
// apart. Names follow https://prometheus.io/docs/practices/naming/.
func New(version, quarantine string) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "keyturn", Subsystem: "notifier", Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "keyturn", Subsystem: "notifier", Name: name, Help: help, Buckets: buckets}, []string{"source"})
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "keyturn", Name: "build_info", Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	m := &Metrics{
		reg: prometheus.NewRegistry(), quarantine: quarantine,
		deliveries:  counter("deliveries_total", "Notices received and accepted, by what became of them: published, ignored (it concerns nobody), parked, failed (the sender repeats it).", "source", "outcome"),
		rejected:    counter("rejected_total", "Requests refused before they were read as notices, by reason.", "source", "reason"),
		events:      counter("events_total", "Events made of notices, by result: stored, duplicate, late (older than what is known), dropped (nobody's).", "source", "result"),
		lost:        counter("lost_total", "Notices that a source had to give up, by reason. Anything but 0 wants a person.", "source", "reason"),
		quarantined: counter("quarantined_total", "Events whose secret no tenant rule matches.", "source"),
		handle:      histogram("handle_duration_seconds", "From the receipt of a notice to the acknowledgement of all its events by JetStream.", handleBuckets),
		lag:         histogram("event_lag_seconds", "From the provider's time of an event to its acknowledgement by JetStream.", lagBuckets),
	}
	m.reg.MustRegister(m.deliveries, m.rejected, m.events, m.lost, m.quarantined, m.handle, m.lag, build,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// Source makes the series of a source exist, with zeros: a counter that is
// absent until its first event cannot be alerted on.
func (m *Metrics) Source(name string) {
	for _, outcome := range []string{"published", "ignored", "parked", "failed"} {
		m.deliveries.WithLabelValues(name, outcome)
	}
	for _, result := range []string{"stored", "duplicate", "late", "dropped"} {
		m.events.WithLabelValues(name, result)
	}
	m.quarantined.WithLabelValues(name)
	m.handle.WithLabelValues(name)
	m.lag.WithLabelValues(name)
}

// Observe counts an outcome; it fits [notifier.Options].
func (m *Metrics) Observe(o notifier.Outcome) {
	outcome := "published"
	switch {
	case o.Err != nil:
		outcome = "failed"
	case o.Parked:
		outcome = "parked"
	case len(o.Events) == 0:
		outcome = "ignored"
	}
	m.deliveries.WithLabelValues(o.Source, outcome).Inc()
	for _, r := range []struct {
		result string
		n      int
	}{{"stored", o.Receipt.Stored}, {"duplicate", o.Receipt.Duplicates}, {"late", o.Receipt.Late}, {"dropped", o.Dropped}} {
		if r.n > 0 {
			m.events.WithLabelValues(o.Source, r.result).Add(float64(r.n))
		}
	}
	if o.Err != nil {
		return
	}
	m.handle.WithLabelValues(o.Source).Observe(o.Took.Seconds())
	acked, lag := o.Received.Add(o.Took), m.lag.WithLabelValues(o.Source)
	for i := range o.Events {
		e := &o.Events[i]
		if e.Data.Tenant == m.quarantine {
			m.quarantined.WithLabelValues(o.Source).Inc()
		}
		// The provider's clock may be ahead of ours.
		lag.Observe(max(acked.Sub(e.Time).Seconds(), 0))
	}
}

// Rejected counts a request that was refused. reason is a constant.
func (m *Metrics) Rejected(source, reason string) { m.rejected.WithLabelValues(source, reason).Inc() }

// Lost counts n notices that a source had to give up. reason is a constant.
func (m *Metrics) Lost(source, reason string, n int) {
	m.lost.WithLabelValues(source, reason).Add(float64(n))
}

// Gauge adds a value that is asked for at each scrape.
func (m *Metrics) Gauge(name, help string, value func() float64) {
	m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "keyturn", Name: name, Help: help}, value))
}

// SourceGauge adds a value of one source that is asked for at each scrape.
func (m *Metrics) SourceGauge(source, name, help string, value func() float64) {
	m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "keyturn", Subsystem: "notifier", Name: name, Help: help, ConstLabels: prometheus.Labels{"source": source},
	}, value))
}

// Handler serves the metrics in Prometheus's text format.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{MaxRequestsInFlight: 4, Timeout: 10 * time.Second})
}

// Serve serves /metrics on ln until ctx is done.
func (m *Metrics) Serve(ctx context.Context, ln net.Listener, log *slog.Logger) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", m.Handler())
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: 3 * time.Second, ReadTimeout: 5 * time.Second, WriteTimeout: 15 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return &fault.Error{Kind: fault.Unavailable, Class: fault.ClassNetwork, Op: "metrics: serve", Err: err}
	}
	return nil
}
