package azurefake_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/to"
	"github.com/Azure/azure-sdk-for-go/sdk/security/keyvault/azsecrets"
	"go.uber.org/goleak"

	"github.com/keyturn/keyturn/internal/azurefake"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const vault = "kv-agents"

func client(t *testing.T, s *azurefake.Server, vault string) *azsecrets.Client {
	t.Helper()
	o := &azsecrets.ClientOptions{}
	o.Transport = s.Client()
	o.Retry = policy.RetryOptions{MaxRetries: -1}
	c, err := azsecrets.NewClient("https://"+vault+"."+azurefake.Domain, s.Credential(), o)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func put(t *testing.T, c *azsecrets.Client, name, value string) string {
	t.Helper()
	out, err := c.SetSecret(t.Context(), name, azsecrets.SetSecretParameters{Value: &value}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out.ID.Version()
}

// wantCode fails t unless err is the service's error with the status, and its
// body holds the code.
func wantCode(t *testing.T, what string, err error, status int, code string) {
	t.Helper()
	var re *azcore.ResponseError
	if !errors.As(err, &re) || re.StatusCode != status || !strings.Contains(re.Error(), `"`+code+`"`) {
		t.Errorf("%s: %v, expected status %d and code %s", what, err, status, code)
	}
}

// The versions of a secret, as the official client sees them.
func TestVersions(t *testing.T) {
	s := azurefake.New(t)
	s.SetPageSize(2)
	c := client(t, s, vault)
	_, err := c.GetSecret(t.Context(), "db", "", nil)
	wantCode(t, "get of what is not there", err, 404, "SecretNotFound")
	ids := []string{put(t, c, "Db", "v0"), put(t, c, "db", "v1"), put(t, c, "DB", "v2")}
	got, err := c.GetSecret(t.Context(), "dB", "", nil)
	if err != nil || *got.Value != "v2" || string(*got.ID) != "https://kv-agents.vault.azure.net/secrets/Db/"+ids[2] {
		t.Errorf("the newest version is %v, %v", got.ID, err)
	}
	if got, err := c.GetSecret(t.Context(), "db", ids[0], nil); err != nil || *got.Value != "v0" {
		t.Errorf("the first version: %v", err)
	}
	_, err = c.GetSecret(t.Context(), "db", strings.Repeat("0", 32), nil)
	wantCode(t, "get of a version that is not there", err, 404, "SecretNotFound")
	seen, pages := map[string]bool{}, 0
	for p := c.NewListSecretPropertiesVersionsPager("db", nil); p.More(); pages++ {
		out, err := p.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range out.Value {
			seen[v.ID.Version()] = true
		}
	}
	if len(seen) != 3 || pages != 2 {
		t.Errorf("%d versions on %d pages, expected 3 on 2", len(seen), pages)
	}

	// Tags are replaced, what is not named stays, and a disabled version is
	// read by nobody.
	off := azsecrets.UpdateSecretPropertiesParameters{
		SecretAttributes: &azsecrets.SecretAttributes{Enabled: to.Ptr(false)}, Tags: map[string]*string{"a": to.Ptr("b")},
	}
	up, err := c.UpdateSecretProperties(t.Context(), "db", ids[2], off, nil)
	if err != nil || up.Value != nil || *up.Attributes.Enabled {
		t.Errorf("updated %+v, %v", up, err)
	}
	for _, id := range []string{"", ids[2]} {
		_, err = c.GetSecret(t.Context(), "db", id, nil)
		wantCode(t, "get of a disabled version", err, 403, "SecretDisabled")
	}
	on := azsecrets.UpdateSecretPropertiesParameters{SecretAttributes: &azsecrets.SecretAttributes{Enabled: to.Ptr(true)}}
	up, err = c.UpdateSecretProperties(t.Context(), "db", ids[2], on, nil)
	if err != nil || *up.Tags["a"] != "b" || up.Attributes.Created.Nanosecond() != 0 || *up.Attributes.RecoveryLevel != "Recoverable+Purgeable" {
		t.Errorf("updated %+v, %v", up, err)
	}
}

func TestLimits(t *testing.T) {
	s := azurefake.New(t)
	c := client(t, s, vault)
	many := map[string]*string{}
	for i := range 16 {
		many[string(rune('a'+i))] = to.Ptr("x")
	}
	for what, p := range map[string]azsecrets.SetSecretParameters{
		"no value":     {},
		"a long value": {Value: to.Ptr(strings.Repeat("x", 25601))},
		"many tags":    {Value: to.Ptr("x"), Tags: many},
		"a long tag":   {Value: to.Ptr("x"), Tags: map[string]*string{"a": to.Ptr(strings.Repeat("x", 257))}},
		"a long type":  {Value: to.Ptr("x"), ContentType: to.Ptr(strings.Repeat("x", 256))},
		"times": {Value: to.Ptr("x"), SecretAttributes: &azsecrets.SecretAttributes{
			NotBefore: to.Ptr(time.Now()), Expires: to.Ptr(time.Now().Add(-time.Hour)),
		}},
	} {
		_, err := c.SetSecret(t.Context(), "db", p, nil)
		wantCode(t, what, err, 400, "BadParameter")
	}
	_, err := c.SetSecret(t.Context(), "d_b", azsecrets.SetSecretParameters{Value: to.Ptr("x")}, nil)
	wantCode(t, "a bad name", err, 400, "BadParameter")
	put(t, c, "db", strings.Repeat("ü", 25600)) // characters, not bytes
}

func TestSoftDelete(t *testing.T) {
	s := azurefake.New(t, vault, "kv-other")
	c := client(t, s, vault)
	put(t, c, "db", "v0")
	put(t, client(t, s, "kv-other"), "db", "elsewhere")
	s.SetLag(1)
	if _, err := c.DeleteSecret(t.Context(), "db", nil); err != nil {
		t.Fatal(err)
	}
	value := "v1"
	set := func() error {
		_, err := c.SetSecret(t.Context(), "db", azsecrets.SetSecretParameters{Value: &value}, nil)
		return err
	}
	wantCode(t, "set while it is being deleted", set(), 409, "ObjectIsBeingDeleted")
	wantCode(t, "set", set(), 409, "ObjectIsDeletedButRecoverable")
	_, err := c.GetSecret(t.Context(), "db", "", nil)
	wantCode(t, "get", err, 404, "SecretNotFound")
	if d, err := c.GetDeletedSecret(t.Context(), "db", nil); err != nil || d.Value != nil || !d.ScheduledPurgeDate.After(time.Now()) {
		t.Errorf("the deleted secret is %+v, %v", d, err)
	}
	s.SetPurgeProtection(vault, true)
	_, err = c.PurgeDeletedSecret(t.Context(), "db", nil)
	wantCode(t, "purge", err, 403, "PurgeProtectionEnabled")
	if _, err := c.RecoverDeletedSecret(t.Context(), "db", nil); err != nil {
		t.Fatal(err)
	}
	wantCode(t, "set while it is being recovered", set(), 409, "ObjectIsBeingRecovered")
	if err := set(); err != nil {
		t.Error(err)
	}
	if n := len(s.Versions(vault, "db")); n != 2 {
		t.Errorf("%d versions after the recovery, expected 2", n)
	}
	s.SetPurgeProtection(vault, false)
	s.SetLag(0)
	s.Remove(vault, "db")
	if _, err := c.PurgeDeletedSecret(t.Context(), "db", nil); err != nil || s.Deleted(vault, "db") {
		t.Errorf("purge: %v", err)
	}
	if v := s.Versions("kv-other", "db"); len(v) != 1 || v[0].Value != "elsewhere" {
		t.Errorf("the secret of that name in another vault is %+v", v)
	}
}

// Who has no token, or a wrong one, is told where to get one, and no more.
func TestChallenge(t *testing.T) {
	s := azurefake.New(t)
	for _, auth := range []string{"", "Bearer wrong", "Basic x"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://kv-agents.vault.azure.net/secrets/db?api-version=7.4", strings.NewReader(`{"value":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", auth)
		resp, err := s.Client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if h := resp.Header.Get("WWW-Authenticate"); resp.StatusCode != http.StatusUnauthorized || !strings.Contains(h, `resource="https://vault.azure.net"`) {
			t.Errorf("%q is answered %d with challenge %q", auth, resp.StatusCode, h)
		}
	}
	if len(s.Versions(vault, "db")) > 0 {
		t.Error("a request without a token took effect")
	}
	if _, err := s.Credential().GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{"https://storage.azure.com/.default"}, TenantID: azurefake.Tenant}); err == nil {
		t.Error("a token for another service was issued")
	}
}

