package integration_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/eventbridge"
	"github.com/keyturn/keyturn/events/natsbus"
	"github.com/keyturn/keyturn/internal/testenv"
	"github.com/keyturn/keyturn/ref"
	"github.com/keyturn/keyturn/rotators"
)

// oddNames are of secrets that a tenant may call as it likes.
var oddNames = []string{
	"a.b.c", "a.*", "*", ">", "a.>", "~", "~0123456789ABCDEFGHIJKLMNOPQRSTUV", "$JS.API.STREAM.DELETE.KEYTURN_EVENTS", "$SYS.REQ.SERVER.PING", "_INBOX.x",
	"keyturn.v1.umbrella.aws.x", "../../umbrella/x", "%2e%2e", "%", "%00", "a b", "a\tb", "a\r\nPUB x 0\r\n", "a\x00b", "\x1b[2J", "\u202egnp.exe",
	"name\xff\xfe", "!x", "..", "x/../y", "//x", "<script>", `"quoted"`, "${jndi:ldap://x}", "{{.Key}}",
}

// events returns how many there are.
func (s *siege) events(t *testing.T, js jetstream.JetStream) int {
	t.Helper()
	info, err := js.Stream(t.Context(), natsbus.EventStream)
	must(t, err)
	return int(info.CachedInfo().State.Msgs)
}

