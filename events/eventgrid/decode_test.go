package eventgrid

import (
	"encoding/json"
	"fmt"
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

var received = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

const (
	version = "0f3c1d2e4b5a69788796a5b4c3d2e1f0"
	origin  = "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/rg-agents/providers/Microsoft.KeyVault/vaults/kv-agents"
)

var stripe = ref.Ref{Provider: ref.Azure, Scope: "kv-agents", Name: "stripe-api-key"}

// grid is an event in Event Grid's schema with the given members of data.
func grid(what, data string) string {
	return fmt.Sprintf(`[{"id":"00000000-0000-4000-8000-00000000000a","topic":%q,"subject":"stripe-api-key","eventType":"Microsoft.KeyVault.%s",
"data":{%s},"dataVersion":"1","metadataVersion":"1","eventTime":"2026-06-01T10:00:00.1234567Z"}]`, origin, what, data)
}

// cloud is the same event in the schema of CloudEvents.
func cloud(what, data string) string {
	return fmt.Sprintf(`{"specversion":"1.0","id":"00000000-0000-4000-8000-00000000000a","source":%q,"subject":"stripe-api-key","type":"Microsoft.KeyVault.%s",
"time":"2026-06-01T10:00:00.1234567Z","data":{%s}}`, origin, what, data)
}

func of(id, more string) string {
	return `"Id":"` + id + `","VaultName":"kv-agents","ObjectType":"Secret","ObjectName":"stripe-api-key","Version":"` + version + `"` + more
}

const url = "https://kv-agents.vault.azure.net/secrets/stripe-api-key/" + version

// The sample of Microsoft's documents, with its errors, about another secret:
// a blank in a key and in a value, and times that are strings.
const documented = `[{"id":"00000000-0000-4000-8000-00000000000b","topic":"/subscriptions/{subscription-id}/resourceGroups/rg/providers/Microsoft.KeyVault/vaults/kv-agents",
"subject":"stripe-api-key","eventType":"Microsoft.KeyVault.SecretNewVersionCreated","eventTime":"2026-06-01T10:00:00.1234567Z",
"data":{"Id":"https://kv-agents.vault.azure.net/secrets/stripe-api-key/` + version + `","VaultName":"kv-agents","ObjectType":"Secret",
"ObjectName ":"stripe-api-key","Version":" ` + version + `","NBF":"1559081980","EXP":"1559082102"},"dataVersion":"1","metadataVersion":"1"}]`

const handshake = `[{"id":"00000000-0000-4000-8000-00000000000c","topic":"/subscriptions/00000000-0000-0000-0000-000000000001","subject":"",
"data":{"validationCode":"512d38b6-c7b8-40c8-89fe-f46f9e9622b6","validationUrl":"https://rp-eastus2.eventgrid.azure.net:553/x"},
"eventType":"Microsoft.EventGrid.SubscriptionValidationEvent","eventTime":"2026-06-01T10:00:00Z","metadataVersion":"1","dataVersion":"1"}]`

func notices(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/notices/*.json")
	if err != nil || len(files) != 11 {
		t.Fatalf("found %d sample notices (%v); expected 11", len(files), err)
	}
	out := map[string][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out["file/"+strings.TrimSuffix(filepath.Base(f), ".json")] = b
	}
	created := grid("SecretNewVersionCreated", of(url, `,"NBF":null,"EXP":1782900000`))
	for name, s := range map[string]string{
		"created/documented":       documented,
		"created/cloud":            cloud("SecretNewVersionCreated", of(url, "")),
		"created/cloud batch":      "[" + cloud("SecretNewVersionCreated", of(url, "")) + "," + cloud("SecretNearExpiry", of(url, `,"EXP":1782900000`)) + "]",
		"created/camel case":       grid("SecretNewVersionCreated", `"id":"`+url+`","vaultName":"kv-agents","objectType":"Secret","objectName":"stripe-api-key","version":"`+version+`","nbf":1,"exp":2`),
		"created/capitals":         strings.NewReplacer("kv-agents", "KV-Agents", "stripe-api-key", "Stripe-API-Key").Replace(created),
		"created/no Id":            grid("SecretNewVersionCreated", `"VaultName":"kv-agents","ObjectType":"Secret","ObjectName":"stripe-api-key","Version":"`+version+`"`),
		"created/Id only":          strings.Replace(cloud("SecretNewVersionCreated", `"Id":"`+url+`"`), origin, "/relayed", 1),
		"created/no version":       grid("SecretNewVersionCreated", `"Id":"https://kv-agents.vault.azure.net/secrets/stripe-api-key","ObjectName":"stripe-api-key"`),
		"created/subject only":     grid("SecretNewVersionCreated", ``),
		"created/china":            strings.ReplaceAll(created, "vault.azure.net", "vault.azure.cn"),
		"created/government":       strings.ReplaceAll(created, "vault.azure.net", "vault.usgovcloudapi.net"),
		"created/two vaults":       strings.Replace(created, "vaults/kv-agents", "vaults/kv-other", 1),
		"created/no secret":        strings.Replace(grid("SecretNewVersionCreated", `"VaultName":"kv-agents"`), `"subject":"stripe-api-key"`, `"subject":""`, 1),
		"created/odd names":        strings.ReplaceAll(grid("SecretNewVersionCreated", `"ObjectName":"a b/c"`), `"subject":"stripe-api-key"`, `"subject":"a.b"`),
		"created/no data":          strings.Replace(grid("SecretNewVersionCreated", ""), `"data":{}`, `"data":null`, 1),
		"created/odd time":         strings.Replace(created, "2026-06-01T10:00:00.1234567Z", "yesterday", 1),
		"created/far time":         strings.Replace(created, "2026-06-01T10:00:00.1234567Z", "9999-12-31T23:59:59-12:00", 1),
		"sibling/created":          strings.ReplaceAll(created, "stripe-api-key", "stripe-api-key--pending"),
		"sibling/capitals":         strings.ReplaceAll(created, "stripe-api-key", "Stripe-API-Key--Pending"),
		"near/string EXP":          grid("SecretNearExpiry", of(url, `,"EXP":"1782900000"`)),
		"near/float EXP":           grid("SecretNearExpiry", of(url, `,"EXP":1782900000.0`)),
		"near/cloud":               cloud("SecretNearExpiry", of(url, `,"EXP":1782900000`)),
		"near/moved EXP":           grid("SecretNearExpiry", of(url, `,"EXP":1792900000`)),
		"near/null EXP":            grid("SecretNearExpiry", of(url, `,"EXP":null`)),
		"near/huge EXP":            grid("SecretNearExpiry", of(url, `,"EXP":1e300`)),
		"expired/cloud":            cloud("SecretExpired", of(url, `,"EXP":1782900000`)),
		"other/handshake":          handshake,
		"other/storage":            `[{"id":"1","topic":"/x","subject":"/blob","eventType":"Microsoft.Storage.BlobCreated","eventTime":"2026-06-01T10:00:00Z","data":{"api":"PutBlob"}}]`,
		"other/deleted":            grid("SubscriptionDeletedEvent", `"eventSubscriptionId":"x"`),
		"other/new type":           grid("SecretDeleted", of(url, "")),
		"broken/empty":             "",
		"broken/space":             " \n",
		"broken/null":              "null",
		"broken/number":            "17",
		"broken/string":            `"Microsoft.KeyVault.SecretExpired"`,
		"broken/cut":               created[:200],
		"broken/object":            "{}",
		"broken/type is no string": `{"type":7,"source":"x"}`,
		"array/empty":              "[]",
		"array/two":                "[" + cloud("SecretNewVersionCreated", of(url, "")) + "," + handshake[1:len(handshake)-1] + "]",
		"array/one bad":            "[" + cloud("SecretNewVersionCreated", of(url, "")) + ",{},[]]",
		"array/null":               "[null]",
		"array/cut":                "[{},",
	} {
		out[name] = []byte(s)
	}
	return out
}

// TestDecodeTypes says what each notice must come to, in a form that can be
// checked against Microsoft's documents.
func TestDecodeTypes(t *testing.T) {
	all := notices(t)
	want := map[string]string{
		"file/SecretNewVersionCreated.eventgrid":   "version.activated " + version,
		"file/SecretNewVersionCreated.cloudevents": "version.activated " + version,
		"file/SecretNearExpiry.eventgrid":          "secret.near_expiry " + version,
		"file/SecretExpired.eventgrid":             "secret.expired " + version,
		"file/VaultAccessPolicyChanged.eventgrid":  "",
		"created/documented":                       "version.activated " + version,
		"created/cloud":                            "version.activated " + version,
		"created/cloud batch":                      "version.activated " + version + ";secret.near_expiry " + version,
		"created/camel case":                       "version.activated " + version,
		"created/capitals":                         "version.activated " + version,
		"created/no Id":                            "version.activated " + version,
		"created/Id only":                          "version.activated " + version,
		"created/no version":                       "version.activated ",
		"created/subject only":                     "version.activated ",
		"created/china":                            "version.activated " + version,
		"created/government":                       "version.activated " + version,
		"created/two vaults":                       "error",
		"created/no secret":                        "error",
		"created/odd names":                        "error",
		"created/no data":                          "version.activated ",
		"created/odd time":                         "version.activated " + version,
		"created/far time":                         "version.activated " + version,
		"sibling/created":                          "",
		"sibling/capitals":                         "",
		"near/string EXP":                          "secret.near_expiry " + version,
		"near/float EXP":                           "secret.near_expiry " + version,
		"near/cloud":                               "secret.near_expiry " + version,
		"near/moved EXP":                           "secret.near_expiry " + version,
		"near/null EXP":                            "secret.near_expiry " + version,
		"near/huge EXP":                            "secret.near_expiry " + version,
		"expired/cloud":                            "secret.expired " + version,
		"other/handshake":                          "", "other/storage": "", "other/deleted": "", "other/new type": "",
		"broken/empty": "error", "broken/space": "error", "broken/null": "error", "broken/number": "error", "broken/string": "error",
		"broken/cut": "error", "broken/object": "error", "broken/type is no string": "error",
		"array/empty": "", "array/two": "version.activated " + version, "array/one bad": "version.activated " + version + ";error",
		"array/null": "error", "array/cut": "error",
	}
	for name := range all {
		if _, ok := want[name]; !ok && (strings.Contains(name, "Certificate") || strings.Contains(name, "Key")) {
			want[name] = "" // certificates and keys are not ours
		}
	}
	for name, body := range all {
		w, ok := want[name]
		if !ok {
			t.Errorf("nothing is said about %s", name)
		}
		es, err := Decode(body, received)
		noticetest.Sound(t, es, err, fault.Invalid)
		var got []string
		for _, e := range es {
			noun, verb := e.Type.Parts()
			got = append(got, noun+"."+verb+" "+e.Data.Version)
			if e.Data.Ref != stripe {
				t.Errorf("%s is about %s; expected %s", name, e.Data.Ref, stripe)
			}
			if e.Data.Cause != cause || e.Data.Provider.EventID == "" || !strings.HasPrefix(e.Data.Provider.Type, "Microsoft.KeyVault.Secret") {
				t.Errorf("%s: cause %q, provider %+v", name, e.Data.Cause, e.Data.Provider)
			}
		}
		if err != nil {
			got = append(got, "error")
		}
		if s := strings.Join(got, ";"); s != w {
			t.Errorf("%s: got %q, expected %q (%v)", name, s, w, err)
		}
	}
}

// One change is one id: in either schema, delivered again or told with another
// spelling, and as the rotator announces it.
func TestOneChangeIsOneID(t *testing.T) {
	all := notices(t)
	id := func(name string) string {
		t.Helper()
		es, err := Decode(all[name], received)
		if err != nil || len(es) != 1 {
			t.Fatalf("%s: %d events, %v", name, len(es), err)
		}
		return es[0].ID
	}
	announced := events.New(events.VersionActivated, stripe, received, version).ID
	for _, name := range []string{
		"file/SecretNewVersionCreated.eventgrid", "file/SecretNewVersionCreated.cloudevents", "created/documented", "created/cloud", "created/capitals",
		"created/camel case", "created/no Id", "created/Id only", "created/china", "created/odd time",
	} {
		if got := id(name); got != announced {
			t.Errorf("%s has id %s; the rotator's announcement has %s", name, got, announced)
		}
	}
	near := id("file/SecretNearExpiry.eventgrid")
	for _, name := range []string{"near/string EXP", "near/float EXP", "near/cloud"} {
		if got := id(name); got != near {
			t.Errorf("%s has id %s; expected %s", name, got, near)
		}
	}
	for _, name := range []string{"near/moved EXP", "near/null EXP", "file/SecretExpired.eventgrid", "created/cloud", "created/no version"} {
		if id(name) == near {
			t.Errorf("%s has the id of another change", name)
		}
	}
	if id("file/SecretExpired.eventgrid") != id("expired/cloud") {
		t.Error("an expiry in two schemas has two ids")
	}
	for name, body := range all {
		a, _ := Decode(body, received)
		b, _ := Decode(slices.Clone(body), received.Add(time.Hour))
		for i := range a {
			if a[i].ID != b[i].ID {
				t.Errorf("%s: ids %s and %s when delivered twice", name, a[i].ID, b[i].ID)
			}
		}
	}
}

func TestTimesAndIdentifiers(t *testing.T) {
	all := notices(t)
	for name, want := range map[string]struct {
		at time.Time
		id string
	}{
		"file/SecretNewVersionCreated.eventgrid": {time.Date(2026, 6, 1, 10, 0, 0, 123456700, time.UTC), "https://kv-agents.vault.azure.net/secrets/stripe-api-key"},
		"created/cloud":                          {time.Date(2026, 6, 1, 10, 0, 0, 123456700, time.UTC), "https://kv-agents.vault.azure.net/secrets/stripe-api-key"},
		"created/capitals":                       {time.Date(2026, 6, 1, 10, 0, 0, 123456700, time.UTC), "https://kv-agents.vault.azure.net/secrets/stripe-api-key"},
		"created/no Id":                          {time.Date(2026, 6, 1, 10, 0, 0, 123456700, time.UTC), ""},
		"created/odd time":                       {received, "https://kv-agents.vault.azure.net/secrets/stripe-api-key"},
		"created/far time":                       {received, "https://kv-agents.vault.azure.net/secrets/stripe-api-key"},
	} {
		es, err := Decode(all[name], received)
		if err != nil || len(es) != 1 || !es[0].Time.Equal(want.at) || es[0].Data.Provider.ID != want.id {
			t.Errorf("%s: %+v, %v; expected time %s and id %q", name, es, err, want.at, want.id)
		}
	}
}

func FuzzDecode(f *testing.F) {
	for _, body := range notices(f) {
		f.Add(body)
	}
	words := noticetest.Vocabulary(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		es, err := Decode(body, received)
		noticetest.Sound(t, es, err, fault.Invalid)
		words.NoEcho(t, body, err)
	})
}

func TestDecodeIsTotal(t *testing.T) {
	noticetest.Total(t, notices(t), decode, fault.Invalid)
}

func TestDecodeNeverEchoes(t *testing.T) {
	noticetest.NeverEchoes(t, notices(t), decode, isIdentity, 2000)
}

// isIdentity reports whether a member names a thing and is copied if it has the
// form of a name.
func isIdentity(key string) bool {
	switch strings.ToLower(strings.TrimSpace(key)) {
	case "id", "topic", "source", "subject", "vaultname", "objectname", "version":
		return true
	}
	return false
}

func decode(body []byte) ([]events.Event, error) { return Decode(body, received) }

// The host of Azure Functions wraps an event once more, as JSON or as text.
func TestDecodeTrigger(t *testing.T) {
	event := cloud("SecretNearExpiry", of(url, `,"EXP":1782900000`))
	want, err := Decode([]byte(event), received)
	if err != nil || len(want) != 1 {
		t.Fatalf("%v, %v", want, err)
	}
	text, err := json.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{"JSON": event, "text": string(text), "array": "[" + event + "]"} {
		got, err := DecodeTrigger([]byte(`{"Data":{"event":`+data+`},"Metadata":{"sys":{"MethodName":"rotate"}}}`), received)
		if err != nil || len(got) != 1 || got[0] != want[0] {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, body := range []string{
		"", "null", "[]", event, `{"Data":{}}`, `{"Data":{"a":` + event + `,"b":{}}}`, `{"Data":"x"}`, `{"Data":{"event":null}}`, `{"Data":{"event":"not JSON"}}`, `{"Data":{"timer":{"IsPastDue":false}}}`,
	} {
		if es, err := DecodeTrigger([]byte(body), received); !fault.Is(err, fault.Invalid) || len(es) > 0 {
			t.Errorf("%.40s: %v, %v; expected Invalid", body, es, err)
		}
	}
}
