package lambdanotify

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/lambda/messages"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/notifier"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A taker notes deliveries, in the order in which they began, and fails those
// whose body is in bad.
type taker struct {
	bad map[string]error

	mu   sync.Mutex
	seen []notifier.Delivery
}

func (k *taker) handle(_ context.Context, d notifier.Delivery) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.seen = append(k.seen, d)
	return k.bad[string(d.Body)]
}

func newHandler(bad map[string]error) (*Handler, *taker) {
	k := &taker{bad: bad}
	return &Handler{source: "eventbridge", handle: k.handle, log: (&leaktest.Recorder{}).Logger()}, k
}

var errAway = fault.Newf(fault.Unavailable, "publish", "away")

// sqsRecord is a message as a mapping hands it to a function.
func sqsRecord(id, queue, group, body string) map[string]any {
	return map[string]any{
		"messageId": id, "receiptHandle": "r", "body": body, "eventSource": "aws:sqs", "awsRegion": "us-east-1",
		"eventSourceARN":    "arn:aws:sqs:us-east-1:111122223333:" + queue,
		"attributes":        map[string]string{"ApproximateReceiveCount": "2", "SentTimestamp": "1717236000000", "MessageGroupId": group},
		"messageAttributes": map[string]any{},
	}
}

func payload(t testing.TB, records ...map[string]any) []byte {
	t.Helper()
	b, err := json.Marshal(map[string]any{"Records": records})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func failures(t interface{ Fatalf(string, ...any) }, answer []byte) []string {
	var a struct {
		Failures *[]struct{ ItemIdentifier string } `json:"batchItemFailures"`
	}
	if err := json.Unmarshal(answer, &a); err != nil || a.Failures == nil {
		t.Fatalf("the answer is %s; expected batchItemFailures", answer)
	}
	ids := []string{}
	for _, f := range *a.Failures {
		ids = append(ids, f.ItemIdentifier)
	}
	return ids
}

func TestOfSQS(t *testing.T) {
	h, k := newHandler(map[string]error{"b": errAway})
	r := sqsRecord("1", "q", "", "a")
	r["messageAttributes"] = map[string]any{"traceparent": map[string]string{"stringValue": trace, "dataType": "String"}}
	out, err := h.Invoke(t.Context(), payload(t, r, sqsRecord("2", "q", "", "b"), sqsRecord("3", "q", "", "c")))
	if err != nil {
		t.Fatal(err)
	}
	if got := failures(t, out); !slices.Equal(got, []string{"2"}) {
		t.Errorf("failed %v; expected 2 alone", got)
	}
	for _, d := range k.seen {
		if d.Source != "eventbridge" || d.Attempt != 2 || d.Received.IsZero() || d.Attributes["senttimestamp"] != "2024-06-01T10:00:00Z" || (d.ID == "1") != (d.Attributes["traceparent"] == trace) {
			t.Errorf("%+v", d)
		}
	}
	// All failed: an error, which is heard with and without ReportBatchItemFailures.
	_, err = h.Invoke(t.Context(), payload(t, sqsRecord("2", "q", "", "b")))
	var e messages.InvokeResponse_Error
	if !errors.As(err, &e) || e.Type != "keyturn.unavailable" || e.ShouldExit {
		t.Errorf("%#v; expected an error of type keyturn.unavailable", err)
	}
	// Invalid means that there is nothing to repeat.
	h, _ = newHandler(map[string]error{"a": fault.Newf(fault.Invalid, "x", "never")})
	if out, err := h.Invoke(t.Context(), payload(t, sqsRecord("1", "q", "", "a"))); err != nil || len(failures(t, out)) != 0 {
		t.Errorf("%s, %v", out, err)
	}
}

// Whatever fails in a batch: the answer names it, and in a FIFO queue all that
// follows in its group, which is not even tried; and nothing else.
func TestOrderOfGroups(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		fifo := rapid.Bool().Draw(rt, "fifo")
		queue := "q"
		if fifo {
			queue = "q.fifo"
		}
		n := rapid.IntRange(1, 12).Draw(rt, "n")
		bad := map[string]error{}
		var rs []map[string]any
		var want []string
		stopped := map[string]bool{}
		groups := map[string][]string{}
		for i := range n {
			id := fmt.Sprint(i)
			group := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "group")
			fails := rapid.IntRange(0, 3).Draw(rt, "fails") == 0
			if fails {
				bad[id] = errAway
			}
			if !fifo || !stopped[group] {
				groups[group] = append(groups[group], id)
			}
			if fails || fifo && stopped[group] {
				want = append(want, id)
				stopped[group] = true
			}
			rs = append(rs, sqsRecord(id, queue, group, id))
		}
		h, k := newHandler(bad)
		out, err := h.Invoke(t.Context(), payload(t, rs...))
		if len(want) == n {
			if err == nil {
				rt.Fatalf("all failed and there is no error: %s", out)
			}
			return
		}
		if err != nil {
			rt.Fatal(err)
		}
		if got := failures(rt, out); !slices.Equal(got, append([]string{}, want...)) {
			rt.Fatalf("failed %v; expected %v", got, want)
		}
		if !fifo {
			return
		}
		tried := map[string][]string{}
		for _, d := range k.seen {
			for g, ids := range groups {
				if slices.Contains(ids, d.ID) {
					tried[g] = append(tried[g], d.ID)
				}
			}
		}
		if !maps.EqualFunc(tried, groups, slices.Equal) {
			rt.Fatalf("tried %v; expected %v", tried, groups)
		}
	})
}

