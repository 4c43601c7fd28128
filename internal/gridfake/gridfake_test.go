package gridfake

import (
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/messaging/eventgrid/aznamespaces"

	"github.com/keyturn/keyturn/internal/testenv"
)

const sample = `{"specversion":"1.0","type":"t","source":"/s","id":"1"}`

func client(t *testing.T, s *Server, topic string) *aznamespaces.ReceiverClient {
	t.Helper()
	c, err := aznamespaces.NewReceiverClient(s.URL(), topic, Subscription, s.Credential(), &aznamespaces.ReceiverClientOptions{
		ClientOptions: azcore.ClientOptions{Transport: s.Client(), Retry: policy.RetryOptions{MaxRetries: -1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestLocks(t *testing.T) {
	s := New(t, &Options{Second: 10 * time.Millisecond, MaxDeliveryCount: 3})
	c := client(t, s, Topic)
	s.Publish(sample)
	s.Publish(sample)
	receive := func(n int32) []aznamespaces.ReceiveDetails {
		t.Helper()
		out, err := c.ReceiveEvents(t.Context(), &aznamespaces.ReceiveEventsOptions{MaxEvents: to.Ptr(n), MaxWaitTime: to.Ptr[int32](120)})
		if err != nil {
			t.Fatal(err)
		}
		return out.Details
	}
	// Trap 23: one at a time is the default.
	if out, err := c.ReceiveEvents(t.Context(), nil); err != nil || len(out.Details) != 1 {
		t.Fatalf("received %d, %v", len(out.Details), err)
	}
	first := receive(100)
	if len(first) != 1 || *first[0].BrokerProperties.DeliveryCount != 1 {
		t.Fatalf("received %+v", first)
	}
	token := *first[0].BrokerProperties.LockToken
	testenv.Eventually(t, 10*time.Second, "the lock to end", func() bool { return s.Locked() == 0 })
	// The lock is over: the answer is 200 and says that the token failed.
	out, err := c.AcknowledgeEvents(t.Context(), []string{token}, nil)
	if err != nil || len(out.FailedLockTokens) != 1 || *out.FailedLockTokens[0].Error.Code != "TokenLost" || s.Left() != 2 {
		t.Fatalf("acknowledged as %+v, %v", out, err)
	}
	var tokens []string
	for _, d := range receive(100) {
		tokens = append(tokens, *d.BrokerProperties.LockToken)
	}
	if len(tokens) != 2 {
		t.Fatalf("received %d after the locks ended", len(tokens))
	}
	if out, err := c.ReleaseEvents(t.Context(), tokens[:1], nil); err != nil || len(out.SucceededLockTokens) != 1 {
		t.Fatalf("released as %+v, %v", out, err)
	}
	if out, err := c.AcknowledgeEvents(t.Context(), tokens, nil); err != nil || len(out.SucceededLockTokens) != 1 || len(out.FailedLockTokens) != 1 || s.Left() != 1 {
		t.Fatalf("acknowledged as %+v, %v", out, err)
	}
	receive(1) // the third delivery
	testenv.Eventually(t, 10*time.Second, "the lock to end", func() bool { return s.Locked() == 0 })
	if more := receive(1); len(more) != 0 || len(s.Dead()) != 1 {
		t.Errorf("received %d, %d dead; expected the event to be given up", len(more), len(s.Dead()))
	}
}

func TestRefusals(t *testing.T) {
	s := New(t, nil)
	if _, err := client(t, s, "other").ReceiveEvents(t.Context(), nil); err == nil {
		t.Error("another topic was found")
	}
	c := client(t, s, Topic)
	if _, err := c.ReceiveEvents(t.Context(), &aznamespaces.ReceiveEventsOptions{MaxEvents: to.Ptr[int32](101)}); err == nil {
		t.Error("101 events were asked for")
	}
	s.RevokeTokens(true)
	if _, err := c.ReceiveEvents(t.Context(), nil); err == nil {
		t.Error("a revoked token was taken")
	}
}
