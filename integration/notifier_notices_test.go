package integration_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/keyturn/keyturn/events"
	"github.com/keyturn/keyturn/events/cloudevents"
	"github.com/keyturn/keyturn/events/eventbridge"
	"github.com/keyturn/keyturn/events/eventgrid"
	"github.com/keyturn/keyturn/events/pubsub"
	"github.com/keyturn/keyturn/events/vault"
	"github.com/keyturn/keyturn/internal/azurefake"
	"github.com/keyturn/keyturn/rotators"
)

// A change is one that a cloud tells of: a version of a secret became current.
type change struct {
	from    string // whose secret it is
	secret  int
	version int // from 1
	at      time.Time
}

// perSecret is how many versions a secret gets, fewer than a subject keeps.
const perSecret = 8

// order is that in which the notices of every second secret come.
var order = [perSecret]int{3, 1, 2, 4, 8, 7, 5, 6}

// changes counts the changes of one source. Versions are two minutes apart,
// and so more than clocks may differ by: which is the newest is certain. Some
// of them are older than what the server's duplicate window is asked for.
type changes struct {
	from string
	n    int
	base time.Time
}

func newChanges(from string) *changes {
	return &changes{from: from, base: time.Now().Add(-2*perSecret*time.Minute - time.Minute)}
}

func (c *changes) next() change {
	secret, version := c.n/perSecret, c.n%perSecret+1
	if secret%2 == 1 {
		version = order[version-1]
	}
	c.n++
	return change{c.from, secret, version, c.base.Add(time.Duration(2*version) * time.Minute)}
}

func (c change) name() string { return fmt.Sprintf("%s-%04d", c.from, c.secret) }

// uuid is an id of AWS's form.
func (c change) uuid() string {
	sum := sha256.Sum256([]byte(c.name()))
	return fmt.Sprintf("%x-%x-4%03d-8000-%x", sum[:4], sum[4:6], c.version, sum[6:12])
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and numbers only
	}
	return string(b)
}

// eventBridge is a notice of Secrets Manager, of which each has its own id.
func (c change) eventBridge(t testing.TB) (string, []events.Event) {
	name := "prod/" + c.name()
	body := asJSON(map[string]any{
		"version": "0", "id": rotators.NewToken(), "detail-type": "Secret Label Updated", "source": "aws.secretsmanager",
		"account": "111122223333", "region": "eu-west-1", "time": c.at.UTC().Format(time.RFC3339),
		"resources": []string{"arn:aws:secretsmanager:eu-west-1:111122223333:secret:" + name + "-Ab12Cd"},
		"detail":    map[string]any{"name": name, "labelUpdated": "AWSCURRENT", "versionId": c.uuid()},
	})
	es, err := eventbridge.DecodeAny([]byte(body), time.Now())
	return body, decoded(t, es, err)
}

// grid is a notice of Key Vault, in one of its two schemas.
func (c change) grid(t testing.TB, cloud bool) (string, []events.Event) {
	e := azurefake.Event{
		ID: rotators.NewToken(), Type: "Microsoft.KeyVault.SecretNewVersionCreated", Time: c.at,
		Vault: "kv-agents", Name: c.name(), Version: fmt.Sprintf("a%031d", c.version),
	}
	body := e.EventGrid()
	if cloud {
		body = e.CloudEvent()
	}
	es, err := eventgrid.Decode(body, time.Now())
	return string(body), decoded(t, es, err)
}

const gcpNumber, gcpID = "123456789012", "example-project"

// message is one of Secret Manager.
func (c change) message(t testing.TB) (pubsub.Message, []events.Event) {
	secret := "projects/" + gcpNumber + "/secrets/" + c.name()
	version := secret + "/versions/" + strconv.Itoa(c.version)
	m := pubsub.Message{
		Attributes: map[string]string{
			"dataFormat": "JSON_API_V1", "eventType": "SECRET_VERSION_ADD", "secretId": secret, "versionId": version,
			"timestamp": c.at.UTC().Format(time.RFC3339Nano),
		},
		Data: []byte(asJSON(map[string]string{"name": version, "state": "ENABLED", "createTime": c.at.UTC().Format(time.RFC3339Nano)})),
	}
	d := pubsub.Decoder{Project: func(number string) string { return map[string]string{gcpNumber: gcpID}[number] }}
	es, err := d.Decode(m, time.Now())
	return m, decoded(t, es, err)
}

// pushed is m as a push subscription posts it.
func pushed(m pubsub.Message) string {
	return asJSON(map[string]any{
		"subscription": "projects/" + gcpID + "/subscriptions/keyturn",
		"message": map[string]any{
			"attributes": m.Attributes, "data": base64.StdEncoding.EncodeToString(m.Data),
			"messageId": rotators.NewToken(), "publishTime": time.Now().UTC().Format(time.RFC3339Nano),
		},
	})
}

// inHouse is a CloudEvent of a rotator of one's own.
func (c change) inHouse(t testing.TB) (string, []events.Event) {
	body := asJSON(map[string]any{
		"specversion": "1.0", "id": rotators.NewToken(), "source": "/rotators/ldap", "type": string(events.VersionActivated),
		"time": c.at.UTC().Format(time.RFC3339Nano),
		"data": map[string]any{"ref": "nats://ldap/" + c.name(), "version": strconv.Itoa(c.version)},
	})
	es, err := cloudevents.Decode([]byte(body))
	return body, decoded(t, es, err)
}

// cluster is what refs call the Vault cluster.
const cluster = "prod"

// audit is an audit entry about a write to the mount secret.
func audit(t testing.TB, path string, version int, at time.Time) (string, []events.Event) {
	body := asJSON(map[string]any{
		"type": "response", "time": at.UTC().Format(time.RFC3339Nano),
		"request": map[string]any{
			"id": rotators.NewToken(), "operation": "update", "path": "secret/data/" + path, "mount_point": "secret/", "mount_type": "kv",
			"namespace": map[string]string{"id": "root"}, "data": map[string]any{"data": map[string]string{"k": "hmac-sha256:00"}},
		},
		"response": map[string]any{"mount_type": "kv", "data": map[string]any{"version": version}},
	})
	es, err := vault.Decoder{Cluster: cluster}.Decode([]byte(body), time.Now())
	return body, decoded(t, es, err)
}

func (c change) audit(t testing.TB) (string, []events.Event) {
	return audit(t, "audited/"+c.name(), c.version, c.at)
}

// standardWebhooks signs a body.
func standardWebhooks(h http.Header, key []byte, body string) {
	id, stamp := rotators.NewToken(), strconv.FormatInt(time.Now().Unix(), 10)
	m := hmac.New(sha256.New, key)
	_, _ = m.Write([]byte(id + "." + stamp + "." + body))
	h.Set("Webhook-Id", id)
	h.Set("Webhook-Timestamp", stamp)
	h.Set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)))
}
