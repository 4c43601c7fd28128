package agent_test

import (
	"context"
	"fmt"
	"log"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
)

// An agent holds a key and is told of the next one. In earnest the store is
// awssm or natskv, and the bus natsbus.NewSubscriber.
func Example() {
	ctx, cancel := context.WithCancel(context.Background())
	key, err := ref.Parse("nats://acme/llm-key")
	if err != nil {
		log.Fatal(err)
	}
	store, bus := memstore.New(), newBus()
	if _, err := store.CreateSecret(ctx, key, secrets.NewString("sk-first")); err != nil {
		log.Fatal(err)
	}

	client := agent.New(store, bus, &agent.Options{Refs: []ref.Ref{key}})
	ended := make(chan error)
	go func() { ended <- client.Run(ctx) }()

	changed := make(chan agent.Change)
	client.OnChange(key, func(_ context.Context, ch agent.Change) { changed <- ch })
	fmt.Println("first:", (<-changed).Old == nil)

	// A rotation ends, and its event is published.
	if _, err := store.PutPending(ctx, key, "rotation-1", secrets.NewString("sk-second")); err != nil {
		log.Fatal(err)
	}
	v, err := store.Promote(ctx, key, "rotation-1")
	if err != nil {
		log.Fatal(err)
	}
	bus.publish(activated(key, v.ID))
	ch := <-changed
	fmt.Println("pushed:", ch.Event.Type, ch.Old.ID != ch.New.ID)

	// What each request does; it costs nanoseconds.
	cur, err := client.Current(ctx, key)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("current:", cur.ID == v.ID, cur.Value, "of", cur.Value.Len(), "bytes")

	// When the service answers 401 to that version.
	client.Invalidate(key, cur.ID)

	cancel()
	fmt.Println("ended:", <-ended)
	// Output:
	// first: true
	// pushed: dev.keyturn.version.activated.v1 true
	// current: true [redacted] of 9 bytes
	// ended: <nil>
}
