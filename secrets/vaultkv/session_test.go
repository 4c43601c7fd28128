package vaultkv_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// A clock is time.After under a test's control: each wait is handed to the
// test, which lets it end.
type clock struct {
	waits chan time.Duration
	ticks chan time.Time
}

func newClock() *clock {
	return &clock{waits: make(chan time.Duration, 1), ticks: make(chan time.Time)}
}

func (c *clock) after(d time.Duration) <-chan time.Time {
	c.waits <- d
	return c.ticks
}

// pass lets the wait that the session is in end, on the server too, and
// returns once the session waits again.
func (c *clock) pass(t *testing.T, tg *target, wait time.Duration) time.Duration {
	t.Helper()
	tg.fake.Advance(wait)
	c.ticks <- time.Time{}
	return c.next(t)
}

func (c *clock) next(t *testing.T) time.Duration {
	t.Helper()
	select {
	case d := <-c.waits:
		return d
	case <-time.After(time.Minute):
		t.Fatal("the session does not wait again")
		return 0
	}
}

// between fails t unless a wait is about two thirds of a life.
func between(t *testing.T, what string, d, ttl time.Duration) {
	t.Helper()
	if d < ttl*59/100 || d > ttl*75/100 {
		t.Errorf("%s: renews after %s of %s", what, d, ttl)
	}
}

// counts says how often the fake was asked for what.
func counts(tg *target, path string) (n int) {
	for _, c := range tg.fake.Calls() {
		if c.Path == path && c.Status < 300 {
			n++
		}
	}
	return n
}

func TestSessionRenews(t *testing.T) {
	tg := fake(t)
	policy, err := vaultkv.Policy("secret", "s")
	if err != nil {
		t.Fatal(err)
	}
	a := newAppRole(t, tg, policy) // tokens of 10 minutes, at most an hour
	secretID := a.issue(t)
	rec := &leaktest.Recorder{}
	clk := newClock()
	c := tg.client(t, "", tg.transport)
	s, err := vaultkv.SignIn(t.Context(), c, a.method, vaultkv.WithAfter(vaultkv.SessionOptions{Logger: rec.Logger()}, clk.after))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	first := c.Token()
	wait := clk.next(t)
	between(t, "the first wait", wait, 10*time.Minute)
	login := "auth/" + a.mount + "/login"

	// For most of an hour it is renewed, with the one secret id.
	var lived time.Duration
	for counts(tg, login) == 1 && lived < 45*time.Minute {
		lived += wait
		wait = clk.pass(t, tg, wait)
		if c.Token() != first {
			t.Fatal("the token changed though it could be renewed")
		}
	}
	if n := counts(tg, "auth/token/renew-self"); n < 5 {
		t.Errorf("renewed %d times in %s", n, lived)
	}
	// Near its end renewing gives little, and the file still holds the secret
	// id that was used: the session goes on with what it has, and tries again.
	tg.fake.Advance(10 * time.Minute)
	wait = clk.pass(t, tg, 0)
	if c.Token() != first || wait > 4*time.Minute {
		t.Errorf("without a secret id it waits %s", wait)
	}
	// The supervisor writes another one.
	second := a.issue(t)
	wait = clk.pass(t, tg, 0)
	if c.Token() == first || counts(tg, login) != 2 {
		t.Error("the new secret id was not used")
	}
	between(t, "after signing in again", wait, 10*time.Minute)

	// An outage: it tries again and again, and recovers.
	tg.fake.Seal(true)
	for range 5 {
		if wait = clk.pass(t, tg, 0); wait < 500*time.Millisecond || wait > 90*time.Second {
			t.Errorf("after a failure it waits %s", wait)
		}
	}
	tg.fake.Seal(false)
	between(t, "after an outage", clk.pass(t, tg, 0), 10*time.Minute)

	// A token that somebody revoked is replaced once there is a secret id.
	current := c.Token()
	tg.must(t, "POST", "auth/token/revoke-self", kv{}, "X-Vault-Token", current)
	wait = clk.pass(t, tg, 0)
	if wait > 2*time.Second {
		t.Errorf("after the first failure it waits %s", wait)
	}
	third := a.issue(t)
	between(t, "after a revocation", clk.pass(t, tg, 0), 10*time.Minute)
	st, err := vaultkv.New(c, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Get(t.Context(), mkref(t, "", "secret", "s"), secrets.Current)
	wantErr(t, "the new token works", err, fault.NotFound)
	rec.Check(t, secretID, second, third, first, current, c.Token())
}

func TestSessionEndsWithItsContext(t *testing.T) {
	tg := fake(t)
	a := newAppRole(t, tg, "")
	a.issue(t)
	ctx, cancel := context.WithCancel(t.Context())
	c := tg.client(t, "", tg.transport)
	s, err := vaultkv.SignIn(ctx, c, a.method, nil)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	// The policy is empty, so even the revocation fails; Close ends all the
	// same.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(s.Close)
	}
	wg.Wait()
	_, err = vaultkv.SignIn(ctx, c, a.method, nil)
	wantErr(t, "an ended context", err, fault.Unavailable)
}

