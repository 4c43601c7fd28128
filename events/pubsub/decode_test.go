package pubsub

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice/noticetest"
	"github.com/keyturn/keyturn/ref"
)

var (
	received = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	happened = time.Date(2026, 6, 1, 10, 0, 0, 5e8, time.UTC)
	stripe   = ref.Ref{Provider: ref.GCP, Scope: "123456789012", Name: "agent-stripe"}
)

const secret = "projects/123456789012/secrets/agent-stripe"

// attrs are the attributes of one message; pairs replace or, empty, remove.
func attrs(what string, pairs ...string) map[string]string {
	a := map[string]string{"dataFormat": "JSON_API_V1", "eventType": what, "secretId": secret, "timestamp": "2026-06-01T03:00:00.5-07:00"}
	if strings.HasPrefix(what, "SECRET_VERSION_") {
		a["versionId"] = secret + "/versions/2"
	}
	for i := 0; i < len(pairs); i += 2 {
		if a[pairs[i]] = pairs[i+1]; pairs[i+1] == "" {
			delete(a, pairs[i])
		}
	}
	return a
}

// push is a message as it is pushed.
func push(a map[string]string, data string) []byte {
	m := map[string]any{"attributes": a, "messageId": "2070443601311540", "message_id": "2070443601311540", "publishTime": "2026-06-01T10:00:00.749Z", "publish_time": "2026-06-01T10:00:00.749Z"}
	if data != "" {
		m["data"] = base64.StdEncoding.EncodeToString([]byte(data))
	}
	b, err := json.Marshal(map[string]any{"message": m, "subscription": "projects/my-project/subscriptions/keyturn"})
	if err != nil {
		panic(err)
	}
	return b
}

