package webhook

import (
	"bytes"
	"compress/gzip"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestAttacks is the table of attacks: for every kind of route, what is done to
// a genuine request, what it is answered, and that nothing of it reached a
// handler.
func TestAttacks(t *testing.T) {
	g := newRig(t, nil)
	bomb := gzipped(t, 1<<20)
	long := strings.Repeat("x", rigBody+1)
	set := func(k, v string) func(*http.Request) { return func(q *http.Request) { q.Header.Set(k, v) } }
	method := func(m string) func(*http.Request) { return func(q *http.Request) { q.Method = m } }
	path := func(f func(string) string) func(*http.Request) {
		return func(q *http.Request) { q.URL.Path = f(q.URL.Path) }
	}
	type attack struct {
		name   string
		edit   func(*http.Request)
		body   string // another than the genuine one
		status int
		reason Reason
	}
	for _, s := range senders() {
		if code, _, _ := g.send(t, s.path, s.body, s.as); code/100 != 2 {
			t.Fatalf("%s: a genuine request was answered %d; expected success", s.name, code)
		}
		if ds, audited := g.taken(); len(ds)+audited != 1 {
			t.Fatalf("%s: a genuine request reached the handler %d times; expected once", s.name, len(ds)+audited)
		}
		none, noneReason := 401, Unauthenticated
		if s.name == "sns" { // which the message itself proves
			none, noneReason = 400, Invalid
		}
		forged := noneReason
		attacks := []attack{
			{"no credentials", func(q *http.Request) { q.Header = http.Header{} }, "", none, noneReason},
			{"forged", func(q *http.Request) { s.forge(q.Header) }, "", s.status, forged},
			{"two Authorization headers", func(q *http.Request) {
				q.Header["Authorization"] = []string{"Bearer good", "Bearer good"}
			}, "", 401, Unauthenticated},
			{"decompression bomb", set("Content-Encoding", "gzip"), bomb, 415, Encoding},
			{"encodings in a row", func(q *http.Request) { q.Header["Content-Encoding"] = []string{"identity", "br"} }, "", 415, Encoding},
			{"too long", nil, long, 413, Oversized},
			{"too long, chunked", func(q *http.Request) {
				q.ContentLength, q.Body = -1, io.NopCloser(strings.NewReader(strings.Repeat(long, 20)))
			}, "", 413, Oversized},
			{"GET", method(http.MethodGet), "", 405, Method},
			{"PUT", method(http.MethodPut), "", 405, Method},
			{"DELETE", method(http.MethodDelete), "", 405, Method},
			{"method override", func(q *http.Request) { q.Method = http.MethodGet; q.Header.Set("X-Http-Method-Override", "POST") }, "", 405, Method},
			{"path below", path(func(p string) string { return p + "/x" }), "", 404, ""},
			{"path traversal", path(func(p string) string { return "/x/.." + p }), "", 404, ""},
			{"path traversal to a probe", path(func(p string) string { return p + "/../../healthz" }), "", 404, ""},
			{"two slashes", path(func(p string) string { return "/" + p }), "", 404, ""},
			{"path escaped", func(q *http.Request) { q.URL.Opaque = strings.Replace(q.URL.Path, "v1", "%76%31", 1) }, "", 404, ""},
			{"path in other case", path(strings.ToUpper), "", 404, ""},
		}
		if s.path != "/v1/pubsub" && s.path != "/v1/vaultaudit" { // they take any
			attacks = append(attacks,
				attack{"media type", set("Content-Type", "application/x-www-form-urlencoded"), "", 415, MediaType},
				attack{"charset", set("Content-Type", "application/json; charset=utf-16"), "", 415, MediaType})
		}
		if s.prove != nil && strings.Contains(s.wire("", nil), "Bearer good") {
			for _, what := range []string{"expired", "wrong-audience", "wrong-issuer", "wrong-email", "email-not-verified", "other-algorithm", "malformed", ""} {
				attacks = append(attacks, attack{"traps 21, 34: token " + what, set("Authorization", "Bearer "+what), "", 401, Unauthenticated})
			}
			// trap 17: our own outage is never the sender's fault.
			for _, what := range []string{"keys-away", "defect", "unclassified"} {
				attacks = append(attacks, attack{"trap 17: token " + what, set("Authorization", "Bearer "+what), "", 503, Unavailable})
			}
		}
		switch s.name {
		case "cloudevents":
			replay := func(at time.Time) func(*http.Request) {
				return func(q *http.Request) { sign(q.Header, hmacKey, "msg_1", at, s.body) }
			}
			attacks = append(attacks,
				attack{"replayed", replay(time.Now().Add(-tolerance - 2*time.Second)), "", 401, Unauthenticated},
				attack{"from the future", replay(time.Now().Add(tolerance + 5*time.Second)), "", 401, Unauthenticated},
				attack{"replayed with a new time", set("Webhook-Timestamp", time.Now().Add(time.Minute).Format("20060102")), "", 401, Unauthenticated},
				attack{"another body", nil, cloudEvent + " ", 401, Unauthenticated},
				attack{"another key", func(q *http.Request) { sign(q.Header, strings.ToUpper(hmacKey), "msg_1", time.Now(), s.body) }, "", 401, Unauthenticated},
				attack{"two signatures headers", func(q *http.Request) { q.Header.Add("Webhook-Signature", q.Header.Get("Webhook-Signature")) }, "", 401, Unauthenticated},
				attack{"too long and forged", func(q *http.Request) { s.forge(q.Header) }, long, 413, Oversized},
				attack{"foreign origin", asks("evil.example.com"), "", 401, Unauthenticated},
				attack{"origin, unsigned", asks("events.example.com"), "", 401, Unauthenticated},
			)
		case "sns":
			m := func(typ, signature, topic string) string {
				return snsMessage(typ, signature, topic, "https://sns.eu-west-1.amazonaws.com/")
			}
			attacks = append(attacks,
				attack{"trap 13: signature", nil, m("Notification", "forged", ourTopic), 403, Forbidden},
				attack{"trap 13: topic", nil, m("Notification", "good", "arn:aws:sns:eu-west-1:999999999999:secrets"), 403, Forbidden},
				attack{"trap 13: subscription of another topic", set(headerSNSType, "SubscriptionConfirmation"), m("SubscriptionConfirmation", "good", "arn:aws:sns:eu-west-1:999999999999:x"), 403, Forbidden},
				attack{"type only in the header", set(headerSNSType, "SubscriptionConfirmation"), "", 400, Invalid},
				attack{"no message", nil, "{}", 400, Invalid},
				attack{"raw delivery", func(q *http.Request) { q.Header.Set("X-Amz-Sns-Rawdelivery", "true") }, moved(1), 400, Invalid},
				attack{"certificate away", nil, m("Notification", "certificate-away", ourTopic), 503, Unavailable},
			)
		}
		g.reasons()
		for _, a := range attacks {
			t.Run(s.name+": "+a.name, func(t *testing.T) {
				body := s.body
				if a.body != "" {
					body = a.body
				}
				code, header, _, err := g.try(body, func(q *http.Request) {
					q.Header, q.URL.Path = http.Header{"Content-Type": {"application/json"}}, s.path
					s.as(q)
					if a.edit != nil {
						a.edit(q)
					}
				})
				must(t, err)
				if code != a.status {
					t.Errorf("status %d; expected %d", code, a.status)
				}
				if auth := header.Values("WWW-Authenticate"); (code == 401) != (len(auth) > 0) {
					t.Errorf("status %d with WWW-Authenticate %q", code, auth)
				}
				if (code == 503) != (header.Get("Retry-After") != "") {
					t.Errorf("status %d with Retry-After %q", code, header.Get("Retry-After"))
				}
				switch rs := g.reasons(); {
				case a.reason == "" && len(rs) == 0:
				case len(rs) != 1 || rs[0] != Rejection{s.path[len("/v1/"):], a.reason, a.status}:
					t.Errorf("observed %v; expected %s with %d", rs, a.reason, a.status)
				}
				if ds, audited := g.taken(); len(ds)+audited != 0 {
					t.Errorf("it reached the handler: %v", ds)
				}
			})
		}
	}
	if n, b := g.InFlight(); n != 0 || b != 0 {
		t.Errorf("%d requests and %d bytes in flight afterwards; expected none", n, b)
	}
}

func gzipped(t *testing.T, n int) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(make([]byte, n))
	must(t, err)
	must(t, w.Close())
	return b.String()
}

