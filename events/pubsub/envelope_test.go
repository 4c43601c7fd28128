package pubsub

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice/noticetest"
)

const subscription = `"subscription":"projects/my-project/subscriptions/keyturn"`

// routes are the ways in which a message gets to us as JSON, from the message
// by itself.
func routes() map[string]func(string) string {
	wrapped := func(m string) string { return `{"message":` + m + `,` + subscription + `}` }
	event := func(data string) string {
		return `{"specversion":"1.0","id":"1","source":"//pubsub.googleapis.com/projects/p/topics/t","type":"google.cloud.pubsub.topic.v1.messagePublished",` + data + `}`
	}
	return map[string]func(string) string{
		"a message": func(m string) string { return m },
		"a push":    wrapped,
		"Eventarc":  func(m string) string { return event(`"datacontenttype":"application/json","data":` + wrapped(m)) },
		"Eventarc, base64": func(m string) string {
			return event(`"data_base64":"` + base64.StdEncoding.EncodeToString([]byte(wrapped(m))) + `"`)
		},
		"a pull by REST": func(m string) string {
			return `{"receivedMessages":[{"ackId":"RkhRNxkIAA","message":` + m + `,"deliveryAttempt":2}]}`
		},
		"a pull by gcloud": func(m string) string { return `[{"ackId":"RkhRNxkIAA","message":` + m + `}]` },
		"an array":         func(m string) string { return "[" + m + "]" },
	}
}

// bare is the message in a push.
func bare(t failer, push []byte) string {
	var env struct{ Message json.RawMessage }
	if err := json.Unmarshal(push, &env); err != nil || len(env.Message) == 0 {
		t.Fatalf("no message: %v", err)
	}
	return string(env.Message)
}

type failer interface{ Fatalf(string, ...any) }

// Whatever the envelope, what comes of a message is what DecodePush makes of
// it.
func TestDecodeAnyEveryRoute(t *testing.T) {
	d := Decoder{Project: func(n string) string { return map[string]string{"123456789012": "my-project"}[n] }}
	for name, body := range messages(t) {
		if strings.HasPrefix(name, "broken/") || name == "other/unwrapped" || name == "other/message a string" {
			continue
		}
		want, wantErr := d.DecodePush(body, received)
		for route, wrap := range routes() {
			got, err := d.DecodeAny([]byte(wrap(bare(t, body))), received)
			if fault.KindOf(err) != fault.KindOf(wantErr) || (err != nil) != (wantErr != nil) {
				t.Errorf("%s by %s: %v, expected %v", name, route, err, wantErr)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s by %s (-DecodePush +DecodeAny):\n%s", name, route, diff)
			}
		}
	}
}

