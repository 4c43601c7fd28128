package integration_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/awsfake"
	"github.com/keyturn/keyturn/internal/crashtest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
	"github.com/keyturn/keyturn/rotators/rotatortest"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/awssm"
	"github.com/keyturn/keyturn/secrets/memstore"
)

// A backend is one store's service. open returns the store as a fresh process
// has it, each of its calls on the wire passing through in.
type backend interface {
	open(t *testing.T, in *crashtest.Injector) secrets.Store
	create(t *testing.T, v secrets.Value) ref.Ref
}

type memBackend struct {
	s *memstore.Store
	n atomic.Int64
}

func (b *memBackend) open(_ *testing.T, in *crashtest.Injector) secrets.Store {
	if in == nil {
		return b.s
	}
	return in.Store(b.s)
}

func (b *memBackend) create(t *testing.T, v secrets.Value) ref.Ref {
	t.Helper()
	r := natsRef(t, fmt.Sprintf("mem/%d", b.n.Add(1)))
	_, err := b.s.CreateSecret(t.Context(), r, v)
	must(t, err)
	return r
}

type natsBackend struct {
	broker *broker
	js     jetstream.JetStream
	n      atomic.Int64
}

func (b *natsBackend) open(t *testing.T, in *crashtest.Injector) secrets.Store {
	t.Helper()
	return b.broker.store(t, tappedJS{b.js, in})
}

func (b *natsBackend) create(t *testing.T, v secrets.Value) ref.Ref {
	t.Helper()
	r := natsRef(t, fmt.Sprintf("kv/%d", b.n.Add(1)))
	_, err := b.broker.store(t, b.js).CreateSecret(t.Context(), r, v)
	must(t, err)
	return r
}

// tappedJS passes each call to a bucket through an injector.
type tappedJS struct {
	jetstream.JetStream
	in *crashtest.Injector
}

func (j tappedJS) KeyValue(ctx context.Context, name string) (jetstream.KeyValue, error) {
	kv, err := j.JetStream.KeyValue(ctx, name)
	if err != nil {
		return nil, err
	}
	return tappedKV{kv, j.in}, nil
}

type tappedKV struct {
	jetstream.KeyValue
	in *crashtest.Injector
}

func (k tappedKV) Get(ctx context.Context, key string) (e jetstream.KeyValueEntry, err error) {
	err = k.in.Call("kv.Get", func() (err error) { e, err = k.KeyValue.Get(ctx, key); return err })
	return e, err
}

func (k tappedKV) Update(ctx context.Context, key string, v []byte, revision uint64) (rev uint64, err error) {
	err = k.in.Call("kv.Update", func() (err error) { rev, err = k.KeyValue.Update(ctx, key, v, revision); return err })
	return rev, err
}

type awsBackend struct{ fake *awsfake.Server }

func (b *awsBackend) open(_ *testing.T, in *crashtest.Injector) secrets.Store {
	rt := b.fake.Transport()
	if in != nil {
		rt = in.Transport(rt)
	}
	return awssm.New(b.fake.SecretsManager(func(o *secretsmanager.Options) {
		o.RetryMaxAttempts = 1 // each request is a point
		o.HTTPClient = &http.Client{Transport: rt}
	}), nil)
}

func (b *awsBackend) create(t *testing.T, v secrets.Value) ref.Ref {
	t.Helper()
	r := b.fake.Ref("crash/" + awsfake.Token())
	_, err := b.open(t, nil).(secrets.Creator).CreateSecret(t.Context(), r, v)
	must(t, err)
	return r
}

// calls is a backend whose points are the store's calls as a whole, not those
// on the wire. It is for credentials that a target issues, where nobody but
// us opens the rotation: there a put that died between its two requests to
// AWS keeps a key out of sight, which the next attempt takes for an orphan
// (see RotateOnTheWire).
type calls struct{ backend }

func (c calls) open(t *testing.T, in *crashtest.Injector) secrets.Store {
	t.Helper()
	s := c.backend.open(t, nil)
	if in == nil {
		return s
	}
	return in.Store(s)
}

