package integration_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/rotators"
)

// A sender makes the requests of one cloud. name is that of the secret, which
// the notice says has a new version.
type sender struct {
	kind string
	// claims are the token's, of those that have one.
	claims func() siegeObject
	// notice is a request without credentials.
	notice func(s *siege, name string) *shot
	// sign adds credentials of the right form. claims may be nil.
	sign func(s *siege, x *shot, claims siegeObject)
}

// shot is a good request.
func (c sender) shot(s *siege, name string) *shot {
	x := c.notice(s, name)
	var claims siegeObject
	if c.claims != nil {
		claims = c.claims()
	}
	c.sign(s, x, claims)
	return x
}

type siegeObject map[string]any

func (o siegeObject) with(members ...any) siegeObject {
	out := maps.Clone(o)
	for i := 0; i < len(members); i += 2 {
		if members[i+1] == nil {
			delete(out, members[i].(string))
		} else {
			out[members[i].(string)] = members[i+1]
		}
	}
	return out
}

func (o siegeObject) json() []byte {
	b, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	return b
}

func jsonShot(path string, body []byte) *shot {
	return &shot{method: http.MethodPost, path: path, header: http.Header{"Content-Type": {"application/json"}}, body: body}
}

// mint signs claims.
func mint(t testing.TB, alg jose.SignatureAlgorithm, key any, kid string, payload []byte) string {
	t.Helper()
	o := (&jose.SignerOptions{}).WithType("JWT")
	if kid != "" {
		o = o.WithHeader("kid", kid)
	}
	sg, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, o)
	must(t, err)
	jws, err := sg.Sign(payload)
	must(t, err)
	token, err := jws.CompactSerialize()
	must(t, err)
	return token
}

func bearToken(s *siege, x *shot, claims siegeObject) {
	x.set("Authorization", "Bearer "+mint(s.t, jose.RS256, cloudKey(), "k1", claims.json()))
}

func hour(o siegeObject) siegeObject {
	now := time.Now().Unix()
	return o.with("iat", now, "nbf", now, "exp", now+3600)
}

// label is a notice of EventBridge.
func awsNotice(account, name, version string, at time.Time) []byte {
	return siegeObject{
		"version": "0", "id": rotators.NewToken(), "detail-type": "Secret Label Updated", "source": "aws.secretsmanager",
		"account": account, "time": at.UTC().Format(time.RFC3339), "region": "eu-west-1",
		"resources": []string{"arn:aws:secretsmanager:eu-west-1:" + account + ":secret:" + name + "-Ab12Cd"},
		"detail":    siegeObject{"name": name, "labelUpdated": "AWSCURRENT", "versionId": version},
	}.json()
}

func awsNoticeOf(name string) []byte {
	return awsNotice(siegeAccount, name, rotators.NewToken(), time.Now())
}

func eventBridge(_ *siege, name string) *shot { return jsonShot("/v1/eventbridge", awsNoticeOf(name)) }

func gridEvent(name string) siegeObject {
	version := strings.ReplaceAll(rotators.NewToken(), "-", "")
	return siegeObject{
		"id": rotators.NewToken(), "subject": name, "eventType": "Microsoft.KeyVault.SecretNewVersionCreated",
		"topic":     "/subscriptions/s/resourceGroups/r/providers/Microsoft.KeyVault/vaults/control-kv",
		"eventTime": time.Now().UTC().Format(time.RFC3339Nano), "dataVersion": "1", "metadataVersion": "1",
		"data": siegeObject{
			"Id":        "https://control-kv.vault.azure.net/secrets/" + name + "/" + version,
			"VaultName": "control-kv", "ObjectType": "Secret", "ObjectName": name, "Version": version,
		},
	}
}

func gridAt(path string) func(*siege, string) *shot {
	return func(_ *siege, name string) *shot {
		b, _ := json.Marshal([]any{gridEvent(name)})
		return jsonShot(path, b).set("Aeg-Event-Type", "Notification")
	}
}

func pushNotice(_ *siege, name string) *shot {
	id := "projects/123456789012/secrets/" + name
	return jsonShot("/v1/pubsub", siegeObject{"subscription": "projects/acme-prod/subscriptions/keyturn", "message": siegeObject{
		"messageId": rotators.NewToken(), "publishTime": time.Now().UTC().Format(time.RFC3339Nano),
		"attributes": siegeObject{
			"eventType": "SECRET_VERSION_ADD", "dataFormat": "JSON_API_V1", "secretId": id, "versionId": id + "/versions/2",
			"timestamp": time.Now().Format(time.RFC3339Nano),
		},
		"data": base64.StdEncoding.EncodeToString(siegeObject{"name": id + "/versions/2", "state": "ENABLED"}.json()),
	}}.json())
}

func cloudEvent(_ *siege, name string) *shot {
	return jsonShot("/v1/cloudevents", cloudEventOf(name).json())
}

