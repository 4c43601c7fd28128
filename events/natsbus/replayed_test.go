package natsbus

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
)

func TestEvents(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), &Options{MaxPerSubject: 1000, PublishTimeout: limit})
	read := func(q EventsQuery) (out []StoredEvent) {
		t.Helper()
		for e, err := range b.Events(t.Context(), q) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, e)
		}
		return out
	}
	if got := read(EventsQuery{}); len(got) != 0 {
		t.Errorf("%d events in an empty stream", len(got))
	}
	var es []events.Event
	for i := range 600 {
		e := activated(fmt.Sprint("s", i%7), fmt.Sprint("v", i))
		if i%7 == 3 {
			e.Data.Tenant = "victim"
		}
		es = append(es, e)
	}
	for part := range slices.Chunk(es[:300], 100) {
		publish(t, b, part...)
	}
	half := read(EventsQuery{})
	if len(half) != 300 {
		t.Fatalf("%d events; expected 300", len(half))
	}
	mid := half[299].Stored.Add(1)
	for part := range slices.Chunk(es[300:], 100) {
		publish(t, b, part...)
	}
	if _, err := b.js.Publish(t.Context(), es[0].Subject(), []byte("no event")); err != nil {
		t.Fatal(err)
	}
	all := read(EventsQuery{})
	if len(all) != 600 || !slices.IsSortedFunc(all, func(a, b StoredEvent) int { return int(a.Seq) - int(b.Seq) }) {
		t.Fatalf("%d events; expected 600 in order", len(all))
	}
	for _, e := range all {
		if e.Subject != e.Event.Subject() || e.Stored.IsZero() || e.Stored.Location() != time.UTC {
			t.Fatalf("%+v", e)
		}
	}
	s3 := "keyturn.v1.victim.>"
	for name, c := range map[string]struct {
		q    EventsQuery
		want int
	}{
		"since":                {EventsQuery{Since: mid}, 300},
		"until":                {EventsQuery{Until: mid}, 300},
		"since and until":      {EventsQuery{Since: all[10].Stored, Until: all[10].Stored}, 0},
		"from":                 {EventsQuery{From: all[400].Seq}, 200},
		"from, since later":    {EventsQuery{From: all[5].Seq, Since: mid}, 300},
		"from beyond":          {EventsQuery{From: 100_000}, 0},
		"since the future":     {EventsQuery{Since: time.Now().Add(time.Hour)}, 0},
		"one tenant":           {EventsQuery{Subjects: []string{s3}}, 86},
		"overlapping subjects": {EventsQuery{Subjects: []string{s3, "keyturn.v1.>", es[0].Subject()}}, 600},
		"two subjects, since":  {EventsQuery{Subjects: []string{es[0].Subject(), es[1].Subject()}, Since: mid}, 86},
		"nobody's":             {EventsQuery{Subjects: []string{"keyturn.v1.nobody.>"}}, 0},
		"late":                 {EventsQuery{Late: true}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			got := read(c.q)
			if len(got) != c.want || !slices.IsSortedFunc(got, func(a, b StoredEvent) int { return int(a.Seq) - int(b.Seq) }) {
				t.Errorf("%d events; expected %d in order", len(got), c.want)
			}
		})
	}
	for _, err := range b.Events(t.Context(), EventsQuery{}) {
		if err != nil {
			t.Error(err)
		}
		break // a caller may stop
	}
	for _, err := range b.Events(t.Context(), EventsQuery{Subjects: make([]string, maxQuerySubjects+1)}) {
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%v; expected an error of kind invalid", err)
		}
	}
	// What was read goes in again as known.
	receipt(t, b, events.Receipt{Duplicates: 2}, all[0].Event, all[7].Event)
}

func TestReady(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	if err := b.Ready(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.js.DeleteStream(t.Context(), EventStream); err != nil {
		t.Fatal(err)
	}
	if err := b.Ready(t.Context()); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without a stream: %v; expected unavailable", err)
	}
	srv.Stop()
	testenv.Eventually(t, limit, "the cut noticed", func() bool { return !b.nc.IsConnected() })
	if err := b.Ready(t.Context()); !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassNetwork {
		t.Errorf("without a server: %v; expected unavailable", err)
	}
	connect := secured(t)
	o := (&Options{}).withDefaults()
	operator := open(t, connect("operator"), nil)
	agent := newBus(connect("acme"), nil, o)
	var err error
	if agent.js, err = newJetStream(agent.nc, o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := agent.Ready(ctx); !fault.Is(err, fault.Denied) {
		t.Errorf("without rights: %v; expected denied", err)
	}
	if err := operator.Ready(ctx); err != nil {
		t.Error(err)
	}
}
