package webhook

import (
	"context"
	"maps"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/notifier"
)

// TestDeliveries: what each kind makes of what its sender sends.
func TestDeliveries(t *testing.T) {
	trace := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	g := newRig(t, nil)
	headers := func(kv ...string) func(*http.Request) {
		return func(q *http.Request) {
			for i := 0; i < len(kv); i += 2 {
				q.Header.Set(kv[i], kv[i+1])
			}
		}
	}
	good := []string{"Authorization", "Bearer good", "Cookie", "c", "X-Forwarded-For", "1.2.3.4", "Traceparent", trace}
	signed := func(body string, more ...string) func(*http.Request) {
		return func(q *http.Request) {
			sign(q.Header, hmacKey, "msg_1", nowish(), body)
			headers(more...)(q)
		}
	}
	wrapped := `{"message":{"attributes":{"eventType":"TOPIC_CONFIGURED"},"messageId":"2070443601311542","message_id":"2070443601311542"},"subscription":"s","deliveryAttempt":5}`
	for name, c := range map[string]struct {
		path, body string
		edit       func(*http.Request)
		want       notifier.Delivery
	}{
		"eventbridge": {"/v1/eventbridge", moved(1), headers(append(good, "User-Agent", "Amazon/EventBridge/ApiDestinations", "Range", "bytes=0-1048575")...), notifier.Delivery{
			Source: "eventbridge", Body: []byte(moved(1)), Attributes: map[string]string{"traceparent": trace},
		}},
		"trap 15: eventgrid, its own schema": {"/v1/eventgrid", gridEvent, headers(append(good, "Aeg-Event-Type", "Notification", "aeg-subscription-name", "KEYTURN", "aeg-delivery-count", "2", "aeg-output-event-id", "o", "Content-Type", "application/json; charset=utf-8")...), notifier.Delivery{
			Source: "eventgrid", Body: []byte(gridEvent), Attempt: 3,
			Attributes: map[string]string{"traceparent": trace, "content-type": "application/json; charset=utf-8", "aeg-event-type": "Notification", "aeg-subscription-name": "KEYTURN", "aeg-delivery-count": "2", "aeg-output-event-id": "o"},
		}},
		"trap 15: eventgrid, CloudEvents": {"/v1/eventgrid", cloudEvent, headers("Authorization", "Bearer good", "Content-Type", "application/cloudevents+json; charset=utf-8", "aeg-delivery-count", "-1"), notifier.Delivery{
			Source: "eventgrid", Body: []byte(cloudEvent), Attributes: map[string]string{"content-type": "application/cloudevents+json; charset=utf-8", "aeg-delivery-count": "-1"},
		}},
		"eventgrid, batch": {"/v1/eventgrid", "[" + cloudEvent + "]", headers("Authorization", "Bearer good", "Content-Type", "application/cloudevents-batch+json"), notifier.Delivery{
			Source: "eventgrid", Body: []byte("[" + cloudEvent + "]"), Attributes: map[string]string{"content-type": "application/cloudevents-batch+json"},
		}},
		"pubsub, wrapped": {"/v1/pubsub", wrapped, headers("Authorization", "Bearer good", "Content-Type", "application/json"), notifier.Delivery{
			Source: "pubsub", ID: "2070443601311542", Body: []byte(wrapped), Attempt: 5, Attributes: map[string]string{"content-type": "application/json"},
		}},
		"trap 29: pubsub, unwrapped": {"/v1/pubsub", `{"name":"n"}`, headers("Authorization", "Bearer good", "Content-Type", "", "x-goog-pubsub-subscription-name", "projects/p/subscriptions/s", "x-goog-pubsub-message-id", "7", "x-goog-pubsub-publish-time", "2026-10-02T13:03:43.749Z",
			"eventType", "SECRET_DELETE", "dataFormat", "JSON_API_V1", "secretId", "projects/8/secrets/x", "timestamp", "2026-10-02T06:03:43.549786-07:00", "deleteType", "REQUESTED", "versionId", "v"), notifier.Delivery{
			Source: "pubsub", ID: "7", Body: []byte(`{"name":"n"}`), Attributes: map[string]string{
				"x-goog-pubsub-subscription-name": "projects/p/subscriptions/s", "x-goog-pubsub-message-id": "7", "x-goog-pubsub-publish-time": "2026-10-02T13:03:43.749Z",
				"eventtype": "SECRET_DELETE", "dataformat": "JSON_API_V1", "secretid": "projects/8/secrets/x", "timestamp": "2026-10-02T06:03:43.549786-07:00", "deletetype": "REQUESTED", "versionid": "v",
			},
		}},
		"pubsub, Eventarc": {"/v1/pubsub", pushed1, headers("Authorization", "Bearer good", "Ce-Id", "2070443601311541", "ce-type", "google.cloud.pubsub.topic.v1.messagePublished", "ce-specversion", "1.0"), notifier.Delivery{
			Source: "pubsub", ID: "2070443601311541", Body: []byte(pushed1), Attempt: 3,
			Attributes: map[string]string{"content-type": "application/json", "ce-id": "2070443601311541", "ce-type": "google.cloud.pubsub.topic.v1.messagePublished", "ce-specversion": "1.0"},
		}},
		"trap 33: pubsub, poison": {"/v1/pubsub", "not JSON", headers("Authorization", "Bearer good", "Content-Type", "text/plain; charset=latin1"), notifier.Delivery{
			Source: "pubsub", Body: []byte("not JSON"), Attributes: map[string]string{"content-type": "text/plain; charset=latin1"},
		}},
		"trap 13: sns": {"/v1/sns", snsMessage("Notification", "good", ourTopic, ""), headers("Content-Type", "text/plain; charset=UTF-8", "x-amz-sns-message-type", "Notification", "x-amz-sns-topic-arn", "another"), notifier.Delivery{
			Source: "sns", ID: "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324", Body: []byte(moved(1)), Attributes: map[string]string{"x-amz-sns-topic-arn": ourTopic},
		}},
		"cloudevents, structured": {"/v1/cloudevents", cloudEvent, signed(cloudEvent, "Content-Type", "application/cloudevents+json", "Traceparent", trace), notifier.Delivery{
			Source: "cloudevents", ID: "msg_1", Body: []byte(cloudEvent), Attributes: map[string]string{"content-type": "application/cloudevents+json", "traceparent": trace},
		}},
		"cloudevents, binary": {"/v1/cloudevents", "{}", signed("{}", "ce-id", "1", "ce-source", "/x", "ce-type", "t%20t", "ce-specversion", "1.0", "ce-traceparent", trace), notifier.Delivery{
			Source: "cloudevents", ID: "msg_1", Body: []byte("{}"),
			Attributes: map[string]string{"content-type": "application/json", "ce-id": "1", "ce-source": "/x", "ce-type": "t%20t", "ce-specversion": "1.0", "ce-traceparent": trace, "traceparent": trace},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if code, _, _ := g.send(t, c.path, c.body, c.edit); code != 200 {
				t.Fatalf("status %d; expected 200", code)
			}
			ds, _ := g.taken()
			if len(ds) != 1 {
				t.Fatalf("%d deliveries; expected one", len(ds))
			}
			d := ds[0]
			if d.Source != c.want.Source || d.ID != c.want.ID || string(d.Body) != string(c.want.Body) || d.Attempt != c.want.Attempt || d.Received.IsZero() || !maps.Equal(d.Attributes, c.want.Attributes) {
				t.Errorf("delivered %+v\nexpected %+v", d, c.want)
			}
		})
	}
}

