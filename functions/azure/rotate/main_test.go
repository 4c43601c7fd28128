package main

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/triggers"
	"github.com/keyturn/keyturn/internal/triggers/triggertest"
	"github.com/keyturn/keyturn/secrets/azurekv"
)

const vault = "kv-agents"

type world struct {
	t    *testing.T
	db   *triggertest.Database
	fake *azurefake.Server
	rec  leaktest.Recorder
	h    http.Handler
}

// newWorld deploys the function for a secret whose version is valid for so
// long.
func newWorld(t *testing.T, db *triggertest.Database, validity time.Duration, more ...string) *world {
	t.Helper()
	w := &world{t: t, db: db, fake: azurefake.New(t, vault)}
	w.fake.Put(vault, "master", azurefake.Version{Value: w.db.Master()})
	expires := time.Now().Add(validity).Unix()
	w.fake.Put(vault, "app", azurefake.Version{Value: w.db.JSON("app", triggertest.Password, "azure://"+vault+"/master"), Expires: &expires})
	env := append([]string{
		"KEYTURN_ROTATOR=postgres-alternating", "KEYTURN_CA_FILE=" + w.db.CAFile, "FUNCTIONS_CUSTOMHANDLER_PORT=0", "KEYTURN_SECRETS=azure://" + vault + "/App",
	}, more...)
	log := triggers.NewLogger(&w.rec, nil)
	o := &azurekv.Options{Logger: log, Client: azsecrets.ClientOptions{}}
	o.Client.Transport = w.fake.Client()
	_, h, err := handler(env, w.fake.Credential(), o, log)
	if err != nil {
		t.Fatal(err)
	}
	w.h = h
	return w
}

// deliver hands an event to the function as the host does.
func (w *world) deliver(event []byte, want int) {
	w.t.Helper()
	got, answer := triggertest.Call(w.t, w.h, `{"Data":{"event":`+string(event)+`},"Metadata":{"sys":{"MethodName":"rotate"}}}`)
	if got != want || got == http.StatusOK && !json.Valid([]byte(answer)) {
		w.t.Fatalf("answered %d %q; expected %d\n%s", got, answer, want, w.rec.String())
	}
}

// A SecretNearExpiry rotates a real user once, in either schema and however
// often it comes.
func TestRotates(t *testing.T) {
	w := newWorld(t, triggertest.Nowhere(t), 90*24*time.Hour)
	w.fake.Advance(61 * 24 * time.Hour)
	e := w.fake.NearExpiry(vault, "app")
	w.fake.Advance(-61 * 24 * time.Hour)
	// The version of the test is a moment old, which is too young.
	w.deliver(e.CloudEvent(), http.StatusOK)
	if n := len(w.fake.Versions(vault, "app")); n != 1 || !strings.Contains(w.rec.String(), "KEYTURN_MIN_AGE") {
		t.Fatalf("%d versions; a version a moment old was rotated\n%s", n, w.rec.String())
	}
	w = newWorld(t, triggertest.New(t), 90*24*time.Hour, "KEYTURN_MIN_AGE=0s")
	e = w.fake.NearExpiry(vault, "app")
	w.fake.FailNext("set", azurefake.Throttled(0), azurefake.Throttled(0), azurefake.Throttled(0))
	w.deliver(e.CloudEvent(), http.StatusInternalServerError)
	for range 2 {
		w.deliver(e.CloudEvent(), http.StatusOK)
		w.deliver(e.EventGrid(), http.StatusOK)
	}
	vs := w.fake.Versions(vault, "app")
	if len(vs) != 2 {
		t.Fatalf("%d versions after five deliveries of one event; expected 2\n%s", len(vs), w.rec.String())
	}
	if triggertest.User(t, vs[1].Value) != "app_clone" || !w.db.SignsIn(vs[1].Value) || !w.db.SignsIn(vs[0].Value) || vs[1].Expires == nil {
		t.Error("expected app_clone with an expiry, and that both users sign in until the gate")
	}
	w.rec.Check(t, triggertest.Password, w.db.SuperPassword)
}

