package snssig

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
)

func TestVerify(t *testing.T) {
	s := newService(t)
	v := s.verifier()
	n := s.notification()
	for name, o := range map[string]object{
		"version 1":               n,
		"version 2":               n.with("SignatureVersion", "2"),
		"a subject":               n.with("Subject", "about"),
		"an empty subject":        n.with("Subject", ""),
		"attributes":              n.with("MessageAttributes", object{"a": object{"Type": "String", "Value": "b"}}),
		"a topic by its prefix":   n.with("TopicArn", "arn:aws:sns:"+region+":111122223333:team-a.fifo"),
		"China":                   n.with("TopicArn", topicCN, "SigningCertURL", "https://"+hostCN+certPEM),
		"port 443":                n.with("SigningCertURL", "https://"+host+":443"+certPEM),
		"an hour old":             n.with("Timestamp", s.now().Add(-61*time.Minute).UTC().Format(time.RFC3339)),
		"of a clock that is fast": n.with("Timestamp", s.now().Add(4*time.Minute).UTC().Format(time.RFC3339)),
		"a subscription":          s.confirmation(),
		"an unsubscription":       s.confirmation().with("Type", "UnsubscribeConfirmation"),
		"no text":                 n.with("Message", ""),
		"text of all kinds":       n.with("Message", "\u2028 é 🔑 \u0000 <&>"),
	} {
		t.Run(name, func(t *testing.T) {
			m, err := v.Verify(t.Context(), signed(t, o, signKey()).body())
			if err != nil {
				t.Fatal(err)
			}
			if m.Type != o["Type"] || m.MessageID != o["MessageId"] || m.TopicARN != o["TopicArn"] || m.Message != o["Message"] {
				t.Errorf("read %+v", m)
			}
			var got object
			if err := json.Unmarshal(m.Envelope(), &got); err != nil {
				t.Fatal(err)
			}
			for k, x := range got {
				if x != o[k] && k != "Timestamp" {
					t.Errorf("the envelope has %s = %v; expected %v", k, x, o[k])
				}
			}
		})
	}
	if requests, _ := s.seen(); len(requests) != 2 {
		t.Errorf("requests %v; expected one for each address", requests)
	}
}

