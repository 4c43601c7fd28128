package gridfake

import (
	"encoding/json"
	"time"
)

// Publish puts an event into the subscription, as it is: the service checks
// that it is a CloudEvent, and this package leaves that to the test.
func (s *Server) Publish(raw string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.events = append(s.events, &event{raw: json.RawMessage(raw)})
	s.wake()
}

// Left is how many events are in the subscription, locked or not.
func (s *Server) Left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.events)
}

// Locked is how many events are locked.
func (s *Server) Locked() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		if e.token != "" && time.Now().Before(e.locked) {
			n++
		}
	}
	return n
}

// Deliveries is the highest delivery count of an event in the subscription.
func (s *Server) Deliveries() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		n = max(n, e.deliveries)
	}
	return n
}

// Dead returns the events that were rejected or delivered too often.
func (s *Server) Dead() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.dead...)
}

// Calls returns how many requests of op (receive, acknowledge, release,
// reject, renewLock) came in with a valid token.
func (s *Server) Calls(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[op]
}

// Down cuts every connection without an answer until it is switched off.
func (s *Server) Down(on bool) {
	s.mu.Lock()
	s.down = on
	s.mu.Unlock()
	if on {
		s.http.CloseClientConnections()
	}
}

// Refuse answers every request of op, or all for "", with an HTTP status; 0
// ends that.
func (s *Server) Refuse(op string, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse[op] = status
}

// RevokeTokens refuses the tokens issued so far, and while gone is true no
// others are issued.
func (s *Server) RevokeTokens(gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
	s.noAuth = gone
}

// FailTokens fails the next n lock tokens of op, in answers that are 200.
func (s *Server) FailTokens(op string, n int, code string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tokenF[op] = &tokenFault{n, code}
}

// fault takes the next failure of a token of op. The caller holds the lock.
func (s *Server) fault(op string) string {
	f := s.tokenF[op]
	if f == nil || f.next == 0 {
		return ""
	}
	f.next--
	return f.code
}
