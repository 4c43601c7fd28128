package integration_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/agent/pgxauth"
	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/internal/dbsecret"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/apikey"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/natskv"
)

// A fuse fails one outward call of a process and all that follow.
type fuse struct {
	mu    sync.Mutex
	left  int // calls until it blows; negative never does
	after bool
	blown bool
}

var errBlown = errors.New("the connection was lost")

func (f *fuse) call(_ string, do func() error) error {
	f.mu.Lock()
	dead, now := f.blown, f.left == 0
	f.left--
	f.blown = dead || now
	f.mu.Unlock()
	if dead || now && !f.after {
		return errBlown
	}
	if err := do(); err != nil || !now {
		return err
	}
	return errBlown
}

// set makes the call n from now fail, before or after its effect.
func (f *fuse) set(n int, after bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.left, f.after, f.blown = n, after, false
}

func (f *fuse) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	err = f.call("", func() (err error) { resp, err = http.DefaultTransport.RoundTrip(r); return err })
	if err != nil && resp != nil {
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		resp = nil
	}
	return resp, err
}

// fused passes a store and a bus through a fuse.
type fused struct {
	secrets.Store
	bus events.Publisher
	f   *fuse
}

func (s fused) Get(ctx context.Context, r ref.Ref, st secrets.Stage) (v *secrets.Version, err error) {
	err = s.f.call("get", func() (err error) { v, err = s.Store.Get(ctx, r, st); return err })
	return v, err
}

func (s fused) PutPending(ctx context.Context, r ref.Ref, token string, x secrets.Value) (v *secrets.Version, err error) {
	err = s.f.call("put", func() (err error) { v, err = s.Store.PutPending(ctx, r, token, x); return err })
	return v, err
}

func (s fused) Promote(ctx context.Context, r ref.Ref, token string) (v *secrets.Version, err error) {
	err = s.f.call("promote", func() (err error) { v, err = s.Store.Promote(ctx, r, token); return err })
	return v, err
}

func (s fused) Publish(ctx context.Context, es ...events.Event) error {
	return s.f.call("publish", func() error { return s.bus.Publish(ctx, es...) })
}

// canaries are all values that were ever secret in a test.
type canaries struct {
	t    *testing.T
	seen map[string]bool
	all  []string
}

func (c *canaries) add(s ...string) {
	for _, x := range s {
		if len(x) < 12 {
			c.t.Fatalf("a secret of %d characters is no canary", len(x))
		}
		if !c.seen[x] {
			c.seen[x] = true
			c.all = append(c.all, x)
		}
	}
}

func (c *canaries) plant() string {
	x := leaktest.Canary()
	c.add(x)
	return x
}

// collect adds what the store holds of r, whichever kind it is.
func (c *canaries) collect(s secrets.Reader, r ref.Ref) {
	c.t.Helper()
	for _, st := range []secrets.Stage{secrets.Current, secrets.Pending, secrets.Previous} {
		v := get(c.t, s, r, st)
		if v == nil {
			continue
		}
		if key := keyOf(v.Value); key != "" {
			c.add(key)
			continue
		}
		d, err := dbsecret.Parse(v.Value)
		must(c.t, err)
		c.add(string(d.Password.Reveal()))
	}
}

