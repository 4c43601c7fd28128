package cloudevents

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
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
	"github.com/keyturn/keyturn/ref"
)

var (
	received = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	happened = time.Date(2026, 6, 1, 10, 0, 0, 0, time.UTC)
	payments = ref.Ref{Provider: ref.AWS, Scope: "111122223333/eu-west-1", Name: "prod/agents/payments"}
)

const (
	version = "9b1d7e42-0c5a-4f6b-8e3d-6a7c9f2b1d55"
	trace   = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
)

// structured is an event with the given members of data.
func structured(what, data string) string {
	return fmt.Sprintf(`{"specversion":"1.0","id":"42","source":"/rotators/ldap","type":"dev.keyturn.%s.v1","subject":"anything","time":"2026-06-01T03:00:00-07:00","datacontenttype":"application/json","traceparent":%q,"custom":"x","data":{%s}}`, what, trace, data)
}

// about is the data of an event about the payments secret.
func about(more string) string { return `"ref":"` + payments.String() + `"` + more }

var full = about(`,"version":"` + version + `","previous_version":"6","label":"BLUE","reason":"set: denied/auth","tenant":"red","cause":"me","provider":{"event_id":"x","id":"y"},"received":"2020-01-01T00:00:00Z","value":"z"`)

// notices are structured events and batches.
func notices() map[string][]byte {
	activated := structured("version.activated", full)
	out := map[string][]byte{}
	for name, s := range map[string]string{
		"activated":                 activated,
		"activated/ref only":        structured("version.activated", about("")),
		"activated/number":          structured("version.activated", `"ref":"gcp://p/s","version":7`),
		"activated/null version":    structured("version.activated", about(`,"version":null,"label":null`)),
		"activated/base64":          strings.Replace(activated, `"data":{`+full+`}`, `"data_base64":"`+base64.StdEncoding.EncodeToString([]byte("{"+full+"}"))+`"`, 1),
		"activated/no time":         strings.Replace(activated, `"time":"2026-06-01T03:00:00-07:00",`, "", 1),
		"activated/no content type": strings.Replace(activated, `"datacontenttype":"application/json",`, "", 1),
		"activated/json type":       strings.Replace(activated, `"application/json"`, `"application/vnd.keyturn+json; charset=utf-8"`, 1),
		"activated/azure":           structured("version.activated", `"ref":"azure://KV-Agents/Stripe","version":"ab"`),
		"activated/vault":           structured("version.activated", `"ref":"vault://prod//secret/team a/db%2Fmain","version":"3"`),
		"disabled":                  structured("version.disabled", full),
		"failed":                    structured("rotation.failed", full),
		"failed/free reason":        structured("rotation.failed", about(`,"reason":"password hunter2 is too short"`)),
		"changed":                   structured("secret.changed", about(``)),
		"sibling":                   structured("version.activated", `"ref":"gcp://p/s--pending","version":"9"`),
		"other/type":                strings.Replace(activated, "dev.keyturn.version.activated.v1", "com.example.order.created", 1),
		"other/newer":               strings.Replace(activated, "activated.v1", "activated.v2", 1),
		"other/new verb":            structured("version.folded", full),
		"other/no data":             `{"specversion":"1.0","id":"1","source":"x","type":"com.example.x"}`,
		"batch":                     "[" + activated + "," + structured("version.disabled", full) + "]",
		"batch/empty":               "[]",
		"batch/one bad":             "[" + activated + ",{}]",
		"broken/empty":              "",
		"broken/null":               "null",
		"broken/cut":                activated[:120],
		"broken/object":             "{}",
		"broken/string":             `"x"`,
		"broken/nested array":       "[[" + activated + "]]",
		"broken/specversion":        strings.Replace(activated, `"1.0"`, `"0.3"`, 1),
		"broken/specversion number": strings.Replace(activated, `"1.0"`, `1.0`, 1),
		"broken/no id":              strings.Replace(activated, `"id":"42",`, "", 1),
		"broken/no source":          strings.Replace(activated, `"source":"/rotators/ldap",`, "", 1),
		"broken/no type":            strings.Replace(activated, `"type":"dev.keyturn.version.activated.v1",`, "", 1),
		"broken/long id":            strings.Replace(activated, `"42"`, `"`+strings.Repeat("4", 3000)+`"`, 1),
		"broken/time":               strings.Replace(activated, "2026-06-01T03:00:00-07:00", "yesterday", 1),
		"broken/far time":           strings.Replace(activated, "2026-06-01T03:00:00-07:00", "9999-12-31T23:59:59-12:00", 1),
		"broken/xml":                strings.Replace(activated, "application/json", "text/xml", 1),
		"broken/base64":             `{"specversion":"1.0","id":"42","source":"x","type":"dev.keyturn.secret.changed.v1","data_base64":"%"}`,
		"broken/no data":            `{"specversion":"1.0","id":"42","source":"x","type":"dev.keyturn.secret.changed.v1"}`,
		"broken/data text":          `{"specversion":"1.0","id":"42","source":"x","type":"dev.keyturn.secret.changed.v1","data":"aws://1/r/n"}`,
		"broken/no ref":             structured("secret.changed", `"version":"1"`),
		"broken/ref":                structured("secret.changed", `"ref":"ftp://x/y"`),
		"broken/ref object":         structured("secret.changed", `"ref":{"name":"x"}`),
		"broken/long ref":           structured("secret.changed", `"ref":"nats://b/`+strings.Repeat("x", 1100)+`"`),
		"broken/control in ref":     structured("secret.changed", `"ref":"nats://b/a%0Ab"`),
		"broken/ref no UTF-8":       structured("secret.changed", `"ref":"nats://b/a%FFb"`),
		"broken/version":            structured("version.activated", about(`,"version":"a b"`)),
		"broken/version object":     structured("version.activated", about(`,"version":{}`)),
		"broken/previous":           structured("version.activated", about(`,"previous_version":"`+strings.Repeat("x", 65)+`"`)),
		"broken/label":              structured("version.activated", about(`,"label":"a b"`)),
	} {
		out[name] = []byte(s)
	}
	return out
}

