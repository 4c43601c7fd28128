package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
	"github.com/keyturn/keyturn/ref"
)

var (
	secret = ref.Ref{Provider: ref.AWS, Scope: "1/eu-west-1", Name: "tenant-name/secret-name"}
	start  = time.Date(2026, 6, 1, 10, 0, 0, 0, time.UTC)
)

func event(tenant string, at time.Time) events.Event {
	e := events.New(events.VersionActivated, secret, at, "v")
	e.Data.Tenant = tenant
	return e
}

// filled returns metrics after one outcome of each kind.
func filled() *Metrics {
	m := New("v1.2.3", "quarantine")
	m.Source("sqs")
	for _, o := range []notifier.Outcome{
		{Events: []events.Event{event("acme", start.Add(-2*time.Second)), event("quarantine", start.Add(time.Hour))}, Receipt: events.Receipt{Stored: 1, Duplicates: 1}},
		{Events: []events.Event{event("acme", start.Add(-48*time.Hour))}, Receipt: events.Receipt{Late: 1}},
		{Dropped: 3},
		{Parked: true},
		{Err: errors.New("away")},
	} {
		o.Source, o.Received, o.Took = "sqs", start, 3*time.Millisecond
		m.Observe(o)
	}
	m.Rejected("eventgrid", "unauthenticated")
	m.Lost("vaultaudit", "full", 1)
	for i, name := range []string{"sqs", "pull"} {
		m.SourceGauge(name, "source_up", "1 while it is heard.", func() float64 { return float64(i) })
	}
	m.Gauge("nats_connected", "1 while connected to NATS.", func() float64 { return 1 })
	return m
}

func TestMetrics(t *testing.T) {
	m := filled()
	want := `
# HELP keyturn_notifier_deliveries_total Notices received and accepted, by what became of them: published, ignored (it concerns nobody), parked, failed (the sender repeats it).
# TYPE keyturn_notifier_deliveries_total counter
keyturn_notifier_deliveries_total{outcome="failed",source="sqs"} 1
keyturn_notifier_deliveries_total{outcome="ignored",source="sqs"} 1
keyturn_notifier_deliveries_total{outcome="parked",source="sqs"} 1
keyturn_notifier_deliveries_total{outcome="published",source="sqs"} 2
# HELP keyturn_notifier_events_total Events made of notices, by result: stored, duplicate, late (older than what is known), dropped (nobody's).
# TYPE keyturn_notifier_events_total counter
keyturn_notifier_events_total{result="dropped",source="sqs"} 3
keyturn_notifier_events_total{result="duplicate",source="sqs"} 1
keyturn_notifier_events_total{result="late",source="sqs"} 1
keyturn_notifier_events_total{result="stored",source="sqs"} 1
# HELP keyturn_notifier_lost_total Notices that a source had to give up, by reason. Anything but 0 wants a person.
# TYPE keyturn_notifier_lost_total counter
keyturn_notifier_lost_total{reason="full",source="vaultaudit"} 1
# HELP keyturn_notifier_quarantined_total Events whose secret no tenant rule matches.
# TYPE keyturn_notifier_quarantined_total counter
keyturn_notifier_quarantined_total{source="sqs"} 1
# HELP keyturn_notifier_rejected_total Requests refused before they were read as notices, by reason.
# TYPE keyturn_notifier_rejected_total counter
keyturn_notifier_rejected_total{reason="unauthenticated",source="eventgrid"} 1
# HELP keyturn_build_info 1, with the version as a label.
# TYPE keyturn_build_info gauge
keyturn_build_info{version="v1.2.3"} 1
# HELP keyturn_nats_connected 1 while connected to NATS.
# TYPE keyturn_nats_connected gauge
keyturn_nats_connected 1
# HELP keyturn_notifier_source_up 1 while it is heard.
# TYPE keyturn_notifier_source_up gauge
keyturn_notifier_source_up{source="pull"} 1
keyturn_notifier_source_up{source="sqs"} 0
`
	if err := testutil.GatherAndCompare(m.reg, strings.NewReader(want),
		"keyturn_notifier_deliveries_total", "keyturn_notifier_events_total", "keyturn_notifier_lost_total", "keyturn_notifier_quarantined_total",
		"keyturn_notifier_rejected_total", "keyturn_build_info", "keyturn_nats_connected", "keyturn_notifier_source_up"); err != nil {
		t.Error(err)
	}
	problems, err := testutil.GatherAndLint(m.reg)
	if err != nil || len(problems) > 0 {
		t.Errorf("the conventions of Prometheus: %v, %v", problems, err)
	}
}

// TestLagIsFromTheProvidersTime: 2 s late, a clock ahead, two days late; and
// the failed delivery has no time of its own.
func TestLagIsFromTheProvidersTime(t *testing.T) {
	fams, err := filled().reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][2]float64{}
	for _, f := range fams {
		for _, s := range f.GetMetric() {
			if h := s.GetHistogram(); h != nil && len(s.GetLabel()) == 1 {
				got[f.GetName()] = [2]float64{float64(h.GetSampleCount()), h.GetSampleSum()}
			}
		}
	}
	if g := got["keyturn_notifier_event_lag_seconds"]; g[0] != 3 || g[1] < 172802 || g[1] > 172803 {
		t.Errorf("lag: %v; expected three of 2 s, 0 and two days", g)
	}
	if g := got["keyturn_notifier_handle_duration_seconds"]; g[0] != 4 || g[1] < .0119 || g[1] > .0121 {
		t.Errorf("handling: %v; expected four of 3 ms", g)
	}
}

