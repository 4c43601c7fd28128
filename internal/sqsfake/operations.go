package sqsfake

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/keyturn/keyturn/internal/awsfake/awswire"
)

// maxMessage is the largest message, in bytes.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
const maxMessage = 1 << 20

// input holds the parameters of every operation.
type input struct {
	QueueURL                    string               `json:"QueueUrl"`
	QueueName                   string               `json:"QueueName"`
	MessageBody                 string               `json:"MessageBody"`
	MessageGroupID              string               `json:"MessageGroupId"`
	MessageDeduplicationID      string               `json:"MessageDeduplicationId"`
	MessageAttributes           map[string]attribute `json:"MessageAttributes"`
	ReceiptHandle               string               `json:"ReceiptHandle"`
	VisibilityTimeout           *int                 `json:"VisibilityTimeout"`
	WaitTimeSeconds             int                  `json:"WaitTimeSeconds"`
	MaxNumberOfMessages         *int                 `json:"MaxNumberOfMessages"`
	MessageSystemAttributeNames []string             `json:"MessageSystemAttributeNames"`
	MessageAttributeNames       []string             `json:"MessageAttributeNames"`
	Entries                     []entry              `json:"Entries"`
}

type entry struct {
	ID                     string               `json:"Id"`
	ReceiptHandle          string               `json:"ReceiptHandle"`
	VisibilityTimeout      *int                 `json:"VisibilityTimeout"`
	MessageBody            string               `json:"MessageBody"`
	MessageGroupID         string               `json:"MessageGroupId"`
	MessageDeduplicationID string               `json:"MessageDeduplicationId"`
	MessageAttributes      map[string]attribute `json:"MessageAttributes"`
}

type failed struct {
	ID          string `json:"Id"`
	Code        string `json:"Code"`
	Message     string `json:"Message"`
	SenderFault bool   `json:"SenderFault"`
}

type sent struct {
	ID               string `json:"Id,omitempty"`
	MessageID        string `json:"MessageId,omitempty"`
	MD5OfMessageBody string `json:"MD5OfMessageBody,omitempty"`
}

type batchResult struct {
	Successful []sent   `json:"Successful"`
	Failed     []failed `json:"Failed"`
}

type received struct {
	MessageID         string               `json:"MessageId"`
	ReceiptHandle     string               `json:"ReceiptHandle"`
	MD5OfBody         string               `json:"MD5OfBody"`
	Body              string               `json:"Body"`
	Attributes        map[string]string    `json:"Attributes,omitempty"`
	MessageAttributes map[string]attribute `json:"MessageAttributes,omitempty"`
}

// queue finds the queue of a request. The caller holds the lock.
func (s *Server) queue(url string) (*Queue, error) {
	name, ok := strings.CutPrefix(url, s.URL()+"/"+Account+"/")
	q := s.queues[name]
	if !ok || q == nil {
		return nil, fail("QueueDoesNotExist", "The specified queue does not exist.")
	}
	return q, nil
}

func (s *Server) send(url, body, group, dedup string, attributes map[string]attribute) (*message, error) {
	q, err := s.queue(url)
	switch {
	case err != nil:
		return nil, err
	case body == "" || len(body) > maxMessage:
		return nil, fail("InvalidParameterValue", "the body has %d bytes; expected 1 to %d", len(body), maxMessage)
	case q.fifo && group == "":
		return nil, fail("MissingParameter", "The request must contain the parameter MessageGroupId.")
	}
	return q.add(body, group, dedup, attributes), nil
}

func (s *Server) sendMessage(_ *http.Request, in *input) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.send(in.QueueURL, in.MessageBody, in.MessageGroupID, in.MessageDeduplicationID, in.MessageAttributes)
	if err != nil {
		return nil, err
	}
	return sent{MessageID: m.id, MD5OfMessageBody: m.sum}, nil
}

// batch applies do to each entry, and answers as batch operations do.
func (s *Server) batch(op string, in *input, do func(entry) (sent, error)) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.queue(in.QueueURL); err != nil {
		return nil, err
	}
	switch {
	case len(in.Entries) == 0:
		return nil, fail("EmptyBatchRequest", "There should be at least one entry in the request.")
	case len(in.Entries) > 10:
		return nil, fail("TooManyEntriesInBatchRequest", "Maximum number of entries per request are 10. You have sent %d.", len(in.Entries))
	}
	ids := map[string]bool{}
	for _, e := range in.Entries {
		if ids[e.ID] {
			return nil, fail("BatchEntryIdsNotDistinct", "Id %s repeated.", e.ID)
		}
		ids[e.ID] = true
	}
	out := batchResult{Successful: []sent{}, Failed: []failed{}}
	for _, e := range in.Entries {
		if f := s.entry(op, e.ID); f != nil {
			out.Failed = append(out.Failed, *f)
			continue
		}
		r, err := do(e)
		if err != nil {
			a := awswire.AsError(err)
			out.Failed = append(out.Failed, failed{e.ID, a.Code, a.Message, true})
			continue
		}
		r.ID = e.ID
		out.Successful = append(out.Successful, r)
	}
	return out, nil
}

func (s *Server) sendMessageBatch(_ *http.Request, in *input) (any, error) {
	return s.batch("SendMessageBatch", in, func(e entry) (sent, error) {
		m, err := s.send(in.QueueURL, e.MessageBody, e.MessageGroupID, e.MessageDeduplicationID, e.MessageAttributes)
		if err != nil {
			return sent{}, err
		}
		return sent{MessageID: m.id, MD5OfMessageBody: m.sum}, nil
	})
}

