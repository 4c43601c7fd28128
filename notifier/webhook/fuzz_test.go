package webhook

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/notifier"
)

// fuzzKind sends whatever to a route of kind k whose sender is known, and checks
// what holds for every request: an answer from the list, at most one delivery
// and only with 200, the body as it was, and nothing of the request in the
// answer, but for a code that has the form of one.
func fuzzKind(f *testing.F, k Kind, seeds ...[3]string) {
	for _, s := range seeds {
		f.Add(http.MethodPost, s[0], s[1], s[2])
	}
	f.Add(http.MethodOptions, "WebHook-Request-Origin", "eventgrid.azure.net", "")
	f.Add(http.MethodPost, "Content-Type", `text/plain; charset="`, "{")
	var got []notifier.Delivery
	inner, err := Handler(func(_ context.Context, d notifier.Delivery) error { got = append(got, d); return nil },
		Options{Logger: slog.New(slog.DiscardHandler), Routes: []Route{{Path: "/hook", Kind: k, Auth: auth(key), MaxBody: 4 << 10}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method, name, value, body string) {
		got = nil
		r := httptest.NewRequest(http.MethodPost, "/hook", strings.NewReader(body))
		r.Method = method
		r.Header["X-Api-Key"] = []string{key}
		r.Header.Add(headerSNSType, "Notification")
		for n := range strings.SplitSeq(name, "\n") {
			r.Header.Add(n, value)
		}
		w := httptest.NewRecorder()
		inner.ServeHTTP(w, r)
		switch w.Code {
		case 200, 400, 401, 403, 405, 413, 415, 503:
		default:
			t.Fatalf("status %d", w.Code)
		}
		if len(got) > 1 || len(got) == 1 && w.Code != 200 {
			t.Fatalf("%d deliveries with status %d", len(got), w.Code)
		}
		for _, d := range got {
			if method != http.MethodPost || !bytes.Equal(d.Body, []byte(body)) || d.Attempt < 0 || len(d.ID) > 2*len(value)+64 {
				t.Fatalf("delivered %d bytes, attempt %d, id of %d", len(d.Body), d.Attempt, len(d.ID))
			}
			for n, v := range d.Attributes {
				if n != strings.ToLower(n) || strings.Contains(v, key) {
					t.Fatalf("attribute %q", n)
				}
			}
		}
		if text := w.Body.String(); strings.ContainsAny(text, "<>&\x00") || len(text) > 200 {
			t.Fatalf("answered %q", text)
		}
	})
}

func FuzzEventBridge(f *testing.F) {
	fuzzKind(f, EventBridge{}, [3]string{"Content-Type", "application/json; charset=utf-8", moved(1)})
}

func FuzzEventGrid(f *testing.F) {
	fuzzKind(f, EventGrid{},
		[3]string{"Aeg-Event-Type", "SubscriptionValidation", `[{"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","data":{"validationCode":"512d38b6","validationUrl":"https://x"}}]`},
		[3]string{"Aeg-Delivery-Count", "3", gridEvent},
		[3]string{"Aeg-Event-Type", "SubscriptionDeletion", gridEvent})
}

func FuzzPubSub(f *testing.F) {
	fuzzKind(f, PubSub{}, [3]string{"Content-Type", "application/json", pushed1},
		[3]string{"Eventtype\nX-Goog-Pubsub-Message-Id", "7", "{}"}, [3]string{"Ce-Id\nCe-Type", "1", pushed1})
}

func FuzzCloudEvents(f *testing.F) {
	fuzzKind(f, CloudEvents{Origins: []string{"eventgrid.azure.net"}}, [3]string{"Content-Type", "application/cloudevents+json", cloudEvent},
		[3]string{"Ce-Id\nCe-Source\nCe-Type", "1", "{}"}, [3]string{"Webhook-Id", "msg_1", "{}"})
}

func FuzzVaultAudit(f *testing.F) {
	fuzzKind(f, VaultAudit{}, [3]string{"Content-Encoding", "gzip", `{"type":"response"}`})
}

// FuzzSNS: a message that our verifier does not take reaches nobody.
func FuzzSNS(f *testing.F) {
	for _, typ := range []string{"Notification", "SubscriptionConfirmation", "UnsubscribeConfirmation"} {
		f.Add(typ, snsMessage(typ, "good", ourTopic, "https://sns.eu-west-1.amazonaws.com/"))
		f.Add(typ, snsMessage(typ, "forged", ourTopic, ""))
	}
	v := &topics{}
	n := 0
	inner, err := Handler(func(context.Context, notifier.Delivery) error { n++; return nil }, Options{Routes: []Route{{Path: "/hook", Kind: SNS{v}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, typ, body string) {
		n = 0
		r := httptest.NewRequest(http.MethodPost, "/hook", strings.NewReader(body))
		r.Header[headerSNSType] = []string{typ}
		w := httptest.NewRecorder()
		inner.ServeHTTP(w, r)
		m, err := v.Verify(t.Context(), []byte(body))
		if err != nil && (w.Code == 200 || n != 0) {
			t.Fatalf("status %d and %d deliveries for %v", w.Code, n, err)
		}
		if n > 0 && (m.Type != "Notification" || typ != m.Type) {
			t.Fatalf("a %s as %s was delivered", m.Type, typ)
		}
	})
}

// FuzzStandardWebhooks: no header panics or is accepted without our key.
func FuzzStandardWebhooks(f *testing.F) {
	a, err := StandardWebhooks("whsec_" + hmacKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("msg_1", "1674087231", "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4= v1a,x", "{}")
	f.Fuzz(func(t *testing.T, id, stamp, signature, body string) {
		h := http.Header{headerWebhookID: {id}, headerWebhookTime: {stamp}, headerWebhookSignature: {signature}}
		if a.AuthenticateBody(t.Context(), h, []byte(body)) == nil {
			t.Fatal("accepted")
		}
		if err := a.Authenticate(t.Context(), h); err != nil && signature != "" && len(signature) > 12 && strings.Contains(err.Error(), signature) {
			t.Fatal("the error quotes the signature")
		}
	})
}
