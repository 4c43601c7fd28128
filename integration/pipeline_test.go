package integration_test

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go/jetstream"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/agent"
	"github.com/keyturn/keyturn/agent/pgxauth"
	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/eventbridge"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/postgres"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/natskv"
)

const (
	alternatingRotations = 40
	singleRotations      = 10
)

// TestPipeline is the whole story on real servers in one process: two secrets
// rotate again and again while three agents query all the time, notices come
// by HTTP, and the NATS server goes away in the middle.
func TestPipeline(t *testing.T) {
	leaks := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, leaks) })
	db := newDatabase(t)
	b := newBroker(t)
	log := &leaktest.Recorder{}
	bus := openBus(t, b, log)
	store, err := natskv.Open(t.Context(), b.jetStream(t), b.keys, &natskv.Options{Bucket: bucket, Timeout: time.Second})
	must(t, err)
	js := b.jetStream(t)

	master, orders, billing := natsRef(t, "platform/master"), natsRef(t, "acme/orders"), natsRef(t, "acme/billing")
	plantSecret(t, store, master, db.master(t, "master", leaktest.Canary()))
	plantSecret(t, store, orders, db.user(t, "orders", leaktest.Canary(), "master", master.String()))
	plantSecret(t, store, billing, db.user(t, "billing", leaktest.Canary(), "master", ""))

	s := &story{
		t: t, db: db, b: b, bus: bus, js: js, store: store, orders: orders, billing: billing,
		hook: startNotifier(t, bus, log), versions: map[string]int{}, progress: func(rotators.Progress) {},
	}
	o := &rotators.Options{
		Publisher: bus, Tenant: tenantOf, Logger: log.Logger(),
		Observe: func(p rotators.Progress) { s.progress(p) },
	}
	pgo := &postgres.Options{RootCAs: db.roots}
	// As keyturn has it without a gate: set replaces what is superseded.
	keep := *o
	keep.KeepPrevious = true
	s.alternating = rotators.NewRunner(store, postgres.NewAlternating(masterOf(store), pgo), &keep)
	s.single = rotators.NewRunner(store, postgres.NewSingle(pgo), o)

	ordersLoad, billingLoad := newLoad(), newLoad()
	s.load = ordersLoad
	for range 3 {
		m := newMember(t, b, agent.Options{Refs: []ref.Ref{orders, billing}, Jitter: 20 * time.Millisecond, Observe: s.observe}, log)
		s.fleet = append(s.fleet, m)
		ordersLoad.start(t, "orders", m.pool(t, db, orders, pgxauth.Options{DrainAfter: 100 * time.Millisecond, RetryFor: 30 * time.Second}, nil))
		// Connections live shortly, so that many are made in the moment in
		// which the server refuses what the store calls current.
		billingLoad.start(t, "billing", m.pool(t, db, billing, pgxauth.Options{DrainAfter: 50 * time.Millisecond, RetryFor: 30 * time.Second},
			func(c *pgxpool.Config) { c.MaxConnLifetime = 30 * time.Millisecond }))
	}
	ordersLoad.more(t, 10)
	billingLoad.more(t, 10)
	s.remember(orders)

	for i := range alternatingRotations {
		if i == alternatingRotations/2 {
			s.outage(rotators.NewToken())
		} else {
			s.rotate(s.alternating, orders, rotators.NewToken())
		}
		s.checkAlternating()
		if i%(alternatingRotations/singleRotations) == 0 {
			before := get(t, store, billing, secrets.Current)
			s.rotate(s.single, billing, rotators.NewToken())
			if db.accepts(t, before.Value) {
				t.Fatal("the single user's old password signs in after the rotation")
			}
			billingLoad.more(t, 5)
		}
		ordersLoad.more(t, 5)
	}
	for _, r := range []ref.Ref{orders, billing} {
		allHold(t, s.fleet, r, get(t, store, r, secrets.Current).ID)
	}
	ordersLoad.stop(t, "alternating users")
	billingLoad.stop(t, "single user")
	s.notices()
	s.checkStream()
	s.logLags()
}

// A story is what the parts of the test share.
type story struct {
	t                   *testing.T
	db                  *database
	b                   *broker
	bus                 *natsbus.Bus
	js                  jetstream.JetStream
	store               *natskv.Store
	orders, billing     ref.Ref
	alternating, single *rotators.Runner
	progress            func(rotators.Progress)
	hook                *hook
	fleet               []*member
	load                *load           // of orders
	used                []secrets.Value // of orders, oldest first
	versions            map[string]int  // activated, by id
	outagePosts         []string        // versions of the notices that were refused at first

	mu   sync.Mutex
	lags []time.Duration
}

func (s *story) observe(o agent.Observation) {
	if o.Op == agent.OpAdopt && o.Cause == agent.CauseEvent {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.lags = append(s.lags, o.Lag)
	}
}

func (s *story) remember(r ref.Ref) {
	s.used = append(s.used, get(s.t, s.store, r, secrets.Current).Value)
}

func (s *story) rotate(r *rotators.Runner, id ref.Ref, token string) {
	s.t.Helper()
	res, err := r.Rotate(s.t.Context(), id, token)
	must(s.t, err)
	s.versions[res.Version]++
	if id == s.orders {
		s.remember(id)
	}
}