// TestCanary rotates three secrets with failures at every few calls, an agent
// beside them, and looks for every value that was ever secret wherever
// something comes out: logs, errors, events, dead letters, files of
// JetStream, the log of PostgreSQL.
func TestCanary(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { http.DefaultTransport.(*http.Transport).CloseIdleConnections(); goleak.VerifyNone(t, leaks) })
	db := newDatabase(t)
	b := newBroker(t)
	log := &leaktest.Recorder{}
	c := &canaries{t: t, seen: map[string]bool{}}
	bus := openBus(t, b, log)
	store := b.store(t, b.jetStream(t))
	hook := startNotifier(t, bus, log)
	iss := newIssuer(t, 4)
	c.add(hook.key, iss.admin)

	master, orders, billing, llm := natsRef(t, "platform/master"), natsRef(t, "acme/orders"), natsRef(t, "acme/billing"), natsRef(t, "acme/llm")
	plantSecret(t, store, master, db.master(t, "master", c.plant()))
	plantSecret(t, store, orders, db.user(t, "orders", c.plant(), "master", master.String()))
	plantSecret(t, store, billing, db.user(t, "billing", c.plant(), "master", ""))
	plantSecret(t, store, llm, iss.first)

	f := &fuse{left: -1}
	s := fused{store, bus, f}
	o := &rotators.Options{Publisher: s, Tenant: tenantOf, Logger: log.Logger()}
	pgo := &postgres.Options{RootCAs: db.roots, Hook: f.call, Logger: log.Logger()}
	keys := newKeyRotator(t, iss, f)
	runners := map[ref.Ref]*rotators.Runner{
		orders:  rotators.NewRunner(s, postgres.NewAlternating(masterOf(s), pgo), o),
		billing: rotators.NewRunner(s, postgres.NewSingle(pgo), o),
		llm:     rotators.NewRunner(s, keys, o),
	}
	m := newMember(t, b, agent.Options{Refs: []ref.Ref{orders, billing, llm}, Jitter: -1, InvalidateBurst: 100}, log)
	for _, r := range []ref.Ref{orders, billing} {
		m.pool(t, db, r, pgxauth.Options{DrainAfter: -1, RetryFor: -1}, nil)
	}
	query := func(r ref.Ref) error {
		m.pools[r].Reset()
		return m.pools[r].Do(t.Context(), func(c *pgxpool.Conn) error { return c.Ping(t.Context()) })
	}

	rotations, failures := 0, 0
	for r, runner := range runners {
		for n := 0; n < 36; n += 5 {
			f.set(n, n%2 == 1)
			res, err := runner.Rotate(t.Context(), r, "")
			f.set(-1, false)
			log.Record(err, res)
			c.collect(store, r)
			if err != nil {
				failures++
			} else {
				rotations++
			}
			if m.pools[r] != nil {
				log.Record(query(r)) // of a single user it may be refused
			}
			res, err = runner.Rotate(t.Context(), r, "")
			must(t, err)
			log.Record(res)
			c.collect(store, r)
			rotations++
		}
	}
	if failures < 12 {
		t.Errorf("%d attempts failed and %d did not; the fuse did not do its work", failures, rotations)
	}

	refused := 0
	for r, runner := range runners {
		n := showFailures(t, c, f, runner, s, r, log)
		if n < 12 {
			t.Errorf("%d commands on %s failed; the fuse did not do its work", n, r)
		}
		refused += n
	}

	// A password that somebody changed behind the store's back.
	db.sql(t, "ALTER ROLE billing PASSWORD '"+c.plant()+"'")
	_, err := runners[billing].Rotate(t.Context(), billing, "")
	qerr := query(billing)
	if err == nil || qerr == nil {
		t.Errorf("with another password the rotation gave %v and a query %v; want two errors", err, qerr)
	}
	log.Record(err, qerr)
	c.collect(store, billing)
	refused += showAll(t, runners[billing], s, billing, log, func() { c.collect(store, billing) })

	broken(t, c, s, runners, m, log)
	notices(t, c, hook, bus, log)

	for _, m := range storedEvents(t, b.jetStream(t)) {
		_, _ = fmt.Fprintln(log, m.Subject, m.Header, string(m.Data))
	}
	for _, r := range []ref.Ref{orders, billing, llm} {
		v := get(t, store, r, secrets.Current)
		d, err := store.Describe(t.Context(), r)
		must(t, err)
		log.Record(v, *v, d, m.client.Status(r), rotators.Change{Ref: r, Current: v.Value, Pending: v.Value})
	}
	version, sealed := get(t, store, orders, secrets.Current).ID, false
	seal, err := os.ReadFile(b.file)
	must(t, err)
	for line := range strings.Lines(string(seal)) {
		if raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(line)); err == nil && len(raw) == 32 {
			c.add(strings.TrimSpace(line), string(raw))
			sealed = true
		}
	}
	if !sealed {
		t.Fatal("the key file holds no key, so none was looked for")
	}
	m.stop()
	for r, p := range m.pools {
		p.Close()
		log.Record(p, m.hooks[r], m.client)
	}
	b.Stop()
	_, err = store.Get(t.Context(), orders, secrets.Current)
	log.Record(err, b.keys)

	for what, want := range map[string]string{"phase failed": log.String(), "SCRAM-SHA-256$": db.log.String(), "password authentication failed": db.log.String()} {
		if !strings.Contains(want, what) {
			t.Errorf("what was recorded does not mention %q, so it is not what it should be", what)
		}
	}
	log.Check(t, c.all...)
	db.log.Check(t, c.all...)
	leaktest.CheckDir(t, b.Dir(), c.all...)
	if !inDir(t, b.Dir(), version) {
		t.Error("the files of JetStream do not hold a version's id, so they are not what was to be searched")
	}
	t.Logf("%d values looked for after %d rotations and %d failed ones, and %d other commands that failed, in %d KiB of log and %d KiB of PostgreSQL's",
		len(c.all), rotations, failures, refused, len(log.String())>>10, len(db.log.String())>>10)
}

