package webhook

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/snssig"
	"github.com/keyturn/keyturn/notifier"
)

// token stands for a verifier of tokens, of which only the kinds of its errors
// matter here.
type token struct{}

func (token) Authenticate(_ context.Context, h http.Header) error {
	switch t, _ := strings.CutPrefix(h.Get("Authorization"), "Bearer "); t {
	case "good":
		return nil
	case "keys-away":
		return fault.Newf(fault.Unavailable, "token", "the key set cannot be fetched")
	case "defect":
		panic("a defect of the verifier")
	case "malformed":
		return fault.Newf(fault.Invalid, "token", "no JWT")
	case "unclassified":
		return io.ErrUnexpectedEOF
	}
	return fault.Newf(fault.Denied, "token", "the token is not for us")
}

// topics stands for a verifier of SNS: a message is good if its Signature is
// "good" and its topic is ours. It keeps which subscriptions it confirmed.
type topics struct {
	mu        sync.Mutex
	confirmed []string
}

const ourTopic = "arn:aws:sns:eu-west-1:111122223333:secrets"

func (s *topics) Verify(_ context.Context, body []byte) (*snssig.Message, error) {
	var m struct {
		Type, MessageID, TopicArn, Message, SubscribeURL, Token, Signature string
	}
	if json.Unmarshal(body, &m) != nil || m.Type == "" {
		return nil, fault.Newf(fault.Invalid, "sns", "no message")
	}
	switch {
	case m.Signature == "certificate-away":
		return nil, fault.Newf(fault.Unavailable, "sns", "the certificate cannot be fetched")
	case m.Signature != "good" || m.TopicArn != ourTopic:
		return nil, fault.Newf(fault.Denied, "sns", "the signature or topic is not one of ours")
	}
	return &snssig.Message{Type: m.Type, MessageID: m.MessageID, TopicARN: m.TopicArn, Message: m.Message, SubscribeURL: m.SubscribeURL, Token: m.Token}, nil
}

func (s *topics) Confirm(_ context.Context, m *snssig.Message) error {
	if !strings.HasPrefix(m.SubscribeURL, "https://sns.eu-west-1.amazonaws.com/") {
		return fault.Newf(fault.Denied, "sns", "the host is not one of SNS")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.confirmed = append(s.confirmed, m.Token)
	return nil
}

// hmacKey is the one of the reference vector of Standard Webhooks.
const hmacKey = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// sign signs body as Standard Webhooks has it.
func sign(h http.Header, secret, id string, at time.Time, body string) {
	key, err := base64.StdEncoding.DecodeString(secret)
	if err != nil {
		panic(err)
	}
	stamp := strconv.FormatInt(at.Unix(), 10)
	m := hmac.New(sha256.New, key)
	_, _ = io.WriteString(m, id+"."+stamp+"."+body)
	h.Set("webhook-id", id)
	h.Set("webhook-timestamp", stamp)
	h.Set("webhook-signature", "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)))
}

// A sender is one kind of route and a genuine request to it.
type sender struct {
	name, path, body string
	// prove adds what a genuine request has beside its body.
	prove func(h http.Header, body string)
	// forge spoils it, so that the answer is status.
	forge  func(h http.Header)
	status int
}

func bearer(h http.Header, _ string) { h.Set("Authorization", "Bearer good") }

func wrongToken(h http.Header) { h.Set("Authorization", "Bearer forged") }

func wrongKey(h http.Header) { h.Set("X-Api-Key", key+"x") }

const (
	gridEvent  = `[{"id":"1","eventType":"Microsoft.KeyVault.SecretNewVersionCreated","data":{}}]`
	pushed1    = `{"message":{"attributes":{"eventType":"SECRET_ROTATE"},"data":"e30=","messageId":"2070443601311541"},"subscription":"projects/p/subscriptions/s","deliveryAttempt":3}`
	cloudEvent = `{"specversion":"1.0","id":"1","source":"/x","type":"t","data":{}}`
)

func snsMessage(typ, signature, topic, url string) string {
	b, err := json.Marshal(map[string]string{
		"Type": typ, "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324", "TopicArn": topic, "Message": moved(1), "Token": "t",
		"SubscribeURL": url, "UnsubscribeURL": url, "SigningCertURL": url, "Signature": signature, "SignatureVersion": "2",
	})
	if err != nil {
		panic(err)
	}
	return string(b)
}

func senders() []sender {
	return []sender{
		{"eventbridge", "/v1/eventbridge", moved(1), func(h http.Header, _ string) { h.Set("X-Api-Key", key) }, wrongKey, 401},
		{"eventbridge by OAuth", "/v1/eventbridge", moved(1), bearer, wrongToken, 401},
		{"eventgrid", "/v1/eventgrid", gridEvent, bearer, wrongToken, 401},
		{"eventgrid by secret header", "/v1/eventgrid", gridEvent, func(h http.Header, _ string) { h.Set("Keyturn-Secret", key) }, func(h http.Header) { h.Set("Keyturn-Secret", newKey) }, 401},
		{"pubsub", "/v1/pubsub", pushed1, bearer, wrongToken, 401},
		{"sns", "/v1/sns", snsMessage("Notification", "good", ourTopic, ""), func(h http.Header, _ string) {
			h.Set("Content-Type", "text/plain; charset=UTF-8")
			h.Set("X-Amz-Sns-Message-Type", "Notification")
		}, func(h http.Header) { h.Set("X-Amz-Sns-Message-Type", "UnsubscribeConfirmation") }, 400},
		{"cloudevents", "/v1/cloudevents", cloudEvent, func(h http.Header, body string) {
			h.Set("Content-Type", "application/cloudevents+json")
			sign(h, hmacKey, "msg_1", time.Now(), body)
		}, func(h http.Header) { h.Set("Webhook-Id", "msg_2") }, 401},
		{"vaultaudit", "/v1/vaultaudit", `{"type":"response"}`, func(h http.Header, _ string) { h.Set("X-Api-Key", key); h.Del("Content-Type") }, wrongKey, 401},
	}
}

const rigBody = 8 << 10

// A rig is a listener with a route of every kind.
type rig struct {
	*running
	topics topics

	mu       sync.Mutex
	got      []notifier.Delivery
	audited  int
	rejected []Rejection
}

func newRig(t *testing.T, edit func(*Options)) *rig {
	g := &rig{}
	hm, err := StandardWebhooks("whsec_" + hmacKey)
	must(t, err)
	secret, err := APIKey("Keyturn-Secret", key)
	must(t, err)
	o := Options{
		Routes: []Route{
			{Kind: EventBridge{}, Auth: append(auth(key), token{})},
			{Kind: EventGrid{}, Auth: []Authenticator{token{}, secret}},
			{Kind: PubSub{}, Auth: []Authenticator{token{}}},
			{Kind: SNS{&g.topics}},
			{Kind: CloudEvents{Origins: []string{"events.example.com"}}, Auth: []Authenticator{hm}},
			{Kind: VaultAudit{}, Auth: auth(key), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if _, err := io.Copy(io.Discard, r.Body); err != nil {
					panic(err)
				}
				g.mu.Lock()
				defer g.mu.Unlock()
				g.audited++
				w.WriteHeader(http.StatusNoContent)
			})},
		},
		Observe: func(r Rejection) { g.mu.Lock(); defer g.mu.Unlock(); g.rejected = append(g.rejected, r) },
	}
	for i := range o.Routes {
		o.Routes[i].MaxBody, o.Routes[i].Timeout = rigBody, 2*time.Second
	}
	if edit != nil {
		edit(&o)
	}
	g.running = serve(t, o, func(_ context.Context, d notifier.Delivery) error {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.got = append(g.got, d)
		return nil
	})
	g.http.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return g
}