// TestCrashMatrix kills every rotator on every store at every outward call.
//
// The issuer of keys is quick, so those pairs fail in both modes and try again
// in each way that their store allows. PostgreSQL takes tens of
// milliseconds a point, and its rotators' own tests run the whole suite on one
// store. Here they die at each call on the wire, store, database and bus
// alike, before and after its effect.
func TestCrashMatrix(t *testing.T) {
	db := newDatabase(t)
	b := newBroker(t)
	bus, err := natsbus.Open(t.Context(), b.Conn(t), nil)
	must(t, err)
	js := b.jetStream(t)
	backends := []struct {
		name string
		backend
	}{
		{"memstore", &memBackend{s: memstore.New()}},
		{"natskv", &natsBackend{broker: b, js: js}},
		{"awssm", &awsBackend{awsfake.New(t)}},
	}
	for _, be := range backends {
		for _, alternating := range []bool{false, true} {
			// PostgreSQL takes its time. The rotators' own crash suite runs on
			// memstore, and what the single user adds is seen on one store.
			if os.Getenv(crashtest.SoakEnv) == "" && (be.name == "memstore" || be.name == "awssm" && !alternating) {
				continue
			}
			name, tr := "postgres-single", rotatortest.Traits{KillsCurrent: true}
			if alternating {
				name, tr = "postgres-alternating", rotatortest.Traits{CurrentSurvivesSet: true}
			}
			t.Run(be.name+"/"+name, func(t *testing.T) {
				t.Parallel()
				crashtest.RunModes(t, crashtest.Modes(true), func(t *testing.T, in *crashtest.Injector) {
					(&victim{t: t, be: be.backend, target: db.newTarget(t, alternating), tr: tr, bus: bus, js: js}).survives(in)
				})
			})
		}
		t.Run(be.name+"/apikey", func(t *testing.T) {
			t.Parallel()
			traits := rotatortest.Traits{CurrentSurvivesSet: true, Issues: true}
			if aws, ok := be.backend.(*awsBackend); ok {
				// The suite's steps are unknown to a service that opens each
				// rotation itself, so the service opens them here.
				points := 0
				for name, how := range map[string]struct {
					be    backend
					begin func(ref.Ref, string)
				}{
					"Rotate": {be: calls{aws}},
					"Steps":  {aws, func(r ref.Ref, token string) { aws.fake.StartRotation(r.Name, token) }},
				} {
					t.Run(name, func(t *testing.T) {
						points += crashtest.Run(t, func(t *testing.T, in *crashtest.Injector) {
							(&victim{t: t, be: how.be, target: newIssuer(t, 2), tr: traits, bus: bus, js: js, begin: how.begin}).survives(in)
						})
					})
				}
				t.Run("RotateOnTheWire", func(t *testing.T) {
					crashtest.Run(t, func(t *testing.T, in *crashtest.Injector) {
						(&victim{t: t, be: aws, target: newIssuer(t, 2), tr: traits, bus: bus, js: js}).survives(in)
					})
				})
				t.Logf("crash points: %d", points)
				return
			}
			newTarget := func(t *testing.T) rotatortest.Target { return newIssuer(t, 2) }
			newStore := func(t *testing.T, v secrets.Value) (secrets.Store, ref.Ref) {
				return be.open(t, nil), be.create(t, v)
			}
			rotatortest.Crash(t, newTarget, traits, newStore)
		})
	}
}

// TestCrashMatrixOfClouds kills a rotation at every request to the stores that
// keep pending in a sibling. They are combined with the issuer of keys alone,
// which is the quicker of the two targets and the one with more to lose: a key
// that was issued and is in no version. The process dies, as with PostgreSQL
// above, and is followed by the next trigger, with a token of its own.
func TestCrashMatrixOfClouds(t *testing.T) {
	b := newBroker(t)
	bus, err := natsbus.Open(t.Context(), b.Conn(t), nil)
	must(t, err)
	js := b.jetStream(t)
	all := platforms(&oneProcess{})
	for _, name := range []string{"gcp", "azure", "vault"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			be := all[name](t)
			crashtest.Run(t, func(t *testing.T, in *crashtest.Injector) { // logs how many points there are
				if strings.Contains(t.Name(), "/"+crashtest.Glitch.String()+"/") {
					return
				}
				(&victim{
					t: t, be: be, target: newIssuer(t, 2), tr: rotatortest.Traits{CurrentSurvivesSet: true, Issues: true}, bus: bus, js: js, next: true,
				}).survives(in)
			})
		})
	}
}

