package lambdanotify

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/notifier"
)

// The services that call with records, as the first one says.
const (
	fromSQS = "aws:sqs"
	fromSNS = "aws:sns"
)

// records are what a payload holds beside a plain event. Keys of JSON are read
// without regard to case, which SQS and SNS differ in.
type records struct {
	from string
	all  []record
}

// A record is a message of either service.
// https://docs.aws.amazon.com/lambda/latest/dg/with-sqs.html,
// https://docs.aws.amazon.com/lambda/latest/dg/with-sns.html
type record struct {
	EventSource string `json:"eventSource"`

	// Of SQS.
	MessageID  string `json:"messageId"`
	Body       string `json:"body"`
	Attributes struct {
		ReceiveCount string `json:"ApproximateReceiveCount"`
		Sent         string `json:"SentTimestamp"`
		Group        string `json:"MessageGroupId"`
		Trace        string `json:"AWSTraceHeader"`
	} `json:"attributes"`
	MessageAttributes map[string]attribute `json:"messageAttributes"`
	Queue             string               `json:"eventSourceARN"`

	// Of SNS.
	SNS struct {
		MessageID         string               `json:"MessageId"`
		Message           string               `json:"Message"`
		MessageAttributes map[string]attribute `json:"MessageAttributes"`
	} `json:"Sns"`
}

// An attribute is one of either service.
type attribute struct {
	StringValue string `json:"stringValue"`
	Value       string `json:"Value"`
}

// parse tells what payload is. What is not clearly records of one of the two
// services is one notice.
func parse(payload []byte) records {
	var p struct{ Records []record }
	if json.Unmarshal(payload, &p) != nil || len(p.Records) == 0 {
		return records{}
	}
	from := p.Records[0].EventSource
	for _, r := range p.Records {
		if r.EventSource != from || from == fromSQS && r.MessageID == "" {
			return records{}
		}
	}
	return records{from, p.Records}
}

// A message is a delivery with what SQS needs to hear of it.
type message struct {
	notifier.Delivery
	// group keeps an order, where it is not "".
	group string
}

func (rs records) sqs(source, trace string, received time.Time) []message {
	out := make([]message, len(rs.all))
	for i := range rs.all {
		r := &rs.all[i]
		m := message{Delivery: notifier.Delivery{Source: source, ID: r.MessageID, Body: []byte(r.Body), Received: received}}
		if n, err := strconv.Atoi(r.Attributes.ReceiveCount); err == nil && n > 0 {
			m.Attempt = n
		}
		if ms, err := strconv.ParseInt(r.Attributes.Sent, 10, 64); err == nil {
			m.Attributes = map[string]string{"senttimestamp": time.UnixMilli(ms).UTC().Format(time.RFC3339Nano)}
		}
		carry(&m.Delivery, r.MessageAttributes["traceparent"].StringValue, fromXRay(r.Attributes.Trace), trace)
		// A group id of a standard queue is for fairness, not for order.
		if strings.HasSuffix(r.Queue, ".fifo") {
			m.group = r.Attributes.Group
		}
		out[i] = m
	}
	return out
}

func (rs records) sns(source, trace string, received time.Time) []notifier.Delivery {
	out := make([]notifier.Delivery, len(rs.all))
	for i := range rs.all {
		s := &rs.all[i].SNS
		out[i] = notifier.Delivery{Source: source, ID: s.MessageID, Body: []byte(s.Message), Received: received}
		carry(&out[i], s.MessageAttributes["traceparent"].Value, trace)
	}
	return out
}

// carry gives d the first trace parent that there is.
func carry(d *notifier.Delivery, traces ...string) {
	for _, t := range traces {
		if t == "" {
			continue
		}
		if d.Attributes == nil {
			d.Attributes = map[string]string{}
		}
		d.Attributes["traceparent"] = t
		return
	}
}

// traceParent is that of the invocation, or "".
func traceParent(ctx context.Context) string {
	h, _ := ctx.Value("x-amzn-trace-id").(string) // as package lambda puts it there
	return fromXRay(h)
}

// fromXRay turns X-Ray's header into a trace parent: the same trace and span, by
// another spelling. Without a Parent there is no span to be a child of, and it
// is "". What it returns is checked by the notifier.
// https://docs.aws.amazon.com/xray/latest/devguide/xray-concepts.html#xray-concepts-tracingheader
func fromXRay(header string) string {
	var root, parent string
	sampled := "00"
	for kv := range strings.SplitSeq(header, ";") {
		switch k, v, _ := strings.Cut(strings.TrimSpace(kv), "="); k {
		case "Root":
			root = v
		case "Parent":
			parent = v
		case "Sampled":
			if v == "1" {
				sampled = "01"
			}
		}
	}
	version, rest, _ := strings.Cut(root, "-")
	seconds, unique, ok := strings.Cut(rest, "-")
	if version != "1" || !ok || len(seconds) != 8 || len(unique) != 24 || len(parent) != 16 {
		return ""
	}
	return "00-" + strings.ToLower(seconds+unique) + "-" + strings.ToLower(parent) + "-" + sampled
}