func decode(body []byte) ([]events.Event, error) { return Decode(body) }

func TestDecode(t *testing.T) {
	want := map[string]string{
		"activated":                 "version.activated aws://111122223333/eu-west-1/prod/agents/payments " + version,
		"activated/ref only":        "version.activated aws://111122223333/eu-west-1/prod/agents/payments ",
		"activated/number":          "version.activated gcp://p/s 7",
		"activated/null version":    "version.activated aws://111122223333/eu-west-1/prod/agents/payments ",
		"activated/base64":          "version.activated aws://111122223333/eu-west-1/prod/agents/payments " + version,
		"activated/no time":         "error",
		"activated/no content type": "version.activated aws://111122223333/eu-west-1/prod/agents/payments " + version,
		"activated/json type":       "version.activated aws://111122223333/eu-west-1/prod/agents/payments " + version,
		"activated/azure":           "version.activated azure://kv-agents/stripe ab",
		"activated/vault":           "version.activated vault://prod//secret/team%20a/db/main 3",
		"disabled":                  "version.disabled aws://111122223333/eu-west-1/prod/agents/payments " + version,
		"failed":                    "rotation.failed aws://111122223333/eu-west-1/prod/agents/payments " + version,
		"failed/free reason":        "rotation.failed aws://111122223333/eu-west-1/prod/agents/payments ",
		"changed":                   "secret.changed aws://111122223333/eu-west-1/prod/agents/payments ",
		"sibling":                   "", "other/type": "", "other/newer": "error", "other/new verb": "error", "other/no data": "", "batch/empty": "",
		"batch":         "version.activated aws://111122223333/eu-west-1/prod/agents/payments " + version + ";version.disabled aws://111122223333/eu-west-1/prod/agents/payments " + version,
		"batch/one bad": "version.activated aws://111122223333/eu-west-1/prod/agents/payments " + version + ";error",
	}
	for name, body := range notices() {
		w, ok := want[name]
		if strings.HasPrefix(name, "broken/") {
			w, ok = "error", true
		}
		es, err := decode(body)
		noticetest.Sound(t, es, err, fault.Invalid)
		var got []string
		for _, e := range es {
			noun, verb := e.Type.Parts()
			got = append(got, noun+"."+verb+" "+e.Data.Ref.String()+" "+e.Data.Version)
		}
		if err != nil {
			got = append(got, "error")
		}
		if s := strings.Join(got, ";"); s != w || !ok {
			t.Errorf("%s: got %q, expected %q (%v)", name, s, w, err)
		}
	}
}

