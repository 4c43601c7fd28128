package agent_test

import (
	"testing"
	"time"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
)

// Over a real NATS server: push, a rotation that ends while the agent is cut
// off, and one after the server has come back.
func TestNATS(t *testing.T) {
	srv := testenv.NATS(t)
	r := mustRef(t, testRef)
	store := memstore.New()
	if _, err := store.CreateSecret(t.Context(), r, secrets.NewString("one")); err != nil {
		t.Fatal(err)
	}
	publisher := srv.Conn(t)
	bus, err := natsbus.Open(t.Context(), publisher, nil)
	if err != nil {
		t.Fatal(err)
	}
	const fleet = 20
	var clients [fleet]*agent.Client
	for i := range clients {
		o := options(t, r)
		o.Poll = -1 // so that only events can bring a version
		clients[i] = agent.New(store, natsbus.NewSubscriber(srv.Conn(t), &natsbus.Options{Logger: o.Logger}), o)
		start(t, clients[i])
	}
	all := func(what string, ok func(agent.Status) bool) {
		t.Helper()
		testenv.Eventually(t, 30*time.Second, what, func() bool {
			for _, c := range clients {
				if !ok(c.Status(r)) {
					return false
				}
			}
			return true
		})
	}
	rotate := func(token string) string {
		t.Helper()
		if _, err := store.PutPending(t.Context(), r, token, secrets.NewString(token)); err != nil {
			t.Fatal(err)
		}
		v, err := store.Promote(t.Context(), r, token)
		if err != nil {
			t.Fatal(err)
		}
		return v.ID
	}
	publish := func(id string) {
		t.Helper()
		e := activated(r, id)
		e.Data.Published = time.Now().UTC()
		testenv.Eventually(t, 30*time.Second, "the event published", func() bool {
			err = bus.Publish(t.Context(), e)
			return err == nil
		})
	}
	all("every agent listening with a version", func(s agent.Status) bool { return s.Listening && s.Version != "" })

	id := rotate("pushed")
	publish(id)
	all("the pushed version", func(s agent.Status) bool { return s.Version == id })

	// The event is stored, and then the agents' connections come back.
	srv.Stop()
	id = rotate("while away")
	for _, c := range clients {
		if c.Status(r).Version == id {
			t.Fatal("the version came without an event")
		}
	}
	srv.Start()
	publish(id)
	all("the version of the time away", func(s agent.Status) bool { return s.Version == id })

	id = rotate("again")
	publish(id)
	all("push after the restart", func(s agent.Status) bool { return s.Version == id })
}

// An agent that starts after the event finds it by replay, and reads nothing
// twice for it.
func TestNATSLateStart(t *testing.T) {
	srv := testenv.NATS(t)
	r, s := mustRef(t, testRef), newSource()
	bus, err := natsbus.Open(t.Context(), srv.Conn(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := bus.Publish(t.Context(), activated(r, s.put(r, "one"))); err != nil {
		t.Fatal(err)
	}
	c := agent.New(s, natsbus.NewSubscriber(srv.Conn(t), nil), options(t, r))
	start(t, c)
	testenv.Eventually(t, 30*time.Second, "a version", func() bool {
		st := c.Status(r)
		return st.Listening && st.Version == "v1"
	})
	time.Sleep(300 * time.Millisecond)
	if n := s.count(r); n != 1 {
		t.Errorf("%d reads at start; want 1", n)
	}
}