func TestDecodeAnyRefuses(t *testing.T) {
	add := bare(t, push(attrs("SECRET_VERSION_ADD"), ""))
	resource := `{"createTime":"2026-10-02T13:03:43.549786Z","etag":"\"165cdb29776d5a\"","name":"` + secret + `/versions/1","state":"ENABLED"}`
	entry := `{"protoPayload":{"@type":"type.googleapis.com/google.cloud.audit.AuditLog","methodName":"google.cloud.secretmanager.v1.SecretManagerService.AddSecretVersion","resourceName":"` + secret + `"},"insertId":"1"}`
	audit := `{"specversion":"1.0","id":"1","source":"//cloudaudit.googleapis.com/projects/p/logs/activity","type":"google.cloud.audit.log.v1.written","data":` + entry + `}`
	deep := add
	for range 30 {
		deep = "[" + deep + "]"
	}
	for name, c := range map[string]struct {
		body string
		n    int
		kind fault.Kind
		says string
	}{
		"empty":                 {"", 0, fault.Invalid, "the body is empty"},
		"words":                 {"hello", 0, fault.Invalid, "not JSON"},
		"null":                  {"null", 0, fault.Invalid, "JSON null"},
		"unknown":               {`{"hello":1}`, 0, fault.Invalid, "no envelope that is known"},
		"messages are no array": {`{"receivedMessages":{}}`, 0, fault.Invalid, "receivedMessages is no array"},
		"message is no object":  {`{"receivedMessages":[{"message":"x"}]}`, 0, fault.Invalid, "message is no object"},
		"too deep":              {deep, 0, fault.Invalid, "more than 8 envelopes"},
		"one of two":            {"[" + add + ",{}]", 1, fault.Invalid, "1 of 2"},
		"unwrapped":             {resource, 0, fault.Unavailable, "attributes are missing"},
		"unwrapped beside bad":  {"[{}," + resource + "," + add + "]", 1, fault.Unavailable, "2 of 3"},
		"audit log, Eventarc":   {audit, 0, fault.Invalid, "the CloudEvent is of another type"},
		"audit log, an entry":   {entry, 0, fault.Invalid, "an entry of the audit log"},
		"audit log, a sink": {`{"message":{"attributes":{"logging.googleapis.com/timestamp":"2026-06-01T10:00:00Z"},"messageId":"1","data":"` +
			base64.StdEncoding.EncodeToString([]byte(entry)) + `"}}`, 0, fault.Invalid, "an entry of the audit log"},
	} {
		es, err := Decoder{}.DecodeAny([]byte(c.body), received)
		noticetest.Sound(t, es, err, fault.Invalid, fault.Unavailable)
		if !fault.Is(err, c.kind) || len(es) != c.n || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %d events, %v; expected %d and %q", name, len(es), err, c.n, c.says)
		}
		if c.kind == fault.Unavailable && !errors.Is(err, ErrNoAttributes) {
			t.Errorf("%s: %v; expected ErrNoAttributes", name, err)
		}
	}
	for name, body := range map[string]string{"nothing pulled": `{"receivedMessages":[]}`, "no messages": `[]`} {
		if es, err := (Decoder{}).DecodeAny([]byte(body), received); err != nil || len(es) != 0 {
			t.Errorf("%s: %v, %v; expected neither events nor an error", name, es, err)
		}
	}
}

// Whichever topic, subscription, spelling of time and way, one change has one
// id; two changes have two.
func TestDecodeAnyOneChangeIsOneID(t *testing.T) {
	ways := routes()
	names := slices.Sorted(maps.Keys(ways))
	types := slices.Sorted(maps.Keys(changes))
	rapid.Check(t, func(rt *rapid.T) {
		what := rapid.SampledFrom(types).Draw(rt, "type")
		name := fmt.Sprintf("projects/%d/%ssecrets/%s", rapid.Int64Range(1, 1<<40).Draw(rt, "project"),
			rapid.SampledFrom([]string{"", "locations/us-central1/"}).Draw(rt, "location"), rapid.StringMatching(`[A-Za-z0-9_]{1,40}`).Draw(rt, "name"))
		at := time.Unix(rapid.Int64Range(0, 1<<33).Draw(rt, "at"), 1000*rapid.Int64Range(0, 999999).Draw(rt, "µs"))
		version := rapid.Int64Range(1, 1<<50).Draw(rt, "version")
		zones := []*time.Location{time.UTC, time.FixedZone("PDT", -7*3600), time.FixedZone("PST", -8*3600)}
		message := func(at time.Time, version int64) string {
			a := attrs(what, "secretId", name, "timestamp", at.In(rapid.SampledFrom(zones).Draw(rt, "zone")).Format(rapid.SampledFrom([]string{time.RFC3339Nano, "2006-01-02T15:04:05.000000Z07:00"}).Draw(rt, "form")))
			if a["versionId"] != "" {
				a["versionId"] = fmt.Sprintf("%s/versions/%d", name, version)
			}
			m := bare(rt, push(a, `{"state":"ENABLED"}`))
			m = strings.ReplaceAll(m, "2070443601311540", rapid.StringMatching(`[1-9][0-9]{15}`).Draw(rt, "id"))
			return strings.ReplaceAll(m, "10:00:00.749Z", fmt.Sprintf("10:%02d:00Z", rapid.IntRange(0, 59).Draw(rt, "published")))
		}
		id := func(m string) string {
			es, err := Decoder{}.DecodeAny([]byte(ways[rapid.SampledFrom(names).Draw(rt, "way")](m)), received)
			noticetest.Sound(rt, es, err, fault.Invalid)
			if err != nil || len(es) != 1 {
				rt.Fatalf("%d events, %v", len(es), err)
			}
			return es[0].ID
		}
		first := id(message(at, version))
		if again := id(message(at, version)); again != first {
			rt.Fatalf("one change has the ids %s and %s", first, again)
		}
		if changes[what].repeats {
			if later := id(message(at.Add(time.Microsecond), version)); later == first {
				rt.Fatalf("%s has one id at two times", what)
			}
		}
		if strings.HasPrefix(what, "SECRET_VERSION_") {
			if other := id(message(at, version+1)); other == first {
				rt.Fatalf("%s has one id for two versions", what)
			}
		}
	})
}

