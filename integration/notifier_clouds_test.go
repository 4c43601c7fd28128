package integration_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keyturn/keyturn/internal/gridfake"
	"github.com/keyturn/keyturn/internal/leaktest"
	"github.com/keyturn/keyturn/internal/sqsfake"
	"github.com/keyturn/keyturn/internal/vaultfake"
)

const (
	googleAudience = "https://keyturn.example.com/v1/pubsub"
	googleEmail    = "keyturn-push@example-project.iam.gserviceaccount.com"
	pubsubTopic    = "projects/" + gcpID + "/topics/secrets"
	pubsubSub      = "projects/" + gcpID + "/subscriptions/keyturn"
)

// sources are all that tells a notifier of secrets.
type sources struct {
	t     *testing.T
	dir   string
	sqs   *sqsfake.Queue
	sqsAt string
	grid  *gridfake.Server
	pub   *pstest.Server
	vault *vaultfake.Server
	jwks  *httptest.Server
	sns   *clouds // beyond a proxy

	apiKey, hmacKey, bearer string
	hmacBytes               []byte
}

// newSources starts them. A second of the queues is short, so that what a
// killed process had taken is soon there for others.
func newSources(t *testing.T) *sources {
	t.Helper()
	c := &sources{t: t, dir: t.TempDir(), apiKey: leaktest.Canary(), hmacBytes: make([]byte, 32)}
	_, _ = rand.Read(c.hmacBytes)
	c.hmacKey = "whsec_" + base64.StdEncoding.EncodeToString(c.hmacBytes)
	const second = 50 * time.Millisecond
	server := sqsfake.New(t, &sqsfake.Options{Second: second})
	c.sqs, c.sqsAt = server.Queue("keyturn", sqsfake.Spec{}), server.URL()
	c.grid = gridfake.New(t, &gridfake.Options{Second: second})
	c.vault = vaultfake.New(t)
	c.vault.Enterprise(true)
	c.pub = pstest.NewServer()
	t.Cleanup(func() { _ = c.pub.Close() })
	began := time.Now()
	c.pub.SetTimeNowFunc(func() time.Time { return time.Now().Add(9 * time.Since(began)) })
	_, err := c.pub.GServer.CreateTopic(t.Context(), &pubsubpb.Topic{Name: pubsubTopic})
	must(t, err)
	_, err = c.pub.GServer.CreateSubscription(t.Context(), &pubsubpb.Subscription{
		Name: pubsubSub, Topic: pubsubTopic, AckDeadlineSeconds: 10,
		RetryPolicy: &pubsubpb.RetryPolicy{MinimumBackoff: durationpb.New(10 * time.Millisecond), MaximumBackoff: durationpb.New(time.Second)},
	})
	must(t, err)
	c.google()
	c.sns = newClouds(t)
	return c
}

// google is the issuer of the tokens of push subscriptions, over TLS.
func (c *sources) google() {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	must(c.t, err)
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: key, KeyID: "k1"}}, (&jose.SignerOptions{}).WithType("JWT"))
	must(c.t, err)
	claims, err := json.Marshal(map[string]any{
		"iss": "https://accounts.google.com", "aud": googleAudience, "email": googleEmail, "email_verified": true, "sub": "1",
		"iat": time.Now().Add(-time.Minute).Unix(), "exp": time.Now().Add(50 * time.Minute).Unix(),
	})
	must(c.t, err)
	token, err := signer.Sign(claims)
	must(c.t, err)
	c.bearer, err = token.CompactSerialize()
	must(c.t, err)
	c.jwks = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k1", Algorithm: "RS256", Use: "sig"}}})
	}))
	c.jwks.Config.ErrorLog = log.New(io.Discard, "", 0) // clients are killed in the middle of a handshake
	c.jwks.StartTLS()
	c.t.Cleanup(c.jwks.Close)
}

// file writes a file that only its owner may read.
func (c *sources) file(name, text string) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	must(c.t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

// authority writes the certificate that a server of loopback shows.
func (c *sources) authority(name, at string) string {
	c.t.Helper()
	u, err := url.Parse(at)
	must(c.t, err)
	conn, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}}).DialContext(c.t.Context(), "tcp", u.Host) //nolint:gosec // to learn the certificate that is then trusted
	must(c.t, err)
	defer func() { _ = conn.Close() }()
	chain := conn.(*tls.Conn).ConnectionState().PeerCertificates
	return c.file(name, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[len(chain)-1].Raw})))
}