// TestRedeliveryKeepsItsKey: what parks one message twice must not make two dead
// letters of it.
func TestRedeliveryKeepsItsKey(t *testing.T) {
	g := newRig(t, nil)
	keys := map[string]bool{}
	for _, attempt := range []string{"1", "2"} {
		body := strings.Replace(pushed1, `"deliveryAttempt":3`, `"deliveryAttempt":`+attempt, 1)
		if code, _, _ := g.send(t, "/v1/pubsub", body, func(q *http.Request) { bearer(q.Header, "") }); code != 200 {
			t.Fatalf("status %d; expected 200", code)
		}
		ds, _ := g.taken()
		keys[ds[0].Key()] = true
	}
	if len(keys) != 1 {
		t.Errorf("%d keys; expected one", len(keys))
	}
}

// TestHandshakes: subscriptions that are ours.
func TestHandshakes(t *testing.T) {
	g := newRig(t, func(o *Options) {
		o.Routes = append(o.Routes, Route{Name: "anonymous", Kind: EventGrid{AnonymousHandshake: true}, Auth: auth(key)})
	})
	validation := `[{"id":"2","topic":"/subscriptions/x","subject":"","data":{"validationCode":"512d38b6-c7b8-40c8-89fe-f46f9e9622b6","validationUrl":"https://rp-eastus2.eventgrid.azure.net:553/x"},"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","eventTime":"2026-06-01T10:00:00Z"}]`
	for range 2 { // it is asked again at each change of the subscription
		code, header, text := g.send(t, "/v1/eventgrid", validation, func(q *http.Request) {
			bearer(q.Header, "")
			q.Header.Set("aeg-event-type", "SubscriptionValidation")
		})
		if code != 200 || text != `{"validationResponse":"512d38b6-c7b8-40c8-89fe-f46f9e9622b6"}` || header.Get("Content-Type") != "application/json" {
			t.Errorf("trap 16: status %d, %q; expected 200 with the code", code, text)
		}
	}
	for path, credentials := range map[string]string{"/v1/eventgrid": "Bearer good", "/v1/anonymous": ""} {
		code, header, _ := g.send(t, path, "", func(q *http.Request) {
			asks("EventGrid.azure.net")(q)
			q.Header.Set("Authorization", credentials)
		})
		if code != 200 || header.Get("WebHook-Allowed-Origin") != "eventgrid.azure.net" || header.Get("WebHook-Allowed-Rate") != "120" || header.Get("Allow") != "POST" {
			t.Errorf("%s: status %d with %v; expected the origin to be allowed", path, code, header)
		}
	}
	if code, _, _ := g.send(t, "/v1/anonymous", gridEvent, nil); code != 401 {
		t.Errorf("status %d of a delivery after an anonymous handshake; expected 401", code)
	}
	if code, _, _ := g.send(t, "/v1/cloudevents", "", func(q *http.Request) {
		asks("events.example.com")(q)
		sign(q.Header, hmacKey, "msg_1", nowish(), "")
	}); code != 200 {
		t.Errorf("status %d of a signed handshake; expected 200", code)
	}
	if code, _, _ := g.send(t, "/v1/eventgrid", gridEvent, func(q *http.Request) {
		bearer(q.Header, "")
		q.Header.Set("aeg-event-type", "SubscriptionDeletion")
	}); code != 200 {
		t.Errorf("status %d of a deleted subscription; expected 200", code)
	}
	if code, _, _ := g.send(t, "/v1/sns", snsMessage("SubscriptionConfirmation", "good", ourTopic, "https://sns.eu-west-1.amazonaws.com/?Action=ConfirmSubscription"), func(q *http.Request) {
		q.Header.Set(headerSNSType, "SubscriptionConfirmation")
	}); code != 200 || len(g.topics.confirmed) != 1 {
		t.Errorf("status %d, confirmed %v; expected 200 and once", code, g.topics.confirmed)
	}
	if ds, _ := g.taken(); len(ds) != 0 {
		t.Errorf("%d deliveries of handshakes; expected none", len(ds))
	}
}

