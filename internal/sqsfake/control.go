package sqsfake

import (
	"fmt"
	"time"
)

// Down cuts every connection without an answer, as a network that is away
// does, until it is switched off.
func (s *Server) Down(on bool) {
	s.mu.Lock()
	s.down = on
	s.mu.Unlock()
	if on {
		s.http.CloseClientConnections()
	}
}

// FailNext fails the next requests of op with these codes, one each, without
// effect. A client that retries uses several up.
func (s *Server) FailNext(op string, codes ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[op] = append(s.faults[op], codes...)
}

// Refuse fails every request of op, or of all for "", with code. An empty code
// ends that.
func (s *Server) Refuse(op, code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse[op] = code
}

// FailEntries fails the next n entries of the batch operation op, in answers
// that are a success as a whole. sender says whose fault it is to be.
func (s *Server) FailEntries(op string, n int, code string, sender bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries[op] = &entryFault{n, code, sender}
}

// Calls returns how many requests of op came in with a valid signature.
func (s *Server) Calls(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[op]
}

// injected counts a request of op, and takes its next failure.
func (s *Server) injected(op string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls[op]++
	for _, o := range []string{op, ""} {
		if code := s.refuse[o]; code != "" {
			return fail(code, "sqsfake was told to refuse %s", op)
		}
	}
	codes := s.faults[op]
	if len(codes) == 0 {
		return nil
	}
	s.faults[op] = codes[1:]
	if codes[0] == "" {
		return nil
	}
	return fail(codes[0], "sqsfake was told to fail %s", op)
}

// entry takes the next failure of an entry of op. The caller holds the lock.
func (s *Server) entry(op, id string) *failed {
	f := s.entries[op]
	if f == nil || f.next == 0 {
		return nil
	}
	f.next--
	return &failed{ID: id, Code: f.code, Message: "sqsfake was told to fail it", SenderFault: f.sender}
}

// id makes a name that is not used yet.
func (s *Server) id(kind string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.name(kind)
}

func (s *Server) name(kind string) string {
	s.serial++
	return fmt.Sprintf("%s-%08d-0000-4000-8000-000000000000", kind, s.serial)
}

// Spec is what a queue is made with.
type Spec struct {
	// Visibility is in seconds of the service; 30 by default.
	Visibility int
	// DeadLetters takes what was received MaxReceiveCount times.
	DeadLetters     *Queue
	MaxReceiveCount int
}

// Queue makes a queue. One whose name ends in ".fifo" is a FIFO queue.
func (s *Server) Queue(name string, spec Spec) *Queue {
	s.t.Helper()
	if spec.Visibility == 0 {
		spec.Visibility = 30
	}
	q := newQueue(s, name, spec)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queues[name] != nil {
		s.t.Fatalf("sqsfake: queue %q exists", name)
	}
	s.queues[name] = q
	return q
}

// URL is the queue's URL.
func (q *Queue) URL() string { return q.s.URL() + "/" + Account + "/" + q.name }

// Remove deletes the queue, or brings it back with what was in it.
func (q *Queue) Remove(gone bool) {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	if gone {
		delete(q.s.queues, q.name)
	} else {
		q.s.queues[q.name] = q
	}
}

// Send puts a message into the queue, and returns its id. group is for FIFO
// queues only.
func (q *Queue) Send(body, group string) string {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	return q.add(body, group, "", nil).id
}

// SendTraced is Send with a message attribute traceparent and X-Ray's header.
func (q *Queue) SendTraced(body, traceparent, xray string) string {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	m := q.add(body, "", "", map[string]attribute{"traceparent": {DataType: "String", StringValue: traceparent}})
	m.xray = xray
	return m.id
}

// Depth returns how many messages can be received, and how many are in flight.
func (q *Queue) Depth() (visible, inFlight int) {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	now := time.Now()
	for _, m := range q.messages {
		if now.Before(m.visible) {
			inFlight++
		} else {
			visible++
		}
	}
	return visible, inFlight
}

// Bodies returns what is in the queue, oldest first.
func (q *Queue) Bodies() []string {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	var out []string
	for _, m := range q.messages {
		out = append(out, m.body)
	}
	return out
}

// Deleted returns how many messages were deleted.
func (q *Queue) Deleted() int {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	return q.deleted
}

// Until returns in how much time a message becomes visible, 0 if it is, and
// how often it was received. ok is false if it is not in the queue.
func (q *Queue) Until(id string) (d time.Duration, receives int, ok bool) {
	q.s.mu.Lock()
	defer q.s.mu.Unlock()
	for _, m := range q.messages {
		if m.id == id {
			return max(0, time.Until(m.visible)), m.receives, true
		}
	}
	return 0, 0, false
}