// Of what a stranger says only the allow-list is believed.
func TestAllowList(t *testing.T) {
	want := events.New(events.VersionActivated, payments, happened, version)
	want.Data.Version, want.Data.PreviousVersion, want.Data.Label, want.Data.Reason = version, "6", "BLUE", "set: denied/auth"
	want.Data.Cause, want.Data.TraceParent = "cloudevents", trace
	want.Data.Provider = events.Provider{EventID: "42", Type: "dev.keyturn.version.activated.v1", Time: happened}
	es, err := decode(notices()["activated"])
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]events.Event{want}, es); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	es, err = decode([]byte(strings.Replace(string(notices()["activated"]), trace, "00-x-y-01 drop", 1)))
	if err != nil || len(es) != 1 || es[0].Data.TraceParent != "" {
		t.Errorf("an odd traceparent: %+v, %v", es, err)
	}
}

func TestReasons(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "denied": "denied", "denied/auth": "denied/auth", "set: denied/auth": "set: denied/auth", "retire: overdue": "retire: overdue", "rollback": "rollback",
		"hunter2": "unknown", "set: hunter2": "unknown", "hunter2: denied": "unknown", "denied/hunter2": "unknown", "denied/auth/x": "unknown", "set: denied: auth": "unknown",
	} {
		if got := readReason(in); got != want {
			t.Errorf("%q is read as %q, expected %q", in, got, want)
		}
	}
}

// What happens to a version once has the id of the rotator's and the
// provider's notices; all else is named by source and id.
func TestIDs(t *testing.T) {
	id := func(what, data string, change ...string) string {
		t.Helper()
		es, err := decode([]byte(strings.NewReplacer(change...).Replace(structured(what, data))))
		if err != nil || len(es) != 1 {
			t.Fatalf("%s: %d events, %v", what, len(es), err)
		}
		return es[0].ID
	}
	other := []string{`"42"`, `"43"`}
	for _, what := range []string{"created", "activated", "destroyed", "revoked", "retired"} {
		typ := events.Type("dev.keyturn.version." + what + ".v1")
		want := events.New(typ, payments, received, version).ID
		if a, b := id("version."+what, full), id("version."+what, full, other...); a != want || b != want {
			t.Errorf("%s has the ids %s and %s; a rotator's announcement has %s", what, a, b, want)
		}
		if a, b := id("version."+what, about("")), id("version."+what, about(""), other...); a == b || a == want {
			t.Errorf("%s without a version has the ids %s and %s", what, a, b)
		}
	}
	for _, what := range []string{"version.disabled", "version.enabled", "rotation.failed", "rotation.requested", "secret.changed", "secret.deleted"} {
		a, again, b := id(what, full), id(what, full), id(what, full, other...)
		elsewhere := id(what, full, "/rotators/ldap", "/rotators/other")
		if a != again || a == b || a == elsewhere {
			t.Errorf("%s has the ids %s, %s again, %s of another id and %s of another source", what, a, again, b, elsewhere)
		}
	}
}

