package gcpfake

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
)

// AddProject makes one more project known.
func (s *Server) AddProject(id, number string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.projects[id], s.projects[number] = number, number
}

// FailNext fails the next requests of a method, one each, without effect. A
// nil error lets a request pass.
func (s *Server) FailNext(method string, errs ...error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[method] = append(s.faults[method], errs...)
}

// CorruptNext damages the payload of the next n accesses on its way.
func (s *Server) CorruptNext(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.corrupt = n
}

// Advance lets time pass.
func (s *Server) Advance(d time.Duration) {
	s.mu.Lock()
	s.skew += d
	s.sweep()
	s.mu.Unlock()
	s.flush()
}

// Calls returns the requests of the given methods, or all, in order.
func (s *Server) Calls(methods ...string) []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.calls), func(c Call) bool {
		return len(methods) > 0 && !slices.Contains(methods, c.Method)
	})
}

// ForgetCalls empties the record of requests.
func (s *Server) ForgetCalls() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = nil
}

// Create makes a secret as pb says, whose name gives project and location, with
// these values as its versions. A global one without a replication policy gets
// the automatic one.
func (s *Server) Create(pb *secretmanagerpb.Secret, values ...string) {
	s.t.Helper()
	s.mu.Lock()
	defer func() {
		s.mu.Unlock()
		s.flush()
	}()
	pb = proto.CloneOf(pb)
	m := nameForm.FindStringSubmatch(pb.GetName())
	if m == nil || m[3] == "" || m[4] != "" {
		s.t.Fatalf("gcpfake: %q is not the name of a secret", pb.GetName())
	}
	v := &service{s: s, location: m[2], byHand: true}
	if m[2] == "" && pb.GetReplication() == nil {
		pb.Replication = &secretmanagerpb.Replication{Replication: &secretmanagerpb.Replication_Automatic_{
			Automatic: &secretmanagerpb.Replication_Automatic{},
		}}
	}
	parent := name{project: m[1], location: m[2]}.parent()
	if _, err := v.CreateSecret(context.Background(), &secretmanagerpb.CreateSecretRequest{Parent: parent, SecretId: m[3], Secret: pb}); err != nil {
		s.t.Fatalf("gcpfake: %v", err)
	}
	sec := s.must(pb.GetName())
	for _, value := range values {
		s.add(sec, []byte(value))
	}
}

// Add adds a version by hand, and returns its number.
func (s *Server) Add(secretName, value string) string {
	s.t.Helper()
	s.mu.Lock()
	defer func() {
		s.mu.Unlock()
		s.flush()
	}()
	sec := s.must(secretName)
	s.add(sec, []byte(value))
	return strconv.Itoa(len(sec.versions))
}

// SetState moves a version by hand, whatever state it is in.
func (s *Server) SetState(secretName string, number int, to secretmanagerpb.SecretVersion_State) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.must(secretName).versions[number-1]
	v.pb.State, v.pb.Etag = to, s.etag()
}

// DropChecksum makes a version one that has no checksum stored.
func (s *Server) DropChecksum(secretName string, number int) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.must(secretName).versions[number-1].bare = true
}

// Change edits a secret by hand, without a look at the rules.
func (s *Server) Change(secretName string, f func(*secretmanagerpb.Secret)) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	sec := s.must(secretName)
	f(sec.pb)
	sec.pb.Etag = s.etag()
}

// Delete removes a secret by hand; one that is not there is none.
func (s *Server) Delete(secretName string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.secrets, s.canonical(secretName))
}

// Secret returns a copy of a secret, or nil.
func (s *Server) Secret(secretName string) *secretmanagerpb.Secret {
	s.mu.Lock()
	defer s.mu.Unlock()
	sec := s.secrets[s.canonical(secretName)]
	if sec == nil {
		return nil
	}
	return proto.CloneOf(sec.pb)
}

// Names returns the names of all secrets, sorted.
func (s *Server) Names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.names()
}

// A Version is what a test sees of one.
type Version struct {
	*secretmanagerpb.SecretVersion
	Value []byte // nil when it was destroyed
}

// Versions returns all versions of a secret, the oldest first, values too.
func (s *Server) Versions(secretName string) []Version {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Version
	for _, v := range s.must(secretName).versions {
		out = append(out, Version{proto.CloneOf(v.pb), slices.Clone(v.data)})
	}
	return out
}

// Newest returns the value that a plain reader of `latest` gets, and whether
// it gets one.
func (s *Server) Newest(secretName string) (value string, ok bool) {
	s.t.Helper()
	all := s.Versions(secretName)
	if len(all) == 0 || all[len(all)-1].GetState() != secretmanagerpb.SecretVersion_ENABLED {
		return "", false
	}
	return string(all[len(all)-1].Value), true
}

// canonical puts the project's number into a name.
func (s *Server) canonical(secretName string) string {
	m := nameForm.FindStringSubmatch(secretName)
	if m == nil {
		return secretName
	}
	number, ok := s.projects[m[1]]
	if !ok {
		return secretName
	}
	return name{project: number, location: m[2], secret: m[3]}.secretName()
}

// must finds a secret for a test.
func (s *Server) must(secretName string) *secret {
	s.t.Helper()
	sec := s.secrets[s.canonical(secretName)]
	if sec == nil {
		s.t.Fatalf("gcpfake: no secret %q", secretName)
	}
	return sec
}

// Codes counts the answers to the given methods, or all, by code.
func (s *Server) Codes(methods ...string) map[codes.Code]int {
	out := map[codes.Code]int{}
	for _, c := range s.Calls(methods...) {
		out[c.Code]++
	}
	return out
}

// SetLabels replaces the labels of a secret, as somebody does in the console.
func (s *Server) SetLabels(secretName string, labels map[string]string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	sec := s.must(secretName)
	next := proto.CloneOf(sec.pb)
	next.Labels = maps.Clone(labels)
	if err := checkLabels(next); err != nil {
		s.t.Fatalf("gcpfake: %v", err)
	}
	sec.pb.Labels, sec.pb.Etag = next.Labels, s.etag()
}