// TestAttacks: each is refused, by the kind that is said, and trap 13: nothing
// but SNS in the topic's region is ever called.
func TestAttacks(t *testing.T) {
	old := time.Now().Add(-66 * time.Minute).UTC().Format(time.RFC3339)
	future := time.Now().Add(6 * time.Minute).UTC().Format(time.RFC3339)
	for _, a := range []struct {
		name    string
		changes []any // before it is signed
		after   []any // afterwards
		kind    fault.Kind
		calls   int
	}{
		{name: "trap 13: another topic", changes: []any{"TopicArn", "arn:aws:sns:eu-west-1:999999999999:secrets"}, kind: fault.Denied},
		{name: "trap 13: a topic that begins like ours", changes: []any{"TopicArn", topic + "2"}, kind: fault.Denied},
		{name: "trap 13: our topic in another region", changes: []any{"TopicArn", strings.Replace(topic, region, "us-east-1", 1)}, kind: fault.Denied},
		{name: "trap 13: a topic that is no ARN", changes: []any{"TopicArn", "arn:aws:sns:eu-west-1:111122223333:team-a/../b"}, kind: fault.Denied},
		{name: "too old", changes: []any{"Timestamp", old}, kind: fault.Denied},
		{name: "of the future: our clock is late", changes: []any{"Timestamp", future}, kind: fault.Unavailable, calls: 1},
		{name: "of a future that nobody signed", after: []any{"Timestamp", future}, kind: fault.Denied, calls: 1},
		{name: "another signature version", changes: []any{"SignatureVersion", "3"}, kind: fault.Denied},
		{name: "version 1 said to be 2", after: []any{"SignatureVersion", "2"}, kind: fault.Denied, calls: 1},
		{name: "another message", after: []any{"Message", "x"}, kind: fault.Denied, calls: 1},
		{name: "a subject that was not signed", after: []any{"Subject", "x"}, kind: fault.Denied, calls: 1},
		{name: "the subject taken away", changes: []any{"Subject", "x"}, after: []any{"Subject", nil}, kind: fault.Denied, calls: 1},
		{name: "another of our topics", after: []any{"TopicArn", "arn:aws:sns:" + region + ":111122223333:team-b"}, kind: fault.Denied, calls: 1},
		{name: "a fresh time", changes: []any{"Timestamp", old}, after: []any{"Timestamp", time.Now().UTC().Format(time.RFC3339)}, kind: fault.Denied, calls: 1},
		{name: "a notification made a confirmation", after: []any{"Type", "SubscriptionConfirmation", "SubscribeURL", "https://x", "Token", "x"}, kind: fault.Denied, calls: 1},
		{name: "the subject moved into the message", changes: []any{"Message", "a", "Subject", "b"}, after: []any{"Message", "a\nMessageId\n22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324\nSubject\nb", "Subject", nil}, kind: fault.Denied, calls: 1},
		{name: "line breaks in the subject", changes: []any{"Subject", "a\nTimestamp\nb"}, kind: fault.Invalid},
		{name: "line breaks in the id", changes: []any{"MessageId", "a\nb"}, kind: fault.Invalid},
		{name: "no signature", after: []any{"Signature", nil}, kind: fault.Invalid},
		{name: "an empty signature", after: []any{"Signature", ""}, kind: fault.Denied, calls: 1},
		{name: "a signature that is not base64", after: []any{"Signature", "!"}, kind: fault.Invalid},
		{name: "no address", after: []any{"SigningCertURL", nil}, kind: fault.Invalid},
		{name: "no time", after: []any{"Timestamp", nil}, kind: fault.Invalid},
		{name: "no message", after: []any{"Message", nil}, kind: fault.Invalid},
		{name: "a message that is an object", after: []any{"Message", object{}}, kind: fault.Invalid},
		{name: "another type", after: []any{"Type", "notification"}, kind: fault.Invalid},
		{name: "a second message in other case", after: []any{"message", "x"}, kind: fault.Invalid},
		{name: "a second message with a blank", after: []any{"Message ", "x"}, kind: fault.Invalid},
		{name: "a second message by the letter \u017f", after: []any{"Me\u017f\u017fage", "x"}, kind: fault.Invalid},
		{name: "Lambda's spelling of the address", after: []any{"SigningCertUrl", "https://" + host + certPEM}, kind: fault.Invalid},
		{name: "no certificate there", changes: []any{"SigningCertURL", "https://" + host + "/none.pem"}, kind: fault.Denied, calls: 1},
	} {
		t.Run(a.name, func(t *testing.T) {
			s := newService(t)
			_, err := s.verifier().Verify(t.Context(), signed(t, s.notification().with(a.changes...), signKey()).with(a.after...).body())
			wantKind(t, err, a.kind)
			if requests, _ := s.seen(); len(requests) != a.calls {
				t.Errorf("requests %v; expected %d", requests, a.calls)
			}
		})
	}
	t.Run("trap 13: SSRF by the address of the certificate", func(t *testing.T) {
		s := newService(t)
		v := s.verifier()
		for _, u := range []string{
			"http://" + host + certPEM, "https://evil.example" + certPEM, "https://" + host + ".evil.example" + certPEM,
			"https://sns.us-east-1.amazonaws.com" + certPEM, "https://" + host + ".cn" + certPEM, "https://sns.amazonaws.com" + certPEM,
			"https://x." + host + certPEM, "https://" + strings.ToUpper(host) + certPEM, "https://" + host + "." + certPEM,
			"https://user@" + host + certPEM, "https://" + host + "@evil.example" + certPEM, "https://evil.example\\@" + host + certPEM,
			"https://" + host + ":8443" + certPEM, "https://" + host + ":" + certPEM, "https://" + host + ":443.evil.example" + certPEM,
			"https://" + host + "/", "https://" + host, "https://" + host + "/x.pem/", "https://" + host + "/x.PEM", "https://" + host + "/.pem",
			"https://" + host + "/?Action=Publish&x=.pem", "https://" + host + certPEM + "?x=y.pem", "https://" + host + certPEM + "?", "https://" + host + certPEM + "#x.pem",
			"https://" + host + "/a/../x.pem", "https://" + host + "/%2e%2e/x.pem", "https://" + host + "//x.pem", "https://" + host + "/x%0a.pem", "https:" + host + certPEM,
			"file:///etc/x.pem", "https://127.0.0.1" + certPEM, "https://[::1]" + certPEM, "https://169.254.169.254/x.pem", "//" + host + certPEM, "", "\x00",
		} {
			_, err := v.Verify(t.Context(), signed(t, s.notification().with("SigningCertURL", u), signKey()).body())
			wantKind(t, err, fault.Denied)
		}
		if requests, dialled := s.seen(); len(requests)+len(dialled) != 0 {
			t.Errorf("requests %v, connections %v; expected none", requests, dialled)
		}
	})
	for name, body := range map[string]string{
		"empty": "", "null": "null", "an array": "[]", "text": `"x"`, "cut": `{"Type":"Notification"`, "two": `{}{}`, "more": `{}x`, "broken": `{"Type":}`, "deep": strings.Repeat("[", 20000),
		"twice": `{"Message":"a","Message":"b"}`, "long": `{"x":"` + strings.Repeat("x", maxBody) + `"}`,
	} {
		t.Run("no message: "+name, func(t *testing.T) {
			s := newService(t)
			_, err := s.verifier().Verify(t.Context(), []byte(body))
			wantKind(t, err, fault.Invalid)
		})
	}
}

