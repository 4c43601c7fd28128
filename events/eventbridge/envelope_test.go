package eventbridge

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice/noticetest"
)

func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// The envelopes, each around one body.
var (
	inSQSRecord = func(body string) string {
		return `{"Records":[{"messageId":"059f36b4-87a3-44ab-83d2-661975830a7d","receiptHandle":"AQEB","body":` + quoted(body) +
			`,"attributes":{"ApproximateReceiveCount":"1","SentTimestamp":"1717236000000"},"messageAttributes":{},"md5OfBody":"20009a705cc87d2c6d19e85a81292ef0",
"eventSource":"aws:sqs","eventSourceARN":"arn:aws:sqs:eu-west-1:111122223333:secrets","awsRegion":"eu-west-1"}]}`
	}
	inSQSAnswer = func(body string) string {
		return `{"Messages":[` + inSQSMessage(body) + `]}`
	}
	inSQSMessage = func(body string) string {
		return `{"MessageId":"059f36b4-87a3-44ab-83d2-661975830a7d","ReceiptHandle":"AQEB","MD5OfBody":"20009a705cc87d2c6d19e85a81292ef0","Body":` + quoted(body) + `}`
	}
	inSNS = func(body string) string {
		return `{"Type":"Notification","MessageId":"22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324","TopicArn":"arn:aws:sns:eu-west-1:111122223333:secrets","Message":` + quoted(body) +
			`,"Timestamp":"2026-06-01T10:00:00.123Z","SignatureVersion":"2","Signature":"EXAMPLE","SigningCertURL":"https://sns.eu-west-1.amazonaws.com/x.pem","UnsubscribeURL":"https://sns.eu-west-1.amazonaws.com/"}`
	}
	inSNSRecord = func(body string) string {
		return `{"Records":[{"EventVersion":"1.0","EventSubscriptionArn":"arn:aws:sns:eu-west-1:111122223333:secrets:x","EventSource":"aws:sns","Sns":{"SignatureVersion":"1","Timestamp":"2026-06-01T10:00:00.123Z",
"Signature":"EXAMPLE","SigningCertUrl":"EXAMPLE","MessageId":"22b80b92","Message":` + quoted(body) + `,"MessageAttributes":{},"Type":"Notification","UnsubscribeUrl":"EXAMPLE","TopicArn":"arn:aws:sns:eu-west-1:111122223333:secrets","Subject":null}}]}`
	}
	// A queue that takes what a rule could not deliver.
	inDeadLetter = func(body string) string {
		return `{"Messages":[{"MessageId":"059f36b4","ReceiptHandle":"AQEB","Body":` + quoted(body) + `,"MessageAttributes":{"ERROR_CODE":{"StringValue":"THROTTLING","DataType":"String"},
"ERROR_MESSAGE":{"StringValue":"x","DataType":"String"},"RETRY_ATTEMPTS":{"StringValue":"185","DataType":"Number"},"RULE_ARN":{"StringValue":"arn:aws:events:eu-west-1:111122223333:rule/r","DataType":"String"}}}]}`
	}
)

// routes are the ways in which EventBridge's event gets to a notifier.
func routes() map[string]func(string) string {
	return map[string]func(string) string{
		"the event itself":          func(s string) string { return s },
		"an array":                  func(s string) string { return "[" + s + "]" },
		"a queue's records":         inSQSRecord,
		"ReceiveMessage":            inSQSAnswer,
		"one message":               inSQSMessage,
		"a topic, by HTTP":          inSNS,
		"a topic's records":         inSNSRecord,
		"a topic, to a queue":       func(s string) string { return inSQSAnswer(inSNS(s)) },
		"a topic, queue, function":  func(s string) string { return inSQSRecord(inSNS(s)) },
		"a dead-letter queue":       inDeadLetter,
		"an array of queue records": func(s string) string { return "[" + inSQSRecord(s) + "]" },
		"a queue of arrays":         func(s string) string { return inSQSRecord("[" + s + "]") },
	}
}

