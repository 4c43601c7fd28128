package webhook

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// BenchmarkPost is a POST over loopback through a route, beside the least that
// net/http can do with the same request: read it and answer.
func BenchmarkPost(b *testing.B) {
	hm, err := StandardWebhooks("whsec_" + hmacKey)
	if err != nil {
		b.Fatal(err)
	}
	full, err := Handler(deliverNothing, Options{MaxInFlight: 1 << 10, Routes: []Route{{Kind: EventBridge{}, Auth: auth(key)}, {Kind: PubSub{}, Auth: auth(key)}, {Kind: CloudEvents{}, Auth: []Authenticator{hm}}}})
	if err != nil {
		b.Fatal(err)
	}
	minimal := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.ReadAll(r.Body); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	bodies := map[string]string{"/v1/eventbridge": moved(1), "/v1/pubsub": pushed1, "/v1/cloudevents": moved(1)}
	for _, c := range []struct {
		name, path string
		h          http.Handler
	}{
		{"minimal", "/v1/eventbridge", minimal}, {"eventbridge", "/v1/eventbridge", full},
		{"pubsub", "/v1/pubsub", full}, {"cloudevents-hmac", "/v1/cloudevents", full},
	} {
		body := bodies[c.path]
		request := func() *http.Request {
			r := httptest.NewRequest(http.MethodPost, c.path, strings.NewReader(body))
			r.Header.Set("X-Api-Key", key)
			r.Header.Set("Content-Type", "application/json")
			sign(r.Header, hmacKey, "msg_1", nowish(), body)
			return r
		}
		b.Run(c.name+"/loopback", func(b *testing.B) {
			srv := httptest.NewServer(c.h)
			defer srv.Close()
			template := request()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					r, err := http.NewRequest(http.MethodPost, srv.URL+c.path, strings.NewReader(body))
					if err != nil {
						b.Error(err)
						return
					}
					r.Header = template.Header.Clone()
					resp, err := srv.Client().Do(r)
					if err != nil {
						b.Error(err)
						return
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
					if resp.StatusCode != http.StatusOK {
						b.Errorf("status %d", resp.StatusCode)
						return
					}
				}
			})
		})
		b.Run(c.name+"/handler", func(b *testing.B) {
			b.ReportAllocs()
			template := request()
			for b.Loop() {
				r := template.Clone(template.Context())
				r.Body = io.NopCloser(strings.NewReader(body))
				w := httptest.NewRecorder()
				c.h.ServeHTTP(w, r)
				if w.Code != http.StatusOK {
					b.Fatalf("status %d", w.Code)
				}
			}
		})
	}
}
