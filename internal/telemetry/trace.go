package telemetry

import (
	"context"
	"maps"
	"os"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.37.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

// traceparent is the only key that is carried: what a sender puts into
// tracestate or baggage could be anything.
const traceparent = "traceparent"

// Tracing returns a provider that exports spans by OTLP over HTTP, where the
// standard environment names an endpoint, and nil where it does not. The
// caller calls shutdown, which sends what is left, within its context.
// https://opentelemetry.io/docs/specs/otel/protocol/exporter/
func Tracing(ctx context.Context, version string) (tp trace.TracerProvider, shutdown func(context.Context) error, err error) {
	if os.Getenv("OTEL_EXPORTER_OTLP_ENDPOINT") == "" && os.Getenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") == "" {
		return nil, func(context.Context) error { return nil }, nil
	}
	exp, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, nil, fault.New(fault.Invalid, "tracing: OTEL_EXPORTER_OTLP_ENDPOINT", err)
	}
	res, err := resource.Merge(resource.Default(), resource.NewSchemaless(
		semconv.ServiceName("keyturn"), semconv.ServiceVersion(version),
	))
	if err != nil {
		return nil, nil, fault.New(fault.Invalid, "tracing: OTEL_RESOURCE_ATTRIBUTES", err)
	}
	p := sdktrace.NewTracerProvider(sdktrace.WithBatcher(exp), sdktrace.WithResource(res))
	return p, p.Shutdown, nil
}

// Trace makes a span of each delivery: a child of the sender's where the
// delivery has a trace parent, else the root of a trace. The delivery goes on
// with the span as its trace parent, and so do its events, so that what an
// agent does about an event belongs to the trace. tp may be nil; then h is
// returned as it is, and the sender's trace parent is carried.
func Trace(tp trace.TracerProvider, h notifier.Handler) notifier.Handler {
	if tp == nil {
		return h
	}
	tracer := tp.Tracer("github.com/keyturn/keyturn/notifier")
	var prop propagation.TraceContext
	return func(ctx context.Context, d notifier.Delivery) error {
		ctx = prop.Extract(ctx, propagation.MapCarrier{traceparent: d.Attributes[traceparent]})
		ctx, span := tracer.Start(ctx, "process "+d.Source, trace.WithSpanKind(trace.SpanKindConsumer), trace.WithAttributes(
			semconv.MessagingSystemKey.String(d.Source), semconv.MessagingOperationTypeProcess,
			semconv.MessagingMessageBodySize(len(d.Body)), attribute.Int("keyturn.delivery.attempt", d.Attempt),
			// As in the log. The transport's own id may be any text of a sender's.
			attribute.String("keyturn.delivery.key", d.Key()),
		))
		defer span.End()
		out := propagation.MapCarrier{}
		prop.Inject(ctx, out)
		d.Attributes = maps.Clone(d.Attributes)
		if d.Attributes == nil {
			d.Attributes = map[string]string{}
		}
		d.Attributes[traceparent] = out[traceparent]
		err := h(ctx, d)
		if err != nil {
			// The text of an error could quote what was received; its kind cannot.
			span.SetStatus(codes.Error, fault.KindOf(err).String())
			span.SetAttributes(semconv.ErrorTypeKey.String(fault.KindOf(err).String()))
		}
		return err
	}
}