// messages are the samples, each as a push, and the variants that they lack.
func messages(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/messages/*.json")
	if err != nil || len(files) != 7 {
		t.Fatalf("found %d sample messages (%v); expected 7", len(files), err)
	}
	out := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(f), ".json")
		if strings.HasSuffix(name, ".message") {
			b = []byte(`{"message":` + string(b) + `,"subscription":"projects/my-project/subscriptions/keyturn"}`)
		}
		out["file/"+name] = b
	}
	const enabled, disabled = `{"state":"ENABLED","etag":"\"16600000000000\""}`, `{"state":"DISABLED","etag":"\"16600000000001\""}`
	for name, b := range map[string][]byte{
		"add/no data":            push(attrs("SECRET_VERSION_ADD"), ""),
		"add/odd data":           push(attrs("SECRET_VERSION_ADD"), "not JSON"),
		"add/disabled":           push(attrs("SECRET_VERSION_ADD"), disabled),
		"add/destroyed":          push(attrs("SECRET_VERSION_ADD"), `{"state":"DESTROYED"}`),
		"add/other format":       push(attrs("SECRET_VERSION_ADD", "dataFormat", "AVRO_V9"), enabled),
		"add/no secretId":        push(attrs("SECRET_VERSION_ADD", "secretId", ""), enabled),
		"add/no versionId":       push(attrs("SECRET_VERSION_ADD", "versionId", ""), enabled),
		"add/no timestamp":       push(attrs("SECRET_VERSION_ADD", "timestamp", ""), enabled),
		"add/UTC":                push(attrs("SECRET_VERSION_ADD", "timestamp", "2026-06-01T10:00:00.500000Z"), enabled),
		"add/winter":             push(attrs("SECRET_VERSION_ADD", "timestamp", "2026-01-01T02:00:00.5-08:00"), enabled),
		"add/project id":         push(attrs("SECRET_VERSION_ADD", "secretId", "projects/my-project/secrets/agent-stripe", "versionId", "projects/my-project/secrets/agent-stripe/versions/2"), enabled),
		"add/regional":           push(attrs("SECRET_VERSION_ADD", "secretId", "projects/123456789012/locations/us-central1/secrets/agent-stripe", "versionId", "projects/123456789012/locations/us-central1/secrets/agent-stripe/versions/2"), enabled),
		"add/two secrets":        push(attrs("SECRET_VERSION_ADD", "versionId", "projects/123456789012/secrets/other/versions/2"), enabled),
		"add/latest":             push(attrs("SECRET_VERSION_ADD", "versionId", secret+"/versions/latest"), enabled),
		"add/version zero":       push(attrs("SECRET_VERSION_ADD", "versionId", secret+"/versions/0"), enabled),
		"add/odd secret":         push(attrs("SECRET_VERSION_ADD", "secretId", "projects/1/secrets/a b", "versionId", ""), enabled),
		"add/bad base64":         []byte(`{"message":{"attributes":{"eventType":"SECRET_UPDATE","secretId":"` + secret + `"},"data":"%%%"}}`),
		"add/snake only":         []byte(`{"message":{"attributes":{"eventType":"SECRET_VERSION_ADD","secretId":"` + secret + `","versionId":"` + secret + `/versions/2"},"message_id":"7","publish_time":"2026-06-01T10:00:00.5Z"}}`),
		"enable/again":           push(attrs("SECRET_VERSION_ENABLE", "timestamp", "2026-06-01T04:00:00.5-07:00"), enabled),
		"enable/no timestamp":    push(attrs("SECRET_VERSION_ENABLE", "timestamp", ""), enabled),
		"enable/nothing":         push(attrs("SECRET_VERSION_ENABLE", "timestamp", ""), ""),
		"destroy/scheduled":      push(attrs("SECRET_VERSION_DESTROY_SCHEDULED"), `{"state":"DISABLED","scheduledDestroyTime":"2026-06-08T10:00:00Z"}`),
		"destroy/done":           push(attrs("SECRET_VERSION_DESTROY"), `{"state":"DESTROYED","destroyTime":"2026-06-08T10:00:00Z"}`),
		"secret/created":         push(attrs("SECRET_CREATE"), `{"name":"`+secret+`"}`),
		"secret/expired":         push(attrs("SECRET_DELETE", "deleteType", "EXPIRATION"), ""),
		"rotate/again":           push(attrs("SECRET_ROTATE", "timestamp", "2026-07-01T03:00:00.5-07:00"), ""),
		"rotate/plain":           push(attrs("SECRET_ROTATE"), ""),
		"sibling/add":            push(attrs("SECRET_VERSION_ADD", "secretId", secret+"--pending", "versionId", secret+"--pending/versions/9"), enabled),
		"sibling/destroy":        push(attrs("SECRET_VERSION_DESTROY", "secretId", secret+"--pending", "versionId", secret+"--pending/versions/9"), ""),
		"other/new type":         push(attrs("SECRET_VERSION_FOLDED"), ""),
		"other/no type":          push(map[string]string{"origin": "gcloud"}, "hello"),
		"other/no attributes":    []byte(`{"message":{"data":"aGVsbG8=","messageId":"1"}}`),
		"other/odd attributes":   []byte(`{"message":{"attributes":{"eventType":["SECRET_ROTATE"],"secretId":7},"messageId":"1"}}`),
		"other/no secret":        push(attrs("SECRET_UPDATE", "secretId", ""), ""),
		"other/message a string": []byte(`{"message":"SECRET_ROTATE"}`),
		"other/unwrapped":        []byte(`{"createTime":"2026-10-02T13:03:43.549786Z","etag":"\"165cdb29776d5a\"","name":"` + secret + `/versions/1","state":"ENABLED"}`),
		"broken/empty":           nil,
		"broken/null":            []byte("null"),
		"broken/array":           []byte("[]"),
		"broken/cut":             push(attrs("SECRET_UPDATE"), "")[:40],
		"broken/object":          []byte("{}"),
	} {
		out[name] = b
	}
	return out
}

// TestDecodeTypes says what each message must come to, in a form that can be
// checked against Google's documents.
func TestDecodeTypes(t *testing.T) {
	want := map[string]string{
		"file/SECRET_DELETE.requested.message": "secret.deleted ",
		"file/SECRET_UPDATE.message":           "secret.changed ",
		"file/SECRET_VERSION_ADD.message":      "version.activated 2",
		"file/SECRET_VERSION_DISABLE.message":  "version.disabled 2",
		"file/SECRET_VERSION_ENABLE.message":   "version.enabled 2",
		"file/push-wrapped.SECRET_ROTATE":      "rotation.requested ",
		"file/push-wrapped.TOPIC_CONFIGURED":   "",
		"add/no data":                          "version.activated 2",
		"add/odd data":                         "version.activated 2",
		"add/disabled":                         "version.created 2",
		"add/destroyed":                        "version.created 2",
		"add/other format":                     "version.activated 2",
		"add/no secretId":                      "version.activated 2",
		"add/no versionId":                     "version.activated ",
		"add/no timestamp":                     "version.activated 2",
		"add/UTC":                              "version.activated 2",
		"add/winter":                           "version.activated 2",
		"add/project id":                       "version.activated 2",
		"add/regional":                         "version.activated 2",
		"add/two secrets":                      "error",
		"add/latest":                           "error",
		"add/version zero":                     "error",
		"add/odd secret":                       "error",
		"add/bad base64":                       "error",
		"add/snake only":                       "version.activated 2",
		"enable/again":                         "version.enabled 2",
		"enable/no timestamp":                  "version.enabled 2",
		"enable/nothing":                       "version.enabled 2",
		"destroy/scheduled":                    "version.disabled 2",
		"destroy/done":                         "version.destroyed 2",
		"secret/created":                       "secret.changed ",
		"secret/expired":                       "secret.deleted ",
		"rotate/again":                         "rotation.requested ",
		"rotate/plain":                         "rotation.requested ",
		"sibling/add":                          "", "sibling/destroy": "", "other/new type": "",
		"other/no type": "error", "other/no attributes": "error", "other/odd attributes": "error", "other/no secret": "error",
		"other/message a string": "error", "other/unwrapped": "later",
		"broken/empty": "error", "broken/null": "error", "broken/array": "error", "broken/cut": "error", "broken/object": "error",
	}
	for name, body := range messages(t) {
		es, err := Decoder{}.DecodePush(body, received)
		noticetest.Sound(t, es, err, fault.Invalid, fault.Unavailable)
		var got []string
		for _, e := range es {
			noun, verb := e.Type.Parts()
			got = append(got, noun+"."+verb+" "+e.Data.Version)
		}
		switch {
		case fault.Is(err, fault.Unavailable):
			got = append(got, "later")
		case err != nil:
			got = append(got, "error")
		}
		w, said := want[name]
		if s := strings.Join(got, ";"); s != w || !said {
			t.Errorf("%s: got %q, expected %q (%v)", name, s, w, err)
		}
	}
}

// All ways in say the same of one message.
func TestEveryWayIn(t *testing.T) {
	body := messages(t)["file/push-wrapped.SECRET_ROTATE"]
	d := Decoder{Project: func(n string) string {
		if n == "82150720798" {
			return "extractctl"
		}
		return ""
	}}
	want, err := d.DecodePush(body, received)
	if err != nil || len(want) != 1 {
		t.Fatalf("%v, %v", want, err)
	}
	e := want[0]
	if e.Data.Ref.String() != "gcp://extractctl/zigps-smf-54e2ea98-rp" || e.Data.Provider.ID != "projects/82150720798/secrets/zigps-smf-54e2ea98-rp" ||
		e.Data.Provider.EventID != "2070443601311541" || !e.Time.Equal(time.Date(2026, 10, 2, 13, 11, 21, 55625000, time.UTC)) || e.Data.Cause != cause {
		t.Errorf("event %+v", e)
	}
	m, err := ParsePush(body)
	if err != nil || !json.Valid(m.Data) {
		t.Fatalf("data %s, %v", m.Data, err)
	}
	same := func(name string, got []events.Event, err error) {
		t.Helper()
		if err != nil || len(got) != 1 || got[0] != e {
			t.Errorf("%s: %+v, %v\nexpected %+v", name, got, err, e)
		}
	}
	got, err := d.Decode(m, received)
	same("pulled", got, err)
	h := http.Header{}
	for k, v := range m.Attributes {
		h.Set(k, v)
	}
	h.Set("x-goog-pubsub-message-id", m.ID)
	h.Set("x-goog-pubsub-publish-time", m.Published.Format(time.RFC3339Nano))
	got, err = d.DecodeUnwrapped(h.Get, m.Data, received)
	same("unwrapped", got, err)
	got, err = d.DecodeRequest(h.Get, m.Data, received)
	same("a request, unwrapped", got, err)

	ce := http.Header{}
	ce.Set("ce-type", "google.cloud.pubsub.topic.v1.messagePublished")
	got, err = d.DecodeEventarc(ce.Get, body, received)
	same("Eventarc, binary", got, err)
	got, err = d.DecodeRequest(ce.Get, body, received)
	same("a request of Eventarc, binary", got, err)
	none := http.Header{}.Get
	got, err = d.DecodeRequest(none, body, received)
	same("a request, wrapped", got, err)
	structured := fmt.Sprintf(`{"specversion":"1.0","id":"1","source":"//pubsub.googleapis.com/projects/p/topics/t","type":"google.cloud.pubsub.topic.v1.messagePublished","datacontenttype":"application/json","data":%s}`, body)
	got, err = d.DecodeEventarc(none, []byte(structured), received)
	same("Eventarc, structured", got, err)
	got, err = d.DecodeRequest(http.Header{"Content-Type": {"application/cloudevents+json; charset=utf-8"}}.Get, []byte(structured), received)
	same("a request of Eventarc, structured", got, err)
	based := fmt.Sprintf(`{"specversion":"1.0","type":"google.cloud.pubsub.topic.v1.messagePublished","data_base64":%q}`, base64.StdEncoding.EncodeToString(body))
	got, err = d.DecodeEventarc(none, []byte(based), received)
	same("Eventarc, base64", got, err)

	for name, body := range map[string]string{
		"audit log":  strings.Replace(structured, "google.cloud.pubsub.topic.v1.messagePublished", "google.cloud.audit.log.v1.written", 1),
		"no event":   string(body),
		"no data":    `{"specversion":"1.0","type":"google.cloud.pubsub.topic.v1.messagePublished"}`,
		"bad base64": `{"specversion":"1.0","type":"google.cloud.pubsub.topic.v1.messagePublished","data_base64":"%"}`,
		"not JSON":   "eventType=SECRET_ROTATE",
	} {
		if es, err := d.DecodeEventarc(none, []byte(body), received); !fault.Is(err, fault.Invalid) || len(es) > 0 {
			t.Errorf("%s: %v, %v; expected Invalid", name, es, err)
		}
	}
	ce.Set("ce-type", "google.cloud.audit.log.v1.written")
	if _, err := d.DecodeEventarc(ce.Get, body, received); !fault.Is(err, fault.Invalid) {
		t.Errorf("an audit log: %v; expected Invalid", err)
	}
}

// A push without its wrapper: the headers are the attributes, and without them
// it is never acknowledged.
func TestUnwrapped(t *testing.T) {
	raw, err := os.ReadFile("testdata/messages/push-unwrapped.SECRET_VERSION_ADD.http.txt")
	if err != nil {
		t.Fatal(err)
	}
	head, data, _ := strings.Cut(strings.ReplaceAll(string(raw), "\r\n", "\n"), "\n\n")
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(head, "\n", "\r\n") + "\r\nHost: h\r\nContent-Length: " + fmt.Sprint(len(data)) + "\r\n\r\n" + data)))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	es, err := Decoder{}.DecodeUnwrapped(r.Header.Get, body, received)
	if err != nil || len(es) != 1 {
		t.Fatalf("%v, %v", es, err)
	}
	if e := es[0]; e.Type != events.VersionActivated || e.Data.Ref.String() != "gcp://82150720798/us-central1/zigps-smf-54e2ea98-evr" || e.Data.Version != "1" || e.Data.Provider.EventID != "2070443601311543" {
		t.Errorf("event %+v", e)
	}
	none := func(string) string { return "" }
	for name, err := range map[string]error{
		"headers lost":          func() error { _, err := Decoder{}.DecodeUnwrapped(none, body, received); return err }(),
		"nothing at all":        func() error { _, err := Decoder{}.DecodeUnwrapped(none, nil, received); return err }(),
		"taken for a wrapped":   func() error { _, err := Decoder{}.DecodePush(body, received); return err }(),
		"a secret, not wrapped": func() error { _, err := Decoder{}.DecodePush([]byte(`{"name":"`+secret+`"}`), received); return err }(),
	} {
		if !errors.Is(err, ErrNoAttributes) || !fault.Is(err, fault.Unavailable) || !fault.Retryable(err) {
			t.Errorf("%s: %v; expected ErrNoAttributes, which is delivered again", name, err)
		}
	}
}

// One change is one id: on every topic, in every spelling of its time, and as
// the rotator announces it.
func TestOneChangeIsOneID(t *testing.T) {
	all := messages(t)
	id := func(name string) string {
		t.Helper()
		es, err := Decoder{}.DecodePush(all[name], received)
		if err != nil || len(es) != 1 {
			t.Fatalf("%s: %d events, %v", name, len(es), err)
		}
		return es[0].ID
	}
	announced := events.New(events.VersionActivated, stripe, received, "2").ID
	for _, name := range []string{"file/SECRET_VERSION_ADD.message", "add/no data", "add/no timestamp", "add/UTC", "add/winter", "add/no secretId", "add/snake only"} {
		if got := id(name); got != announced {
			t.Errorf("%s has id %s; the rotator's announcement has %s", name, got, announced)
		}
	}
	seen := map[string]string{}
	for _, name := range []string{
		"file/SECRET_VERSION_ADD.message", "add/regional", "add/project id", "file/SECRET_VERSION_ENABLE.message", "enable/again", "enable/no timestamp", "enable/nothing",
		"file/SECRET_VERSION_DISABLE.message", "destroy/done", "file/SECRET_UPDATE.message", "file/SECRET_DELETE.requested.message", "rotate/plain", "rotate/again",
	} {
		got := id(name)
		if other, ok := seen[got]; ok {
			t.Errorf("%s and %s have one id", name, other)
		}
		seen[got] = name
	}
	for name, body := range all {
		first, _ := Decoder{}.DecodePush(body, received)
		again, _ := Decoder{}.DecodePush(slices.Clone(body), received.Add(time.Hour))
		// Another topic or subscription: another message, published later.
		elsewhere, _ := Decoder{}.DecodePush([]byte(strings.NewReplacer("2070443601311540", "3070443601311540", "10:00:00.749Z", "10:00:01.749Z").Replace(string(body))), received)
		for i := range first {
			if first[i].ID != again[i].ID || name != "enable/nothing" && first[i].ID != elsewhere[i].ID {
				t.Errorf("%s: ids %s, %s when delivered again and %s on another topic", name, first[i].ID, again[i].ID, elsewhere[i].ID)
			}
		}
	}
}

// Times come with the offset of California, which changes with the season.
func TestTimes(t *testing.T) {
	all := messages(t)
	for name, want := range map[string]time.Time{
		"file/SECRET_VERSION_ADD.message": happened,
		"add/UTC":                         happened,
		"add/winter":                      time.Date(2026, 1, 1, 10, 0, 0, 5e8, time.UTC),
		"add/no timestamp":                time.Date(2026, 6, 1, 10, 0, 0, 749e6, time.UTC), // when it was published
	} {
		es, err := Decoder{}.DecodePush(all[name], received)
		if err != nil || len(es) != 1 || !es[0].Time.Equal(want) {
			t.Errorf("%s: %+v, %v; expected time %s", name, es, err, want)
		}
	}
	if es, err := (Decoder{}).Decode(Message{Attributes: attrs("SECRET_UPDATE", "timestamp", "soon")}, received); err != nil || len(es) != 1 || !es[0].Time.Equal(received) {
		t.Errorf("%+v, %v; expected the time of receipt", es, err)
	}
}

// A secret has one ref, by the id of its project where that is known.
func TestProjects(t *testing.T) {
	all := messages(t)
	d := Decoder{Project: func(n string) string { return map[string]string{"123456789012": "my-project"}[n] }}
	for name, want := range map[string]string{
		"file/SECRET_VERSION_ADD.message": "gcp://my-project/agent-stripe",
		"add/project id":                  "gcp://my-project/agent-stripe",
		"add/regional":                    "gcp://my-project/us-central1/agent-stripe",
		"file/push-wrapped.SECRET_ROTATE": "gcp://82150720798/zigps-smf-54e2ea98-rp",
	} {
		es, err := d.DecodePush(all[name], received)
		if err != nil || len(es) != 1 || es[0].Data.Ref.String() != want {
			t.Errorf("%s: %+v, %v; expected %s", name, es, err, want)
		}
	}
	odd := Decoder{Project: func(string) string { return "a/b" }}
	es, err := odd.DecodePush(all["add/UTC"], received)
	noticetest.Sound(t, es, err, fault.Invalid)
}

func FuzzDecodePush(f *testing.F) {
	for _, body := range messages(f) {
		f.Add(body)
	}
	words := noticetest.Vocabulary(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		es, err := Decoder{}.DecodePush(body, received)
		noticetest.Sound(t, es, err, fault.Invalid, fault.Unavailable)
		words.NoEcho(t, body, err)
		es, err = Decoder{}.DecodeEventarc(func(string) string { return "" }, body, received)
		noticetest.Sound(t, es, err, fault.Invalid, fault.Unavailable)
		words.NoEcho(t, body, err)
	})
}

func FuzzDecode(f *testing.F) {
	f.Add("SECRET_VERSION_ADD", secret, secret+"/versions/2", "2026-06-01T03:00:00.5-07:00", "1", []byte(`{"state":"ENABLED"}`))
	f.Add("SECRET_ROTATE", secret, "", "", "", []byte(`{"etag":"\"16\""}`))
	words := noticetest.Vocabulary(f)
	f.Fuzz(func(t *testing.T, what, name, version, at, id string, data []byte) {
		a := map[string]string{"eventType": what, "secretId": name, "versionId": version, "timestamp": at}
		es, err := Decoder{}.Decode(Message{Attributes: a, Data: data, ID: id}, received)
		noticetest.Sound(t, es, err, fault.Invalid)
		words.NoEcho(t, slices.Concat([]byte(what+name+version+at+id), data), err)
	})
}

func TestDecodeIsTotal(t *testing.T) {
	noticetest.Total(t, messages(t), decode, fault.Invalid, fault.Unavailable)
}

func TestDecodeNeverEchoes(t *testing.T) {
	noticetest.NeverEchoes(t, messages(t), decode, isIdentity, 2000)
}

// isIdentity reports whether an attribute or a member names a thing and is
// copied if it has the form of a name.
func isIdentity(key string) bool {
	switch strings.ToLower(key) {
	case "secretid", "versionid", "messageid", "message_id":
		return true
	}
	return false
}

func decode(body []byte) ([]events.Event, error) { return Decoder{}.DecodePush(body, received) }
