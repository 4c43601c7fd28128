package gcpfake

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// A Notice is one message as the service publishes it to a topic of a secret.
// https://cloud.google.com/secret-manager/docs/event-notifications
type Notice struct {
	Topic       string // projects/P/topics/T
	MessageID   string
	PublishTime time.Time
	Attributes  map[string]string
	Data        []byte // JSON of the secret or the version; nil for TOPIC_CONFIGURED
}

// pacific is the offset in which the service writes the timestamp attribute.
var pacific = time.FixedZone("", -7*60*60)

// OnNotice makes f hear every notice from now on, one at a time, each before
// the request that caused it is answered. f must not call the Server.
func (s *Server) OnNotice(f func(Notice)) {
	s.deliver.Lock()
	defer s.deliver.Unlock()
	s.onNotice = f
}

// Notices returns what was published so far: of the event types given, or all.
func (s *Server) Notices(eventTypes ...string) []Notice {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.history), func(n Notice) bool {
		return len(eventTypes) > 0 && !slices.Contains(eventTypes, n.Attributes["eventType"])
	})
}

// Rotate sends SECRET_ROTATE, as the service does when the time has come. The
// next rotation time is then already the one after.
func (s *Server) Rotate(secretName string) {
	s.t.Helper()
	s.mu.Lock()
	sec := s.must(secretName)
	if r := sec.pb.GetRotation(); r.GetNextRotationTime() != nil {
		if r.GetRotationPeriod() != nil {
			r.NextRotationTime = timestamppb.New(r.GetNextRotationTime().AsTime().Add(r.GetRotationPeriod().AsDuration()))
		} else {
			r.NextRotationTime = nil
		}
		sec.pb.Etag = s.etag()
	}
	s.notify(sec, nil, "SECRET_ROTATE")
	s.mu.Unlock()
	s.flush()
}

// notify publishes to every topic of a secret. more is pairs of attributes.
func (s *Server) notify(sec *secret, v *version, eventType string, more ...string) {
	var about proto.Message = sec.pb
	attributes := map[string]string{
		"eventType": eventType, "dataFormat": "JSON_API_V1", "secretId": sec.pb.GetName(),
		"timestamp": s.now().In(pacific).Format("2006-01-02T15:04:05.999999-07:00"),
	}
	if v != nil {
		about = v.pb
		attributes["versionId"] = v.pb.GetName()
	}
	for i := 0; i+1 < len(more); i += 2 {
		attributes[more[i]] = more[i+1]
	}
	raw, err := protojson.Marshal(about)
	if err != nil {
		panic(fmt.Sprintf("gcpfake: %v", err))
	}
	var data bytes.Buffer // protojson varies its spaces
	if err := json.Compact(&data, raw); err != nil {
		panic(fmt.Sprintf("gcpfake: %v", err))
	}
	for _, topic := range sec.pb.GetTopics() {
		own := map[string]string{}
		for k, v := range attributes {
			own[k] = v
		}
		s.publish(topic.GetName(), own, data.Bytes())
	}
}

func (s *Server) publish(topic string, attributes map[string]string, data []byte) {
	s.messages++
	s.out = append(s.out, Notice{
		Topic: topic, MessageID: strconv.Itoa(2070443601311540 + s.messages), PublishTime: s.now(),
		Attributes: attributes, Data: slices.Clone(data),
	})
}

// flush hands out what was published, outside the lock.
func (s *Server) flush() {
	s.deliver.Lock()
	defer s.deliver.Unlock()
	s.mu.Lock()
	out := s.out
	s.out = nil
	s.history = append(s.history, out...)
	s.mu.Unlock()
	if s.onNotice != nil {
		for _, n := range out {
			s.onNotice(n)
		}
	}
}
