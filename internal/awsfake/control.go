package awsfake

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/keyturn/keyturn/ref"
)

// A Call is one request that came through with a valid signature.
type Call struct {
	Op string
	// Params are the members as the client sent them, less the values and the
	// details of events. A RotationToken is kept: a fake one opens nothing.
	Params map[string]any
	Write  bool   // the operation is one that changes something
	Code   string // of the error that was answered, or ""
}

// params decodes a body for the record.
func params(body []byte) map[string]any {
	var m map[string]any
	if err := json.Unmarshal(body, &m); err != nil {
		return nil
	}
	for _, secret := range []string{"SecretString", "SecretBinary"} {
		if _, ok := m[secret]; ok {
			m[secret] = "[redacted]"
		}
	}
	delete(m, "Entries")
	return m
}

// Calls returns the requests of the given operations, or all, in order.
func (s *Server) Calls(ops ...string) []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Call
	for _, c := range s.calls {
		if len(ops) == 0 || slices.Contains(ops, c.Op) {
			out = append(out, c)
		}
	}
	return out
}

// Writes returns the requests that may have changed a secret.
func (s *Server) Writes() []Call {
	return slices.DeleteFunc(s.Calls(), func(c Call) bool { return !c.Write || c.Op == "PutEvents" })
}

// ForgetCalls empties the record of requests.
func (s *Server) ForgetCalls() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = nil
}

// FailNext fails the next requests of op with these codes, one each, without
// effect: AccessDeniedException, DecryptionFailure, ThrottlingException,
// InternalServiceError and so on. An empty code lets a request pass. A client
// that retries uses several up.
func (s *Server) FailNext(op string, codes ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[op] = append(s.faults[op], codes...)
}

// injected takes the next failure of op. The caller holds the lock.
func (s *Server) injected(op string) error {
	codes := s.faults[op]
	if len(codes) == 0 {
		return nil
	}
	s.faults[op] = codes[1:]
	if codes[0] == "" {
		return nil
	}
	return fail(codes[0], "awsfake was told to fail %s", op)
}

// must finds a secret for a test.
func (s *Server) must(name string) *secret {
	s.t.Helper()
	sec, err := s.lookup(name)
	if err != nil {
		s.t.Fatalf("awsfake: no secret %q", name)
	}
	return sec
}

// Create makes a secret whose current version is text, and returns its ARN.
func (s *Server) Create(name, text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(name, uuid(), &version{text: &text, created: time.Now()}).arn
}

// CreateBinary makes a secret whose current version is binary.
func (s *Server) CreateBinary(name string, b []byte) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.add(name, uuid(), &version{binary: slices.Clone(b), created: time.Now()}).arn
}

// CreateEmpty makes a secret without a version, as CreateSecret does when it
// gets no value.
func (s *Server) CreateEmpty(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	sec := s.add(name, "", &version{})
	clear(sec.versions)
	clear(sec.labels)
	return sec.arn
}

// Ref is the ref of a secret, which need not exist.
func (s *Server) Ref(name string) ref.Ref {
	s.t.Helper()
	r, err := ref.New(ref.AWS, name, Account, Region)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// ARN returns the ARN of a secret.
func (s *Server) ARN(name string) string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.must(name).arn
}

// Labels returns the staging labels of each version that has any, sorted.
func (s *Server) Labels(name string) map[string][]string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	sec, out := s.must(name), map[string][]string{}
	for _, id := range sec.labels {
		out[id] = sec.stages(id)
	}
	return out
}

// Holder returns the id of the version that has the label, or "".
func (s *Server) Holder(name, label string) string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.must(name).labels[label]
}

// Value returns the value of a version, by its label or its id, and whether
// it has one. binary says which of the two members holds it.
func (s *Server) Value(name, labelOrID string) (value []byte, binary, ok bool) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	sec := s.must(name)
	id, held := sec.labels[labelOrID]
	if !held {
		id = labelOrID
	}
	v := sec.versions[id]
	switch {
	case v == nil || v.empty():
		return nil, false, false
	case v.text != nil:
		return []byte(*v.text), false, true
	}
	return slices.Clone(v.binary), true, true
}

// Versions returns how many versions of a secret have a value, with labels
// or without.
func (s *Server) Versions(name string) int {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, v := range s.must(name).versions {
		if !v.empty() {
			n++
		}
	}
	return n
}

// DeleteDeprecated does what the service does some day: it deletes the
// versions of a secret that have no label. LastChangedDate stays, which is
// this package's choice.
func (s *Server) DeleteDeprecated(name string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	sec := s.must(name)
	for id := range sec.versions {
		if len(sec.stages(id)) == 0 {
			delete(sec.versions, id)
		}
	}
}

// LastChanged returns when a secret was changed last, in any way.
func (s *Server) LastChanged(name string) time.Time {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.must(name).changed
}

// StartRotation does what the service does before the first step: rotation is
// on, and the token has AWSPENDING and no value. Nothing is invoked. It
// returns the RotationToken of the rotation.
func (s *Server) StartRotation(name, token string) string {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	sec := s.must(name)
	if sec.labels[pending] == token && sec.rotationToken != "" {
		return sec.rotationToken
	}
	if err := sec.open(token); err != nil {
		s.t.Fatalf("awsfake: %v", err)
	}
	return sec.rotationToken
}

// SetRotation sets RotationEnabled, nil for a secret that was never
// configured, and NextRotationDate.
func (s *Server) SetRotation(name string, enabled *bool, next time.Time) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	sec := s.must(name)
	sec.rotation, sec.next = enabled, next
	sec.touch()
}

// SetTags replaces the tags of a secret.
func (s *Server) SetTags(name string, tags map[string]string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	sec := s.must(name)
	sec.touch()
	sec.tags = nil
	for k, v := range tags {
		sec.tags = append(sec.tags, tag{k, v})
	}
}

// SetLabel attaches a label to a version, whoever has it, or takes it away
// when id is empty, AWSCURRENT too. Nothing else moves.
func (s *Server) SetLabel(name, label, id string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	sec := s.must(name)
	if id == "" {
		sec.detach(label)
		return
	}
	if sec.versions[id] == nil {
		sec.versions[id] = &version{created: time.Now()}
	}
	sec.labels[label] = id
	sec.touch()
	sec.sweep()
}

// RegisterLambda makes f the function that RotateSecret invokes under arn.
func (s *Server) RegisterLambda(arn string, f Lambda) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lambdas[arn] = f
}

// Wait waits for the rotations that RotateSecret has started, and returns all
// that have ended.
func (s *Server) Wait() []Rotation {
	s.rotations.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.results)
}

// Token returns a fresh rotation token, as the service makes them.
func Token() string { return uuid() }
