package integration_test

import (
	"fmt"
	"math/rand/v2"
	"net/http"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/internal/testenv"
)

// publish has SNS post a message. SNS comes again, with the same id, timestamp
// and signature, until it is answered 2xx; a 4xx is a mistake of ours.
func (c *sources) publish(f *feeds, m siegeObject, es []events.Event) {
	body := string(snsSigned(f.t, m, cloudKey()))
	f.push("/v1/sns", body, es, func(h http.Header) {
		h.Set("Content-Type", snsMedia)
		h.Set("User-Agent", "Amazon Simple Notification Service Agent")
		h.Set("X-Amz-Sns-Message-Type", fmt.Sprint(m["Type"]))
		h.Set("X-Amz-Sns-Message-Id", fmt.Sprint(m["MessageId"]))
		h.Set("X-Amz-Sns-Topic-Arn", fmt.Sprint(m["TopicArn"]))
	})
}

// subscribe asks whether the topic may be delivered. Nothing is, before SNS is
// told so.
func (c *sources) subscribe(f *feeds) {
	f.t.Helper()
	c.publish(f, confirmation(snsTopic, subscribeURL), nil)
	testenv.Eventually(f.t, limit, "the subscription to be confirmed", func() bool { return c.sns.confirmed.Load() > 0 })
}

// feedSNS publishes to the topic. Some messages come twice, as SNS delivers at
// least once, and some changes are told of on another way as well.
func (c *sources) feedSNS(f *feeds) {
	topic := newChanges("topic")
	f.run(func(int) {
		ch := topic.next()
		body, es := ch.eventBridge(f.t)
		m := notification(body)
		c.publish(f, m, es)
		switch rand.N(5) {
		case 0:
			c.publish(f, m, es)
		case 1:
			c.sqs.Send(body, "")
		case 2:
			again, es := ch.eventBridge(f.t) // of another id
			c.publish(f, notification(again), es)
		}
	})
}

// onlySNS checks that SNS was asked for its certificate by way of the proxy,
// and that nobody else was called.
func (c *sources) onlySNS() {
	c.t.Helper()
	hosts := c.sns.called()
	for _, h := range hosts {
		if h != snsHost+":443" {
			c.t.Errorf("the notifiers called %s; want none but %s", h, snsHost)
		}
	}
	// One confirms, and each process that was posted to fetches the certificate.
	if certs := c.sns.certs.Load(); certs < 2 {
		c.t.Errorf("the signing certificate was fetched %d times by many processes; want once by each", certs)
	}
	c.t.Logf("SNS: %d confirmations, the certificate was fetched %d times", c.sns.confirmed.Load(), c.sns.certs.Load())
}
