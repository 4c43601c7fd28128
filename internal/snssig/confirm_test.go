package snssig

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/keyturn/keyturn/fault"
)

func TestConfirm(t *testing.T) {
	s := newService(t)
	v := s.verifier()
	m, err := v.Verify(t.Context(), signed(t, s.confirmation(), signKey()).body())
	if err != nil {
		t.Fatal(err)
	}
	// What was verified counts, not what somebody made of it since.
	m.SubscribeURL, m.TopicARN, m.Token, m.Type = "https://evil.example/", "x", "x", TypeNotification
	for range 2 {
		if err := v.Confirm(t.Context(), m); err != nil {
			t.Fatal(err)
		}
	}
	if !slices.Equal(s.confirmed, []string{topic, topic}) {
		t.Errorf("confirmed %v; expected our topic", s.confirmed)
	}
	if !strings.Contains(s.logs.String(), "confirmed") {
		t.Error("nothing was logged")
	}
}

// TestConfirmAttacks, trap 13: SNS would sign an address that is none of its
// own only if it were broken; it is checked all the same.
func TestConfirmAttacks(t *testing.T) {
	good := "?Action=ConfirmSubscription&TopicArn=" + topic + "&Token=" + subToken
	s := newService(t)
	v := s.verifier()
	for _, u := range []string{
		"http://" + host + "/" + good, "https://evil.example/" + good, "https://" + host + ".evil.example/" + good, "https://" + host + ":8443/" + good,
		"https://user@" + host + "/" + good, "https://sns.us-east-1.amazonaws.com/" + good, "https://" + host + "/x" + good, "https://" + host + "/" + good + "#x",
		"https://" + host + "/" + strings.Replace(good, "ConfirmSubscription", "Publish", 1),
		"https://" + host + "/" + good + "&Action=Publish", "https://" + host + "/" + good + "&TopicArn=x", "https://" + host + "/" + good + "&Token=x",
		"https://" + host + "/" + strings.Replace(good, topic, topicCN, 1), "https://" + host + "/" + strings.Replace(good, subToken, "x", 1),
		"https://" + host + "/?Action=ConfirmSubscription", "https://" + host + "/", "https://" + host + "/" + good + ";x", "https://" + host + "/" + good + "&%zz", "", "x",
	} {
		m, err := v.Verify(t.Context(), signed(t, s.confirmation().with("SubscribeURL", u), signKey()).body())
		if err != nil {
			t.Fatalf("%s: %v", u, err)
		}
		before, _ := s.seen()
		wantKind(t, v.Confirm(t.Context(), m), fault.Denied)
		if after, _ := s.seen(); len(after) != len(before) {
			t.Errorf("%q: a request was made: %v", u, after[len(before):])
		}
	}
	verify := func(o object) *Message {
		m, err := v.Verify(t.Context(), signed(t, o, signKey()).body())
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for name, m := range map[string]*Message{
		"nothing":           nil,
		"made by hand":      {Type: TypeSubscription, TopicARN: topic, Token: subToken, SubscribeURL: "https://" + host + "/" + good},
		"a notification":    verify(s.notification()),
		"an unsubscription": verify(s.confirmation().with("Type", TypeUnsubscribed)),
		"verified elsewhere": func() *Message {
			m, _ := s.verifier().Verify(t.Context(), signed(t, s.confirmation(), signKey()).body())
			return m
		}(),
	} {
		if err := v.Confirm(t.Context(), m); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: error %v; expected Invalid", name, err)
		}
	}
	if len(s.confirmed) != 0 {
		t.Errorf("confirmed %v", s.confirmed)
	}
	if _, dialled := s.seen(); slices.ContainsFunc(dialled, func(d string) bool { return d != host+":443" }) {
		t.Errorf("connections went to %v", dialled)
	}
}

func TestConfirmOutage(t *testing.T) {
	s := newService(t)
	v := s.verifier()
	m, err := v.Verify(t.Context(), signed(t, s.confirmation(), signKey()).body())
	if err != nil {
		t.Fatal(err)
	}
	for code, kind := range map[int]fault.Kind{
		400: fault.Denied, 403: fault.Denied, 404: fault.Denied, 408: fault.Unavailable, 429: fault.Unavailable, 500: fault.Unavailable, 503: fault.Unavailable, 302: fault.Unavailable, 204: fault.Unavailable,
	} {
		s.respond(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", "https://evil.example/")
			w.WriteHeader(code)
		})
		if err := v.Confirm(t.Context(), m); !fault.Is(err, kind) {
			t.Errorf("status %d: error %v; expected %s", code, err, kind)
		}
	}
}