// TestTraps has the ways in which readers of Secret Manager's messages go
// wrong. Those that are missing concern who receives (33, 34).
func TestTraps(t *testing.T) {
	all := messages(t)
	one := func(t *testing.T, body []byte) events.Event {
		t.Helper()
		es, err := Decoder{}.DecodeAny(body, received)
		if err != nil || len(es) != 1 {
			t.Fatalf("%d events, %v; expected one", len(es), err)
		}
		return es[0]
	}
	t.Run("trap 24: SECRET_ROTATE is a request, of no version, and each is its own", func(t *testing.T) {
		a, b := one(t, all["rotate/plain"]), one(t, all["rotate/again"])
		if a.Type != events.RotationRequested || a.Data.Version != "" || a.ID == b.ID {
			t.Errorf("%+v, %+v", a, b)
		}
	})
	t.Run("trap 25: the project's number becomes its id, and is one secret with it", func(t *testing.T) {
		d := Decoder{Project: func(n string) string { return map[string]string{"123456789012": "my-project"}[n] }}
		var ids []string
		for _, name := range []string{"file/SECRET_VERSION_ADD.message", "add/project id"} {
			es, err := d.DecodeAny(all[name], received)
			if err != nil || len(es) != 1 || es[0].Data.Ref.String() != "gcp://my-project/agent-stripe" {
				t.Fatalf("%s: %v, %v", name, es, err)
			}
			ids = append(ids, es[0].ID)
		}
		if ids[0] != ids[1] {
			t.Errorf("ids %v", ids)
		}
	})
	t.Run("trap 26: a regional secret is another one, by its own name", func(t *testing.T) {
		e := one(t, all["add/regional"])
		if e.Data.Ref.String() != "gcp://123456789012/us-central1/agent-stripe" || e.Data.Version != "2" || e.ID == one(t, all["add/UTC"]).ID {
			t.Errorf("%+v", e)
		}
	})
	t.Run("trap 27: timestamps have California's offset", func(t *testing.T) {
		for zone, at := range map[string]string{"PDT": "2026-06-01T03:00:00.5-07:00", "UTC": "2026-06-01T10:00:00.5Z"} {
			if e := one(t, push(attrs("SECRET_UPDATE", "timestamp", at), "")); !e.Time.Equal(happened) || e.Time.Location() != time.UTC {
				t.Errorf("%s: %s", zone, e.Time)
			}
		}
	})
	t.Run("trap 28: TOPIC_CONFIGURED has nothing, and is no event", func(t *testing.T) {
		for route, wrap := range routes() {
			if es, err := (Decoder{}).DecodeAny([]byte(wrap(bare(t, all["file/push-wrapped.TOPIC_CONFIGURED"]))), received); err != nil || len(es) != 0 {
				t.Errorf("%s: %v, %v", route, es, err)
			}
		}
	})
	t.Run("trap 29: data is base64 in JSON, bytes in a pull and raw without the wrapper", func(t *testing.T) {
		body := push(attrs("SECRET_VERSION_ADD"), `{"state":"DISABLED"}`)
		want := one(t, body)
		m, err := ParsePush(body)
		if err != nil || string(m.Data) != `{"state":"DISABLED"}` || want.Type != events.VersionCreated {
			t.Fatalf("%q, %v", m.Data, err)
		}
		h := http.Header{"X-Goog-Pubsub-Message-Id": {m.ID}}
		for k, v := range m.Attributes {
			h.Set(k, v)
		}
		pulled, _ := Decoder{}.Decode(m, received)
		raw, _ := Decoder{}.DecodeUnwrapped(h.Get, m.Data, received)
		if len(pulled) != 1 || len(raw) != 1 || pulled[0] != want || raw[0] != want {
			t.Errorf("pulled %+v, unwrapped %+v, expected %+v", pulled, raw, want)
		}
		if _, err := (Decoder{}).DecodeAny(all["other/unwrapped"], received); !errors.Is(err, ErrNoAttributes) || !fault.Retryable(err) {
			t.Errorf("without attributes: %v", err)
		}
	})
	t.Run("trap 30: several topics tell of one change", func(t *testing.T) {
		body := string(all["file/SECRET_VERSION_ADD.message"])
		a, b := one(t, []byte(body)), one(t, []byte(strings.ReplaceAll(body, "2070443601311540", "9070443601311549")))
		if a.ID != b.ID || a.Data.Provider.EventID == b.Data.Provider.EventID {
			t.Errorf("%+v, %+v", a, b)
		}
	})
	t.Run("trap 31: a version that was disabled meanwhile is none for readers", func(t *testing.T) {
		for body, typ := range map[string]events.Type{"add/disabled": events.VersionCreated, "add/destroyed": events.VersionCreated, "destroy/scheduled": events.VersionDisabled, "destroy/done": events.VersionDestroyed} {
			if e := one(t, all[body]); e.Type != typ || e.Data.Version != "2" {
				t.Errorf("%s: %+v", body, e)
			}
		}
	})
	t.Run("trap 32: an etag's quotes make no other change of it", func(t *testing.T) {
		at := func(etag string) string {
			return one(t, push(attrs("SECRET_UPDATE", "timestamp", ""), `{"etag":`+etag+`}`)).ID
		}
		if at(`"\"16\""`) != at(`"16"`) || at(`"\"16\""`) == at(`"\"17\""`) {
			t.Error("etags are not compared")
		}
	})
}

