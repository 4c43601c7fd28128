package apikey_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/internal/keyissuer"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/apikey"
	"github.com/keyturn/keyturn/rotators/rotatortest"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const adminRef = "nats://keyturn/issuer-admin"

// config is how the demo issuer at url is spoken to.
func config(url string) apikey.Config {
	admin := map[string]string{"Authorization": "Bearer {{.Admin}}"}
	keys := url + "/v1/projects/{{.Vars.project}}/keys"
	return apikey.Config{
		Vars:   map[string]string{"project": "acme"},
		Create: apikey.CreateRequest{Request: apikey.Request{URL: keys, Headers: admin, Body: `{"name": {{.Name}}}`}},
		Verify: apikey.Request{URL: url + "/v1/verify", Headers: map[string]string{"Authorization": "Bearer {{.Key}}"}},
		Revoke: apikey.Request{URL: keys + "/{{.ID}}", Headers: admin},
		List: &apikey.ListRequest{
			// Small pages, so that they are turned.
			Request: apikey.Request{URL: keys + "?limit=2{{if .Cursor}}&after={{.Cursor}}{{end}}", Headers: admin},
			Next:    "/last_id", More: "/has_more",
		},
	}
}

// target is a project of an issuer that answers over real HTTP.
type target struct {
	issuer    *keyissuer.Issuer
	srv       *httptest.Server
	transport *http.Transport
	admin     string
	orphanAge time.Duration
	config    func(url string) apikey.Config
	initial   secrets.Value
}

// newTarget makes targets with room for maxKeys keys.
func newTarget(orphanAge time.Duration, maxKeys int) func(t *testing.T) rotatortest.Target {
	return func(t *testing.T) rotatortest.Target { return newIssuer(t, orphanAge, maxKeys) }
}

func newIssuer(t *testing.T, orphanAge time.Duration, maxKeys int) *target {
	t.Helper()
	tg := &target{admin: leaktest.Canary(), orphanAge: orphanAge, transport: &http.Transport{}, config: config}
	var err error
	if tg.issuer, err = keyissuer.New(keyissuer.Options{AdminKey: tg.admin, MaxKeys: maxKeys}); err != nil {
		t.Fatal(err)
	}
	tg.srv = httptest.NewServer(tg.issuer)
	t.Cleanup(func() { tg.transport.CloseIdleConnections(); tg.srv.Close() })
	k, key, err := tg.issuer.Create("acme", "made by hand")
	if err != nil {
		t.Fatal(err)
	}
	tg.initial = value(k.ID, key, adminRef)
	return tg
}

func value(id, key, admin string) secrets.Value {
	b, _ := json.Marshal(map[string]string{"id": id, "key": key, "adminarn": admin})
	return secrets.NewValue(b)
}

type doc struct{ ID, Key, AdminARN string }

func read(t testing.TB, v secrets.Value) (d doc) {
	t.Helper()
	if json.Unmarshal(v.Reveal(), &d) != nil {
		t.Fatal("the value is not JSON")
	}
	return d
}

func (tg *target) options(rt http.RoundTripper) *apikey.Options {
	return &apikey.Options{
		Admin: func(_ context.Context, name string) (secrets.Value, error) {
			if name != adminRef {
				return secrets.Value{}, fault.Newf(fault.NotFound, "read", "no secret %s", name)
			}
			return secrets.NewString(`{"key":"` + tg.admin + `"}`), nil
		},
		Transport: rt, OrphanAge: tg.orphanAge, Timeout: 10 * time.Second,
	}
}