// TestNamesAreNoLabels: neither a secret nor a tenant may be read off the
// metrics, and no label has a value per secret.
func TestNamesAreNoLabels(t *testing.T) {
	rec := httptest.NewRecorder()
	filled().Handler().ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	body := rec.Body.String()
	if rec.Code != http.StatusOK || !strings.Contains(body, "keyturn_notifier_events_total") || !strings.Contains(body, "go_goroutines") {
		t.Fatalf("status %d, %d bytes", rec.Code, len(body))
	}
	for _, name := range []string{"secret-name", "tenant-name", "acme", "eu-west-1"} {
		if strings.Contains(body, name) {
			t.Errorf("the metrics hold %q", name)
		}
	}
}

func TestServe(t *testing.T) {
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- filled().Serve(ctx, ln, slog.New(slog.DiscardHandler)) }()
	for path, want := range map[string]int{"/metrics": 200, "/": 404} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+ln.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		_ = res.Body.Close()
		if res.StatusCode != want {
			t.Errorf("%s: %d; expected %d", path, res.StatusCode, want)
		}
	}
	http.DefaultClient.CloseIdleConnections()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestTraceGoesOn(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	tp := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	var seen string
	h := func(result error) notifier.Handler {
		return Trace(tp, func(_ context.Context, d notifier.Delivery) error {
			seen = d.Attributes["traceparent"]
			return result
		})
	}
	attrs := map[string]string{"traceparent": parent, "eventtype": "x"}
	if err := h(nil)(t.Context(), notifier.Delivery{Source: "sqs", ID: "m1", Body: []byte("abc"), Attributes: attrs}); err != nil {
		t.Fatal(err)
	}
	s := spans.GetSpans()[0]
	if s.Name != "process sqs" || s.Parent.SpanID().String() != "b7ad6b7169203331" || s.SpanContext.TraceID().String() != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("span %s of trace %s below %s", s.Name, s.SpanContext.TraceID(), s.Parent.SpanID())
	}
	if want := "00-0af7651916cd43dd8448eb211c80319c-" + s.SpanContext.SpanID().String() + "-01"; seen != want || attrs["traceparent"] != parent {
		t.Errorf("handed on %q (the sender's %q); expected %q and the delivery's own untouched", seen, attrs["traceparent"], want)
	}

	spans.Reset()
	bad := fault.Newf(fault.Unavailable, "publish", "canary text")
	for _, d := range []notifier.Delivery{{Source: "sqs", ID: "canary id", Body: []byte("canary body")}, {Source: "sqs", Attributes: map[string]string{"traceparent": "00-forged"}}} {
		if err := h(bad)(t.Context(), d); !errors.Is(err, bad) {
			t.Errorf("%v; expected the handler's error", err)
		}
	}
	for _, s := range spans.GetSpans() {
		if s.Parent.IsValid() || s.Status.Description != "unavailable" || strings.Contains(s.Status.Description, "canary") || len(s.Events) != 0 {
			t.Errorf("span %+v; expected a root with the kind of the error alone", s)
		}
		if strings.Contains(fmt.Sprint(s.Attributes), "canary") {
			t.Errorf("attributes %v hold text of the sender's", s.Attributes)
		}
	}
}

func TestTraceWithoutProvider(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "")
	t.Setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "")
	tp, shutdown, err := Tracing(t.Context(), "v1")
	if tp != nil || err != nil || shutdown(t.Context()) != nil {
		t.Fatalf("%v, %v", tp, err)
	}
	var seen string
	h := Trace(tp, func(_ context.Context, d notifier.Delivery) error { seen = d.Attributes["traceparent"]; return nil })
	if err := h(t.Context(), notifier.Delivery{Attributes: map[string]string{"traceparent": parent}}); err != nil || seen != parent {
		t.Errorf("%q, %v; expected the sender's", seen, err)
	}
}

// TestExport sends spans to an endpoint that the standard environment names.
func TestExport(t *testing.T) {
	var posts atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if r.URL.Path == "/v1/traces" && strings.Contains(string(b), "process sqs") && strings.Contains(string(b), "keyturn") {
			posts.Add(1)
		}
		w.WriteHeader(http.StatusOK)
	}))
	defer srv.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", srv.URL)
	tp, shutdown, err := Tracing(t.Context(), "v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := Trace(tp, func(context.Context, notifier.Delivery) error { return nil })(t.Context(), notifier.Delivery{Source: "sqs"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := shutdown(ctx); err != nil || posts.Load() != 1 {
		t.Errorf("%d exports, %v; expected one", posts.Load(), err)
	}
}
