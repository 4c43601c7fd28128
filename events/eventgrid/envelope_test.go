package eventgrid

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/notice/noticetest"
)

func based(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func text(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// routes are the ways in which a delivery, an array or an object, gets to us.
func routes() map[string]func(string) string {
	return map[string]func(string) string{
		"a webhook":                  func(s string) string { return s },
		"a storage queue":            func(s string) string { return based(s) },
		"a queue that wraps lines":   func(s string) string { b := based(s); return b[:len(b)/2] + "\n" + b[len(b)/2:] + "\n" },
		"a queue's text":             text,
		"base64 as a JSON string":    func(s string) string { return text(based(s)) },
		"a pull":                     func(s string) string { return `{"value":[` + inPull(s) + `]}` },
		"one pulled event":           inPull,
		"a namespace's dead letters": func(s string) string { return "[" + inDeadLetter(s) + "]" },
		"a function's trigger": func(s string) string {
			return `{"Data":{"event":` + s + `},"Metadata":{"sys":{"MethodName":"rotate"}}}`
		},
		"a function's trigger, as text": func(s string) string {
			return `{"Data":{"event":` + text(s) + `},"Metadata":{"sys":{"MethodName":"rotate"}}}`
		},
		"an array around": func(s string) string { return "[" + s + "]" },
	}
}

func inPull(s string) string {
	return `{"brokerProperties":{"lockToken":"CiYKJDUwNjE4QTFF","deliveryCount":2},"event":` + s + `}`
}

func inDeadLetter(s string) string {
	return `{"deadLetterProperties":{"deadletterreason":"Maximum delivery attempts was exceeded.","deliveryattempts":10,"deliveryresult":"Event was not acknowledged nor rejected.","publishutc":"2026-06-01T10:00:00Z"},"event":` + s + `}`
}

// Whatever the envelope, what comes of a delivery is what Decode makes of it.
func TestDecodeAnyEveryRoute(t *testing.T) {
	for name, body := range notices(t) {
		if !json.Valid(body) {
			continue
		}
		want, wantErr := Decode(body, received)
		for route, wrap := range routes() {
			got, err := DecodeAny([]byte(wrap(string(body))), received)
			if (err != nil) != (wantErr != nil) || err != nil && !fault.Is(err, fault.Invalid) {
				t.Errorf("%s by %s: %v, expected %v", name, route, err, wantErr)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("%s by %s (-Decode +DecodeAny):\n%s", name, route, d)
			}
		}
	}
}

// An event in the dead-letter blob of a subscription has members more, in the
// spelling of its schema.
func TestDeadLetters(t *testing.T) {
	want := events.New(events.VersionActivated, stripe, received, version).ID
	for name, body := range map[string]string{
		"Event Grid": strings.Replace(grid("SecretNewVersionCreated", of(url, "")), `"dataVersion"`,
			`"deadLetterReason":"MaxDeliveryAttemptsExceeded","deliveryAttempts":30,"lastDeliveryOutcome":"NotFound","publishTime":"2026-06-01T11:00:00Z","lastDeliveryAttemptTime":"2026-06-02T11:00:00Z","dataVersion"`, 1),
		"CloudEvents": strings.Replace(cloud("SecretNewVersionCreated", of(url, "")), `"specversion"`,
			`"deadletterreason":"MaxDeliveryAttemptsExceeded","deliveryattempts":30,"lastdeliveryoutcome":"NotFound","publishtime":"2026-06-01T11:00:00Z","lastdeliveryattempttime":"2026-06-02T11:00:00Z","specversion"`, 1),
		"data in base64": strings.NewReplacer(`"data":{`+of(url, "")+`}`, `"data_base64":"`+based("{"+of(url, "")+"}")+`"`).Replace(cloud("SecretNewVersionCreated", of(url, ""))),
	} {
		for route, decode := range map[string]func([]byte) ([]events.Event, error){"Decode": decode, "DecodeAny": decodeAny} {
			es, err := decode([]byte(body))
			if err != nil || len(es) != 1 || es[0].ID != want || es[0].Time.Hour() != 10 || es[0].Data.Version != version {
				t.Errorf("%s by %s: %+v, %v", name, route, es, err)
			}
		}
	}
}

func TestDecodeAnyRefuses(t *testing.T) {
	event := cloud("SecretNewVersionCreated", of(url, ""))
	deep := event
	for range 30 {
		deep = "[" + deep + "]"
	}
	for name, c := range map[string]struct {
		body string
		n    int
		says string
	}{
		"empty":                  {"", 0, "the body is empty"},
		"words":                  {"hello", 0, "not JSON"},
		"base64 of words":        {based("hello"), 0, "not JSON"},
		"base64 of nothing":      {`""`, 0, "the body is empty"},
		"null":                   {"null", 0, "not JSON"},
		"unknown":                {`{"hello":1}`, 0, "an envelope that is known"},
		"value is no array":      {`{"value":{}}`, 0, "value is no array"},
		"an event alone":         {`{"event":` + event + `}`, 0, "an envelope that is known"},
		"a pulled nothing":       {`{"value":[{"brokerProperties":{"lockToken":"x"},"event":{}}]}`, 0, "an envelope that is known"},
		"a trigger of two":       {`{"Data":{"a":` + event + `,"b":` + event + `},"Metadata":{}}`, 0, "an envelope that is known"},
		"too deep":               {deep, 0, "more than 8 envelopes"},
		"one of two":             {`{"value":[` + inPull(event) + `,{}]}`, 1, "1 of 2"},
		"an unfinished string":   {`"abc`, 0, "not JSON"},
		"the answer to a settle": {`{"failedLockTokens":[{"lockToken":"x","error":{"code":"TokenLost","message":"m"}}],"succeededLockTokens":[]}`, 0, "an envelope that is known"},
	} {
		es, err := DecodeAny([]byte(c.body), received)
		noticetest.Sound(t, es, err, fault.Invalid)
		if name == "null" && err != nil {
			continue // "null" is base64 of three bytes too
		}
		if err == nil || len(es) != c.n || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %d events, %v; expected %d and %q", name, len(es), err, c.n, c.says)
		}
	}
	for name, body := range map[string]string{"nothing pulled": `{"value":[]}`, "no events": `[]`, "handshake": handshake} {
		if es, err := DecodeAny([]byte(body), received); err != nil || len(es) != 0 {
			t.Errorf("%s: %v, %v; expected neither events nor an error", name, es, err)
		}
	}
}

// Whichever schema, spelling, cloud and way, one change has one id, and nothing
// is lost.
func TestDecodeAnyOneChangeIsOneID(t *testing.T) {
	ways := routes()
	names := slices.Sorted(maps.Keys(ways))
	rapid.Check(t, func(rt *rapid.T) {
		var bodies, want []string
		for range rapid.IntRange(1, 4).Draw(rt, "events") {
			what := rapid.SampledFrom([]string{"SecretNewVersionCreated", "SecretNearExpiry", "SecretExpired"}).Draw(rt, "type")
			v := rapid.StringMatching(`[0-9a-f]{32}`).Draw(rt, "version")
			exp := rapid.Int64Range(0, 1<<33).Draw(rt, "exp")
			key := []string{v, "exp", fmt.Sprint(exp)}
			if what == "SecretNewVersionCreated" {
				key = key[:1]
			}
			want = append(want, events.SemanticID(changes["Microsoft.KeyVault."+what], stripe, key...))
			host := rapid.SampledFrom([]string{"vault.azure.net", "vault.azure.cn", "vault.usgovcloudapi.net"}).Draw(rt, "cloud")
			data := fmt.Sprintf(rapid.SampledFrom([]string{
				`"Id":"https://kv-agents.%[1]s/secrets/stripe-api-key/%[2]s","VaultName":"kv-agents","ObjectType":"Secret","ObjectName":"stripe-api-key","Version":"%[2]s","NBF":null,"EXP":%[3]d`,
				`"id":"https://KV-Agents.%[1]s/secrets/Stripe-Api-Key/%[2]s","vaultName":"kv-agents","objectName":"stripe-api-key","version":"%[2]s","nbf":1,"exp":%[3]d`,
				`"Id":"https://kv-agents.%[1]s/secrets/stripe-api-key/%[2]s","ObjectName ":"stripe-api-key","Version":" %[2]s","EXP":"%[3]d"`,
				`"VaultName":"kv-agents","ObjectName":"stripe-api-key","Version":"%[2]s","EXP":%[3]d`,
			}).Draw(rt, "spelling"), host, v, exp)
			body := rapid.SampledFrom([]func(string, string) string{grid, cloud}).Draw(rt, "schema")(what, data)
			for _, way := range rapid.SliceOfN(rapid.SampledFrom(names), 0, 2).Draw(rt, "ways") {
				if !json.Valid([]byte(body)) {
					break // base64 is the body of a message, and in nothing else
				}
				body = ways[way](body)
			}
			if !json.Valid([]byte(body)) {
				body = text(body)
			}
			bodies = append(bodies, body)
		}
		es, err := DecodeAny([]byte("["+strings.Join(bodies, ",")+"]"), received)
		noticetest.Sound(rt, es, err, fault.Invalid)
		var got []string
		for _, e := range es {
			got = append(got, e.ID)
		}
		if d := cmp.Diff(want, got); d != "" || err != nil {
			rt.Fatalf("%v (-sent +decoded):\n%s", err, d)
		}
	})
}

func decodeAny(body []byte) ([]events.Event, error) { return DecodeAny(body, received) }

func FuzzDecodeAny(f *testing.F) {
	all := notices(f)
	for _, body := range all {
		f.Add(body)
	}
	for _, wrap := range routes() {
		f.Add([]byte(wrap(string(all["created/cloud"]))))
		f.Add([]byte(wrap(string(all["near/cloud"]))))
	}
	words := noticetest.Vocabulary(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		es, err := decodeAny(body)
		noticetest.Sound(t, es, err, fault.Invalid)
		words.NoEcho(t, body, err)
		// What is an event by itself is the same event here.
		if one, oneErr := decode(body); oneErr == nil && !slices.Equal(one, es) {
			t.Fatalf("Decode gives %+v, DecodeAny %+v, %v", one, es, err)
		}
	})
}