// record is the CloudTrail record in an event, as a trail's file has it.
func record(t testing.TB, event []byte) string {
	t.Helper()
	var env struct{ Detail json.RawMessage }
	if err := json.Unmarshal(event, &env); err != nil || len(env.Detail) == 0 {
		t.Fatalf("no detail: %v", err)
	}
	return string(env.Detail)
}

// Whatever the envelope, what comes of an event is what Decode makes of it.
func TestDecodeAnyEveryRoute(t *testing.T) {
	for name, body := range notices(t) {
		if strings.HasPrefix(name, "file/sns-") || strings.HasPrefix(name, "file/sqs-") {
			continue // envelopes, see below
		}
		want, wantErr := Decode(body, received)
		for route, wrap := range routes() {
			if !json.Valid(body) && strings.Contains(route, "array") {
				continue
			}
			got, err := DecodeAny([]byte(wrap(string(body))), received)
			if (err != nil) != (wantErr != nil) || err != nil && !fault.Is(err, fault.Invalid) {
				t.Errorf("%s by %s: %v, expected %v", name, route, err, wantErr)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s by %s (-Decode +DecodeAny):\n%s", name, route, d)
			}
		}
	}
	for _, name := range []string{"file/sns-http-notification", "file/sqs-receive-message-eventbridge-target"} {
		es, err := DecodeAny(notices(t)[name], received)
		if err != nil || len(es) != 1 || es[0].Data.Ref.String() != "aws://012345678901/us-west-2/mySecret" || es[0].Type != events.VersionActivated {
			t.Errorf("%s: %+v, %v", name, es, err)
		}
	}
}

// A CloudTrail record has one id, whether EventBridge passed it on or a log
// file was read. What differs is EventBridge's own id of its event.
func TestDecodeAnyRecords(t *testing.T) {
	all := notices(t)
	var file []string
	var want []events.Event
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if !strings.HasPrefix(name, "file/ct-") {
			continue
		}
		one := record(t, all[name])
		file = append(file, one)
		es, err := Decode(all[name], received)
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, es...)
		got, err := DecodeAny([]byte(one), received)
		if err != nil || len(got) != len(es) {
			t.Fatalf("%s: %v, %v", name, got, err)
		}
		for i := range got {
			if got[i].ID != es[i].ID || got[i].Data.Provider.EventID == "" || got[i].Data.Ref != es[i].Data.Ref || got[i].Data.Version != es[i].Data.Version {
				t.Errorf("%s: the record gives %+v, the event %+v", name, got[i], es[i])
			}
		}
	}
	file = append(file, `{"eventVersion":"1.08","eventSource":"s3.amazonaws.com","eventName":"PutObject","eventType":"AwsApiCall"}`,
		`{"eventVersion":"1.08","eventSource":"secretsmanager.amazonaws.com","eventName":"X","eventType":"AwsCloudTrailInsight"}`)
	log := `{"Records":[` + strings.Join(file, ",") + `]}`
	for route, wrap := range routes() {
		got, err := DecodeAny([]byte(wrap(log)), received)
		if err != nil || len(got) != len(want) {
			t.Fatalf("%s: %d events, %v; expected %d", route, len(got), err, len(want))
		}
		for i := range got {
			if got[i].ID != want[i].ID {
				t.Errorf("%s: %+v, expected %+v", route, got[i], want[i])
			}
		}
	}
	// Without EventBridge, a record without an id still has one of its own.
	plain := `{"eventSource":"secretsmanager.amazonaws.com","eventName":"TagResource","eventType":"AwsApiCall","eventTime":"%s","awsRegion":"eu-west-1","recipientAccountId":"1","requestParameters":{"secretId":"a"}}`
	a, _ := DecodeAny(fmt.Appendf(nil, plain, "2026-06-01T10:00:00Z"), received)
	b, _ := DecodeAny(fmt.Appendf(nil, plain, "2026-06-01T11:00:00Z"), received)
	if len(a) != 1 || len(b) != 1 || a[0].ID == b[0].ID {
		t.Errorf("two records without ids are %v and %v", a, b)
	}
}