func FuzzDecodeAny(f *testing.F) {
	all := messages(f)
	for _, body := range all {
		f.Add(body)
	}
	for _, wrap := range routes() {
		f.Add([]byte(wrap(bare(f, all["file/SECRET_VERSION_ADD.message"]))))
		f.Add([]byte(wrap(bare(f, all["file/push-wrapped.SECRET_ROTATE"]))))
	}
	words := noticetest.Vocabulary(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		es, err := decodeAny(body)
		noticetest.Sound(t, es, err, fault.Invalid, fault.Unavailable)
		words.NoEcho(t, body, err)
	})
}

func decodeAny(body []byte) ([]events.Event, error) { return Decoder{}.DecodeAny(body, received) }

// Envelopes can be spoiled too, and what is in them is looked at as closely.
func TestDecodeAnyIsTotal(t *testing.T) {
	all := messages(t)
	wrapped := map[string][]byte{}
	for name, wrap := range routes() {
		wrapped[name] = []byte(wrap(bare(t, all["file/SECRET_VERSION_ADD.message"])))
	}
	noticetest.Total(t, wrapped, decodeAny, fault.Invalid, fault.Unavailable)
	noticetest.NeverEchoes(t, wrapped, decodeAny, isIdentity, 500)
	// What is in the data.
	noticetest.NeverEchoes(t, map[string][]byte{"data": []byte(`{"name":"x","state":"ENABLED","etag":"\"1\"","labels":{"a":"b"}}`)}, func(data []byte) ([]events.Event, error) {
		return decodeAny(push(attrs("SECRET_UPDATE", "timestamp", ""), string(data)))
	}, isIdentity, 20)
}

// One operation is one event.
func BenchmarkDecode(b *testing.B) {
	m := bare(b, messages(b)["file/SECRET_VERSION_ADD.message"])
	for _, route := range []string{"a message", "a push", "Eventarc", "a pull by REST"} {
		b.Run(route, func(b *testing.B) {
			body := []byte(routes()[route](m))
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if es, err := decodeAny(body); err != nil || len(es) != 1 {
					b.Fatalf("%v, %v", es, err)
				}
			}
		})
	}
}
