package rotatortest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/rotatortest"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
)

func newStore(t *testing.T, v secrets.Value) (secrets.Store, ref.Ref) {
	t.Helper()
	s := memstore.New()
	r, err := ref.New(ref.NATS, "suite", "test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateSecret(t.Context(), r, v); err != nil {
		t.Fatal(err)
	}
	return s, r
}

// doc is the secret of the targets below, whatever else is in it.
type doc struct {
	Host     string `json:"host"`
	User     string `json:"user"`
	Password string `json:"password"`
}

func read(v secrets.Value) (d doc, err error) {
	if json.Unmarshal(v.Reveal(), &d) != nil || d.Host == "" || d.User == "" || d.Password == "" {
		return d, fault.Newf(fault.Invalid, "read", "not a secret")
	}
	return d, nil
}

func write(t doc, from secrets.Value) (secrets.Value, error) {
	var m map[string]json.RawMessage
	if json.Unmarshal(from.Reveal(), &m) != nil {
		return secrets.Value{}, fault.Newf(fault.Invalid, "write", "not a secret")
	}
	for k, v := range map[string]string{"user": t.User, "password": t.Password} {
		m[k], _ = json.Marshal(v)
	}
	b, err := json.Marshal(m)
	return secrets.NewValue(b), err
}

// server is a target with users and passwords, by strategy.
type server struct {
	mu    sync.Mutex
	users map[string]string // user or key id to password
	tags  map[string]string // key id to rotation token
	n     int
	first doc
	kind  string
	eager bool
	down  bool   // nobody reaches it
	wrong string // what the rotator does wrong, see TestMutants
}

// newServer makes targets. eager ones revoke every orphan, which is right
// only as long as one rotation runs at a time.
func newServer(kind string, eager bool) func(*testing.T) rotatortest.Target {
	return func(*testing.T) rotatortest.Target {
		first := doc{Host: "db", User: "app", Password: "first-password-of-app"}
		return &server{eager: eager, wrong: os.Getenv(mutantEnv), users: map[string]string{first.User: first.Password}, tags: map[string]string{}, first: first, kind: kind}
	}
}

func (s *server) Initial() secrets.Value {
	b, _ := json.Marshal(s.first)
	return secrets.NewValue(b)
}

func (s *server) Foreign(t *testing.T, v secrets.Value) secrets.Value {
	d, err := read(v)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal(doc{Host: "elsewhere", User: d.User, Password: d.Password})
	return secrets.NewValue(b)
}

func (s *server) SignIn(ctx context.Context, v secrets.Value) error {
	d, err := read(v)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users[d.User] != d.Password {
		return fault.Newf(fault.Denied, "sign in", "refused")
	}
	return nil
}

func (s *server) Live(*testing.T) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.users)
}

func (s *server) Rotator(_ *testing.T, in *crashtest.Injector) rotators.Rotator {
	r := &rotator{s: s, in: in}
	switch s.kind {
	case "issuer":
		return &issuing{r}
	case "alternating":
		return &alternating{r}
	}
	return r
}

// rotator is what a rotator of a database is.
type rotator struct {
	s  *server
	in *crashtest.Injector
}

// call is one outward call.
func (r *rotator) call(ctx context.Context, name string, do func()) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.in.Call(name, func() error {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		do()
		return nil
	})
}

func (r *rotator) other(user string) string {
	switch {
	case r.s.kind == "single":
		return user
	case user == "app":
		return "app_clone"
	}
	return "app"
}

func (r *rotator) Create(_ context.Context, c rotators.Change) (secrets.Value, error) {
	d, err := read(c.Current)
	if err != nil {
		return secrets.Value{}, err
	}
	if d.Password, err = (rotators.PasswordPolicy{}).Generate(); err != nil {
		return secrets.Value{}, err
	}
	d.User = r.other(d.User)
	if r.s.wrong == "drops members" {
		b, err := json.Marshal(d)
		return secrets.NewValue(b), err
	}
	return write(d, c.Current)
}

func (r *rotator) Set(ctx context.Context, c rotators.Change) error {
	cur, err := read(c.Current)
	if err != nil {
		return err
	}
	pend, err := read(c.Pending)
	if err != nil {
		return err
	}
	if r.s.wrong == "connects first" {
		_ = r.call(ctx, "connect", func() {})
	}
	if pend.Host != cur.Host || pend.User != r.other(cur.User) {
		return fault.Newf(fault.Invalid, "set", "pending names another target")
	}
	if r.s.wrong == "set once" && r.s.SignIn(ctx, c.Pending) == nil {
		return fault.Newf(fault.Conflict, "set", "the password is that already")
	}
	if r.s.wrong == "sets another" {
		pend.User = "somebody"
	}
	err = r.call(ctx, "alter user", func() { r.s.users[pend.User] = pend.Password })
	if err != nil && r.s.wrong == "leaks" {
		return fmt.Errorf("ALTER USER app PASSWORD '%s': %w", pend.Password, err)
	}
	if r.s.wrong == "locks out" {
		delete(r.s.users, cur.User)
	}
	return err
}

func (r *rotator) Test(ctx context.Context, c rotators.Change) error {
	var refused error
	if err := r.call(ctx, "sign in", func() {}); err != nil {
		return err
	}
	if r.s.wrong == "proves nothing" {
		return nil
	}
	refused = r.s.SignIn(ctx, c.Pending)
	return refused
}