// newKeyRotator rotates the issuer's keys, its calls passing through the fuse.
func newKeyRotator(t *testing.T, iss *issuer, f *fuse) rotators.Rotator {
	t.Helper()
	r, err := apikey.New(iss.config(), iss.options(f))
	must(t, err)
	return r
}

// broken has values that no rotator and no pool can use, each with a secret in
// the part that a parser would quote.
func broken(t *testing.T, c *canaries, s fused, runners map[ref.Ref]*rotators.Runner, m *member, log *leaktest.Recorder) {
	t.Helper()
	for i, form := range []string{
		`%s`, `{"password": "%s`, `{"password": %s}`, `"%s"`, `["%s"]`,
		`{"engine":"postgres","host":"127.0.0.1","username":"x","password":{"a":"%s"}}`,
		`{"engine":"postgres","host":"127.0.0.1","port":"%s","username":"x","password":"y"}`,
		`{"engine":"%s","host":"127.0.0.1","username":"x","password":"y"}`,
		`{"id":"1","key":{"a":"%s"}}`, `{"id":7,"key":"%s"}`,
	} {
		r := natsRef(t, fmt.Sprintf("acme/broken-%d", i))
		plantSecret(t, s.Store.(*natskv.Store), r, secrets.NewString(fmt.Sprintf(form, c.plant())))
		for _, runner := range runners {
			res, err := runner.Rotate(t.Context(), r, "")
			if err == nil {
				t.Errorf("the broken value %d was rotated", i)
			}
			log.Record(res, err)
		}
		// The same as superseded, and as pending.
		for _, promote := range []bool{true, false} {
			if p := get(t, s, r, secrets.Pending); p != nil { // of a rollback
				must(t, s.Discard(t.Context(), r, p.Token))
			}
			token := rotators.NewToken()
			_, err := s.PutPending(t.Context(), r, token, secrets.NewString(fmt.Sprintf(form, c.plant())))
			must(t, err)
			if promote {
				_, err = s.Promote(t.Context(), r, token)
				must(t, err)
			}
			for _, runner := range runners {
				if showAll(t, runner, s, r, log, func() {}) == 0 {
					t.Errorf("no command complained of the broken value %d", i)
				}
			}
		}
		h, err := pgxauth.New(m.client, r, nil)
		must(t, err)
		cfg, err := pgxpool.ParseConfig("postgres://127.0.0.1/postgres")
		must(t, err)
		p, err := h.NewPool(t.Context(), cfg)
		log.Record(err)
		if err == nil {
			p.Close()
			t.Errorf("the broken value %d made a pool", i)
		}
	}
}

// notices posts with wrong keys, and what cannot be read.
func notices(t *testing.T, c *canaries, h *hook, bus *natsbus.Bus, log *leaktest.Recorder) {
	t.Helper()
	if code := h.postAs(t, c.plant(), poison); code != http.StatusUnauthorized {
		t.Errorf("a post with a wrong key was answered %d", code)
	}
	bad := []string{poison, `[1, 2]`, `{"source":"aws.secretsmanager","detail-type":"Secret Label Updated","detail":7}`}
	for _, body := range bad {
		if code := h.post(t, body); code != http.StatusOK {
			t.Errorf("a notice that cannot be read was answered %d", code)
		}
	}
	letters := 0
	testenv.Eventually(t, 10*time.Second, "the dead letters", func() bool {
		letters = 0
		for l, err := range bus.DeadLetters(t.Context(), 0, 100) {
			must(t, err)
			letters++
			j, err := json.Marshal(l)
			must(t, err)
			_, _ = log.Write(j)
			log.Record(l.Reason, l)
		}
		return letters == len(bad)
	})
}

// inDir reports whether text is in a file below dir.
func inDir(t *testing.T, dir, text string) (found bool) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		found = found || leaktest.Find(b, text) != ""
		return err
	}))
	return found
}