// names of all forms, by the senders that let one say any: each is an event on
// the escaped subject of the secret's own tenant, which holds checks of all, or
// a dead letter; and what a notice says of its tenant counts for nothing.
func (s *siege) names(t *testing.T) {
	js, err := jetstream.New(s.nats.Conn(t))
	must(t, err)
	events0, letters0 := s.events(t, js), len(s.letters(t))
	senders := []sender{byKey, byGridKey, byGoogle, byHMAC, byAudit}
	for _, odd := range oddNames {
		for _, c := range senders {
			if status, answer, _ := s.fire(t, c.shot(s, odd)); status != 200 {
				t.Errorf("%s: the name %q was answered %d %s", c.kind, odd, status, answer)
			}
		}
	}
	testenv.Eventually(t, 20*time.Second, "each notice to be an event or a dead letter", func() bool {
		return s.events(t, js)-events0+len(s.letters(t))-letters0 == len(oddNames)*len(senders)
	})
	sent := s.events(t, js) - events0
	s.odd = sent

	ok := func(what string, x *shot, stored ...string) {
		t.Helper()
		if status, answer, _ := s.fire(t, x); status != 200 {
			t.Errorf("%s was answered %d %s; want 200", what, status, answer)
		}
		s.stored = append(s.stored, stored...)
	}
	key := func(body []byte) *shot { return jsonShot("/v1/eventbridge", body).set("X-Api-Key", s.key) }
	name := s.name("tenant")
	ok("a notice that claims a foreign tenant", key([]byte(strings.NewReplacer(
		`"detail":{`, `"tenant":"umbrella","detail":{"tenant":"umbrella","ref":"aws://`+siegeForeign+`/eu-west-1/x",`,
		`"source"`, `"data":{"tenant":"umbrella"},"source"`).Replace(string(awsNoticeOf(name))))).set("Ce-Tenant", "umbrella"), name)
	name = s.name("tenant")
	e := cloudEventOf(name)
	e["data"].(siegeObject)["tenant"] = "umbrella"
	e["tenant"] = "umbrella"
	x := jsonShot("/v1/cloudevents", e.json()).set("Ce-Tenant", "umbrella")
	seal(s, x, s.hmac, time.Now())
	ok("a CloudEvent that claims a foreign tenant", x, name)
	name = s.name("tenant")
	own, err := ref.New(ref.AWS, name, siegeAccount, "eu-west-1")
	must(t, err)
	said := events.New(events.VersionActivated, own, time.Now(), "v")
	said.Data.Version, said.Data.Tenant = "v", "umbrella"
	source, typ, detail, err := eventbridge.Entry(said)
	must(t, err)
	ok("an announcement that claims a foreign tenant", key(siegeObject{
		"id": rotators.NewToken(), "source": source, "detail-type": typ, "account": siegeAccount, "region": "eu-west-1", "detail": json.RawMessage(detail),
	}.json()), name)
	name = s.name("foreign")
	ok("the other tenant's own", key(awsNotice(siegeForeign, name, rotators.NewToken(), time.Now())), name)

	before := len(s.letters(t))
	ok("trap 9: the credential of a connection", key(awsNoticeOf("events!connection/keyturn/"+rotators.NewToken()+"/auth")))
	ok("a pending sibling of Azure", byGridKey.shot(s, "db--pending"))
	ok("a pending sibling of Google", byGoogle.shot(s, "db--pending"))
	ok("a pending sibling of Vault", byAudit.shot(s, "db--pending"))
	if n := len(s.letters(t)) - before; n != 0 {
		t.Errorf("%d of what is passed over are dead letters", n)
	}

	// Whoever repeats what was right is told that it is, and nothing happens.
	for _, c := range []sender{bySNS, byHMAC, byKey, byGoogle, byAudit} {
		name := s.name("replay")
		x := c.shot(s, name)
		for range 3 {
			ok(c.kind+", replayed", x)
		}
		s.stored = append(s.stored, name)
	}

	// Trap 11: an archive is replayed. The old does not take the place of the new.
	name, now := s.name("archive"), time.Now()
	ok("the newest", key(awsNotice(siegeAccount, name, "newest-"+rotators.NewToken(), now)), name)
	for i := range 5 {
		body := bytes.Replace(awsNotice(siegeAccount, name, "old-"+rotators.NewToken(), now.Add(time.Duration(i-400)*time.Hour)), []byte("{"), []byte(`{"replay-name":"all",`), 1)
		ok("an old one", key(body))
	}
	old, err := ref.New(ref.AWS, name, siegeAccount, "eu-west-1")
	must(t, err)
	events1, err := js.Stream(t.Context(), natsbus.EventStream)
	must(t, err)
	last, err := events1.GetLastMsgForSubject(t.Context(), events.Subject("acme", old, events.VersionActivated))
	must(t, err)
	if v := dataOf(t, last).Version; !strings.HasPrefix(v, "newest-") {
		t.Errorf("the last event of the subject is of version %q; want the newest", v)
	}
	late, err := js.Stream(t.Context(), natsbus.LateStream)
	must(t, err)
	if n := late.CachedInfo().State.Msgs; n != 5 {
		t.Errorf("%d old events are kept as late; want 5", n)
	}
	// One that is of the future shuts out nothing.
	name = s.name("future")
	ok("of the year 9000", key(bytes.Replace(awsNotice(siegeAccount, name, rotators.NewToken(), now), []byte(`"time":"20`), []byte(`"time":"90`), 1)), name)
	ok("of now", key(awsNotice(siegeAccount, name, rotators.NewToken(), time.Now())), name)
}

