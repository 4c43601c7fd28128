package main

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/secretmanager/apiv1/secretmanagerpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/gcpfake"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/triggers"
	"github.com/keyturn/keyturn/internal/triggers/triggertest"
)

const (
	app    = "projects/" + gcpfake.Project + "/secrets/app"
	master = "projects/" + gcpfake.Project + "/secrets/master"
)

type world struct {
	t    *testing.T
	db   *triggertest.Database
	fake *gcpfake.Server
	rec  leaktest.Recorder
	h    http.Handler
}

// newWorld deploys the function for a secret app whose user is changed by
// rotator.
func newWorld(t *testing.T, rotator string, more ...string) *world {
	t.Helper()
	w := &world{t: t, db: triggertest.New(t), fake: gcpfake.New(t)}
	w.fake.Create(&secretmanagerpb.Secret{Name: master}, w.db.Master())
	w.fake.Create(&secretmanagerpb.Secret{Name: app, Topics: []*secretmanagerpb.Topic{{Name: "projects/" + gcpfake.Project + "/topics/one"}, {Name: "projects/" + gcpfake.Project + "/topics/two"}}},
		w.db.JSON("app", triggertest.Password, "gcp://"+gcpfake.Project+"/master"))
	env := append([]string{
		"KEYTURN_ROTATOR=" + rotator, "KEYTURN_CA_FILE=" + w.db.CAFile, "PORT=0",
		"KEYTURN_PROJECTS=" + gcpfake.Project + "=" + gcpfake.ProjectNumber, "KEYTURN_SECRETS=gcp://" + gcpfake.Project + "/app",
	}, more...)
	_, h, err := handler(env, w.fake.Clients(t), triggers.NewLogger(&w.rec, nil))
	if err != nil {
		t.Fatal(err)
	}
	w.h = h
	return w
}

// ask lets the service ask for a rotation, and returns its messages: one a
// topic.
func (w *world) ask() []gcpfake.Notice {
	w.t.Helper()
	before := len(w.fake.Notices("SECRET_ROTATE"))
	w.fake.Rotate(app)
	return w.fake.Notices("SECRET_ROTATE")[before:]
}

// push is a message as a push subscription delivers it.
func push(t testing.TB, n gcpfake.Notice) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"subscription": "projects/p/subscriptions/s", "message": map[string]any{
		"attributes": n.Attributes, "data": base64.StdEncoding.EncodeToString(n.Data), "messageId": n.MessageID, "message_id": n.MessageID,
		"publishTime": n.PublishTime.Format(time.RFC3339Nano), "publish_time": n.PublishTime.Format(time.RFC3339Nano),
	}})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (w *world) deliver(n gcpfake.Notice, want int) {
	w.t.Helper()
	if got, _ := triggertest.Call(w.t, w.h, push(w.t, n)); got != want {
		w.t.Fatalf("%s answered with %d; expected %d\n%s", n.Attributes["eventType"], got, want, w.rec.String())
	}
}

func (w *world) versions() []string {
	var out []string
	for _, v := range w.fake.Versions(app) {
		out = append(out, string(v.Value))
	}
	return out
}

// A SECRET_ROTATE rotates a real user, once, on whatever topic and however
// often it comes; what is told of the rotation itself starts nothing.
func TestRotates(t *testing.T) {
	w := newWorld(t, "postgres-alternating")
	notices := w.ask()
	if len(notices) != 2 {
		t.Fatalf("%d messages; expected one a topic", len(notices))
	}
	for range 2 {
		for _, n := range notices {
			w.deliver(n, http.StatusNoContent)
		}
	}
	vs := w.versions()
	if len(vs) != 2 {
		t.Fatalf("%d versions after four deliveries of one request; expected 2\n%s", len(vs), w.rec.String())
	}
	if triggertest.User(t, vs[1]) != "app_clone" || !w.db.SignsIn(vs[1]) || !w.db.SignsIn(vs[0]) {
		t.Error("expected app_clone, and that both users sign in until the gate")
	}
	for _, n := range w.fake.Notices() {
		w.deliver(n, http.StatusNoContent)
	}
	if n := len(w.versions()); n != 2 {
		t.Fatalf("%d versions; the echo of a rotation started another", n)
	}
	for _, n := range w.ask() {
		w.deliver(n, http.StatusNoContent)
	}
	vs = w.versions()
	if len(vs) != 3 || triggertest.User(t, vs[2]) != "app" || !w.db.SignsIn(vs[2]) {
		t.Errorf("%d versions; expected a third one, for app again", len(vs))
	}
	w.rec.Check(t, triggertest.Password, w.db.SuperPassword)
}

