package vaultkv_test

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/secrets/vaultkv"
)

// A wrapping is an AppRole with wrapped secret ids, and a transport that
// notes each secret id which is used, for the search for leaks.
type wrapping struct {
	*approle
	path, login string
	used        []string
	rec         leaktest.Recorder
	clk         *clock
}

func newWrapping(t *testing.T, tg *target) *wrapping {
	t.Helper()
	w := &wrapping{approle: newAppRole(t, tg, `path "auth/token/*" { capabilities = ["update"] }`), clk: newClock()}
	w.method.Wrapped = true
	w.path = "auth/" + w.mount + "/role/" + w.name + "/secret-id"
	w.login = "auth/" + w.mount + "/login"
	return w
}

func (w *wrapping) RoundTrip(q *http.Request) (*http.Response, error) {
	if strings.HasSuffix(q.URL.Path, w.login) {
		b, err := io.ReadAll(q.Body)
		if err != nil {
			return nil, err
		}
		var body struct {
			SecretID string `json:"secret_id"`
		}
		if err := json.Unmarshal(b, &body); err != nil {
			return nil, err
		}
		w.used = append(w.used, body.SecretID)
		q.Body = io.NopCloser(strings.NewReader(string(b)))
	}
	return w.tg.transport.RoundTrip(q)
}

// begin signs in beside the test, which is the session's clock.
func (w *wrapping) begin(ctx context.Context, t *testing.T) (<-chan *vaultkv.Session, <-chan error) {
	t.Helper()
	c := w.tg.client(t, "", w)
	c.SetMaxRetries(0)
	sessions, errs := make(chan *vaultkv.Session, 1), make(chan error, 1)
	go func() {
		s, err := vaultkv.SignIn(ctx, c, w.method, vaultkv.WithAfter(vaultkv.SessionOptions{Logger: w.rec.Logger()}, w.clk.after))
		if err != nil {
			w.rec.Record(err)
			errs <- err
			return
		}
		sessions <- s
	}()
	return sessions, errs
}

func (w *wrapping) outage(times int) {
	for range times {
		w.tg.fake.Fail("POST", w.login, 503, "Vault is sealed")
	}
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(time.Minute):
		t.Fatal("nothing happens")
		panic("not reached")
	}
}

// What was unwrapped is not lost by an outage before it is used.
func TestUnwrappedIsKept(t *testing.T) {
	tg := fake(t)
	w := newWrapping(t, tg)
	first := w.wrap(t, w.path, kv{})
	w.outage(3)
	sessions, errs := w.begin(t.Context(), t)
	for range 3 {
		if d := w.clk.next(t); d > time.Minute {
			t.Errorf("waits %s", d)
		}
		w.clk.ticks <- time.Time{}
	}
	between(t, "the token", w.clk.next(t), 10*time.Minute)
	select {
	case err := <-errs:
		t.Fatal(err)
	case s := <-sessions:
		defer s.Close()
	}
	unwraps := func(n int) {
		t.Helper()
		if got := counts(tg, "sys/wrapping/unwrap"); got != n {
			t.Errorf("%d tokens were unwrapped, expected %d", got, n)
		}
	}
	unwraps(1)

	// The token's life ends: nobody stole what the session unwrapped itself.
	tg.fake.Advance(2 * time.Hour)
	w.clk.pass(t, tg, 0)
	log := w.rec.String()
	if strings.Contains(log, "somebody else") || !strings.Contains(log, "unwrapped by this session already") {
		t.Errorf("the log is %s", log)
	}
	// An outage after the next one was unwrapped, which is then used.
	second := w.wrap(t, w.path, kv{})
	w.outage(2)
	w.clk.pass(t, tg, 0)
	w.clk.pass(t, tg, 0)
	between(t, "after an outage", w.clk.pass(t, tg, 0), 10*time.Minute)
	unwraps(2)

	// One that expires meanwhile is refused, and not tried for ever.
	tg.fake.Advance(2 * time.Hour)
	third := w.wrap(t, w.path, kv{})
	w.outage(1)
	w.clk.pass(t, tg, 0)
	tg.fake.Advance(time.Hour)
	w.clk.pass(t, tg, 0)
	w.clk.pass(t, tg, 0)
	fourth := w.wrap(t, w.path, kv{})
	between(t, "after a secret id that expired", w.clk.pass(t, tg, 0), 10*time.Minute)
	unwraps(4)
	if n := len(w.used); n != 4+3+2+1 {
		t.Errorf("%d sign-ins were tried, expected 10", n)
	}
	if strings.Contains(w.rec.String(), "somebody else") {
		t.Error("a theft was suspected")
	}
	w.rec.Check(t, append(w.used, first, second, third, fourth)...)
}

// An outage that does not end is an error in the end, which says what is lost;
// so is a context that ends, and what no waiting mends is not tried again.
func TestUnwrappedIsGivenUp(t *testing.T) {
	tg := fake(t)
	w := newWrapping(t, tg)
	w.wrap(t, w.path, kv{})
	w.outage(5)
	_, errs := w.begin(t.Context(), t)
	for range 4 {
		w.clk.next(t)
		w.clk.ticks <- time.Time{}
	}
	wantErr(t, "an outage", receive(t, errs), fault.Unavailable, "wrap another one", "unseal")

	w.wrap(t, w.path, kv{})
	w.outage(1)
	ctx, cancel := context.WithCancel(t.Context())
	_, errs = w.begin(ctx, t)
	w.clk.next(t)
	cancel()
	wantErr(t, "an ended context", receive(t, errs), fault.Unavailable, "wrap another one")

	w.wrap(t, w.path, kv{})
	tg.fake.Fail("POST", w.login, 404, "unsupported path")
	_, errs = w.begin(t.Context(), t)
	wantErr(t, "no AppRole", receive(t, errs), fault.Invalid, "wrap another one")

	// Before anything was unwrapped an outage loses nothing.
	w.wrap(t, w.path, kv{})
	tg.fake.Fail("POST", "sys/wrapping/lookup", 503, "Vault is sealed")
	_, errs = w.begin(t.Context(), t)
	err := receive(t, errs)
	wantErr(t, "an outage before", err, fault.Unavailable, "unseal")
	if strings.Contains(err.Error(), "wrap another") {
		t.Errorf("a wrapping token that is good is given up: %v", err)
	}
	w.rec.Check(t, w.used...)
}
