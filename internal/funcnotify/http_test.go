package funcnotify

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/funcserve"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/notifier"
)

// post calls h as a platform does.
func post(h http.Handler, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path, strings.NewReader(body))
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestPush(t *testing.T) {
	var got notifier.Delivery
	var fail error
	var rec leaktest.Recorder
	h, err := Push(Env{Source: "pubsub"}, func(_ context.Context, d notifier.Delivery) error { got = d; return fail }, rec.Logger())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/push", "/any/other", "/a%2Fb"} {
		if w := post(h, path, `{"message":{"messageId":"42"},"deliveryAttempt":3}`, "traceparent", trace, "Content-Type", "application/json"); w.Code != http.StatusOK {
			t.Errorf("%s: %d", path, w.Code)
		}
		if got.Source != "pubsub" || got.ID != "42" || got.Attempt != 3 || got.Attributes["traceparent"] != trace || Header(got)("Traceparent") != trace {
			t.Errorf("%s: %+v", path, got)
		}
	}
	for want, err := range map[int]error{
		http.StatusServiceUnavailable: fault.Newf(fault.Unavailable, "x", "away"),
		http.StatusOK:                 fault.Newf(fault.Invalid, "x", "never"), // trap 33: Pub/Sub would repeat it for days
	} {
		fail = err
		if w := post(h, "/", "{}"); w.Code != want {
			t.Errorf("%v: %d; expected %d", err, w.Code, want)
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/healthz", http.NoBody))
	if w.Code != http.StatusOK {
		t.Errorf("/healthz: %d", w.Code)
	}
}

func TestTrigger(t *testing.T) {
	var got notifier.Delivery
	var fail error
	var rec leaktest.Recorder
	h := Trigger(Env{Source: "eventgrid"}, func(_ context.Context, d notifier.Delivery) error { got = d; return fail }, rec.Logger())
	for name, c := range map[string]struct{ body, want string }{
		"JSON":           {`{"Data":{"event":{"id":"1"}},"Metadata":{"sys":{"RandGuid":"x"}}}`, `{"id":"1"}`},
		"text":           {`{"Data":{"event":" {\"id\":\"1\"}\n"},"Metadata":{}}`, `{"id":"1"}`},
		"two bindings":   {`{"Data":{"a":1,"b":2}}`, `{"Data":{"a":1,"b":2}}`},
		"no call":        {"rubbish", "rubbish"},
		"nothing at all": {"", ""},
	} {
		w := post(h, "/notify", c.body, "traceparent", trace)
		if w.Code != http.StatusOK || w.Body.String() != funcserve.HostAnswer || string(got.Body) != c.want || got.Attributes["traceparent"] != trace {
			t.Errorf("%s: %d %s, %q", name, w.Code, w.Body, got.Body)
		}
	}
	// trap 17: never a 4xx for a notice, which Event Grid takes as final.
	fail = fault.Newf(fault.Unavailable, "x", "away")
	if w := post(h, "/notify", "{}"); w.Code != http.StatusServiceUnavailable {
		t.Errorf("an outage: %d", w.Code)
	}
	if w := post(h, "/notify", strings.Repeat("x", maxTrigger+1)); w.Code != http.StatusServiceUnavailable {
		t.Errorf("too long: %d", w.Code)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", http.NoBody))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", w.Code)
	}
}