func TestEvents(t *testing.T) {
	s := azurefake.New(t)
	var got []azurefake.Event
	s.OnEvent(func(e azurefake.Event) { got = append(got, e) })
	kinds := func() string {
		var out []string
		for _, e := range got {
			out = append(out, strings.TrimPrefix(e.Type, "Microsoft.KeyVault.Secret"))
		}
		got = nil
		return strings.Join(out, " ")
	}
	c := client(t, s, vault)
	set := func(valid time.Duration) string {
		p := azsecrets.SetSecretParameters{Value: to.Ptr("x"), SecretAttributes: &azsecrets.SecretAttributes{}}
		if valid != 0 {
			p.SecretAttributes.Expires = to.Ptr(time.Now().Add(valid))
		}
		out, err := c.SetSecret(t.Context(), "db", p, nil)
		if err != nil {
			t.Fatal(err)
		}
		return out.ID.Version()
	}
	const day = 24 * time.Hour
	for valid, want := range map[time.Duration]string{0: "NewVersionCreated", 31 * day: "NewVersionCreated", 30 * day: "NewVersionCreated NearExpiry"} {
		set(valid)
		if k := kinds(); k != want {
			t.Errorf("a version valid for %s raised %q, expected %q", valid, k, want)
		}
	}
	id := set(40 * day)
	e := got[0]
	kinds()
	// Nothing is told of what is updated, deleted or recovered.
	s.SetEnabled(vault, "db", id, false)
	s.Remove(vault, "db")
	if _, err := c.RecoverDeletedSecret(t.Context(), "db", nil); err != nil {
		t.Fatal(err)
	}
	if k := kinds(); k != "" {
		t.Errorf("a change that has no event raised %q", k)
	}
	s.NearExpiry(vault, "db")
	s.Expired(vault, "db")
	if k := kinds(); k != "NearExpiry Expired" {
		t.Errorf("raised %q", k)
	}

	var grid []struct {
		ID, Subject, EventType, EventTime, Topic string
		Data                                     map[string]any
	}
	dec := json.NewDecoder(bytes.NewReader(e.EventGrid()))
	dec.UseNumber()
	if err := dec.Decode(&grid); err != nil || len(grid) != 1 {
		t.Fatalf("%s: %v", e.EventGrid(), err)
	}
	g := grid[0]
	if g.ID != e.ID || g.Subject != "db" || g.EventType != "Microsoft.KeyVault.SecretNewVersionCreated" || !strings.HasSuffix(g.Topic, "/vaults/kv-agents") {
		t.Errorf("the event is %+v", g)
	}
	if g.Data["Id"] != "https://kv-agents.vault.azure.net/secrets/db/"+id || g.Data["Version"] != id || g.Data["VaultName"] != vault || g.Data["NBF"] != nil {
		t.Errorf("its data is %v", g.Data)
	}
	if exp, err := g.Data["EXP"].(json.Number).Int64(); err != nil || exp != *e.Expires {
		t.Errorf("EXP is %v", g.Data["EXP"])
	}
	if when, err := time.Parse(time.RFC3339Nano, g.EventTime); err != nil || time.Since(when) > time.Minute {
		t.Errorf("the time is %q", g.EventTime)
	}
	var ce map[string]any
	if err := json.Unmarshal(e.CloudEvent(), &ce); err != nil || ce["specversion"] != "1.0" || ce["type"] != g.EventType || ce["source"] != g.Topic {
		t.Errorf("%s: %v", e.CloudEvent(), err)
	}
}