func (s *Server) deleteMessageBatch(_ *http.Request, in *input) (any, error) {
	return s.batch("DeleteMessageBatch", in, func(e entry) (sent, error) {
		q, err := s.queue(in.QueueURL)
		if err == nil {
			err = q.del(e.ReceiptHandle)
		}
		return sent{}, err
	})
}

func (s *Server) changeVisibilityBatch(_ *http.Request, in *input) (any, error) {
	return s.batch("ChangeMessageVisibilityBatch", in, func(e entry) (sent, error) {
		q, err := s.queue(in.QueueURL)
		switch {
		case err != nil:
			return sent{}, err
		case e.VisibilityTimeout == nil:
			return sent{}, fail("MissingParameter", "VisibilityTimeout is missing")
		}
		return sent{}, q.change(e.ReceiptHandle, *e.VisibilityTimeout)
	})
}

func (s *Server) deleteMessage(_ *http.Request, in *input) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(in.QueueURL)
	if err == nil {
		err = q.del(in.ReceiptHandle)
	}
	return struct{}{}, err
}

func (s *Server) changeVisibility(_ *http.Request, in *input) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(in.QueueURL)
	if err == nil && in.VisibilityTimeout == nil {
		err = fail("MissingParameter", "VisibilityTimeout is missing")
	}
	if err == nil {
		err = q.change(in.ReceiptHandle, *in.VisibilityTimeout)
	}
	return struct{}{}, err
}

func (s *Server) getQueueURL(_ *http.Request, in *input) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.queues[in.QueueName]
	if q == nil {
		return nil, fail("QueueDoesNotExist", "The specified queue does not exist.")
	}
	return map[string]string{"QueueUrl": q.URL()}, nil
}

func (s *Server) getQueueAttributes(_ *http.Request, in *input) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q, err := s.queue(in.QueueURL)
	if err != nil {
		return nil, err
	}
	return map[string]any{"Attributes": map[string]string{
		"VisibilityTimeout":           strconv.Itoa(q.spec.Visibility),
		"ApproximateNumberOfMessages": strconv.Itoa(len(q.messages)),
	}}, nil
}

// receiveMessage polls, for as long as WaitTimeSeconds says if there is
// nothing.
func (s *Server) receiveMessage(r *http.Request, in *input) (any, error) {
	n, visibility := 1, 0
	if in.MaxNumberOfMessages != nil {
		n = *in.MaxNumberOfMessages
	}
	if n < 1 || n > 10 || in.WaitTimeSeconds < 0 || in.WaitTimeSeconds > 20 {
		return nil, fail("InvalidParameterValue", "MaxNumberOfMessages %d, WaitTimeSeconds %d; expected 1 to 10 and 0 to 20", n, in.WaitTimeSeconds)
	}
	deadline := time.Now().Add(time.Duration(in.WaitTimeSeconds) * s.second)
	for {
		s.mu.Lock()
		q, err := s.queue(in.QueueURL)
		if err != nil {
			s.mu.Unlock()
			return nil, err
		}
		if visibility = q.spec.Visibility; in.VisibilityTimeout != nil {
			visibility = *in.VisibilityTimeout
		}
		if r.Context().Err() != nil {
			s.mu.Unlock()
			return nil, r.Context().Err() // the client hung up
		}
		ms, next := q.receive(n, visibility)
		out := make([]received, len(ms))
		for i, m := range ms {
			out[i] = m.public(in)
		}
		changed := q.changed
		s.mu.Unlock()
		wait := time.Until(deadline)
		if len(ms) > 0 || wait <= 0 {
			return map[string]any{"Messages": out}, nil
		}
		if d := time.Until(next); !next.IsZero() && d < wait {
			wait = max(d, time.Millisecond)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-changed:
		case <-r.Context().Done():
		case <-s.ended:
			return nil, fail("ServiceUnavailable", "sqsfake has ended")
		}
		t.Stop()
	}
}

// public is m as a client gets it: only what it asked for.
func (m *message) public(in *input) received {
	r := received{MessageID: m.id, ReceiptHandle: m.handle, MD5OfBody: m.sum, Body: m.body, Attributes: map[string]string{}}
	system := map[string]string{
		"ApproximateReceiveCount": strconv.Itoa(m.receives), "SentTimestamp": strconv.FormatInt(m.sent.UnixMilli(), 10),
		"ApproximateFirstReceiveTimestamp": strconv.FormatInt(m.first.UnixMilli(), 10),
	}
	if m.group != "" {
		system["MessageGroupId"], system["SequenceNumber"] = m.group, strconv.Itoa(m.sequence)
	}
	if m.xray != "" {
		system["AWSTraceHeader"] = m.xray
	}
	for k, v := range system {
		if slices.Contains(in.MessageSystemAttributeNames, k) || slices.Contains(in.MessageSystemAttributeNames, "All") {
			r.Attributes[k] = v
		}
	}
	for k, v := range m.attributes {
		if slices.Contains(in.MessageAttributeNames, k) || slices.Contains(in.MessageAttributeNames, "All") {
			if r.MessageAttributes == nil {
				r.MessageAttributes = map[string]attribute{}
			}
			r.MessageAttributes[k] = v
		}
	}
	return r
}
