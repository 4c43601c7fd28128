package azurefake

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/keyturn/keyturn/ref"
)

// An Action is a permission, in the words of Azure's role definitions.
// https://learn.microsoft.com/azure/role-based-access-control/permissions/security#microsoftkeyvault
type Action string

// The actions. Reading the properties of a deleted secret is List too.
const (
	Get     Action = "Microsoft.KeyVault/vaults/secrets/getSecret/action"
	List    Action = "Microsoft.KeyVault/vaults/secrets/readMetadata/action"
	Set     Action = "Microsoft.KeyVault/vaults/secrets/setSecret/action"
	Update  Action = "Microsoft.KeyVault/vaults/secrets/update/action"
	Delete  Action = "Microsoft.KeyVault/vaults/secrets/delete"
	Recover Action = "Microsoft.KeyVault/vaults/secrets/recover/action"
	Purge   Action = "Microsoft.KeyVault/vaults/secrets/purge/action"
)

// Deny refuses actions from now on; Allow undoes it.
func (s *Server) Deny(actions ...Action) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range actions {
		s.denied[a] = true
	}
}

// Allow takes actions off the list of Deny.
func (s *Server) Allow(actions ...Action) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range actions {
		delete(s.denied, a)
	}
}

// A Failure is one answer that a test puts in the place of the real one.
type Failure struct {
	Status      int
	Code, Inner string
	RetryAfter  int  // seconds
	AfterEffect bool // the request takes effect, and its answer is lost
}

func (f Failure) err() error {
	return &apiError{status: f.Status, code: f.Code, inner: f.Inner, message: "azurefake was told to fail", retryAfter: f.RetryAfter}
}

// Throttled is the answer to too many requests.
func Throttled(retryAfter int) Failure {
	return Failure{Status: http.StatusTooManyRequests, Code: "Throttled", RetryAfter: retryAfter}
}

// FailNext fails the next requests of op, one each: get, list, versions, set,
// update, delete, getdeleted, recover or purge. A zero Failure lets one pass.
func (s *Server) FailNext(op string, failures ...Failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults[op] = append(s.faults[op], failures...)
}

// injected takes the next failure of op. The caller holds the lock.
func (s *Server) injected(op string) (Failure, bool) {
	all := s.faults[op]
	if len(all) == 0 {
		return Failure{}, false
	}
	s.faults[op] = all[1:]
	return all[0], all[0].Status != 0
}

// A Call is one request that came with a valid token, or a challenge that was
// sent to one without.
type Call struct {
	Op, Vault, Name, Version string
	Write                    bool
	Code                     string // of the error that was answered, or ""
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

// Writes returns the requests that may have changed something.
func (s *Server) Writes() []Call {
	return slices.DeleteFunc(s.Calls(), func(c Call) bool { return !c.Write })
}

// ForgetCalls empties the record of requests.
func (s *Server) ForgetCalls() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = nil
}

// RevokeTokens refuses every token that was issued so far.
func (s *Server) RevokeTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// Advance moves the clock of the vaults.
func (s *Server) Advance(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ahead += d
}

func (s *Server) now() time.Time { return time.Now().Add(s.ahead) }

// SetPageSize makes pages shorter than the service's 25.
func (s *Server) SetPageSize(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pageSize = n
}

// SetLag lets every deletion and recovery take so many requests to the secret
// until it has ended. It takes seconds at the service.
func (s *Server) SetLag(requests int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lag = requests
}

// SetPurgeProtection refuses to purge what is deleted.
func (s *Server) SetPurgeProtection(vault string, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.vaults[vault].purgeProtects = on
}

// Ref is the ref of a secret, which need not exist.
func (s *Server) Ref(vault, name string) ref.Ref {
	s.t.Helper()
	r, err := ref.New(ref.Azure, name, vault)
	if err != nil {
		s.t.Fatal(err)
	}
	return r
}

// A Version is what a vault keeps of one.
type Version struct {
	ID, Value, ContentType string
	Tags                   map[string]string
	Enabled                bool
	NotBefore, Expires     *int64
	Created                time.Time
}

// Put makes a version behind the client's back, as somebody does in the
// portal, and returns its id. ID, Enabled and Created of v are not looked at.
func (s *Server) Put(vault, name string, v Version) string {
	s.t.Helper()
	s.mu.Lock()
	r := &request{s: s, v: s.vaults[vault], name: name}
	r.body.Value, r.body.Tags = &v.Value, v.Tags
	if v.ContentType != "" {
		r.body.ContentType = &v.ContentType
	}
	r.body.Attributes = &attributes{NotBefore: v.NotBefore, Expires: v.Expires}
	_, _, err := r.set()
	var id string
	if err == nil {
		id = r.v.secrets[strings.ToLower(name)].newest().id
	}
	notify := s.notify
	s.mu.Unlock()
	if err != nil {
		s.t.Fatalf("azurefake: put %s: %v", name, err)
	}
	for _, e := range r.events {
		if notify != nil {
			notify(e)
		}
	}
	return id
}

// Versions returns all versions of a secret, oldest first, deleted or not. A
// secret that does not exist has none.
func (s *Server) Versions(vault, name string) []Version {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	low := strings.ToLower(name)
	x := s.vaults[vault].secrets[low]
	if x == nil {
		x = s.vaults[vault].deleted[low]
	}
	if x == nil {
		return nil
	}
	var out []Version
	for _, v := range x.versions {
		c := Version{
			ID: v.id, Value: v.value, Tags: maps.Clone(v.tags), Enabled: v.enabled,
			NotBefore: v.nbf, Expires: v.exp, Created: time.Unix(v.created, 0),
		}
		if v.contentType != nil {
			c.ContentType = *v.contentType
		}
		out = append(out, c)
	}
	return out
}

// SetEnabled enables or disables a version.
func (s *Server) SetEnabled(vault, name, id string, enabled bool) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	_, x := s.must(vault, name)
	x.find(id).enabled = enabled
}

// SetTags replaces the tags of a version.
func (s *Server) SetTags(vault, name, id string, tags map[string]string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	_, x := s.must(vault, name)
	x.find(id).tags = maps.Clone(tags)
}

// Remove deletes a secret, so that it can be recovered.
func (s *Server) Remove(vault, name string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.must(vault, name)
	if _, _, err := (&request{s: s, v: s.vaults[vault], name: name}).del(); err != nil {
		s.t.Fatalf("azurefake: delete %s: %v", name, err)
	}
}

// Forget removes every trace of a secret, deleted or not.
func (s *Server) Forget(vault, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.vaults[vault].secrets, strings.ToLower(name))
	delete(s.vaults[vault].deleted, strings.ToLower(name))
}

// Deleted reports whether a secret is deleted and can be recovered.
func (s *Server) Deleted(vault, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.vaults[vault].deleted[strings.ToLower(name)] != nil
}

// must finds a secret for a test.
func (s *Server) must(vaultName, name string) (*vault, *secret) {
	s.t.Helper()
	v := s.vaults[vaultName]
	if v == nil || v.secrets[strings.ToLower(name)] == nil {
		s.t.Fatalf("azurefake: no secret %q in vault %q", name, vaultName)
	}
	return v, v.secrets[strings.ToLower(name)]
}