func (tg *target) Rotator(t *testing.T, in *crashtest.Injector) rotators.Rotator {
	t.Helper()
	var rt http.RoundTripper = tg.transport
	if in != nil {
		rt = in.Transport(rt)
	}
	r, err := apikey.New(tg.config(tg.srv.URL), tg.options(rt))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (tg *target) Initial() secrets.Value { return tg.initial }

func (tg *target) SignIn(ctx context.Context, v secrets.Value) error {
	var d doc
	if json.Unmarshal(v.Reveal(), &d) != nil {
		return fault.Newf(fault.Invalid, "sign in", "not JSON")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, tg.srv.URL+"/v1/chat/completions", strings.NewReader(`{"messages":[{"content":"hi"}]}`))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+d.Key)
	resp, err := (&http.Client{Transport: tg.transport}).Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	switch resp.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusUnauthorized:
		return fault.Newf(fault.Denied, "sign in", "refused")
	}
	return fault.Newf(fault.Unknown, "sign in", "answered %d", resp.StatusCode)
}

func (tg *target) Live(*testing.T) (n int) {
	for _, k := range tg.issuer.Keys("acme", "") {
		if !k.Disabled {
			n++
		}
	}
	return n
}

func (tg *target) Foreign(t *testing.T, v secrets.Value) secrets.Value {
	d := read(t, v)
	return value(d.ID, d.Key, "nats://elsewhere/admin")
}

func (tg *target) Canaries(v secrets.Value) []string {
	var d doc
	_ = json.Unmarshal(v.Reveal(), &d)
	return []string{d.Key, tg.admin}
}

func newStore(t *testing.T, v secrets.Value) (secrets.Store, ref.Ref) {
	t.Helper()
	s := memstore.New()
	r := mustRef(t)
	if _, err := s.CreateSecret(t.Context(), r, v); err != nil {
		t.Fatal(err)
	}
	return s, r
}

func mustRef(t testing.TB) ref.Ref {
	t.Helper()
	r, err := ref.New(ref.NATS, "acme/llm-key", "keyturn")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var traits = rotatortest.Traits{CurrentSurvivesSet: true, Issues: true}

// Superseded keys are revoked, or disabled where the issuer can do that.
var ways = map[string]func(func(*testing.T) rotatortest.Target) func(*testing.T) rotatortest.Target{
	"Revoke": func(f func(*testing.T) rotatortest.Target) func(*testing.T) rotatortest.Target { return f },
	"Disable": func(f func(*testing.T) rotatortest.Target) func(*testing.T) rotatortest.Target {
		return func(t *testing.T) rotatortest.Target {
			tg := f(t).(*target)
			tg.config = disabling
			return tg
		}
	},
}

func TestSuite(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) { rotatortest.Run(t, way(newTarget(0, 0)), traits, newStore) })
	}
}

// An issuer with two slots is enough, even after a crash at any point.
func TestCrash(t *testing.T) {
	for name, way := range ways {
		t.Run(name, func(t *testing.T) {
			if n := rotatortest.Crash(t, way(newTarget(time.Nanosecond, 2)), traits, newStore); n < 200 {
				t.Errorf("%d crash points; want at least 200", n)
			}
		})
	}
}

func change(t testing.TB, current, pending secrets.Value) rotators.Change {
	t.Helper()
	return rotators.Change{Ref: mustRef(t), Token: "11111111-1111-4111-8111-111111111111", Current: current, Pending: pending}
}