// TestOutagesOfOurs: whatever fails behind a route is 503 for every kind of
// sender (trap 17), and a notice that can never be handled is 400, unless the
// sender would repeat it for days (trap 33).
func TestOutagesOfOurs(t *testing.T) {
	for name, c := range map[string]struct {
		err            error
		status, pubsub int
		reason         Reason
	}{
		"unavailable":  {fault.New(fault.Unavailable, "bus", nil), 503, 503, Unavailable},
		"denied":       {fault.New(fault.Denied, "bus", nil), 503, 503, Unavailable},
		"unclassified": {os.ErrPermission, 503, 503, Unavailable},
		"too late":     {context.DeadlineExceeded, 503, 503, Timeout},
		"invalid":      {fault.New(fault.Invalid, "never", nil), 400, 200, Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			g := newRig(t, nil)
			broken := newRigWith(t, g, c.err)
			for _, s := range senders() {
				if s.name == "vaultaudit" {
					continue // its own handler answers
				}
				want := c.status
				if s.path == "/v1/pubsub" {
					want = c.pubsub
				}
				if code, _, _ := broken.send(t, s.path, s.body, s.as); code != want {
					t.Errorf("%s: status %d; expected %d", s.name, code, want)
				}
				if rs := broken.reasons(); len(rs) != 1 || rs[0].Reason != c.reason || rs[0].Status != want {
					t.Errorf("%s: observed %v; expected %s with %d", s.name, rs, c.reason, want)
				}
			}
		})
	}
}

// newRigWith is a rig with the routes of g and a handler that returns err.
func newRigWith(t *testing.T, g *rig, err error) *rig {
	broken := &rig{}
	o := Options{Routes: g.o.Routes, Observe: func(r Rejection) {
		broken.mu.Lock()
		defer broken.mu.Unlock()
		broken.rejected = append(broken.rejected, r)
	}}
	broken.running = serve(t, o, func(context.Context, notifier.Delivery) error { return err })
	return broken
}
