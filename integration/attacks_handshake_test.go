package integration_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/testenv"
)

const gridOrigin = "eventgrid.azure.net"

// options is the handshake of CloudEvents.
func options(s *siege, path, origin string) *shot {
	x := &shot{method: http.MethodOptions, path: path, header: http.Header{}}
	return x.set("WebHook-Request-Origin", origin).set("WebHook-Request-Callback", s.clouds.trapURL()+"callback").set("WebHook-Request-Rate", "120")
}

// validation is the handshake of Event Grid's own schema.
func validation(s *siege, path, code string) *shot {
	e := siegeObject{
		"id": "1", "topic": "/subscriptions/s", "subject": "", "eventType": "Microsoft.EventGrid.SubscriptionValidationEvent",
		"eventTime": time.Now().UTC().Format(time.RFC3339Nano), "dataVersion": "1", "metadataVersion": "1",
		"data": siegeObject{"validationCode": code, "validationUrl": s.clouds.trapURL() + "validate"},
	}
	return jsonShot(path, []byte("["+string(e.json())+"]")).set("Aeg-Event-Type", "SubscriptionValidation")
}

// handshakes by which senders ask whether we want what they send. Whoever is
// not asked for gets nothing, and no address that is named is opened.
func (s *siege) handshakes(t *testing.T) {
	expect := func(name string, want int, x *shot, check ...func(t *testing.T, answer string, h http.Header)) {
		t.Run(name, func(t *testing.T) {
			status, answer, h := s.fire(t, x)
			if status != want {
				t.Errorf("answered %d %q; want %d", status, answer, want)
			}
			if want != 200 && h.Get("WebHook-Allowed-Origin") != "" {
				t.Error("an origin is allowed")
			}
			for _, f := range check {
				f(t, answer, h)
			}
		})
	}
	as := func(c sender, x *shot) *shot {
		var claims siegeObject
		if c.claims != nil {
			claims = c.claims()
		}
		c.sign(s, x, claims)
		return x
	}
	allowed := func(t *testing.T, _ string, h http.Header) {
		if got := h.Get("WebHook-Allowed-Origin"); got != gridOrigin {
			t.Errorf("the origin %q is allowed; want %q", got, gridOrigin)
		}
	}
	expect("OPTIONS without credentials", 401, options(s, "/v1/eventgrid", gridOrigin))
	for _, o := range []string{"evil.test", "*", "null", "", gridOrigin + ".evil.test", "https://" + gridOrigin, gridOrigin + ", evil.test"} {
		expect("OPTIONS of "+o, 403, as(byEntra2, options(s, "/v1/eventgrid", o)))
	}
	two := as(byEntra2, options(s, "/v1/eventgrid", gridOrigin))
	two.header.Add("WebHook-Request-Origin", "evil.test")
	expect("OPTIONS of two origins", 403, two)
	expect("OPTIONS, made right", 200, as(byEntra2, options(s, "/v1/eventgrid", gridOrigin)), allowed)
	expect("OPTIONS with the header, made right", 200, as(byGridKey, options(s, "/v1/grid", gridOrigin)), allowed)
	expect("OPTIONS where nobody asks", 405, as(byKey, options(s, "/v1/eventbridge", gridOrigin)))
	expect("OPTIONS where nobody asks, by nobody", 401, options(s, "/v1/eventbridge", gridOrigin))
	cors := as(byKey, &shot{method: http.MethodOptions, path: "/v1/eventbridge", header: http.Header{}})
	expect("a browser's preflight", 405, cors.set("Origin", "https://evil.test").set("Access-Control-Request-Method", "POST"), func(t *testing.T, _ string, h http.Header) {
		if h.Get("Access-Control-Allow-Origin") != "" {
			t.Error("a foreign page may post")
		}
	})

	expect("a validation without credentials", 401, validation(s, "/v1/eventgrid", s.stranger))
	expect("a validation with a code that is markup", 400, as(byGridKey, validation(s, "/v1/grid", "<script>"+s.known)))
	expect("a validation beside an event", 400, func() *shot {
		x := validation(s, "/v1/grid", "512d38b6")
		x.body = []byte(strings.Replace(string(x.body), "[", "["+string(gridEvent("row-"+s.known).json())+",", 1))
		return as(byGridKey, x)
	}())
	expect("a validation, made right", 200, as(byGridKey, validation(s, "/v1/grid", "512d38b6-c7b8-40c8-89fe-f46f9e9622b6")), func(t *testing.T, answer string, _ http.Header) {
		if !strings.Contains(answer, `{"validationResponse":"512d38b6-c7b8-40c8-89fe-f46f9e9622b6"}`) {
			t.Errorf("the answer is %q", answer)
		}
	})
	// By the body alone it is no handshake, but a notice of none of our types.
	plain := as(byGridKey, validation(s, "/v1/grid", "512d38b6"))
	plain.set("Aeg-Event-Type", "Notification")
	expect("a validation that says it is a notification", 200, plain, func(t *testing.T, answer string, _ http.Header) {
		if strings.Contains(answer, "512d38b6") {
			t.Error("the code is returned")
		}
	})

	before := s.clouds.confirmed.Load()
	for name, m := range map[string]siegeObject{
		"the trap":             confirmation(siegeTopic, s.clouds.trapURL()),
		"another host":         confirmation(siegeTopic, "https://evil.test/?Action=ConfirmSubscription&TopicArn="+siegeTopic+"&Token=2336412f37fb687f5d51e6e2425ba1f3"),
		"another topic there":  confirmation(siegeTopic, strings.Replace(subscribeURL, ":keyturn&", ":other&", 1)),
		"another token there":  confirmation(siegeTopic, subscribeURL+"x"),
		"another action there": confirmation(siegeTopic, strings.Replace(subscribeURL, "ConfirmSubscription", "Unsubscribe", 1)),
		"two actions there":    confirmation(siegeTopic, subscribeURL+"&Action=Unsubscribe"),
		"another path":         confirmation(siegeTopic, strings.Replace(subscribeURL, "/?", "/x?", 1)),
		"a user":               confirmation(siegeTopic, strings.Replace(subscribeURL, "https://", "https://evil.test@", 1)),
		"another port":         confirmation(siegeTopic, strings.Replace(subscribeURL, "/?", ":25/?", 1)),
		"a foreign topic":      confirmation("arn:aws:sns:eu-west-1:999988887777:keyturn", strings.Replace(subscribeURL, siegeAccount, siegeForeign, 1)),
	} {
		expect("SubscribeURL with "+name, 403, snsShot(s, m, cloudKey()))
	}
	expect("a subscription that another signed", 403, snsShot(s, confirmation(siegeTopic, subscribeURL), forgerKey()))
	expect("a cancelled subscription is not renewed", 200, snsShot(s, confirmation(siegeTopic, subscribeURL).with("Type", "UnsubscribeConfirmation"), cloudKey()))
	if n := s.clouds.confirmed.Load() - before; n != 0 {
		t.Errorf("%d subscriptions were confirmed", n)
	}
	expect("a subscription, made right", 200, snsShot(s, confirmation(siegeTopic, subscribeURL), cloudKey()))
	testenv.Eventually(t, 5*time.Second, "the subscription to be confirmed", func() bool { return s.clouds.confirmed.Load() == before+1 })
}