// A validity of 30 days makes Key Vault ask for the next rotation as soon as
// one ends. Unless somebody chose that, nothing is changed at all; with a
// minimum age the echo ends there.
func TestNearExpiryLoop(t *testing.T) {
	w := newWorld(t, triggertest.Nowhere(t), 30*24*time.Hour, "KEYTURN_MIN_AGE=480h")
	var echoes []azurefake.Event
	w.fake.OnEvent(func(e azurefake.Event) { echoes = append(echoes, e) })
	w.deliver(w.fake.NearExpiry(vault, "app").CloudEvent(), http.StatusOK)
	if n := len(w.fake.Versions(vault, "app")); n != 1 {
		t.Fatalf("%d versions; expected that a version a moment old stays", n)
	}
	w = newWorld(t, triggertest.New(t), 30*24*time.Hour, "KEYTURN_MIN_AGE=1ns")
	w.fake.OnEvent(func(e azurefake.Event) { echoes = append(echoes, e) })
	first := w.fake.NearExpiry(vault, "app").CloudEvent()
	w.deliver(first, http.StatusOK)
	n := len(w.fake.Versions(vault, "app"))
	if n != 2 || len(echoes) == 0 {
		t.Fatalf("%d versions and %d events; expected a rotation and its echo\n%s", n, len(echoes), w.rec.String())
	}
	w.deliver(first, http.StatusOK) // about a version that is superseded
	if got := len(w.fake.Versions(vault, "app")); got != n {
		t.Errorf("%d versions; an old event started a rotation", got)
	}

	w = newWorld(t, triggertest.Nowhere(t), 30*24*time.Hour, "KEYTURN_VALIDITY=240h")
	w.fake.Advance(-48 * time.Hour) // a version that is old enough
	w.fake.Put(vault, "app", azurefake.Version{Value: w.db.JSON("app", triggertest.Password, "azure://"+vault+"/master")})
	w.deliver(w.fake.NearExpiry(vault, "app").CloudEvent(), http.StatusOK)
	if n := len(w.fake.Versions(vault, "app")); n != 2 || !strings.Contains(w.rec.String(), "make the validity longer") {
		t.Errorf("%d versions; a validity that makes a loop was taken, or not told of\n%s", n, w.rec.String())
	}
}

// What is not ours or cannot be understood is done with.
func TestOthers(t *testing.T) {
	w := newWorld(t, triggertest.Nowhere(t), 90*24*time.Hour, "KEYTURN_MIN_AGE=0s")
	w.deliver(w.fake.NearExpiry(vault, "master").CloudEvent(), http.StatusOK)
	w.deliver(w.fake.Expired(vault, "app").CloudEvent(), http.StatusOK)
	w.deliver([]byte(`"not an event"`), http.StatusOK)
	if got, _ := triggertest.Call(t, w.h, "{}"); got != http.StatusOK {
		t.Errorf("garbage was answered with %d", got)
	}
	if len(w.fake.Versions(vault, "master")) != 1 || len(w.fake.Versions(vault, "app")) != 1 {
		t.Error("something was rotated")
	}
}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct{ env, want string }{
		{"KEYTURN_ROTATOR=postgres-single KEYTURN_VAULT_SUFFIX=https://x", "a domain"},
		{"KEYTURN_ROTATOR=postgres-single KEYTURN_VALIDITY=-1h", "90m or 24h"},
		{"KEYTURN_ROTATOR=postgres-single KEYTURN_MASTER=gcp://p/s", "not a secret of this cloud"},
	} {
		_, _, err := handler(strings.Fields(c.env), nil, &azurekv.Options{}, triggers.NewLogger(&leaktest.Recorder{}, nil))
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; expected Invalid with %q", c.env, err, c.want)
		}
	}
	o := &azurekv.Options{Logger: triggers.NewLogger(&leaktest.Recorder{}, nil)}
	if _, _, err := handler([]string{"KEYTURN_ROTATOR=postgres-single", "KEYTURN_VAULT_SUFFIX=vault.azure.cn"}, nil, o, o.Logger); err != nil || o.VaultURL("v") != "https://v.vault.azure.cn" {
		t.Errorf("%v; expected the vaults of another cloud", err)
	}
}
