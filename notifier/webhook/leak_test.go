package webhook

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/notifier"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestNothingIsLogged: no key, right or wrong, and nothing of a notice, on any
// path through the source.
func TestNothingIsLogged(t *testing.T) {
	canary, wrong, body := leaktest.Canary(), leaktest.Canary(), leaktest.Canary()
	var rec leaktest.Recorder
	b := newBus()
	log := rec.Logger()
	login := Login{User: "sender", Password: canary}
	byName, err := Basic(login)
	must(t, err)
	signed, err := StandardWebhooks("whsec_" + base64.StdEncoding.EncodeToString([]byte(canary + canary))[:64])
	must(t, err)
	o := Options{Logger: log, Routes: bridge(func(r *Route) {
		r.Auth, r.MaxBody, r.Timeout = append(auth(canary), byName, signed), 4000, 300*time.Millisecond
	})}
	rec.Record(o, &o, struct{ O Options }{o}, o.Routes, login, &login, []Login{login}, o.Routes[0].Auth, byName, signed)
	log.Info("options", "o", o)
	inner := notifier.New(b, b, &notifier.Options{Logger: log}).Handler(decode)
	r := serve(t, o, func(ctx context.Context, d notifier.Delivery) error {
		if bytes.Contains(d.Body, []byte("panic")) {
			panic(body)
		}
		if bytes.Contains(d.Body, []byte("quote")) {
			return errors.New("unexpected " + body)
		}
		return inner(ctx, d)
	})
	rec.Record(r.Source.o)
	good := strings.Replace(moved(1), `"version":"0"`, `"secretString":"`+body+`","version":"0"`, 1)
	for _, away := range []error{nil, errors.New("away")} {
		b.set(away, nil)
		for _, k := range []string{canary, wrong, canary + wrong} {
			for _, text := range []string{good, body, "panic", "quote", strings.Repeat(body, 400)} {
				for _, ct := range []string{"application/json", "text/" + body, body + ";"} {
					_, header, answer, err := r.try(text, func(q *http.Request) {
						q.Header.Set("X-Api-Key", k)
						q.Header.Set("Content-Type", ct)
						q.Header.Set("Traceparent", body)
						q.SetBasicAuth(body, k)
						q.Header.Set("Webhook-Id", body)
					})
					rec.Record(answer, header)
					if err != nil {
						t.Log(err) // the server may hang up on a body it does not want
					}
				}
			}
		}
	}
	b.set(nil, make(chan struct{}))
	_, _, answer := r.post(good, func(q *http.Request) { q.Header.Set("X-Api-Key", canary) })
	rec.Record(answer)
	_, err = APIKey("", canary, wrong[:8])
	rec.Record(err)
	_, err = APIKey("", canary+"\n")
	rec.Record(err)
	_, err = Basic(Login{"sender", canary + "\n"})
	rec.Record(err)
	_, err = StandardWebhooks(canary)
	rec.Record(err)
	rec.Check(t, canary, wrong, body)
}