// asks makes a handshake by OPTIONS of a request.
func asks(origin string) func(*http.Request) {
	return func(q *http.Request) {
		q.Method = http.MethodOptions
		q.Header.Set("WebHook-Request-Origin", origin)
		q.Header.Set("WebHook-Request-Rate", "120")
		q.Body, q.ContentLength = nil, 0
	}
}

// TestAttacksOnTheWire: what no client library sends.
func TestAttacksOnTheWire(t *testing.T) {
	g := newRig(t, func(o *Options) {
		for i := range o.Routes {
			o.Routes[i].Timeout = 300 * time.Millisecond
		}
	})
	set := func(k, v string) func(http.Header) { return func(h http.Header) { h.Set(k, v) } }
	for _, s := range senders() {
		for name, c := range map[string]struct {
			wire   string
			status int
		}{
			"slow body":                     {s.wire(s.body[:1], nil), 503},
			"no body":                       {s.wire("", nil), 503},
			"announces too much":            {s.wire("", set("Content-Length", "1099511627776")), 413},
			"negative length":               {s.wire(s.body, set("Content-Length", "-1")), 400},
			"two lengths":                   {strings.Replace(s.wire(s.body, nil), "\r\n\r\n", "\r\nContent-Length: 1\r\n\r\n", 1), 400},
			"broken chunks":                 {s.wire("zz\r\n", func(h http.Header) { h.Del("Content-Length"); h.Set("Transfer-Encoding", "chunked") }), 503},
			"other transfer encoding":       {s.wire(s.body, set("Transfer-Encoding", "gzip, chunked")), 501},
			"no host":                       {strings.Replace(s.wire(s.body, nil), "Host: x\r\n", "", 1), 400},
			"space before a colon":          {strings.Replace(s.wire(s.body, nil), "Host: x\r\n", "Host: x\r\nX-Api-Key : "+key+"\r\n", 1), 400},
			"control character in a header": {strings.Replace(s.wire(s.body, nil), "Host: x\r\n", "Host: x\r\nA: \x00\r\n", 1), 400},
			"header too long":               {strings.Replace(s.wire(s.body, nil), "Host: x\r\n", "Host: x\r\nA: "+strings.Repeat("a", 64<<10)+"\r\n", 1), 431},
			"dots":                          {strings.Replace(s.wire(s.body, nil), s.path, "/x/.."+s.path, 1), 404},
			"dots, escaped":                 {strings.Replace(s.wire(s.body, nil), s.path, "/x/%2e%2e"+s.path, 1), 404},
			"path, escaped":                 {strings.Replace(s.wire(s.body, nil), s.path, "/%76"+s.path[2:], 1), 404},
		} {
			t.Run(s.name+": "+name, func(t *testing.T) {
				t.Parallel()
				if got := status(t, raw(t, g.running, c.wire)); got != c.status {
					t.Errorf("status %d; expected %d", got, c.status)
				}
			})
		}
	}
	t.Cleanup(func() {
		if ds, audited := g.taken(); len(ds)+audited != 0 {
			t.Errorf("%d deliveries and %d entries; expected none", len(ds), audited)
		}
		if n, b := g.InFlight(); n != 0 || b != 0 {
			t.Errorf("%d requests and %d bytes in flight afterwards; expected none", n, b)
		}
	})
}

