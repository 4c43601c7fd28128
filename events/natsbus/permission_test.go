package natsbus

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
)

// secured starts a server with an operator who may do everything and agents
// of two tenants who have the rights of Subscriber's documentation.
func secured(t *testing.T) (connect func(user string) *nats.Conn) {
	t.Helper()
	agent := func(tenant string) *server.User {
		return &server.User{Username: tenant, Password: tenant, Permissions: &server.Permissions{
			Subscribe: &server.SubjectPermission{Allow: []string{"keyturn.v1." + tenant + ".>", "_INBOX_" + tenant + ".>"}},
			Publish:   &server.SubjectPermission{Allow: []string{"$JS.API.DIRECT.GET.KEYTURN_EVENTS.keyturn.v1." + tenant + ".>"}},
		}}
	}
	deaf := &server.User{Username: "deaf", Password: "deaf", Permissions: &server.Permissions{
		Subscribe: &server.SubjectPermission{Allow: []string{"keyturn.v1.acme.>", "_INBOX_deaf.>"}},
		Publish:   &server.SubjectPermission{Deny: []string{">"}},
	}}
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: -1, JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
		Users: []*server.User{{Username: "operator", Password: "operator"}, agent("acme"), agent("victim"), deaf},
	})
	if err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(limit) {
		t.Fatal("the server did not start")
	}
	return func(user string) *nats.Conn {
		t.Helper()
		nc, err := nats.Connect(srv.ClientURL(), nats.UserInfo(user, user), nats.CustomInboxPrefix("_INBOX_"+user), nats.MaxReconnects(-1),
			nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
}

func ofTenant(tenant string, e events.Event) events.Event {
	e.Data.Tenant = tenant
	e.ID += "-" + tenant
	return e
}

// TestTenantsAreApart: with the documented rights an agent hears its own
// tenant, live and stored, and the server itself refuses everything else, by
// whatever filter.
func TestTenantsAreApart(t *testing.T) {
	connect := secured(t)
	b := open(t, connect("operator"), nil)
	publish(t, b, activated("a", "1"), ofTenant("victim", activated("a", "victim1")))
	for name, f := range map[string]events.Filter{
		"types":    {Tenant: "acme", Refs: refs("a"), Types: []events.Type{events.VersionActivated, events.SecretDeleted}},
		"no types": {Tenant: "acme", Refs: refs("a")},
	} {
		t.Run(name, func(t *testing.T) {
			nc := connect("acme")
			h := hear(t, NewSubscriber(nc, nil), f, nil).wait(t)
			if h.total() != 1 || h.count("a", "1") != 1 {
				t.Errorf("replayed %+v; expected version 1", h.got)
			}
			live := activated("a", "live")
			live.ID += name
			victims := ofTenant("victim", activated("a", "live-victim"))
			victims.ID += name
			publish(t, b, victims, live)
			h.eventually(t, "a", "live")
			if h.count("a", "live-victim")+h.count("a", "victim1") != 0 {
				t.Error("heard another tenant")
			}
			if err := nc.LastError(); err != nil {
				t.Errorf("the server refused something: %v; the documented rights are not enough", err)
			}
			back := activated("a", "1")
			back.ID += name
			publish(t, b, back)
		})
	}
	for name, c := range map[string]struct {
		f events.Filter
		o *Options
	}{
		"another tenant": {events.Filter{Tenant: "victim", Refs: refs("a"), Types: []events.Type{events.VersionActivated}}, nil},
		"any tenant":     {events.Filter{Refs: refs("a")}, nil},
		"everything":     {events.Filter{}, nil},
		"whole tenant":   {events.Filter{Tenant: "acme"}, nil},
		"multi last":     {events.Filter{Tenant: "acme", Refs: refs("a")}, &Options{MultiLast: true}},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			err := NewSubscriber(connect("acme"), c.o).Subscribe(ctx, c.f, func(_ context.Context, e events.Event) {
				if e.Data.Tenant != "acme" {
					t.Errorf("heard %+v", e)
				}
			}, func() { t.Error("ready") })
			if !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassPermission {
				t.Errorf("%v; expected an error of kind denied", err)
			}
		})
	}
}

// TestAgentsCannotForge: an agent has no right to publish events, and gets
// Denied at once, not after the time limit.
func TestAgentsCannotForge(t *testing.T) {
	connect := secured(t)
	b := open(t, connect("operator"), nil)
	nc := connect("acme")
	o := (&Options{PublishTimeout: 2 * time.Second}).withDefaults()
	js, err := newJetStream(nc, o)
	if err != nil {
		t.Fatal(err)
	}
	agent := newBus(nc, js, o)
	if err := agent.Publish(t.Context(), activated("a", "forged")); !fault.Is(err, fault.Denied) {
		t.Errorf("%v; expected an error of kind denied", err)
	}
	if n := storedIn(t, b, EventStream); n != 0 {
		t.Errorf("%d stored; expected none", n)
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	if err := NewSubscriber(connect("deaf"), nil).Subscribe(ctx, events.Filter{Tenant: "acme", Refs: refs("a")}, func(context.Context, events.Event) {}, nil); !fault.Is(err, fault.Denied) {
		t.Errorf("without the right to read: %v; expected an error of kind denied", err)
	}
	agent.nc = connect("acme")
	if agent.js, err = newJetStream(agent.nc, o); err != nil {
		t.Fatal(err)
	}
	if err := agent.RunSchedules(ctx, nil); !fault.Is(err, fault.Denied) {
		t.Errorf("run schedules without rights: %v; expected an error of kind denied", err)
	}
	if err := agent.Unschedule(ctx, "x"); !fault.Is(err, fault.Denied) {
		t.Errorf("unschedule without rights: %v; expected an error of kind denied", err)
	}
	if _, err := Open(ctx, connect("acme"), nil); !fault.Is(err, fault.Denied) || !strings.Contains(err.Error(), EventStream) {
		t.Errorf("open without rights: %v; expected an error of kind denied", err)
	}
}