// binary is an event of structured mode in binary mode.
func binary(t failer, body []byte) (http.Header, []byte) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatalf("%v", err)
	}
	h := http.Header{}
	for k, raw := range m {
		var s string
		if json.Unmarshal(raw, &s) != nil {
			continue
		}
		if k == "datacontenttype" {
			h.Set("Content-Type", s)
			continue
		}
		h.Set("ce-"+k, strings.ReplaceAll(s, "%", "%25"))
	}
	return h, m["data"]
}

type failer interface{ Fatalf(string, ...any) }

func TestEveryMode(t *testing.T) {
	typed := func(ct string) func(string) string { return http.Header{"Content-Type": {ct}}.Get }
	for name, body := range notices() {
		want, wantErr := decode(body)
		same := func(mode string, got []events.Event, err error) {
			t.Helper()
			if d := cmp.Diff(want, got); d != "" || (err != nil) != (wantErr != nil) || err != nil && !fault.Is(err, fault.Invalid) {
				t.Errorf("%s in %s: %v, expected %v (-structured +it):\n%s", name, mode, err, wantErr, d)
			}
		}
		for _, ct := range []string{"application/cloudevents+json", "Application/CloudEvents-Batch+JSON; charset=utf-8", "application/json", ""} {
			got, err := DecodeHTTP(typed(ct), body)
			same(ct, got, err)
		}
		if json.Valid(body) && body[0] == '{' && strings.Contains(string(body), `"specversion":"1.0"`) && !strings.Contains(string(body), "data_base64") {
			h, data := binary(t, body)
			got, err := DecodeHTTP(h.Get, data)
			same("binary mode", got, err)
		}
	}
	body := notices()["activated"]
	if es, err := DecodeHTTP(typed("application/cloudevents+avro"), body); !fault.Is(err, fault.Invalid) || len(es) != 0 {
		t.Errorf("avro: %v, %v", es, err)
	}
	t.Run("trap 44: the content type decides the mode, not a header beside it", func(t *testing.T) {
		h, _ := binary(t, notices()["changed"])
		h.Set("Content-Type", "application/cloudevents+json; charset=utf-8")
		es, err := DecodeHTTP(h.Get, body)
		if err != nil || len(es) != 1 || es[0].Type != events.VersionActivated {
			t.Errorf("%+v, %v", es, err)
		}
		// Keys of a delivery's attributes are in lower case.
		h, data := binary(t, body)
		low := map[string]string{}
		for k := range h {
			low[strings.ToLower(k)] = h.Get(k)
		}
		es, err = DecodeHTTP(func(name string) string { return low[name] }, data)
		if err != nil || len(es) != 1 || es[0].Type != events.VersionActivated {
			t.Errorf("%+v, %v", es, err)
		}
	})
	t.Run("trap 48: header values are percent-encoded, or quoted by older senders", func(t *testing.T) {
		ids := map[string]bool{}
		for _, source := range []string{"/rotators/l%C3%BCdap%20x", `"/rotators/lüdap x"`} {
			h, data := binary(t, notices()["changed"])
			h.Set("ce-source", source)
			es, err := DecodeHTTP(h.Get, data)
			if err != nil || len(es) != 1 {
				t.Fatalf("%s: %v", source, err)
			}
			ids[es[0].ID] = true
		}
		if len(ids) != 1 {
			t.Errorf("one source in two spellings is %d", len(ids))
		}
		for _, source := range []string{"%", "%zz", "%FF"} {
			h, data := binary(t, notices()["changed"])
			h.Set("ce-source", source)
			if _, err := DecodeHTTP(h.Get, data); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: %v", source, err)
			}
		}
	})
}