func TestCertificates(t *testing.T) {
	for _, c := range []struct {
		name   string
		file   func(s *service) []byte
		option func(s *service, o *Options)
		kind   fault.Kind // Unknown is accepted
	}{
		{name: "the bare certificate, whose issuer TLS shows"},
		{name: "of the region's name", file: func(s *service) []byte {
			return asPEM(s.sign(func(c *x509.Certificate) { c.DNSNames = []string{host} }))
		}},
		{name: "another name", kind: fault.Denied, file: func(s *service) []byte {
			return asPEM(s.sign(func(c *x509.Certificate) { c.DNSNames = []string{"sqs.amazonaws.com"} }))
		}},
		{name: "a wildcard", kind: fault.Denied, file: func(s *service) []byte {
			return asPEM(s.sign(func(c *x509.Certificate) { c.DNSNames = []string{"*.amazonaws.com"} }))
		}},
		{name: "a common name only", kind: fault.Denied, file: func(s *service) []byte {
			return asPEM(s.sign(func(c *x509.Certificate) { c.DNSNames = nil }))
		}},
		{name: "expired", kind: fault.Denied, file: func(s *service) []byte {
			return asPEM(s.sign(func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().Add(-9*time.Hour), time.Now().Add(-time.Hour)
			}))
		}},
		{name: "not yet valid", kind: fault.Denied, file: func(s *service) []byte {
			return asPEM(s.sign(func(c *x509.Certificate) {
				c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(9*time.Hour)
			}))
		}},
		{name: "another key type", kind: fault.Denied, file: func(s *service) []byte {
			return asPEM(issue(s.t, s.intermediate, &x509.Certificate{DNSNames: []string{"sns.amazonaws.com"}}, &caKey().PublicKey))
		}},
		{name: "signed by itself", kind: fault.Denied, file: func(s *service) []byte {
			c := &x509.Certificate{Subject: pkix.Name{CommonName: "sns.amazonaws.com"}, DNSNames: []string{"sns.amazonaws.com"}}
			c.SerialNumber, c.NotBefore, c.NotAfter = s.signing.SerialNumber, time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
			der, err := x509.CreateCertificate(nil, c, c, &signKey().PublicKey, signKey())
			if err != nil {
				s.t.Fatal(err)
			}
			out, _ := x509.ParseCertificate(der)
			return asPEM(out)
		}},
		{name: "of a CA that nobody trusts, with its chain", kind: fault.Denied, file: foreign(true)},
		{name: "of an issuer that is not at hand", file: foreign(false)},
		{name: "of an issuer that is not at hand, and must be", kind: fault.Denied, file: foreign(false), option: func(_ *service, o *Options) { o.RequireChain = true }},
		{name: "the chain in the file", option: func(_ *service, o *Options) { o.RequireChain = true }, file: func(s *service) []byte {
			second := newAuthority(s.t, "second", s.root)
			return asPEM(issue(s.t, second, &x509.Certificate{DNSNames: []string{"sns.amazonaws.com"}}, &signKey().PublicKey), second.cert)
		}},
		{name: "the intermediate configured", file: func(s *service) []byte {
			second := newAuthority(s.t, "third", s.root)
			s.intermediate = second
			return asPEM(issue(s.t, second, &x509.Certificate{DNSNames: []string{"sns.amazonaws.com"}}, &signKey().PublicKey))
		}, option: func(s *service, o *Options) {
			o.RequireChain, o.Intermediates = true, x509.NewCertPool()
			o.Intermediates.AddCert(s.intermediate.cert)
		}},
		{name: "no PEM", kind: fault.Unavailable, file: func(*service) []byte { return []byte("<html>") }},
		{name: "a private key", kind: fault.Unavailable, file: func(*service) []byte { return []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n") }},
		{name: "an endless file", kind: fault.Unavailable, file: func(*service) []byte { return make([]byte, maxAnswer+1) }},
		{name: "a client that verifies nothing", kind: fault.Unavailable, option: func(_ *service, o *Options) {
			o.HTTP.Transport.(*http.Transport).TLSClientConfig = &tls.Config{InsecureSkipVerify: true}
		}},
		{name: "a client that trusts nobody", kind: fault.Unavailable, option: func(_ *service, o *Options) {
			o.HTTP.Transport.(*http.Transport).TLSClientConfig = &tls.Config{RootCAs: x509.NewCertPool()}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newService(t)
			if c.file != nil {
				s.serveFile(certPEM, c.file(s))
			}
			v := s.verifier(func(o *Options) {
				if c.option != nil {
					c.option(s, o)
				}
			})
			_, err := v.Verify(t.Context(), signed(t, s.notification(), signKey()).body())
			if c.kind == fault.Unknown {
				if err != nil {
					t.Error(err)
				}
				return
			}
			wantKind(t, err, c.kind)
		})
	}
	t.Run("one that expires while it is cached", func(t *testing.T) {
		s := newService(t)
		v := s.verifier(func(o *Options) { o.MaxAge = 1000 * time.Hour })
		body := signed(t, s.notification(), signKey()).body()
		if _, err := v.Verify(t.Context(), body); err != nil {
			t.Fatal(err)
		}
		s.ahead.Store(int64(241 * time.Hour))
		_, err := v.Verify(t.Context(), body)
		wantKind(t, err, fault.Denied)
	})
}

// foreign is a certificate of a CA that is not trusted.
func foreign(chain bool) func(s *service) []byte {
	return func(s *service) []byte {
		root := newAuthority(s.t, "foreign", nil)
		second := newAuthority(s.t, "foreign intermediate", root)
		leaf := issue(s.t, second, &x509.Certificate{DNSNames: []string{"sns.amazonaws.com"}}, &signKey().PublicKey)
		if chain {
			return asPEM(leaf, second.cert, root.cert)
		}
		return asPEM(leaf)
	}
}

// TestOutage: what keeps a certificate away is Unavailable, and mends itself.
// Invented addresses cost a bounded number of calls, and never those who wait
// for a certificate that is known.
func TestOutage(t *testing.T) {
	s := newService(t)
	v := s.verifier()
	body := signed(t, s.notification(), signKey()).body()
	for _, f := range []http.HandlerFunc{
		func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://evil.example"+certPEM, http.StatusFound)
		},
		func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		s.respond(f)
		_, err := v.Verify(t.Context(), body)
		wantKind(t, err, fault.Unavailable)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := v.Verify(ctx, body)
	wantKind(t, err, fault.Unavailable)
	s.respond(nil)
	if _, err := v.Verify(t.Context(), body); err != nil {
		t.Fatal(err)
	}
	before, _ := s.seen()
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			o := s.notification().with("SigningCertURL", "https://"+host+"/"+strings.Repeat("a", i+1)+".pem")
			if _, err := v.Verify(t.Context(), signed(t, o, otherKey()).body()); err == nil {
				t.Error("accepted")
			}
			if _, err := v.Verify(t.Context(), body); err != nil {
				t.Errorf("a good message during the flood: %v", err)
			}
		})
	}
	wg.Wait()
	after, dialled := s.seen()
	if n := len(after) - len(before); n > fetchBurst+5 {
		t.Errorf("%d calls for 100 invented addresses; expected about %d", n, fetchBurst)
	}
	for _, d := range dialled {
		if d != host+":443" {
			t.Errorf("a connection went to %s", d)
		}
	}
}

