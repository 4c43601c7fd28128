package natsbus

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/testenv"
)

// Both benchmarks measure one event at a time from before it is published
// until a subscriber on another connection has it, on a server that syncs
// every write to its disk. What the second costs more than the first is ours:
// encoding, validation, decoding.

func report(b *testing.B, took []time.Duration) {
	b.Helper()
	slices.Sort(took)
	at := func(p float64) float64 {
		return float64(took[min(int(p*float64(len(took))), len(took)-1)].Microseconds())
	}
	b.ReportMetric(at(0.50), "p50-µs")
	b.ReportMetric(at(0.99), "p99-µs")
}

func BenchmarkRawPublishToSubscribe(b *testing.B) {
	srv := testenv.NATS(b)
	bus := open(b, srv.Conn(b), nil)
	agent := srv.Conn(b)
	heard := make(chan time.Time, 1)
	m, err := encode(activated("a", "1"))
	if err != nil {
		b.Fatal(err)
	}
	if _, err := agent.Subscribe(m.Subject, func(*nats.Msg) { heard <- time.Now() }); err != nil {
		b.Fatal(err)
	}
	if err := agent.Flush(); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		out := &nats.Msg{Subject: m.Subject, Data: m.Data, Header: nats.Header{nats.MsgIdHdr: {strconv.Itoa(i)}}}
		start := time.Now()
		if _, err := bus.js.PublishMsg(b.Context(), out); err != nil {
			b.Fatal(err)
		}
		took = append(took, (<-heard).Sub(start))
	}
	report(b, took)
}

func BenchmarkPublishToHandler(b *testing.B) {
	srv := testenv.NATS(b)
	bus := open(b, srv.Conn(b), nil)
	heard := make(chan time.Time, 1)
	h := make(chan struct{})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() {
		done <- NewSubscriber(srv.Conn(b), nil).Subscribe(ctx, events.Filter{Tenant: "acme", Refs: refs("a"), Types: []events.Type{events.VersionActivated}},
			func(context.Context, events.Event) { heard <- time.Now() }, func() { close(h) })
	}()
	<-h
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		e := activated("a", strconv.Itoa(i))
		start := time.Now()
		if err := bus.Publish(b.Context(), e); err != nil {
			b.Fatal(err)
		}
		took = append(took, (<-heard).Sub(start))
	}
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	report(b, took)
}

// BenchmarkReplay is what one agent with ten secrets costs at a reconnect.
func BenchmarkReplay(b *testing.B) {
	srv := testenv.NATS(b)
	bus := open(b, srv.Conn(b), nil)
	var names []string
	for i := range 10 {
		names = append(names, fmt.Sprint("s", i))
		publish(b, bus, activated(names[i], "1"))
	}
	f := events.Filter{Tenant: "acme", Refs: refs(names...), Types: events.Types()[:9]}
	for name, o := range map[string]Options{"EachSubject": {}, "MultiLast": {MultiLast: true}} {
		b.Run(name, func(b *testing.B) {
			nc := srv.Conn(b)
			o = o.withDefaults()
			rd := reader{nc: nc, opts: o, stream: EventStream}
			subjects := storedSubjects(f, o)
			var took []time.Duration
			for b.Loop() {
				n := 0
				start := time.Now()
				if err := rd.last(b.Context(), subjects, func(stored) error { n++; return nil }); err != nil || n != 10 {
					b.Fatal(n, err)
				}
				took = append(took, time.Since(start))
			}
			report(b, took)
		})
	}
}