func TestOfOthers(t *testing.T) {
	notification := map[string]any{"EventSource": "aws:sns", "EventVersion": "1.0", "Sns": map[string]any{
		"Type": "Notification", "MessageId": "n", "Message": "a", "MessageAttributes": map[string]any{"traceparent": map[string]string{"Type": "String", "Value": trace}},
	}}
	ctx := context.WithValue(t.Context(), "x-amzn-trace-id", "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1") //nolint:revive,staticcheck // as package lambda does
	const own = "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01"
	mixed := payload(t, sqsRecord("1", "q", "", "a"), notification)
	nameless := payload(t, sqsRecord("", "q", "", "a"))
	for name, c := range map[string]struct {
		payload         []byte
		id, body, trace string
	}{
		"SNS":                   {payload(t, notification), "n", "a", trace},
		"EventBridge":           {[]byte(`{"detail-type":"x"}`), "", `{"detail-type":"x"}`, own},
		"a log file of records": {[]byte(`{"Records":[{"eventVersion":"1.08","eventSource":"secretsmanager.amazonaws.com"}]}`), "", `{"Records":[{"eventVersion":"1.08","eventSource":"secretsmanager.amazonaws.com"}]}`, own},
		"records of two kinds":  {mixed, "", string(mixed), own},
		"records without an id": {nameless, "", string(nameless), own},
		"what is not even JSON": {[]byte("x"), "", "x", own},
		"no records":            {[]byte(`{"Records":[]}`), "", `{"Records":[]}`, own},
	} {
		h, k := newHandler(nil)
		out, err := h.Invoke(ctx, c.payload)
		if err != nil || string(out) != "null" || len(k.seen) != 1 {
			t.Errorf("%s: %s, %v, %d deliveries", name, out, err, len(k.seen))
			continue
		}
		if d := k.seen[0]; d.ID != c.id || string(d.Body) != c.body || d.Attributes["traceparent"] != c.trace {
			t.Errorf("%s: %+v", name, d)
		}
		h, _ = newHandler(map[string]error{c.body: errAway})
		if _, err := h.Invoke(ctx, c.payload); err == nil {
			t.Errorf("%s: an outage is no error, so Lambda would not call again", name)
		}
	}
}

// A panic ends the process after its answer, and does not tell what panicked.
func TestPanic(t *testing.T) {
	secret := leaktest.Canary()
	for name, p := range map[string][]byte{"event": []byte("{}"), "batch": payload(t, sqsRecord("1", "q", "", "a"), sqsRecord("2", "q", "", "b"))} {
		var rec leaktest.Recorder
		h := &Handler{handle: func(context.Context, notifier.Delivery) error { panic(secret) }, log: rec.Logger()}
		_, err := h.Invoke(t.Context(), p)
		var e messages.InvokeResponse_Error
		if !errors.As(err, &e) || !e.ShouldExit {
			t.Errorf("%s: %#v; expected an error that ends the process", name, err)
		}
		rec.Record(err)
		rec.Check(t, secret)
	}
}

// The answer is out before Lambda ends the sandbox.
func TestDeadline(t *testing.T) {
	h := &Handler{handle: func(ctx context.Context, _ notifier.Delivery) error { <-ctx.Done(); return errAway }, log: (&leaktest.Recorder{}).Logger()}
	ctx, cancel := context.WithTimeout(t.Context(), answerTime+50*time.Millisecond)
	defer cancel()
	if _, err := h.Invoke(ctx, payload(t, sqsRecord("1", "q", "", "a"))); err == nil || ctx.Err() != nil {
		t.Errorf("%v with the deadline %v; expected an error before it", err, ctx.Err())
	}
}

const trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

func TestXRay(t *testing.T) {
	for header, want := range map[string]string{
		"Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=0":                           "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-00",
		"Self=1-x; Root=1-5759E988-BD862E3FE1BE46A994272793 ; Parent=53995c3f42cd8ad8; Sampled=1; Lineage=a:1": "00-5759e988bd862e3fe1be46a994272793-53995c3f42cd8ad8-01",
		"Root=1-5759e988-bd862e3fe1be46a994272793;Sampled=1":                                                   "",
		"Root=2-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8":                                     "",
		"Root=1-5759e988bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8":                                      "",
		"": "", "=;=": "",
	} {
		if got := fromXRay(header); got != want {
			t.Errorf("%q: %q; expected %q", header, got, want)
		}
	}
}

func TestEnv(t *testing.T) {
	const url = "KEYTURN_NATS_URL=tls://nats.example.com"
	e, err := ParseEnv([]string{url, "KEYTURN_NATS_CREDS_SECRET=arn:aws:secretsmanager:us-east-1:111122223333:secret:nats-Ab12Cd", "AWS_LAMBDA_LOG_LEVEL=ERROR"})
	if err != nil || e.Source != "eventbridge" || e.Secret == "" || e.Address != "" || len(e.Unknown) != 0 {
		t.Errorf("%+v, %v", e, err)
	}
	_, err = ParseEnv([]string{url, "KEYTURN_NATS_CREDS_SECRET=nats"})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "full ARN") {
		t.Errorf("a name in place of an ARN: %v", err)
	}
	_, err = ParseEnv([]string{url, "KEYTURN_NATS_CREDS=a:b", "KEYTURN_NATS_CREDS_SECRET=arn:aws:secretsmanager:us-east-1:111122223333:secret:nats-Ab12Cd"})
	if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "in 2 ways") {
		t.Errorf("credentials twice: %v", err)
	}
	h := Refusing(err, (&leaktest.Recorder{}).Logger())
	if _, err := h.Invoke(t.Context(), []byte("{}")); err == nil || !strings.Contains(err.Error(), "in 2 ways") {
		t.Errorf("%v; expected what is wrong with the environment", err)
	}
}