// Close does not wait for what hangs, such as a file on a server that is gone.
func TestCloseDoesNotHang(t *testing.T) {
	tg := fake(t)
	rec := &leaktest.Recorder{}
	clk := newClock()
	begun, release := make(chan struct{}), make(chan struct{})
	m := &vaultkv.Hanging{Begun: begun, Release: release}
	o := vaultkv.WithPatience(vaultkv.WithAfter(vaultkv.SessionOptions{Logger: rec.Logger()}, clk.after), time.Millisecond)
	c := tg.client(t, "", tg.transport)
	s, err := vaultkv.SignIn(t.Context(), c, m, o)
	if err != nil {
		t.Fatal(err)
	}
	clk.next(t)
	clk.ticks <- time.Time{}
	receive(t, begun)
	closed := make(chan struct{})
	go func() { defer close(closed); s.Close() }()
	receive(t, closed)
	if c.Token() != "" || !strings.Contains(rec.String(), "hangs") {
		t.Errorf("the token was not taken away, or the log is %q", rec.String())
	}
	close(release) // and with it ends the goroutine
}

func TestTokenFile(t *testing.T) {
	tg := fake(t)
	path := filepath.Join(t.TempDir(), "token")
	issue := func(body kv) string {
		_, out := tg.call(t, "POST", "auth/token/create", body)
		token := out["auth"].(kv)["client_token"].(string)
		if err := os.WriteFile(path, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
		return token
	}
	clk := newClock()
	c := tg.client(t, "", tg.transport)
	m := vaultkv.TokenFile{Path: path}
	_, err := vaultkv.SignIn(t.Context(), c, m, nil)
	wantErr(t, "no file", err, fault.NotFound)
	if err := os.WriteFile(path, []byte("hvs.unknown"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = vaultkv.SignIn(t.Context(), c, m, nil)
	wantErr(t, "a token that is none", err, fault.Denied, "sign in again")
	_, err = vaultkv.SignIn(t.Context(), c, vaultkv.TokenFile{Path: filepath.Dir(path)}, nil)
	wantErr(t, "a directory", err, fault.Invalid)

	// One that cannot be renewed: who keeps the file writes another in time.
	first := issue(kv{"ttl": "10m", "renewable": false, "policies": []string{"default"}})
	s, err := vaultkv.SignIn(t.Context(), c, m, vaultkv.WithAfter(vaultkv.SessionOptions{}, clk.after))
	if err != nil {
		t.Fatal(err)
	}
	between(t, "the file's token", clk.next(t), 10*time.Minute)
	second := issue(kv{"ttl": "20m", "renewable": false, "policies": []string{"default"}})
	between(t, "the next one", clk.pass(t, tg, 7*time.Minute), 13*time.Minute)
	if got := c.Token(); got != second || got == first {
		t.Error("the new token was not taken")
	}
	s.Close()
	if status, _ := tg.call(t, "GET", "auth/token/lookup-self", nil, "X-Vault-Token", second); status != 200 {
		t.Errorf("a token that is not the session's own answers %d after Close", status)
	}
	// A token that lives for ever is left alone.
	if err := os.WriteFile(path, []byte("root"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = vaultkv.SignIn(t.Context(), c, m, nil); err != nil {
		t.Fatal(err)
	}
	s.Close()
}