// taken returns the deliveries since it was last called, and how many entries
// were audited.
func (g *rig) taken() ([]notifier.Delivery, int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	ds, n := g.got, g.audited
	g.got, g.audited = nil, 0
	return ds, n
}

// reasons returns the rejections since it was last called.
func (g *rig) reasons() []Rejection {
	g.mu.Lock()
	defer g.mu.Unlock()
	rs := g.rejected
	g.rejected = nil
	return rs
}

// send posts body to path.
func (g *rig) send(t testing.TB, path, body string, edit func(q *http.Request)) (int, http.Header, string) {
	t.Helper()
	code, header, text, err := g.try(body, func(q *http.Request) {
		q.Header = http.Header{"Content-Type": {"application/json"}}
		q.URL.Path = path
		if edit != nil {
			edit(q)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return code, header, text
}

// as is a genuine request of s.
func (s *sender) as(q *http.Request) { s.prove(q.Header, s.body) }

// wire is the text of a request of s with other headers beside; body is sent as
// it is, whatever its header says.
func (s *sender) wire(body string, edit func(http.Header)) string {
	h := http.Header{"Content-Type": {"application/json"}, "Content-Length": {strconv.Itoa(len(s.body))}}
	s.prove(h, s.body)
	if edit != nil {
		edit(h)
	}
	var b strings.Builder
	_, _ = fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: x\r\n", s.path)
	must2(h.Write(&b))
	return b.String() + "\r\n" + body
}

func must2(err error) {
	if err != nil {
		panic(err)
	}
}

// A snare is a listener that nobody may connect to.
type snare struct {
	net.Listener
	mu   sync.Mutex
	hits int
}

func newSnare(t *testing.T) *snare {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &snare{Listener: l}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
			s.mu.Lock()
			s.hits++
			s.mu.Unlock()
		}
	})
	t.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return s
}

// check connects once itself, so that whatever came before was counted.
func (s *snare) check(t *testing.T) {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr().String())
	must(t, err)
	_, _ = io.Copy(io.Discard, c) // until it was accepted and closed
	_ = c.Close()
	_ = s.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hits > 1 {
		t.Errorf("%d connections to an address from a request; expected none", s.hits-1)
	}
}

func (s *snare) url() string { return "http://" + s.Addr().String() + "/confirm" }
