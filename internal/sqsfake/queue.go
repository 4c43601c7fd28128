package sqsfake

import (
	"crypto/md5" //nolint:gosec // the service's checksum
	"encoding/hex"
	"slices"
	"strings"
	"time"
)

// A Queue is one queue. It is safe for concurrent use; its state is under the
// lock of its Server.
type Queue struct {
	s    *Server
	name string
	spec Spec
	fifo bool

	messages []*message // oldest first
	handles  map[string]*message
	dedup    map[string]*message
	deleted  int
	changed  chan struct{} // closed when something may have become visible
}

type message struct {
	id, body, sum, group, xray string
	attributes                 map[string]attribute
	sent, first                time.Time
	visible                    time.Time // when it is, if that is ahead
	receives, sequence         int
	handle                     string // the last receipt handle
	gone                       bool
}

type attribute struct {
	DataType    string `json:"DataType"`
	StringValue string `json:"StringValue,omitempty"`
	BinaryValue []byte `json:"BinaryValue,omitempty"`
}

func newQueue(s *Server, name string, spec Spec) *Queue {
	return &Queue{
		s: s, name: name, spec: spec, fifo: strings.HasSuffix(name, ".fifo"),
		handles: map[string]*message{}, dedup: map[string]*message{}, changed: make(chan struct{}),
	}
}

func (q *Queue) add(body, group, dedup string, attributes map[string]attribute) *message {
	if m := q.dedup[dedup]; dedup != "" && m != nil && time.Since(m.sent) < 5*60*q.s.second {
		return m
	}
	sum := md5.Sum([]byte(body)) //nolint:gosec // the service's checksum
	m := &message{
		id: q.s.name("msg"), body: body, sum: hex.EncodeToString(sum[:]), group: group,
		attributes: attributes, sent: time.Now(), sequence: q.s.serial,
	}
	if dedup != "" {
		q.dedup[dedup] = m
	}
	q.messages = append(q.messages, m)
	q.wake()
	return m
}

// wake has long polls look again.
func (q *Queue) wake() {
	close(q.changed)
	q.changed = make(chan struct{})
}

// remove takes m out of the queue.
func (q *Queue) remove(m *message) {
	m.gone = true
	q.messages = slices.DeleteFunc(q.messages, func(x *message) bool { return x == m })
	if q.fifo {
		q.wake() // the rest of its group
	}
}

// receive takes up to n visible messages, and returns when to look again if
// there is none. A standard queue keeps no order; that this one gives out the
// oldest first is this package's choice. A FIFO queue gives out none of a group
// of which one is in flight, but several of one group at a time.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/FIFO-queues-understanding-logic.html
func (q *Queue) receive(n, visibility int) (out []*message, next time.Time) {
	now := time.Now()
	blocked := map[string]bool{}
	if q.fifo {
		for _, m := range q.messages {
			if now.Before(m.visible) {
				blocked[m.group] = true
			}
		}
	}
	var dead []*message
	for _, m := range q.messages {
		if len(out) == n {
			break
		}
		if now.Before(m.visible) {
			if next.IsZero() || m.visible.Before(next) {
				next = m.visible
			}
			continue
		}
		if blocked[m.group] {
			continue
		}
		if dl := q.spec.DeadLetters; dl != nil && m.receives >= q.spec.MaxReceiveCount {
			dead = append(dead, m)
			continue
		}
		m.receives++
		if m.first.IsZero() {
			m.first = now
		}
		m.visible = now.Add(time.Duration(visibility) * q.s.second)
		m.handle = q.s.name("handle")
		q.handles[m.handle] = m
		out = append(out, m)
	}
	for _, m := range dead {
		q.messages = slices.DeleteFunc(q.messages, func(x *message) bool { return x == m })
		dl := q.spec.DeadLetters
		dl.messages = append(dl.messages, m)
		dl.wake()
	}
	return out, next
}

// lookup finds the message of a receipt handle. stale says that the message
// was received again since, or that it is not in flight any more.
func (q *Queue) lookup(handle string) (m *message, stale bool, err error) {
	m = q.handles[handle]
	if m == nil {
		return nil, false, fail("ReceiptHandleIsInvalid", "The input receipt handle is invalid.")
	}
	return m, m.handle != handle, nil
}

// del deletes by handle. On a standard queue a stale handle is answered with a
// success that deletes nothing; a FIFO queue refuses one whose time is over.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html
func (q *Queue) del(handle string) error {
	m, stale, err := q.lookup(handle)
	switch {
	case err != nil:
		return err
	case m.gone:
		return nil
	case q.fifo && (stale || time.Now().After(m.visible)):
		return fail("InvalidParameterValue", "Value for parameter ReceiptHandle is invalid. Reason: The receipt handle has expired.")
	case stale:
		return nil
	}
	q.deleted++
	q.remove(m)
	return nil
}

// change sets the visibility timeout of a message in flight.
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html
func (q *Queue) change(handle string, seconds int) error {
	if seconds < 0 || seconds > 43200 {
		return fail("InvalidParameterValue", "VisibilityTimeout %d; expected 0 to 43200", seconds)
	}
	m, stale, err := q.lookup(handle)
	switch {
	case err != nil:
		return err
	case m.gone || stale:
		return fail("InvalidParameterValue", "Value for parameter ReceiptHandle is invalid. Reason: Message does not exist or is not available for visibility timeout change.")
	case time.Now().After(m.visible):
		return fail("MessageNotInflight", "The specified message isn't in flight.")
	}
	m.visible = time.Now().Add(time.Duration(seconds) * q.s.second)
	if seconds == 0 {
		m.visible = time.Time{}
	}
	q.wake()
	return nil
}