func must(t testing.TB, v secrets.Value, err error) secrets.Value {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// Only what is known to be an orphan is revoked, and only when no process can
// be about to store it.
func TestOrphans(t *testing.T) {
	tg := newIssuer(t, 0, 20)
	r := tg.Rotator(t, nil)
	foreign, _, err := tg.issuer.Create("acme", "keyturn-another-secret")
	if err != nil {
		t.Fatal(err)
	}
	c := change(t, tg.initial, secrets.Value{})
	lost := read(t, must2(t, r.Create, c)) // the process died before it stored this
	other := c
	other.Token = "22222222-2222-4222-8222-222222222222"
	lostOther := read(t, must2(t, r.Create, other))

	c.Pending = must2(t, r.Create, c)
	if !tg.has(lost.ID) {
		t.Fatal("create revoked a key that a twin may be about to store")
	}
	if err := r.Set(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if tg.has(lost.ID) {
		t.Error("set left a key of its own rotation that nobody can use")
	}
	if !tg.has(lostOther.ID) {
		t.Error("set revoked a key that another rotation may be about to store")
	}

	// Five minutes later nobody is about to store anything.
	opts := tg.options(tg.transport)
	opts.Now = func() time.Time { return time.Now().Add(time.Hour) }
	late, err := apikey.New(config(tg.srv.URL), opts)
	if err != nil {
		t.Fatal(err)
	}
	if err := late.Set(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if !tg.has(lostOther.ID) {
		t.Error("a clock of ours that is an hour ahead made a young key look old")
	}
	tg.orphanAge = time.Nanosecond
	eager := tg.Rotator(t, nil)
	if err := eager.Set(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if tg.has(lostOther.ID) {
		t.Error("an old orphan of another rotation is still alive")
	}
	for what, id := range map[string]string{
		"the current key": read(t, tg.initial).ID, "the pending key": read(t, c.Pending).ID, "the key of another secret": foreign.ID,
	} {
		if !tg.has(id) {
			t.Errorf("%s was revoked", what)
		}
	}
}

func must2(t testing.TB, f func(context.Context, rotators.Change) (secrets.Value, error), c rotators.Change) secrets.Value {
	t.Helper()
	v, err := f(context.Background(), c)
	return must(t, v, err)
}

func (tg *target) has(id string) bool {
	for _, k := range tg.issuer.Keys("acme", "") {
		if k.ID == id {
			return true
		}
	}
	return false
}

// An orphan that was too young when its successor was made is found when what
// both were to succeed is retired.
func TestOrphanOfAnEarlierRotation(t *testing.T) {
	tg := newIssuer(t, -1, 20) // never old
	r := tg.Rotator(t, nil)
	c := change(t, tg.initial, secrets.Value{})
	orphan := read(t, must2(t, r.Create, c))
	c.Token = "22222222-2222-4222-8222-222222222222"
	next := must2(t, r.Create, c)

	tg.orphanAge = time.Nanosecond
	rt := tg.Rotator(t, nil).(rotators.Retirer)
	c = change(t, next, secrets.Value{})
	unknown := read(t, must2(t, r.Create, c)) // an attempt to succeed next: not old's affair
	if err := rt.Retire(t.Context(), c, tg.initial); err != nil {
		t.Fatal(err)
	}
	if tg.has(orphan.ID) || tg.has(read(t, tg.initial).ID) {
		t.Error("what was superseded is still alive")
	}
	if !tg.has(read(t, next).ID) || !tg.has(unknown.ID) {
		t.Error("retire revoked more than what was superseded")
	}
	if err := rt.Retire(t.Context(), c, tg.initial); err != nil {
		t.Errorf("retire again: %v; want success", err)
	}
}

// Whatever the store says that previous is, the key in use stays.
func TestRetireNeverRevokesWhatIsUsed(t *testing.T) {
	tg := newIssuer(t, time.Nanosecond, 20)
	r := tg.Rotator(t, nil)
	c := change(t, tg.initial, secrets.Value{})
	c.Pending = must2(t, r.Create, c)
	cur, pend := read(t, c.Current), read(t, c.Pending)
	for what, old := range map[string]secrets.Value{
		"current with another member":   secrets.NewString(`{"id":"` + cur.ID + `","key":"` + cur.Key + `","note":"edited by hand"}`),
		"current's id, another key":     value(cur.ID, "other", ""),
		"current's key, another id":     value("other", cur.Key, ""),
		"pending":                       c.Pending,
		"a value that names no key":     secrets.NewString(`{"password":"x"}`),
		"a value that is not an object": secrets.NewString(`x`),
	} {
		if err := r.(rotators.Retirer).Retire(t.Context(), c, old); err != nil {
			t.Errorf("%s: %v; want success", what, err)
		}
		if !tg.has(cur.ID) || !tg.has(pend.ID) {
			t.Fatalf("%s: a key in use was revoked", what)
		}
	}
}

func TestTestRefusesADeadKey(t *testing.T) {
	tg := newIssuer(t, 0, 20)
	r := tg.Rotator(t, nil)
	c := change(t, tg.initial, secrets.Value{})
	c.Pending = must2(t, r.Create, c)
	if err := r.Test(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if _, err := tg.issuer.Revoke("acme", read(t, c.Pending).ID); err != nil {
		t.Fatal(err)
	}
	if err := r.Test(t.Context(), c); !fault.Is(err, fault.Denied) || fault.ClassOf(err) != fault.ClassAuth {
		t.Errorf("test of a dead key gave %v; want denied, auth", err)
	}
}

func TestFullIssuer(t *testing.T) {
	tg := newIssuer(t, 0, 1)
	_, err := tg.Rotator(t, nil).Create(t.Context(), change(t, tg.initial, secrets.Value{}))
	if !fault.Is(err, fault.Unavailable) || fault.ClassOf(err) != fault.ClassQuota {
		t.Errorf("create at a full issuer gave %v; want unavailable, quota", err)
	}
	if n := tg.Live(t); n != 1 {
		t.Errorf("%d keys are alive; want 1", n)
	}
}

// Without a list nothing but the own keys is known, and a rotation still works.
func TestWithoutList(t *testing.T) {
	tg := newIssuer(t, 0, 0)
	tg.config = func(url string) apikey.Config {
		c := config(url)
		c.List = nil
		return c
	}
	s, id := newStore(t, tg.initial)
	for range 3 {
		if _, err := rotators.NewRunner(s, tg.Rotator(t, nil), nil).Rotate(t.Context(), id, ""); err != nil {
			t.Fatal(err)
		}
	}
	if n := tg.Live(t); n != 2 {
		t.Errorf("%d keys are alive; want 2", n)
	}
}

// With KeepPrevious a superseded key is somebody else's decision, however old.
func TestKeepPrevious(t *testing.T) {
	tg := newIssuer(t, time.Nanosecond, 0)
	s, id := newStore(t, tg.initial)
	for range 4 {
		r := rotators.NewRunner(s, tg.Rotator(t, nil), &rotators.Options{KeepPrevious: true})
		if _, err := r.Rotate(t.Context(), id, ""); err != nil {
			t.Fatal(err)
		}
	}
	if n := tg.Live(t); n != 5 {
		t.Errorf("%d keys are alive; want all 5", n)
	}
	if _, err := rotators.NewRunner(s, tg.Rotator(t, nil), nil).Retire(t.Context(), id, true); err != nil {
		t.Fatal(err)
	}
	if n := tg.Live(t); n != 4 {
		t.Errorf("%d keys are alive after one was retired; want 4", n)
	}
}

// The administrator's credential comes from where current or the
// configuration says.
func TestAdmin(t *testing.T) {
	tg := newIssuer(t, 0, 20)
	d := read(t, tg.initial)
	create := func(edit func(*apikey.Config), v secrets.Value) error {
		c := config(tg.srv.URL)
		edit(&c)
		r, err := apikey.New(c, tg.options(tg.transport))
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Create(t.Context(), change(t, v, secrets.Value{}))
		return err
	}
	if err := create(func(*apikey.Config) {}, value(d.ID, d.Key, "")); !fault.Is(err, fault.Invalid) {
		t.Errorf("no admin secret named: %v; want invalid", err)
	}
	if err := create(func(c *apikey.Config) { c.Admin = adminRef }, value(d.ID, d.Key, "nats://nobody/knows")); err != nil {
		t.Errorf("the configuration's admin secret: %v", err)
	}
	if err := create(func(*apikey.Config) {}, value(d.ID, d.Key, "nats://nobody/knows")); !fault.Is(err, fault.NotFound) {
		t.Errorf("an admin secret that does not exist: %v; want not found", err)
	}
	if err := create(func(c *apikey.Config) { c.AdminKey = "/token" }, tg.initial); !fault.Is(err, fault.Invalid) {
		t.Errorf("a pointer to nothing: %v; want invalid", err)
	}
	if err := create(func(c *apikey.Config) { c.AdminKey = "-" }, tg.initial); !fault.Is(err, fault.Denied) {
		t.Errorf("the whole secret as a credential: %v; want denied", err)
	}
}