func TestOptions(t *testing.T) {
	for name, topics := range map[string][]string{
		"none": nil, "empty": {""}, "everything": {"*"}, "any account": {"arn:aws:sns:eu-west-1:*"}, "any region": {"arn:aws:sns:*:111122223333:secrets"},
		"another service": {"arn:aws:sqs:eu-west-1:111122223333:secrets"}, "a star inside": {"arn:aws:sns:eu-west-1:111122223333:a*b"}, "another partition": {"arn:aws-iso:sns:us-iso-east-1:111122223333:a"},
		"a subscription": {topic + ":2bcfbf39-05c3-41de-beaa-fcfcc21c8f55"},
	} {
		_, err := New(Options{Topics: topics})
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: error %v; expected Invalid", name, err)
		}
	}
	if _, err := New(Options{Topics: []string{topic}, MaxAge: -1}); !fault.Is(err, fault.Invalid) {
		t.Errorf("error %v; expected Invalid", err)
	}
	if _, err := New(Options{Topics: []string{topic, "arn:aws:sns:eu-west-1:111122223333:*"}}); err != nil {
		t.Error(err)
	}
}

// No two messages that are accepted have one text to sign.
func TestSignedTextIsUnambiguous(t *testing.T) {
	part := rapid.SampledFrom([]string{"", "a", "\n", "Subject\n", "\nSubject\n", "\nMessageId\n", "MessageId\nid-1\n", "\nTimestamp\n", "2026-06-01T10:00:00Z", "\nTopicArn\n" + topic, "\nType\nNotification"})
	text := rapid.Custom(func(t *rapid.T) string { return strings.Join(rapid.SliceOfN(part, 0, 5).Draw(t, "parts"), "") })
	message := rapid.Custom(func(t *rapid.T) object {
		o := object{
			"Type": "Notification", "MessageId": rapid.SampledFrom([]string{"id-1", "id-2"}).Draw(t, "id"), "TopicArn": topic, "Message": text.Draw(t, "message"),
			"Timestamp": "2026-06-01T10:00:00Z", "SignatureVersion": "1", "SigningCertURL": "x", "Signature": "",
		}
		if rapid.Bool().Draw(t, "has subject") {
			o["Subject"] = text.Draw(t, "subject")
		}
		return o
	})
	rapid.Check(t, func(t *rapid.T) {
		x, y := message.Draw(t, "x"), message.Draw(t, "y")
		a, err := parse(x.body())
		if err != nil {
			return
		}
		b, err := parse(y.body())
		if err != nil {
			return
		}
		if string(a.signed()) == string(b.signed()) && (a.message != b.message || a.id != b.id || deref(a.subject) != deref(b.subject)) {
			t.Fatalf("%q and %q have one text", x, y)
		}
	})
}

