package triggers

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/secrets"
	"github.com/keyturn/keyturn/secrets/memstore"
)

var app = ref.Ref{Provider: ref.GCP, Scope: "my-project", Name: "app"}

// A gate that opens within the time that a notice is delivered again is waited
// for; one that opens later is not.
func TestGate(t *testing.T) {
	for after, waits := range map[string]bool{"1h": true, "24h": false} {
		env, err := ParseEnv([]string{"KEYTURN_ROTATOR=" + PostgresSingle, "KEYTURN_GATE_AFTER=" + after}, ref.GCP, "PORT", 0, nil)
		if err != nil {
			t.Fatal(err)
		}
		store := memstore.New()
		ctx := t.Context()
		if _, err := store.CreateSecret(ctx, app, secrets.NewString("one")); err != nil {
			t.Fatal(err)
		}
		if _, err := store.PutPending(ctx, app, "a-rotation-token-of-32-characters", secrets.NewString("two")); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Promote(ctx, app, "a-rotation-token-of-32-characters"); err != nil {
			t.Fatal(err)
		}
		var rec leaktest.Recorder
		r, err := NewRotation(env, store, events.RotationRequested, NewLogger(&rec, nil))
		if err != nil {
			t.Fatal(err)
		}
		err = r.Handle(ctx, []events.Event{events.New(events.RotationRequested, app, time.Now(), "x")})
		if waits != fault.Is(err, fault.Unavailable) || !waits && (err != nil || !strings.Contains(rec.String(), "not rotated")) {
			t.Errorf("gate after %s: %v\n%s", after, err, rec.String())
		}
	}
}

// One event that fails does not keep the others of a batch, and is told of.
func TestBatch(t *testing.T) {
	env, err := ParseEnv([]string{"KEYTURN_ROTATOR=" + PostgresSingle}, ref.GCP, "PORT", 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	store := memstore.New()
	var rec leaktest.Recorder
	r, err := NewRotation(env, store, events.RotationRequested, NewLogger(&rec, nil))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.CreateSecret(t.Context(), app, secrets.NewString("not a database's secret")); err != nil {
		t.Fatal(err)
	}
	gone := ref.Ref{Provider: ref.GCP, Scope: "my-project", Name: "gone"}
	err = r.Handle(t.Context(), []events.Event{
		events.New(events.RotationRequested, gone, time.Now(), "1"),
		events.New(events.VersionActivated, gone, time.Now(), "2"),
		events.New(events.RotationRequested, app, time.Now(), "3"),
	})
	if !fault.Is(err, fault.NotFound) || strings.Count(rec.String(), "cannot be rotated") != 1 {
		t.Errorf("%v\n%s", err, rec.String())
	}
}

func TestHandler(t *testing.T) {
	canary := leaktest.Canary()
	var rec leaktest.Recorder
	log := NewLogger(&rec, nil)
	var got string
	call := func(_ context.Context, header func(string) string, body []byte) error {
		switch got = header("x-what") + string(body); got {
		case "panic":
			panic("about " + canary)
		case "away":
			return &fault.Error{Kind: fault.Unavailable, Op: "test"}
		case "never":
			return fault.Newf(fault.Invalid, "test", "no")
		}
		return nil
	}
	post := func(ok, body string) (int, string) {
		w := httptest.NewRecorder()
		Handler(call, ok, log).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/any/path", strings.NewReader(body)))
		rec.Record(w.Body.String())
		return w.Code, w.Body.String()
	}
	for body, want := range map[string]int{"good": 204, "panic": 500, "away": 500, "never": 500, strings.Repeat("x", maxBody+1): 500} {
		if code, _ := post("", body); code != want {
			t.Errorf("%.10s: %d; expected %d", body, code, want)
		}
	}
	if code, answer := post(HostAnswer, "good"); code != 200 || answer != HostAnswer {
		t.Errorf("%d %q; expected the answer of the host", code, answer)
	}
	w := httptest.NewRecorder()
	Handler(call, "", log).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
	if w.Code != http.StatusMethodNotAllowed || w.Header().Get("Allow") != http.MethodPost {
		t.Errorf("GET: %d", w.Code)
	}
	rec.Check(t, canary)
	for _, want := range []string{`"severity":"ERROR"`, `"message":"panic"`, "triggers_test.go"} {
		if !strings.Contains(rec.String(), want) {
			t.Errorf("the log has no %s", want)
		}
	}
}