func TestFailuresAndDenials(t *testing.T) {
	s := azurefake.New(t)
	c := client(t, s, vault)
	put(t, c, "db", "v0")
	s.FailNext("get", azurefake.Failure{}, azurefake.Throttled(7))
	if _, err := c.GetSecret(t.Context(), "db", "", nil); err != nil {
		t.Error(err)
	}
	_, err := c.GetSecret(t.Context(), "db", "", nil)
	wantCode(t, "throttled", err, 429, "Throttled")
	var re *azcore.ResponseError
	if !errors.As(err, &re) || re.RawResponse.Header.Get("Retry-After") != "7" {
		t.Error("there is no Retry-After")
	}
	s.FailNext("set", azurefake.Failure{Status: 500, Code: "InternalServerError", AfterEffect: true})
	_, err = c.SetSecret(t.Context(), "db", azsecrets.SetSecretParameters{Value: to.Ptr("v1")}, nil)
	wantCode(t, "a lost answer", err, 500, "InternalServerError")
	if n := len(s.Versions(vault, "db")); n != 2 {
		t.Errorf("%d versions, expected the one whose answer was lost too", n)
	}
	s.Deny(azurefake.Get)
	_, err = c.GetSecret(t.Context(), "db", "", nil)
	wantCode(t, "denied", err, 403, "ForbiddenByRbac")
	s.Allow(azurefake.Get)
	if got, err := c.GetSecret(t.Context(), "db", "", nil); err != nil || *got.Value != "v1" {
		t.Errorf("get after it was allowed: %v", err)
	}
	s.ForgetCalls()
	put(t, c, "db", "v2")
	if w := s.Writes(); len(w) != 1 || w[0].Op != "set" || w[0].Name != "db" || w[0].Vault != vault {
		t.Errorf("the writes are %+v", w)
	}
}