// TestNothingLeaks: no text of a message, and no token, is in an error or the
// log.
func TestNothingLeaks(t *testing.T) {
	s := newService(t)
	v := s.verifier()
	canary := leaktest.Canary()
	s.logs.Record("begin")
	n, c := s.notification(), s.confirmation()
	for _, o := range []object{
		n.with("Message", canary, "Signature", ""), n.with("Subject", canary, "Signature", canary), n.with(canary, canary, "Signature", "AAAA"),
		n.with("SigningCertURL", "https://"+canary+"/x.pem", "Signature", ""), n.with("Timestamp", canary, "Signature", ""), n.with("Type", canary, "Signature", ""),
		n.with("MessageId", canary+"\n", "Signature", ""), n.with("SignatureVersion", canary, "Signature", ""),
		n.with("TopicArn", strings.Repeat("x", 150)+canary, "Signature", ""),
		signed(t, c.with("Token", canary), signKey()), signed(t, c.with("SubscribeURL", "https://"+host+"/?Action=ConfirmSubscription&TopicArn="+topic+"&Token="+canary, "Token", canary), signKey()),
	} {
		m, err := v.Verify(t.Context(), o.body())
		s.logs.Record(err)
		if m != nil {
			s.logs.Record(v.Confirm(t.Context(), m))
			s.srv.CloseClientConnections()
			s.respond(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
			s.logs.Record(v.Confirm(t.Context(), m))
			s.respond(nil)
		}
	}
	_, err := v.Verify(t.Context(), []byte(canary))
	s.logs.Record(err)
	s.logs.Check(t, canary)
}

func FuzzVerify(f *testing.F) {
	s := newService(f)
	v := s.verifier()
	for _, o := range []object{s.notification().with("Signature", "AAAA"), s.confirmation().with("Signature", "AAAA"), signed(f, s.notification(), otherKey())} {
		f.Add(o.body())
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		if _, err := v.Verify(t.Context(), body); err == nil || fault.KindOf(err) == fault.Unknown {
			t.Fatalf("error %v", err)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	s := newService(b)
	v := s.verifier()
	body := signed(b, s.notification(), signKey()).body()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Verify(b.Context(), body); err != nil {
			b.Fatal(err)
		}
	}
}