func TestDecodeAnyRefuses(t *testing.T) {
	good := label(paymentsARN, payments, "AWSCURRENT", rotation)
	deep := good
	for range 30 {
		deep = "[" + deep + "]"
	}
	for name, c := range map[string]struct {
		body string
		n    int
		says string
	}{
		"empty":               {"", 0, "the body is empty"},
		"text":                {"hello", 0, "not JSON"},
		"null":                {"null", 0, "JSON null"},
		"unknown":             {`{"hello":1}`, 0, "no envelope that is known"},
		"no array of records": {`{"Records":{}}`, 0, "Records is no array"},
		"no array of bodies":  {`{"Messages":"x"}`, 0, "Messages is no array"},
		"an empty body":       {inSQSAnswer(""), 0, "the body is empty"},
		"a body of text":      {inSQSAnswer("hello"), 0, "not JSON"},
		"no body":             {`{"Messages":[{"MessageId":"1"}]}`, 0, "no envelope that is known"},
		"another record":      {`{"Records":[{"eventVersion":"2.1","eventSource":"aws:s3","eventName":"ObjectCreated:Put","s3":{}}]}`, 0, "no envelope that is known"},
		"an SNS of no type":   {`{"Records":[{"EventSource":"aws:sns","Sns":7}]}`, 0, "expected Notification"},
		"another SNS":         {strings.Replace(inSNS(good), "Notification", "Something", 1), 0, "expected Notification"},
		"too deep":            {deep, 0, "more than 8 envelopes"},
		"one of two":          {`{"Records":[` + strings.TrimSuffix(strings.TrimPrefix(inSQSRecord(good), `{"Records":[`), "]}") + `,{}]}`, 1, "1 of 2"},
		"one of an array":     {"[" + inSNS(good) + "," + inSQSAnswer("[{},"+good+"]") + "]", 2, "1 of 3"},
	} {
		es, err := DecodeAny([]byte(c.body), received)
		noticetest.Sound(t, es, err, fault.Invalid)
		if err == nil || len(es) != c.n || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %d events, %v; expected %d and %q", name, len(es), err, c.n, c.says)
		}
	}
	for name, body := range map[string]string{
		"no records":   `{"Records":[]}`,
		"no messages":  `{"Messages":[]}`,
		"no events":    `[]`,
		"foreign":      inSQSRecord(`{"source":"aws.s3","detail-type":"Object Created","detail":{}}`),
		"confirmation": `{"Type":"SubscriptionConfirmation","TopicArn":"arn:aws:sns:eu-west-1:111122223333:secrets","Message":"You have chosen","Token":"1","SubscribeURL":"https://sns.eu-west-1.amazonaws.com/"}`,
	} {
		if es, err := DecodeAny([]byte(body), received); err != nil || len(es) != 0 {
			t.Errorf("%s: %v, %v; expected neither events nor an error", name, es, err)
		}
	}
}

// However envelopes lie in one another and notices beside one another, a change
// has one id, and nothing is lost.
func TestDecodeAnyOneChangeIsOneID(t *testing.T) {
	all, ways := notices(t), routes()
	names := slices.Sorted(maps.Keys(ways))
	var changed []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		if es, err := Decode(all[name], received); err == nil && len(es) == 1 && !strings.HasPrefix(name, "array") {
			changed = append(changed, name)
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		var bodies []string
		var want []string
		for _, name := range rapid.SliceOfN(rapid.SampledFrom(changed), 1, 4).Draw(rt, "notices") {
			es, err := Decode(all[name], received)
			if err != nil {
				rt.Fatal(err)
			}
			want = append(want, es[0].ID)
			body := string(all[name])
			for _, way := range rapid.SliceOfN(rapid.SampledFrom(names), 0, 2).Draw(rt, "ways") {
				body = ways[way](body)
			}
			bodies = append(bodies, body)
		}
		es, err := DecodeAny([]byte("["+strings.Join(bodies, ",")+"]"), received)
		noticetest.Sound(rt, es, err, fault.Invalid)
		var got []string
		for _, e := range es {
			got = append(got, e.ID)
		}
		if d := cmp.Diff(want, got); d != "" || err != nil {
			rt.Fatalf("%v (-sent +decoded):\n%s", err, d)
		}
	})
}