func cloudEventOf(name string) siegeObject {
	return siegeObject{
		"specversion": "1.0", "id": rotators.NewToken(), "source": "/rotators/ldap", "type": "dev.keyturn.version.activated.v1",
		"time": time.Now().UTC().Format(time.RFC3339Nano),
		"data": siegeObject{"ref": "aws://" + siegeAccount + "/eu-west-1/" + name, "version": rotators.NewToken()},
	}
}

// seal signs as Standard Webhooks has it.
func seal(s *siege, x *shot, secret string, at time.Time) {
	id, stamp := "msg_"+rotators.NewToken(), fmt.Sprint(at.Unix())
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret, "whsec_"))
	must(s.t, err)
	m := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(m, "%s.%s.%s", id, stamp, x.body)
	x.set("Webhook-Id", id).set("Webhook-Timestamp", stamp).set("Webhook-Signature", "v1,"+base64.StdEncoding.EncodeToString(m.Sum(nil)))
}

func auditEntry(_ *siege, name string) *shot {
	x := jsonShot("/v1/vaultaudit", siegeObject{
		"type": "response", "time": time.Now().UTC().Format(time.RFC3339Nano),
		"auth": siegeObject{"token_type": "service"},
		"request": siegeObject{
			"id": rotators.NewToken(), "operation": "update", "path": "secret/data/" + name, "mount_point": "secret/", "mount_type": "kv",
			"mount_accessor": "kv_1", "mount_class": "secret", "namespace": siegeObject{"id": "root"},
		},
		"response": siegeObject{"mount_point": "secret/", "mount_type": "kv", "mount_accessor": "kv_1", "data": siegeObject{"version": 2, "destroyed": false}},
	}.json())
	x.header.Del("Content-Type")
	return x
}

// The senders, each with its right credentials.
var (
	byKey   = sender{kind: "eventbridge, key", notice: eventBridge, sign: func(s *siege, x *shot, _ siegeObject) { x.set("X-Api-Key", s.key) }}
	byBasic = sender{kind: "eventbridge, basic", notice: eventBridge, sign: func(s *siege, x *shot, _ siegeObject) {
		x.set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte("keyturn:"+s.password)))
	}}
	byOAuth = sender{kind: "eventbridge, OAuth", notice: eventBridge, sign: bearToken, claims: func() siegeObject {
		return hour(siegeObject{"iss": "https://issuer.example.com", "aud": "keyturn", "client_id": "eventbridge", "sub": "eventbridge", "scope": "other notify"})
	}}
	byEntra2 = sender{kind: "eventgrid, Entra v2", notice: gridAt("/v1/eventgrid"), sign: bearToken, claims: func() siegeObject {
		return hour(siegeObject{
			"iss": "https://login.microsoftonline.com/" + gridTenant + "/v2.0", "aud": gridClient, "tid": gridTenant, "azp": gridCaller,
			"roles": []string{gridRole}, "ver": "2.0",
		})
	}}
	byEntra1 = sender{kind: "eventgrid, Entra v1", notice: gridAt("/v1/eventgrid"), sign: bearToken, claims: func() siegeObject {
		return hour(siegeObject{
			"iss": "https://sts.windows.net/" + gridTenant + "/", "aud": gridURI, "tid": gridTenant, "appid": gridCaller,
			"roles": []string{gridRole}, "ver": "1.0",
		})
	}}
	byGridKey = sender{kind: "eventgrid, header", notice: gridAt("/v1/grid"), sign: func(s *siege, x *shot, _ siegeObject) { x.set("X-Keyturn-Key", s.gridKey) }}
	byGoogle  = sender{kind: "pubsub", notice: pushNotice, sign: bearToken, claims: func() siegeObject {
		return hour(siegeObject{"iss": "https://accounts.google.com", "aud": pushAudience, "email": pushEmail, "email_verified": true, "sub": "1", "azp": "1"})
	}}
	bySNS = sender{
		kind: "sns", notice: func(_ *siege, name string) *shot { return &shot{body: envelope(name).json()} },
		sign: func(s *siege, x *shot, _ siegeObject) {
			var m siegeObject
			must(s.t, json.Unmarshal(x.body, &m))
			*x = *snsShot(s, m, cloudKey())
		},
	}
	byHMAC  = sender{kind: "cloudevents", notice: cloudEvent, sign: func(s *siege, x *shot, _ siegeObject) { seal(s, x, s.hmac, time.Now()) }}
	byAudit = sender{kind: "vaultaudit", notice: auditEntry, sign: func(s *siege, x *shot, _ siegeObject) { x.set("X-Api-Key", s.key) }}

	allSenders = []sender{byKey, byBasic, byOAuth, byEntra2, byEntra1, byGridKey, byGoogle, bySNS, byHMAC, byAudit}
)