// issuing is what a rotator of issued keys is.
type issuing struct{ *rotator }

func (r *issuing) Create(ctx context.Context, c rotators.Change) (secrets.Value, error) {
	if _, err := read(c.Current); err != nil {
		return secrets.Value{}, err
	}
	var d doc
	err := r.call(ctx, "issue", func() {
		r.s.n++
		d = doc{User: fmt.Sprintf("key_%d", r.s.n), Password: fmt.Sprintf("issued-secret-%d", r.s.n)}
		r.s.users[d.User], r.s.tags[d.User] = d.Password, c.Token
	})
	if err != nil {
		return secrets.Value{}, err
	}
	return write(d, c.Current)
}

func (r *issuing) Set(ctx context.Context, c rotators.Change) error {
	cur, err := read(c.Current)
	if err != nil {
		return err
	}
	pend, err := read(c.Pending)
	if err != nil {
		return err
	}
	if pend.Host != cur.Host {
		return fault.Newf(fault.Invalid, "set", "pending names another target")
	}
	prev, _ := read(c.Previous)
	return r.call(ctx, "revoke orphans", func() {
		for id := range r.s.users {
			if r.s.wrong != "leaves orphans" && id != cur.User && id != pend.User && id != prev.User && (r.s.eager || r.s.tags[id] == c.Token) {
				delete(r.s.users, id)
			}
		}
	})
}

var strategies = []struct {
	kind string
	tr   rotatortest.Traits
}{
	{"single", rotatortest.Traits{KillsCurrent: true}},
	{"alternating", rotatortest.Traits{CurrentSurvivesSet: true}},
	{"issuer", rotatortest.Traits{CurrentSurvivesSet: true, Issues: true}},
}

// The suite passes for the three strategies, done right.
func TestSuite(t *testing.T) {
	for _, s := range strategies {
		t.Run(s.kind, func(t *testing.T) { rotatortest.Run(t, newServer(s.kind, false), s.tr, newStore) })
	}
}

func TestCrash(t *testing.T) {
	for _, s := range strategies {
		t.Run(s.kind, func(t *testing.T) {
			if n := rotatortest.Crash(t, newServer(s.kind, true), s.tr, newStore); n < 100 {
				t.Errorf("%d crash points; want at least 100", n)
			}
		})
	}
}

const mutantEnv = "ROTATORTEST_WRONG"

// The suite can fail: rotators that do one thing wrong are found, by the case
// that is meant to find them. Each runs in a process of its own, whose tests
// fail.
func TestMutants(t *testing.T) {
	if os.Getenv(mutantEnv) != "" {
		t.Skip("this is the process of a mutant")
	}
	for _, c := range []struct{ wrong, test, found string }{
		{"drops members", "TestSuite/single", "C07_CreateKeepsWhatItDoesNotKnow"},
		{"connects first", "TestSuite/alternating", "C13_PendingNamesAnotherTarget"},
		{"set once", "TestSuite/single", "C12_SetRepeated"},
		{"set once", "TestCrash/single", "TestCrash/single/SameToken"},
		{"sets another", "TestSuite/alternating", "Whole"},
		{"locks out", "TestSuite/alternating", "Whole"},
		{"leaks", "TestSuite/alternating", "C30_NoValueLeaks"},
		{"proves nothing", "TestSuite/single", "C21_TestProvesPending"},
		{"retires nothing", "TestSuite/issuer", "TenInARow"},
		{"leaves orphans", "TestCrash/issuer", "TestCrash/issuer/SameToken"},
		{"verifies anything", "TestSuite/single", "Verify"},
		{"verifies by guess", "TestCrash/single", "TestCrash/single/Verify"},
		{"retires anything", "TestSuite/issuer", "RetireSparesWhatIsUsed"},
		{"retires the user", "TestSuite/alternating", "RetireSparesWhatIsUsed"},
		{"does not look again", "TestSuite/alternating", "Retire"},
		{"does not look again", "TestSuite/issuer", "Retire"},
		{"restores nothing", "TestSuite/alternating", "Restore"},
		{"restores over current", "TestSuite/alternating", "RestoreBesideCurrent"},
		{"tries for real", "TestSuite/single", "DryRun"},
		{"is always well", "TestSuite/single", "DryRun/AnotherPassword"},
		{"is always well", "TestCrash/single", "TestCrash/single/DryRun"},
		{"takes versions for orphans", "TestCrash/issuer", "TestCrash/issuer/Orphans"},
		{"forgets an orphan", "TestCrash/issuer", "TestCrash/issuer/Orphans"},
	} {
		t.Run(c.wrong, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^"+strings.ReplaceAll(c.test, "/", "$/^")+"$", "-test.timeout=60s")
			cmd.Env = append(os.Environ(), mutantEnv+"="+c.wrong)
			out, err := cmd.CombinedOutput()
			if err == nil {
				t.Fatal("the suite passed")
			}
			byIt := false
			for line := range strings.Lines(string(out)) {
				byIt = byIt || strings.Contains(line, "--- FAIL") && strings.Contains(line, c.found)
			}
			if !byIt {
				t.Errorf("the suite failed without %s:\n%s", c.found, out)
			}
		})
	}
}