// Whoever tells of a version, in whichever mode, says one thing.
func TestOneChangeIsOneID(t *testing.T) {
	once := slices.Sorted(func(yield func(string) bool) {
		for typ := range once {
			if !yield(string(typ)) {
				return
			}
		}
	})
	rapid.Check(t, func(rt *rapid.T) {
		typ := events.Type(rapid.SampledFrom(once).Draw(rt, "type"))
		r, err := ref.New(ref.Vault, rapid.StringMatching(`[a-zäé%&<> ]{1,20}(/[a-z]{1,5})?`).Draw(rt, "name"), "prod", "", "kv/team")
		if err != nil {
			rt.Fatal(err)
		}
		v := rapid.StringMatching(`[A-Za-z0-9_-]{1,64}`).Draw(rt, "version")
		want := events.New(typ, r, happened, v).ID
		text, err := json.Marshal(r)
		if err != nil {
			rt.Fatal(err)
		}
		noun, verb := typ.Parts()
		body := structured(noun+"."+verb, fmt.Sprintf(`"ref":%s,"version":%q`, text, v))
		body = strings.Replace(body, `"42"`, `"`+rapid.StringMatching(`[!#-\[\]-~]{1,40}`).Draw(rt, "id")+`"`, 1)
		h, data := binary(rt, []byte(body))
		for mode, decode := range map[string]func() ([]events.Event, error){
			"structured": func() ([]events.Event, error) { return Decode([]byte(body)) },
			"batch":      func() ([]events.Event, error) { return Decode([]byte("[" + body + "]")) },
			"binary":     func() ([]events.Event, error) { return DecodeHTTP(h.Get, data) },
		} {
			es, err := decode()
			noticetest.Sound(rt, es, err, fault.Invalid)
			if err != nil || len(es) != 1 || es[0].ID != want || es[0].Data.Ref != r {
				rt.Fatalf("%s: %+v, %v; expected id %s", mode, es, err, want)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, body := range notices() {
		f.Add(body)
	}
	words := noticetest.Vocabulary(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		es, err := decode(body)
		noticetest.Sound(t, es, err, fault.Invalid)
		words.NoEcho(t, body, err)
	})
}

func FuzzDecodeHTTP(f *testing.F) {
	for _, body := range notices() {
		f.Add("application/cloudevents+json", "", "", "", "", "", body)
	}
	h, data := binary(f, notices()["activated"])
	f.Add(h.Get("Content-Type"), h.Get("ce-specversion"), h.Get("ce-id"), h.Get("ce-source"), h.Get("ce-type"), h.Get("ce-time"), data)
	f.Add("", "1.0", "%41", `"a\"b"`, "dev.keyturn.secret.changed.v1", "", []byte(`{"ref":"nats://b/x"}`))
	words := noticetest.Vocabulary(f)
	f.Fuzz(func(t *testing.T, contentType, specversion, id, source, typ, at string, body []byte) {
		headers := map[string]string{"content-type": contentType, "ce-specversion": specversion, "ce-id": id, "ce-source": source, "ce-type": typ, "ce-time": at}
		es, err := DecodeHTTP(func(name string) string { return headers[name] }, body)
		noticetest.Sound(t, es, err, fault.Invalid)
		words.NoEcho(t, slices.Concat([]byte(contentType+specversion+id+source+typ+at), body), err)
	})
}

func TestDecodeIsTotal(t *testing.T) {
	noticetest.Total(t, notices(), decode, fault.Invalid)
	noticetest.Total(t, map[string][]byte{"data": []byte("{" + full + "}")}, func(data []byte) ([]events.Event, error) {
		h, _ := binary(t, notices()["activated"])
		return DecodeHTTP(h.Get, data)
	}, fault.Invalid)
}

func TestDecodeNeverEchoes(t *testing.T) {
	noticetest.NeverEchoes(t, notices(), decode, func(key string) bool {
		switch key {
		case "ref", "version", "previous_version", "label", "id", "traceparent":
			return true
		}
		return false
	}, 1000)
}

// One operation is one event.
func BenchmarkDecode(b *testing.B) {
	body := notices()["activated"]
	h, data := binary(b, body)
	for name, decode := range map[string]func() ([]events.Event, error){
		"structured": func() ([]events.Event, error) { return decode(body) },
		"binary":     func() ([]events.Event, error) { return DecodeHTTP(h.Get, data) },
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if es, err := decode(); err != nil || len(es) != 1 {
					b.Fatalf("%v, %v", es, err)
				}
			}
		})
	}
}