// The same through Eventarc, as CloudEvents, and without a wrapper.
func TestOtherWaysIn(t *testing.T) {
	w := newWorld(t, "postgres-single")
	const typ = "google.cloud.pubsub.topic.v1.messagePublished"
	for i, send := range []func(n gcpfake.Notice) int{
		func(n gcpfake.Notice) int {
			got, _ := triggertest.Call(t, w.h, push(t, n), "ce-type", typ, "ce-id", n.MessageID, "ce-specversion", "1.0", "ce-source", "//pubsub.googleapis.com/"+n.Topic, "Content-Type", "application/json")
			return got
		},
		func(n gcpfake.Notice) int {
			got, _ := triggertest.Call(t, w.h, `{"specversion":"1.0","type":"`+typ+`","id":"1","source":"//pubsub.googleapis.com/x","data":`+push(t, n)+`}`, "Content-Type", "application/cloudevents+json")
			return got
		},
		func(n gcpfake.Notice) int {
			headers := []string{"x-goog-pubsub-message-id", n.MessageID}
			for k, v := range n.Attributes {
				headers = append(headers, k, v)
			}
			got, _ := triggertest.Call(t, w.h, string(n.Data), headers...)
			return got
		},
	} {
		if got := send(w.ask()[0]); got != http.StatusNoContent {
			t.Fatalf("way %d answered with %d\n%s", i, got, w.rec.String())
		}
		if vs := w.versions(); len(vs) != i+2 || !w.db.SignsIn(vs[i+1]) || w.db.SignsIn(vs[i]) {
			t.Fatalf("way %d: %d versions; expected %d, the newest alone alive", i, len(vs), i+2)
		}
	}
}

// What may succeed later is asked for again, and then ends as if nothing had
// happened; what never can is done with.
func TestFailures(t *testing.T) {
	w := newWorld(t, "postgres-alternating")
	n := w.ask()[0]
	// The last call of the rotation is lost: the version is promoted.
	for method, err := range map[string]error{
		"GetSecret":        status.Error(codes.Unavailable, "away"),
		"AddSecretVersion": status.Error(codes.Unavailable, "away"),
		"UpdateSecret":     status.Error(codes.PermissionDenied, "no"),
	} {
		w.fake.FailNext(method, err)
		w.deliver(n, http.StatusInternalServerError)
	}
	w.deliver(n, http.StatusNoContent)
	if vs := w.versions(); len(vs) != 2 || !w.db.SignsIn(vs[1]) {
		t.Fatalf("%d versions after failures; expected 2\n%s", len(vs), w.rec.String())
	}

	n = w.ask()[0]
	w.fake.Add(app, `{"engine":"mysql"}`) // somebody's error
	w.deliver(n, http.StatusNoContent)
	if !strings.Contains(w.rec.String(), "cannot be rotated") {
		t.Error("a secret that can never be rotated is not told of")
	}
	if got, _ := triggertest.Call(t, w.h, "not a message"); got != http.StatusNoContent || !strings.Contains(w.rec.String(), "cannot be understood") {
		t.Errorf("garbage was answered with %d", got)
	}
	// Without its attributes nobody knows what it says: never acknowledged.
	if got, _ := triggertest.Call(t, w.h, string(n.Data)); got != http.StatusInternalServerError {
		t.Errorf("a message without attributes was answered with %d", got)
	}
	before := len(w.versions())
	other := n
	other.Attributes = map[string]string{"eventType": "SECRET_ROTATE", "secretId": "projects/" + gcpfake.ProjectNumber + "/secrets/master", "timestamp": "2026-06-01T03:00:00Z"}
	w.deliver(other, http.StatusNoContent)
	if len(w.fake.Versions(master)) != 1 || len(w.versions()) != before {
		t.Error("a secret that is not in KEYTURN_SECRETS was rotated")
	}
	w.rec.Check(t, triggertest.Password, w.db.SuperPassword)
}

// A master that is not the one allowed is not read.
func TestMaster(t *testing.T) {
	w := newWorld(t, "postgres-alternating", "KEYTURN_MASTER=gcp://"+gcpfake.Project+"/another")
	w.deliver(w.ask()[0], http.StatusNoContent)
	if len(w.versions()) != 1 || !strings.Contains(w.rec.String(), "KEYTURN_MASTER allows only") {
		t.Errorf("%d versions\n%s", len(w.versions()), w.rec.String())
	}
}

func TestEnvironment(t *testing.T) {
	fake := gcpfake.New(t)
	for _, c := range []struct{ env, want string }{
		{"", "KEYTURN_ROTATOR"},
		{"KEYTURN_ROTATOR=mysql", "postgres-single"},
		{"KEYTURN_ROTATOR=apikey", "KEYTURN_APIKEY"},
		{"KEYTURN_ROTATOR=postgres-single KEYTURN_SECRETS=azure://v/s", "not a secret of this cloud"},
		{"KEYTURN_ROTATOR=postgres-single KEYTURN_PROJECTS=123", "pairs"},
		{"KEYTURN_ROTATOR=postgres-single KEYTURN_GATE_ADOPTED=true", "does not hear which agents"},
		{"KEYTURN_ROTATOR=postgres-single KEYTURN_GATE_AT_LIMIT=retire", "no limit"},
		{"KEYTURN_ROTATOR=postgres-single KEYTURN_MIN_AGE=soon", "90m or 24h"},
		{"KEYTURN_ROTATOR=postgres-single PASSWORD_LENGTH=2", "one of each"},
	} {
		_, _, err := handler(strings.Fields(c.env), fake.Clients(t), triggers.NewLogger(&leaktest.Recorder{}, nil))
		if !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; expected Invalid with %q", c.env, err, c.want)
		}
	}
	if len(fake.Calls()) != 0 {
		t.Error("a deployment called the service")
	}
}
