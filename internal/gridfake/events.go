package gridfake

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"
)

// maxLocked is how long an event can be kept locked by renewing, in seconds.
const maxLocked = 3600

// An event is one CloudEvent in the subscription.
type event struct {
	raw        json.RawMessage
	deliveries int
	token      string    // of the lock, "" for none
	locked     time.Time // until when
	since      time.Time // when this lock was taken
	available  time.Time // after a delayed release
}

// wake has waiting requests look again. The caller holds the lock.
func (s *Server) wake() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// ready reports whether e can be delivered, or else when.
func (e *event) ready(now time.Time) (bool, time.Time) {
	switch {
	case e.token != "" && now.Before(e.locked):
		return false, e.locked
	case now.Before(e.available):
		return false, e.available
	}
	return true, time.Time{}
}

type brokerProperties struct {
	LockToken     string `json:"lockToken"`
	DeliveryCount int    `json:"deliveryCount"`
}

type detail struct {
	BrokerProperties brokerProperties `json:"brokerProperties"`
	Event            json.RawMessage  `json:"event"`
}

func number(r *http.Request, name string, def, least, most int) (int, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return def, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < least || n > most {
		return 0, fail(http.StatusBadRequest, "BadRequest", "%s is %q; expected %d to %d", name, text, least, most)
	}
	return n, nil
}

// receive waits for events and locks them.
func (s *Server) receive(r *http.Request) (any, error) {
	n, err := number(r, "maxEvents", 1, 1, maxBatch)
	if err != nil {
		return nil, err
	}
	wait, err := number(r, "maxWaitTime", 60, 10, 120)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(time.Duration(wait) * s.o.Second)
	for {
		s.mu.Lock()
		if r.Context().Err() != nil {
			s.mu.Unlock()
			return nil, r.Context().Err() // the client hung up
		}
		out, next := s.take(n)
		changed := s.changed
		s.mu.Unlock()
		left := time.Until(deadline)
		if len(out) > 0 || left <= 0 {
			return map[string]any{"value": out}, nil
		}
		if d := time.Until(next); !next.IsZero() && d < left {
			left = max(d, time.Millisecond)
		}
		t := time.NewTimer(left)
		select {
		case <-t.C:
		case <-changed:
		case <-r.Context().Done():
		case <-s.ended:
			return nil, fail(http.StatusServiceUnavailable, "ServiceUnavailable", "gridfake has ended")
		}
		t.Stop()
	}
}

func (s *Server) take(n int) (out []detail, next time.Time) {
	now := time.Now()
	out = []detail{}
	kept := s.events[:0]
	for _, e := range s.events {
		ok, at := e.ready(now)
		switch {
		case !ok:
			if next.IsZero() || at.Before(next) {
				next = at
			}
		case e.deliveries >= s.o.MaxDeliveryCount:
			s.dead = append(s.dead, string(e.raw))
			continue
		case len(out) < n:
			s.serial++
			e.deliveries++
			e.token, e.since = fmt.Sprintf("CiYKJDUw-%d", s.serial), now
			e.locked = now.Add(s.Lock())
			s.locks[e.token] = e
			out = append(out, detail{brokerProperties{e.token, e.deliveries}, e.raw})
		}
		kept = append(kept, e)
	}
	clear(s.events[len(kept):])
	s.events = kept
	return out, next
}

type failure struct {
	LockToken string            `json:"lockToken"`
	Error     map[string]string `json:"error"`
}

// settle acknowledges, releases, rejects, or renews. The answer is 200 even if
// none of the tokens could be settled.
func (s *Server) settle(op string, r *http.Request, body []byte) (any, error) {
	var in struct {
		LockTokens []string `json:"lockTokens"`
	}
	if err := json.Unmarshal(body, &in); err != nil || len(in.LockTokens) == 0 || len(in.LockTokens) > maxBatch {
		return nil, fail(http.StatusBadRequest, "BadRequest", "found %d lock tokens; expected 1 to %d", len(in.LockTokens), maxBatch)
	}
	delay := 0
	if text := r.URL.Query().Get("releaseDelayInSeconds"); op == "release" && text != "" {
		if !slices.Contains([]string{"0", "10", "60", "600", "3600"}, text) {
			return nil, fail(http.StatusBadRequest, "BadRequest", "releaseDelayInSeconds is %q; expected 0, 10, 60, 600 or 3600", text)
		}
		delay, _ = strconv.Atoi(text)
	}
	if !slices.Contains([]string{"acknowledge", "release", "reject", "renewLock"}, op) {
		return nil, fail(http.StatusNotFound, "NotFound", "%q is not an operation of gridfake", op)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := struct {
		Failed    []failure `json:"failedLockTokens"`
		Succeeded []string  `json:"succeededLockTokens"`
	}{[]failure{}, []string{}}
	for _, token := range in.LockTokens {
		if code := s.fault(op); code != "" {
			out.Failed = append(out.Failed, failure{token, map[string]string{"code": code, "message": "gridfake was told to fail it"}})
			continue
		}
		e := s.locks[token]
		if e == nil || e.token != token || time.Now().After(e.locked) {
			out.Failed = append(out.Failed, failure{token, map[string]string{"code": "TokenLost", "message": "The lock token is lost."}})
			continue
		}
		s.apply(op, e, delay)
		out.Succeeded = append(out.Succeeded, token)
	}
	s.wake()
	return out, nil
}

func (s *Server) apply(op string, e *event, delay int) {
	switch op {
	case "renewLock":
		e.locked = time.Now().Add(s.Lock())
		if most := e.since.Add(maxLocked * s.o.Second); e.locked.After(most) {
			e.locked = most
		}
		return
	case "release":
		e.available = time.Now().Add(time.Duration(delay) * s.o.Second)
	case "reject":
		s.dead = append(s.dead, string(e.raw))
		s.events = slices.DeleteFunc(s.events, func(x *event) bool { return x == e })
	case "acknowledge":
		s.settled++
		s.events = slices.DeleteFunc(s.events, func(x *event) bool { return x == e })
	}
	delete(s.locks, e.token)
	e.token = ""
}