// Envelopes can be spoiled too, and what is in them is looked at as closely.
func TestDecodeAnyIsTotal(t *testing.T) {
	all := notices(t)
	wrapped := map[string][]byte{}
	for name, wrap := range routes() {
		wrapped[name] = []byte(wrap(string(all["created/cloud"])))
		wrapped[name+", Event Grid"] = []byte(wrap(string(all["near/string EXP"])))
	}
	noticetest.Total(t, wrapped, decodeAny, fault.Invalid)
	noticetest.NeverEchoes(t, wrapped, decodeAny, isIdentity, 500)
	noticetest.NeverEchoes(t, all, func(body []byte) ([]events.Event, error) { return decodeAny([]byte(based(string(body)))) }, isIdentity, 2000)
}

// One operation is one event.
func BenchmarkDecode(b *testing.B) {
	all := notices(b)
	cloud := string(all["created/cloud"])
	for _, c := range []struct{ name, body string }{
		{"event grid", string(all["file/SecretNearExpiry.eventgrid"])},
		{"cloudevents", cloud},
		{"pull", routes()["a pull"](cloud)},
		{"storage queue", based(cloud)},
	} {
		b.Run(c.name, func(b *testing.B) {
			body := []byte(c.body)
			b.SetBytes(int64(len(body)))
			b.ReportAllocs()
			for b.Loop() {
				if es, err := DecodeAny(body, received); err != nil || len(es) != 1 {
					b.Fatalf("%v, %v", es, err)
				}
			}
		})
	}
}