// bombs are notices of known senders that no decoder is meant for. Each is a
// dead letter, or means nothing, and the next good one is served.
func (s *siege) bombs(t *testing.T) {
	mark := `"note":"` + s.known + `"`
	bodies := map[string]string{
		"a MiB of brackets":        strings.Repeat("[", 1<<20-1),
		"deep and closed":          strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000),
		"deep objects":             strings.Repeat(`{"detail":`, 50_000) + "1" + strings.Repeat("}", 50_000),
		"deep in a notice":         `{"source":"aws.secretsmanager","detail-type":"Secret Label Updated",` + mark + `,"detail":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + "}",
		"a number of 500 KiB":      `{"source":"aws.secretsmanager","detail-type":"x","time":` + strings.Repeat("9", 500<<10) + "," + mark + "}",
		"a number beyond floats":   `{"source":"aws.secretsmanager","detail-type":"Secret Label Updated","time":1e999999999,` + mark + `}`,
		"members twice":            `{"source":"aws.secretsmanager","source":"x","detail-type":"Secret Label Updated","detail":{},"detail":{` + mark + `}}`,
		"many members":             `{"source":"aws.secretsmanager","detail-type":"Secret Label Updated"` + strings.Repeat(`,"a":1`, 100_000) + "," + mark + "}",
		"a text of 900 KiB":        `{"source":"aws.secretsmanager","detail-type":"Secret Label Updated","detail":{"name":"` + strings.Repeat("x", 900<<10) + `"},` + mark + `}`,
		"escapes":                  `{"source":"aws.secretsmanager","detail-type":"Secret Label Updated","detail":{"name":"` + strings.Repeat(`\u0000`, 50_000) + `"},` + mark + `}`,
		"lone surrogates":          `{"source":"\ud800","detail-type":"\udfff",` + mark + `}`,
		"invalid UTF-8":            "{\"source\":\"aws.secretsmanager\",\"detail-type\":\"Secret Label Updated\",\"detail\":{\"name\":\"\xff\xfe\xc0\x80\"}," + mark + "}",
		"NUL":                      "\x00\x00\x00{" + mark + "}",
		"UTF-16":                   "\xff\xfe{\x00}\x00",
		"a byte order mark":        "\xef\xbb\xbf{" + mark + "}",
		"nothing":                  "",
		"null":                     "null",
		"an empty list":            "[]",
		"a number":                 "-0",
		"two objects":              "{" + mark + "}{" + mark + "}",
		"XML":                      `<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "` + s.clouds.trapURL() + `">]><x>&e;` + s.known + `</x>`,
		"half an object":           "{" + mark,
		"a list of a hundred null": "[" + strings.Repeat("null,", 99) + "null]",
		"its own kind in its own":  `{"Type":"Notification","Message":"{\"Type\":\"Notification\",\"Message\":\"{}\"}",` + mark + `}`,
		"a link to be followed":    `{"source":"aws.secretsmanager","detail-type":"Secret Label Updated","$ref":"` + s.clouds.trapURL() + `",` + mark + `}`,
	}
	for _, c := range []sender{byKey, byGridKey, byGoogle, bySNS, byHMAC, byAudit} {
		t.Run(c.kind, func(t *testing.T) {
			for name, body := range bodies {
				x := c.notice(s, "x")
				x.body = []byte(body)
				if c.kind == "sns" {
					if len(body) > 250<<10 {
						continue // SNS takes no more
					}
					x.body = envelope("x").with("Message", strings.ToValidUTF8(body, "?")).json()
				}
				var claims siegeObject
				if c.claims != nil {
					claims = c.claims()
				}
				c.sign(s, x, claims)
				began := time.Now()
				if status, answer, _ := s.fire(t, x); status != 200 {
					t.Errorf("%s was answered %d %s; want 200", name, status, answer)
				}
				if d := time.Since(began); d > 5*time.Second {
					t.Errorf("%s took %s", name, d)
				}
			}
			s.control(t, c)
		})
	}
	t.Run("a batch of 5,000", func(t *testing.T) {
		var b bytes.Buffer
		tag := s.name("batch")
		for i := range 5000 {
			name := fmt.Sprintf("%s-%d", tag, i)
			s.stored = append(s.stored, name)
			_, _ = fmt.Fprintf(&b, `%c{"id":"%d","topic":"/x/vaults/control-kv","subject":%q,"eventType":"Microsoft.KeyVault.SecretNewVersionCreated","eventTime":%q,"data":{"Id":"https://control-kv.vault.azure.net/secrets/%s/%032d","ObjectType":"Secret"}}`,
				"[,"[min(i, 1)], i, name, time.Now().UTC().Format(time.RFC3339), name, i)
		}
		b.WriteByte(']')
		x := jsonShot("/v1/grid", b.Bytes()).set("X-Keyturn-Key", s.gridKey).set("Aeg-Event-Type", "Notification")
		tries := 0
		testenv.Eventually(t, 2*time.Minute, "the batch to be taken", func() bool {
			tries++
			status, answer, _ := s.fire(t, x)
			if status != http.StatusOK && status != http.StatusServiceUnavailable {
				t.Fatalf("answered %d %s", status, answer)
			}
			return status == http.StatusOK
		})
		t.Logf("%d KiB, taken at try %d", b.Len()>>10, tries)
	})
}