// config is that of one replica, which has its own spool, socket and file.
func (c *sources) config(nats, spool, socket, file string) string {
	c.t.Helper()
	token, err := c.grid.Credential().GetToken(c.t.Context(), policy.TokenRequestOptions{Scopes: []string{"https://eventgrid.azure.net/.default"}})
	must(c.t, err)
	key := c.file("api.key", c.apiKey)
	return strings.Join([]string{
		fmt.Sprintf("nats: {url: %q}", nats),
		fmt.Sprintf("gcp: {projects: {%s: %q}}", gcpID, gcpNumber),
		fmt.Sprintf("vault: {%s: {address: %q, token_file: %q}}", cluster, c.vault.URL(), c.file("vault.token", vaultfake.Root)),
		"notifier:",
		"  listen: 127.0.0.1:0",
		"  routes:",
		fmt.Sprintf("    - {kind: eventbridge, api_key_files: [%q]}", key),
		fmt.Sprintf("    - {kind: eventgrid, api_key_files: [%q], header: X-Keyturn-Key}", key),
		fmt.Sprintf("    - {kind: pubsub, google: {audience: %q, emails: [%q], jwks_url: %q, ca_file: %q}}", googleAudience, googleEmail, c.jwks.URL, c.authority("jwks.pem", c.jwks.URL)),
		fmt.Sprintf("    - {kind: sns, topics: [%q]}", snsTopic),
		fmt.Sprintf("    - {kind: cloudevents, hmac_key_files: [%q]}", c.file("hmac.key", c.hmacKey)),
		fmt.Sprintf("    - {kind: vaultaudit, cluster: %s, api_key_files: [%q]}", cluster, key),
		"  sources:",
		fmt.Sprintf("    - {kind: sqs, queue_url: %q, region: %s, endpoint: %q}", c.sqs.URL(), sqsfake.Region, c.sqsAt),
		fmt.Sprintf("    - {kind: eventgrid, name: grid-pull, endpoint: %q, topic: %s, subscription: %s, ca_file: %q, token_file: %q}",
			c.grid.URL(), gridfake.Topic, gridfake.Subscription, c.authority("grid.pem", c.grid.URL()), c.file("grid.token", token.Token)),
		fmt.Sprintf("    - {kind: pubsub, name: pubsub-pull, subscription: %s, endpoint: %q}", pubsubSub, c.pub.Addr),
		fmt.Sprintf("    - {kind: vaultaudit, cluster: %s, spool: %q, listen: %q, file: %q}", cluster, spool, "unix:"+socket, file),
		fmt.Sprintf("    - {kind: vaultevents, cluster: %s, mounts: [secret], resync: 2s}", cluster),
		"",
	}, "\n")
}

// env is what clients of the sources find in the environment. What is not on
// this machine is called by a proxy, behind which is SNS.
func (c *sources) env() []string {
	return []string{
		"AWS_ACCESS_KEY_ID=" + sqsfake.AccessKey, "AWS_SECRET_ACCESS_KEY=" + sqsfake.SecretKey, "AWS_REGION=" + sqsfake.Region,
		"HTTPS_PROXY=" + c.sns.proxy.URL, "NO_PROXY=localhost,127.0.0.1",
		"SSL_CERT_FILE=" + c.file("clouds.pem", string(c.sns.caPEM)), "SSL_CERT_DIR=" + c.t.TempDir(),
	}
}

func (c *sources) withKey(h http.Header)    { h.Set("X-Api-Key", c.apiKey) }
func (c *sources) withSecret(h http.Header) { h.Set("X-Keyturn-Key", c.apiKey) }
func (c *sources) withToken(h http.Header)  { h.Set("Authorization", "Bearer "+c.bearer) }

// waiting is what the queues still hold.
func (c *sources) waiting() string {
	visible, inFlight := c.sqs.Depth()
	unacked := 0
	for _, m := range c.pub.Messages() {
		if m.Acks == 0 {
			unacked++
		}
	}
	if visible+inFlight+c.grid.Left()+unacked == 0 {
		return ""
	}
	return fmt.Sprintf("SQS %d and %d, Event Grid %d, Pub/Sub %d", visible, inFlight, c.grid.Left(), unacked)
}
