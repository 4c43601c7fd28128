package awsfake

import (
	"encoding/json"
	"time"
)

// An Event is an entry that PutEvents took, or the service's own.
type Event struct {
	ID, Bus, Source, DetailType string
	Detail                      json.RawMessage
	Resources                   []string
	Time                        time.Time // zero when the client gave none
}

// An entry as the client sends it.
type entry struct {
	EventBusName, Source, DetailType, Detail string
	Resources                                []string
	Time                                     *float64
}

// putEvents takes entries one by one, as the service does: the call succeeds
// though an entry failed.
// https://docs.aws.amazon.com/eventbridge/latest/APIReference/API_PutEvents.html
func (s *Server) putEvents(r *request) (any, error) {
	if n := len(r.Entries); n < 1 || n > 10 {
		return nil, fail("ValidationException", "1 validation error detected: expected 1 to 10 entries, found %d", n)
	}
	type result struct {
		EventId      string `json:",omitempty"` //nolint:revive // spelled as on the wire
		ErrorCode    string `json:",omitempty"`
		ErrorMessage string `json:",omitempty"`
	}
	results, failed := make([]result, 0, len(r.Entries)), 0
	for _, e := range r.Entries {
		code := e.problem()
		if code == "" && len(s.refuse) > 0 {
			code, s.refuse = s.refuse[0], s.refuse[1:]
		}
		if code != "" {
			failed++
			results = append(results, result{ErrorCode: code, ErrorMessage: "awsfake refused the entry"})
			continue
		}
		bus := e.EventBusName
		if bus == "" {
			bus = "default"
		}
		ev := Event{ID: uuid(), Bus: bus, Source: e.Source, DetailType: e.DetailType, Detail: json.RawMessage(e.Detail), Resources: e.Resources}
		if e.Time != nil {
			ev.Time = time.UnixMilli(int64(*e.Time * 1000)).UTC()
		}
		s.events[bus] = append(s.events[bus], ev)
		results = append(results, result{EventId: ev.ID})
	}
	return map[string]any{"FailedEntryCount": failed, "Entries": results}, nil
}

// announce puts on the default bus what the service does when a label goes to
// another version: every label counts but AWSPENDING and AWSPREVIOUS. A label
// that is only taken away is not told of. That creation tells of AWSCURRENT is
// not documented.
// https://docs.aws.amazon.com/secretsmanager/latest/userguide/monitoring-eventbridge.html
func (s *Server) announce(sec *secret, label, id string) {
	if label == pending || label == previous {
		return
	}
	detail, _ := json.Marshal(map[string]string{"name": sec.name, "labelUpdated": label, "versionId": id}) // strings always encode
	s.events["default"] = append(s.events["default"], Event{
		ID: uuid(), Bus: "default", Source: "aws.secretsmanager", DetailType: "Secret Label Updated",
		Detail: detail, Resources: []string{sec.arn}, Time: time.Now().UTC().Truncate(time.Second),
	})
}

// problem is the code with which the service refuses e, or "".
func (e *entry) problem() string {
	var object map[string]any
	switch {
	case e.Source == "" || e.DetailType == "" || e.Detail == "":
		return "InvalidArgument"
	case json.Unmarshal([]byte(e.Detail), &object) != nil:
		return "MalformedDetail"
	case len(e.Source) >= 4 && e.Source[:4] == "aws.":
		return "NotAuthorizedForSourceException"
	}
	return ""
}

// Events returns what the bus with the given name or ARN has taken, in order.
func (s *Server) Events(bus string) []Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Event(nil), s.events[bus]...)
}

// RefuseEntries makes PutEvents refuse the next entries with these codes, one
// each: ThrottlingException, InternalFailure and so on.
func (s *Server) RefuseEntries(codes ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = append(s.refuse, codes...)
}
