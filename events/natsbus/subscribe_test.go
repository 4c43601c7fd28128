package natsbus

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/testenv"
)

func TestPublishThenSubscribeReplaysTheLast(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	publish(t, b, activated("a", "1"), activated("a", "2"), activated("b", "1"))
	for name, c := range map[string]struct {
		f events.Filter
		o *Options
	}{
		"each subject":    {events.Filter{Tenant: "acme", Refs: refs("a", "b", "none"), Types: []events.Type{events.VersionActivated}}, nil},
		"multi last":      {events.Filter{Tenant: "acme", Refs: refs("a", "b", "none"), Types: []events.Type{events.VersionActivated}}, &Options{MultiLast: true}},
		"no types":        {events.Filter{Tenant: "acme", Refs: refs("a", "b")}, nil},
		"tenant":          {events.Filter{Tenant: "acme"}, nil},
		"everything":      {events.Filter{}, nil},
		"by type":         {events.Filter{Types: []events.Type{events.VersionActivated}}, nil},
		"all types":       {events.Filter{Tenant: "acme", Refs: refs("a", "b"), Types: events.Types()}, nil},
		"ref given twice": {events.Filter{Tenant: "acme", Refs: refs("a", "b", "a"), Types: events.Types()[:2]}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			h := hear(t, NewSubscriber(srv.Conn(t), c.o), c.f, nil).wait(t)
			if h.total() != 2 || h.count("a", "2") != 1 || h.count("b", "1") != 1 {
				t.Fatalf("replayed %+v; expected a at 2 and b at 1, once each", h.got)
			}
			v := "live-" + t.Name()
			publish(t, b, activated("a", v))
			h.eventually(t, "a", v)
			if err := h.stop(); err != nil {
				t.Errorf("Subscribe returned %v after its context ended; expected nil", err)
			}
			// Restore what the other cases expect.
			back := activated("a", "2")
			back.ID = "back-" + events.Token(t.Name())
			publish(t, b, back)
		})
	}
}

func TestNothingStoredIsReady(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	for _, f := range []events.Filter{{}, {Tenant: "acme", Refs: refs("a"), Types: events.Types()}} {
		h := hear(t, b, f, nil).wait(t)
		if h.total() != 0 {
			t.Errorf("heard %+v of an empty stream", h.got)
		}
	}
}

// TestManySubjects: more subjects than one request, page or multi-last answer
// can hold.
func TestManySubjects(t *testing.T) {
	srv := testenv.NATS(t)
	b := open(t, srv.Conn(t), nil)
	const n = 1500
	names := make([]string, n)
	es := make([]events.Event, n)
	for i := range names {
		names[i] = fmt.Sprintf("many/%04d", i)
		es[i] = activated(names[i], "1")
	}
	for some := range slices.Chunk(es, 250) { // a slow disk takes longer for all than Publish waits
		publish(t, b, some...)
	}
	for name, c := range map[string]struct {
		f events.Filter
		o *Options
	}{
		"each subject": {events.Filter{Tenant: "acme", Refs: refs(names...), Types: []events.Type{events.VersionActivated}}, nil},
		"multi last":   {events.Filter{Tenant: "acme", Refs: refs(names...), Types: []events.Type{events.VersionActivated}}, &Options{MultiLast: true}},
		"wildcard":     {events.Filter{}, nil},
		"no types":     {events.Filter{Refs: refs(names[:300]...)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			want := n
			if len(c.f.Refs) > 0 {
				want = len(c.f.Refs)
			}
			h := hear(t, NewSubscriber(srv.Conn(t), c.o), c.f, nil).wait(t)
			if h.total() != want {
				t.Errorf("replayed %d events; expected %d", h.total(), want)
			}
		})
	}
}

func TestContextThatEndedBefore(t *testing.T) {
	srv := testenv.NATS(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := NewSubscriber(srv.Conn(t), nil).Subscribe(ctx, events.Filter{}, func(context.Context, events.Event) {}, nil); err != nil {
		t.Errorf("%v; expected nil", err)
	}
}