// TestCutShort: a body that ends before its announced length was sent is not
// handed on, and neither is one that goes on after it.
func TestCutShort(t *testing.T) {
	g := newRig(t, nil)
	for _, s := range senders() {
		c := raw(t, g.running, s.wire(s.body[:len(s.body)/2], nil))
		if tcp, ok := c.(interface{ CloseWrite() error }); ok {
			must(t, tcp.CloseWrite())
		}
		_, _ = io.Copy(io.Discard, c)
		if ds, audited := g.taken(); len(ds)+audited != 0 {
			t.Errorf("%s: a body that was cut short reached the handler", s.name)
		}
		// What comes after the body is another request, and no good one.
		c = raw(t, g.running, s.wire(s.body+"smuggled", nil)+"\r\n\r\n")
		all, err := io.ReadAll(c)
		must(t, err)
		if n := bytes.Count(all, []byte("HTTP/1.1 ")); n != 2 || !bytes.Contains(all, []byte("HTTP/1.1 400 ")) {
			t.Errorf("%s: %q; expected an answer and 400", s.name, all)
		}
		g.taken()
	}
}

// TestHandshakeAbuse: nobody gets a subscription of Event Grid or SNS confirmed
// that is not ours, and no address in a request is ever called.
func TestHandshakeAbuse(t *testing.T) {
	g := newRig(t, nil)
	snare := newSnare(t)
	one := `{"id":"1","topic":"/subscriptions/x","subject":"","data":{"validationCode":"512d38b6-c7b8-40c8-89fe-f46f9e9622b6","validationUrl":"` + snare.url() + `"},"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","eventTime":"2026-06-01T10:00:00Z"}`
	validation := func(credentials string) func(*http.Request) {
		return func(q *http.Request) {
			q.Header.Set("Aeg-Event-Type", "SubscriptionValidation")
			q.Header.Set("Authorization", credentials)
		}
	}
	callback := func(f func(*http.Request)) func(*http.Request) {
		return func(q *http.Request) { f(q); q.Header.Set("WebHook-Request-Callback", snare.url()) }
	}
	with := func(f func(*http.Request), credentials string) func(*http.Request) {
		return func(q *http.Request) { f(q); q.Header.Set("Authorization", credentials) }
	}
	confirm := func(q *http.Request) {
		q.Header.Set("Content-Type", "text/plain")
		q.Header.Set(headerSNSType, "SubscriptionConfirmation")
	}
	cancelled := func(q *http.Request) {
		q.Header.Set("Content-Type", "text/plain")
		q.Header.Set(headerSNSType, "UnsubscribeConfirmation")
	}
	for name, c := range map[string]struct {
		path, body string
		edit       func(*http.Request)
		status     int
		reason     Reason
	}{
		"trap 16: validated, never fetched":      {"/v1/eventgrid", "[" + one + "]", validation("Bearer good"), 200, ""},
		"trap 16: validation without a token":    {"/v1/eventgrid", "[" + one + "]", validation(""), 401, Unauthenticated},
		"trap 16: validation with a wrong token": {"/v1/eventgrid", "[" + one + "]", validation("Bearer forged"), 401, Unauthenticated},
		"trap 17: validation, keys away":         {"/v1/eventgrid", "[" + one + "]", validation("Bearer keys-away"), 503, Unavailable},
		"two events in the array":                {"/v1/eventgrid", "[" + one + "," + one + "]", validation("Bearer good"), 400, Handshake},
		"no array":                               {"/v1/eventgrid", one, validation("Bearer good"), 400, Handshake},
		"another type of event":                  {"/v1/eventgrid", gridEvent, validation("Bearer good"), 400, Handshake},
		"a code that is markup":                  {"/v1/eventgrid", "[" + strings.Replace(one, "512d", "<script>", 1) + "]", validation("Bearer good"), 400, Handshake},
		"no code":                                {"/v1/eventgrid", "[" + strings.Replace(one, "validationCode", "x", 1) + "]", validation("Bearer good"), 400, Handshake},
		"OPTIONS":                                {"/v1/eventgrid", "", callback(with(asks("eventgrid.azure.net"), "Bearer good")), 200, ""},
		"OPTIONS without a token":                {"/v1/eventgrid", "", callback(asks("eventgrid.azure.net")), 401, Unauthenticated},
		"OPTIONS of a foreign origin":            {"/v1/eventgrid", "", callback(with(asks("evil.example.com"), "Bearer good")), 403, Handshake},
		"OPTIONS of a longer origin":             {"/v1/eventgrid", "", callback(with(asks("eventgrid.azure.net.evil.example.com"), "Bearer good")), 403, Handshake},
		"OPTIONS of any origin":                  {"/v1/eventgrid", "", callback(with(asks("*"), "Bearer good")), 403, Handshake},
		"OPTIONS of two origins": {"/v1/eventgrid", "", callback(with(func(q *http.Request) {
			asks("eventgrid.azure.net")(q)
			q.Header.Add("WebHook-Request-Origin", "evil.example.com")
		}, "Bearer good")), 403, Handshake},
		"OPTIONS of a browser":                 {"/v1/eventgrid", "", with(func(q *http.Request) { asks("")(q); q.Header.Set("Origin", "https://evil.example.com") }, "Bearer good"), 403, Handshake},
		"OPTIONS where there is no handshake":  {"/v1/pubsub", "", with(asks("eventgrid.azure.net"), "Bearer good"), 405, Method},
		"trap 13: SubscribeURL elsewhere":      {"/v1/sns", snsMessage("SubscriptionConfirmation", "good", ourTopic, snare.url()), confirm, 403, Handshake},
		"trap 13: SubscribeURL, unknown topic": {"/v1/sns", snsMessage("SubscriptionConfirmation", "good", "arn:aws:sns:eu-west-1:9:x", snare.url()), confirm, 403, Forbidden},
		"trap 13: SubscribeURL, unsigned":      {"/v1/sns", snsMessage("SubscriptionConfirmation", "", ourTopic, snare.url()), confirm, 403, Forbidden},
		"SubscribeURL of a cancelled one":      {"/v1/sns", snsMessage("UnsubscribeConfirmation", "good", ourTopic, snare.url()), cancelled, 200, ""},
	} {
		t.Run(name, func(t *testing.T) {
			g.reasons()
			code, header, text := g.send(t, c.path, c.body, c.edit)
			if code != c.status {
				t.Errorf("status %d; expected %d", code, c.status)
			}
			if rs := g.reasons(); c.reason != "" && (len(rs) != 1 || rs[0].Reason != c.reason) {
				t.Errorf("observed %v; expected %s", rs, c.reason)
			}
			if code != 200 && (strings.Contains(text, "512d38b6") || header.Get("WebHook-Allowed-Origin") != "") {
				t.Errorf("refused with %v %q", header, text)
			}
			if origin := header.Get("Access-Control-Allow-Origin"); origin != "" {
				t.Errorf("a browser of %q may post", origin)
			}
		})
	}
	if ds, audited := g.taken(); len(ds)+audited != 0 {
		t.Errorf("%d deliveries; expected none", len(ds))
	}
	if len(g.topics.confirmed) != 0 {
		t.Errorf("confirmed %v; expected none", g.topics.confirmed)
	}
	snare.check(t)
}