// A victim is one secret whose rotation dies.
type victim struct {
	t      *testing.T
	be     backend
	target rotatortest.Target
	tr     rotatortest.Traits
	bus    events.Publisher
	js     jetstream.JetStream
	ref    ref.Ref
	// begin, if not nil, is the service that opens the rotation and then
	// drives it step by step.
	begin func(r ref.Ref, token string)
	// next says that what comes after the crash is another trigger.
	next bool
}

// rotate runs a rotation in a fresh process.
func (v *victim) rotate(in *crashtest.Injector, token string) error {
	r := rotators.NewRunner(v.be.open(v.t, in), v.target.Rotator(v.t, in), &rotators.Options{
		Publisher: dying{v.bus, in}, Budget: time.Millisecond,
	})
	if v.begin == nil {
		_, err := r.Rotate(v.t.Context(), v.ref, token)
		return err
	}
	for _, p := range rotators.Phases() {
		if err := r.Step(v.t.Context(), v.ref, token, string(p)+"Secret"); err != nil {
			return err
		}
	}
	return nil
}

func (v *victim) accepts(x secrets.Value) bool {
	v.t.Helper()
	err := v.target.SignIn(context.Background(), x)
	if err != nil && !fault.Is(err, fault.Denied) {
		v.t.Fatalf("sign in: %v", err)
	}
	return err == nil
}

// survives rotates once with a failure and once more without, and checks that
// all is as if nothing had happened.
func (v *victim) survives(in *crashtest.Injector) {
	t := v.t
	v.ref = v.be.create(t, v.target.Initial())
	store, token := v.be.open(t, nil), rotators.NewToken()
	before := get(t, store, v.ref, secrets.Current)
	if v.begin != nil {
		v.begin(v.ref, token)
	}
	failed := v.rotate(in, token)
	in.Restart()

	cur := get(t, store, v.ref, secrets.Current)
	if !v.accepts(cur.Value) {
		p := get(t, store, v.ref, secrets.Pending)
		if v.tr.CurrentSurvivesSet || p == nil || !v.accepts(p.Value) {
			t.Fatalf("after a crash at %q nothing that the store holds signs in as it should", in.Fired())
		}
	}
	again := token
	if v.next && cur.Token != token {
		again = rotators.NewToken()
		if get(t, store, v.ref, secrets.Pending) == nil {
			token = again // nothing was journaled, so it is a rotation of its own
		}
	}
	if err := v.rotate(nil, again); err != nil {
		t.Fatalf("the attempt after the crash at %q (which gave: %v): %v", in.Fired(), failed, err)
	}
	now, prev := get(t, store, v.ref, secrets.Current), get(t, store, v.ref, secrets.Previous)
	switch {
	case now.Token != token:
		t.Fatalf("current is of rotation %q; want %s", now.Token, token)
	case prev == nil || !prev.Value.Equal(before.Value):
		t.Fatal("previous is not what was current before")
	case get(t, store, v.ref, secrets.Pending) != nil:
		t.Fatal("pending is still there")
	case !v.accepts(now.Value):
		t.Fatal("the target refuses current")
	case v.accepts(before.Value) != v.tr.CurrentSurvivesSet:
		t.Fatalf("the target accepts the superseded credential: %t; want %t", !v.tr.CurrentSurvivesSet, v.tr.CurrentSurvivesSet)
	}
	want := 1
	if v.tr.CurrentSurvivesSet {
		want = 2
	}
	if n := v.target.Live(t); n != want {
		t.Fatalf("the target honours %d credentials; want %d", n, want)
	}
	// However often it was announced, it is one event.
	subject := events.Subject("default", v.ref, events.VersionActivated)
	s, err := v.js.Stream(t.Context(), natsbus.EventStream)
	must(t, err)
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(subject))
	must(t, err)
	if n := info.State.Subjects[subject]; n != 1 {
		t.Fatalf("%d events say that the version is current; want 1", n)
	}
}

// dying is one process's way to the bus.
type dying struct {
	bus events.Publisher
	in  *crashtest.Injector
}

func (d dying) Publish(ctx context.Context, es ...events.Event) error {
	return d.in.Call("publish", func() error { return d.bus.Publish(ctx, es...) })
}