// checkAlternating signs in with what orders has used: the last two passwords
// live, the one before them is dead.
func (s *story) checkAlternating() {
	s.t.Helper()
	for i, v := range s.used[max(0, len(s.used)-3):] {
		live := i >= min(len(s.used), 3)-2
		if got := s.db.accepts(s.t, v); got != live {
			s.t.Fatalf("after %d rotations the database accepts password %d of the last three: %t; want %t", len(s.used)-1, i+1, got, live)
		}
	}
}

// outage stops the NATS server in the middle of a rotation, when the database
// has the new password and nobody knows it. Posts get 503 and are repeated;
// the rotation is repeated with its token; the queries go on all the while.
func (s *story) outage(token string) {
	t := s.t
	s.progress = func(p rotators.Progress) {
		if p.Phase == rotators.Set {
			s.b.Stop()
		}
	}
	_, err := s.alternating.Rotate(t.Context(), s.orders, token)
	s.progress = func(rotators.Progress) {}
	if !fault.Is(err, fault.Unavailable) {
		t.Fatalf("the rotation during the outage gave %v; want unavailable", err)
	}
	t.Logf("the rotation during the outage: %v", err)
	for i := range 3 {
		v := rotators.NewToken()
		s.outagePosts = append(s.outagePosts, v)
		if code := s.hook.post(t, labelUpdated(rotators.NewToken(), v)); code != 503 {
			t.Errorf("notice %d during the outage was answered %d; want 503", i, code)
		}
	}
	if code := s.hook.post(t, "no JSON, during the outage"); code != 503 {
		t.Errorf("a notice that cannot be read was answered %d during the outage; want 503", code)
	}
	queries := s.load.ok.Load()
	s.load.more(t, 50)
	t.Logf("%d queries during the outage", s.load.ok.Load()-queries)
	s.b.Start()
	testenv.Eventually(t, time.Minute, "the rotation repeated", func() bool {
		res, err := s.alternating.Rotate(t.Context(), s.orders, token)
		if err != nil {
			return false
		}
		if res.Token != token {
			t.Errorf("the rotation went on under the token %s; want %s", res.Token, token)
		}
		s.versions[res.Version]++
		return true
	})
	s.remember(s.orders)
	for _, v := range s.outagePosts {
		testenv.Eventually(t, time.Minute, "the notice repeated", func() bool { return s.hook.post(t, labelUpdated(rotators.NewToken(), v)) == 200 })
	}
	allHold(t, s.fleet, s.orders, get(t, s.store, s.orders, secrets.Current).ID)
}

const poison = `{"source": "aws.secretsmanager", "detail-type"`

// notices posts what must not become a second event, and what is none.
func (s *story) notices() {
	t, version := s.t, rotators.NewToken()
	// What a rotator has announced over EventBridge the service tells too.
	payments := ref.Ref{Provider: ref.AWS, Scope: "111122223333/eu-west-1", Name: "prod/agents/payments"}
	e := events.New(events.VersionActivated, payments, time.Now(), version)
	e.Data.Version = version
	source, detailType, detail, err := eventbridge.Entry(e)
	must(t, err)
	announced := `{"version":"0","id":"` + rotators.NewToken() + `","account":"111122223333","source":"` + source + `","detail-type":"` + detailType + `","detail":` + string(detail) + `}`
	for _, body := range []string{announced, labelUpdated("1111", version), labelUpdated("1111", version), labelUpdated("2222", version), announced, poison, poison} {
		if code := s.hook.post(t, body); code != 200 {
			t.Errorf("a notice was answered %d; want 200", code)
		}
	}
	s.versions[version]++
	for _, v := range s.outagePosts {
		s.versions[v]++
	}
	letters := 0
	for l, err := range s.bus.DeadLetters(t.Context(), 0, 100) {
		must(t, err)
		letters++
		if string(l.Body) != poison || l.Kind != fault.Invalid || !strings.Contains(l.Reason, "JSON") {
			t.Errorf("dead letter %q of kind %s with the reason %q; want the notice, invalid, and that it is no JSON", l.Body, l.Kind, l.Reason)
		}
	}
	if letters != 1 {
		t.Errorf("%d dead letters; want 1 of two deliveries", letters)
	}
}

// checkStream reads the stream back: ids are unique, and each version was
// activated once.
func (s *story) checkStream() {
	t := s.t
	ids, activated := map[string]bool{}, map[string]int{}
	all := storedEvents(t, s.js)
	for _, m := range all {
		id := m.Header.Get("ce-id")
		if id == "" || ids[id] {
			t.Errorf("event %d has the id %q, which is empty or not its own", m.Sequence, id)
		}
		ids[id] = true
		if m.Header.Get("ce-type") == string(events.VersionActivated) {
			activated[dataOf(t, m).Version]++
		}
	}
	for v, n := range s.versions {
		if n != 1 {
			t.Errorf("version %s came from %d rotations", v, n)
		}
		if activated[v] != 1 {
			t.Errorf("version %s was activated by %d events; want 1", v, activated[v])
		}
	}
	if len(activated) != len(s.versions) {
		t.Errorf("%d versions were activated; want %d", len(activated), len(s.versions))
	}
	t.Logf("%d events in the stream, %d versions activated, each once", len(all), len(activated))
}

func (s *story) logLags() {
	s.mu.Lock()
	defer s.mu.Unlock()
	slices.Sort(s.lags)
	if n := len(s.lags); n > 0 {
		s.t.Logf("from publication to use, with up to 20 ms of jitter: median %s, 99 %% %s, over %d adoptions",
			s.lags[n/2].Round(time.Millisecond), s.lags[n*99/100].Round(time.Millisecond), n)
	}
}
