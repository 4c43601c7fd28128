package tokenauth

import (
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/fault"
)

const (
	tenant   = "99999999-8888-7777-6666-555555555555"
	clientID = "11111111-2222-3333-4444-555555555555"
	appURI   = "api://" + clientID
	pushURL  = "https://keyturn.example.com/v1/pubsub"
	pusher   = "push@acme-prod.iam.gserviceaccount.com"
)

func (is *issuer) google() *Verifier {
	is.t.Helper()
	v, err := Google(GoogleOptions{Audience: pushURL, Emails: []string{"other@x.example", pusher}, Options: is.options()})
	if err != nil {
		is.t.Fatal(err)
	}
	return v
}

func (is *issuer) googleClaims() object {
	now := is.now()
	return object{
		"iss": "https://accounts.google.com", "aud": pushURL, "azp": "113774264463038321964", "sub": "113774264463038321964",
		"email": pusher, "email_verified": true, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}
}

// clockLate is in the error about a good token of the future.
const clockLate = "set this machine's clock, which is late"

// A row is what becomes of a token with some claims changed. want is "" where
// it is accepted, and else in the error. That is Denied, but Unavailable for
// clockLate: a sender drops what is refused, and a right clock lets it in.
type row struct {
	name    string
	changes []any
	want    string
}

func claimTable(t *testing.T, v *Verifier, base object, rows []row) {
	t.Helper()
	for _, r := range rows {
		t.Run(r.name, func(t *testing.T) {
			err := v.Authenticate(t.Context(), header(good(t, base.with(r.changes...))))
			if r.want == "" {
				if err != nil {
					t.Errorf("refused: %v", err)
				}
				return
			}
			kind := fault.Denied
			if r.want == clockLate {
				kind = fault.Unavailable
			}
			wantKind(t, err, kind)
			if err != nil && !strings.Contains(err.Error(), r.want) {
				t.Errorf("error %q; expected %q in it", err, r.want)
			}
		})
	}
}

// timeRows are the times that every kind of token must keep, a minute of
// leeway to either side.
func timeRows(now time.Time) []row {
	at := func(d time.Duration) int64 { return now.Add(d).Unix() }
	return []row{
		{"expired within the leeway", []any{"exp", at(-50 * time.Second)}, ""},
		{"expired", []any{"exp", at(-70 * time.Second)}, "expired at"},
		{"never expires", []any{"exp", nil}, "never expires"},
		{"expires with a fraction", []any{"exp", float64(at(time.Hour)) + 0.5}, ""},
		{"expiry as text", []any{"exp", "2099-01-01"}, "exp is no time"},
		{"expiry beyond all times", []any{"exp", 1e300}, "exp is no time"},
		{"expiry in the dark past", []any{"exp", -1}, "exp is no time"},
		{"not yet valid within the leeway", []any{"nbf", at(50 * time.Second)}, ""},
		{"not yet valid", []any{"nbf", at(70 * time.Second)}, clockLate},
		{"made in the future", []any{"iat", at(70 * time.Second)}, clockLate},
		{"good from a text on", []any{"nbf", "today"}, "nbf is no time"},
		{"no iat", []any{"iat", nil}, ""},
	}
}

func TestGoogle(t *testing.T) {
	is := newIssuer(t)
	claimTable(t, is.google(), is.googleClaims(), append(timeRows(is.now()), []row{
		{"good", nil, ""},
		{"the other spelling of the issuer", []any{"iss", "accounts.google.com"}, ""},
		{"another issuer", []any{"iss", "https://accounts.google.com.evil.example"}, "iss"},
		{"no issuer", []any{"iss", nil}, "no claim iss"},
		{"an audience of several", []any{"aud", []string{"https://x.example", pushURL}}, ""},
		{"an array without ours", []any{"aud", []string{"https://x.example"}}, "aud"},
		{"another audience", []any{"aud", pushURL + "/"}, "aud"},
		{"an audience that has ours in it", []any{"aud", "x" + pushURL}, "aud"},
		{"no audience", []any{"aud", nil}, "aud"},
		{"an audience that is a number", []any{"aud", 1}, "aud is neither"},
		{"an audience with null in it", []any{"aud", []any{nil, pushURL}}, "aud is neither"},
		{"trap 34: another e-mail address", []any{"email", "mallory@evil.iam.gserviceaccount.com"}, "email"},
		{"trap 34: no e-mail address", []any{"email", nil}, "no claim email"},
		{"trap 34: an address in other case", []any{"email", strings.ToUpper(pusher)}, "email"},
		{"trap 34: addresses in an array", []any{"email", []string{pusher}}, "email is no string"},
		{"trap 34: not verified", []any{"email_verified", false}, "email_verified"},
		{"trap 34: not said to be verified", []any{"email_verified", nil}, "email_verified"},
		{"trap 34: verified as text", []any{"email_verified", "true"}, "email_verified"},
		{"claims are told apart by case", []any{"email", nil, "EMAIL", pusher}, "no claim email"},
		{"claims nobody needs", []any{"_claim_names", object{"email": "x"}, "x", object{"y": nil}}, ""},
	}...))
}

func TestEntra(t *testing.T) {
	is := newIssuer(t)
	v, err := Entra(EntraOptions{TenantID: strings.ToUpper(tenant), Audiences: []string{clientID, appURI}, Options: is.options()})
	if err != nil {
		t.Fatal(err)
	}
	now := is.now().Unix()
	v2 := object{
		"aud": clientID, "iss": "https://" + stsHost + "/" + tenant + "/v2.0", "iat": now, "nbf": now, "exp": now + 86700,
		"azp": eventGridApp, "azpacr": "2", "oid": clientID, "sub": clientID, "roles": []string{eventGridRole}, "tid": tenant, "ver": "2.0",
	}
	v1 := object{
		"aud": appURI, "iss": "https://sts.windows.net/" + tenant + "/", "iat": now, "nbf": now, "exp": now + 86700,
		"appid": eventGridApp, "appidacr": "2", "roles": []string{eventGridRole}, "tid": tenant, "ver": "1.0",
	}
	const other = "00000000-0000-0000-0000-000000000001"
	for version, base := range map[string]object{"v2": v2, "v1": v1} {
		caller := map[string]string{"v2": "azp", "v1": "appid"}[version]
		wrong := map[string]string{"v2": "appid", "v1": "azp"}[version]
		t.Run(version, func(t *testing.T) {
			claimTable(t, v, base, append(timeRows(is.now()), []row{
				{"good", nil, ""},
				{"no ver", []any{"ver", nil}, ""},
				{"trap 21: another application of the tenant", []any{caller, other}, caller},
				{"trap 21: no caller", []any{caller, nil}, "no claim " + caller},
				{"trap 21: the caller in the other version's claim", []any{caller, nil, wrong, eventGridApp}, "no claim " + caller},
				{"trap 21: a wrong caller beside the other version's claim", []any{caller, other, wrong, eventGridApp}, caller},
				{"trap 21: no role", []any{"roles", nil}, "app roles"},
				{"trap 21: another role", []any{"roles", []string{"Reader"}}, "app roles"},
				{"trap 21: a role that has ours in it", []any{"roles", []string{eventGridRole + "2"}}, "app roles"},
				{"several roles", []any{"roles", []string{"Reader", eventGridRole}}, ""},
				{"another tenant", []any{"tid", other}, "tid"},
				{"no tenant", []any{"tid", nil}, "no claim tid"},
				{"the issuer of another tenant", []any{"iss", strings.ReplaceAll(base["iss"].(string), tenant, other)}, "iss"},
				{"the issuer without its last character", []any{"iss", base["iss"].(string)[:len(base["iss"].(string))-1]}, "iss"},
				{"another audience", []any{"aud", "api://" + other}, "aud"},
				{"an audience in an array", []any{"aud", []string{"x", appURI}}, ""},
				{"the other version", []any{"ver", map[string]string{"v2": "1.0", "v1": "2.0"}[version]}, "ver"},
			}...))
		})
	}
}

// The clouds have other authorities, issuers, and one an Event Grid of its own.
func TestEntraClouds(t *testing.T) {
	is := newIssuer(t)
	now := is.now().Unix()
	for _, c := range []struct{ name, authority, v1, app string }{
		{"public", "", "https://sts.windows.net/", eventGridApp},
		{"US Government", "https://login.microsoftonline.us/", "https://sts.windows.net/", eventGridAppGov},
		{"China", "https://login.partner.microsoftonline.cn", "https://sts.chinacloudapi.cn/", eventGridApp},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := Entra(EntraOptions{TenantID: tenant, Audiences: []string{appURI}, Authority: c.authority, Options: is.options()})
			if err != nil {
				t.Fatal(err)
			}
			authority := strings.TrimSuffix(c.authority, "/")
			if authority == "" {
				authority = "https://" + stsHost
			}
			base := object{"aud": appURI, "exp": now + 60, "roles": eventGridRole, "tid": tenant}
			claimTable(t, v, base, []row{
				{"v1", []any{"iss", c.v1 + tenant + "/", "appid", c.app}, ""},
				{"v2", []any{"iss", authority + "/" + tenant + "/v2.0", "azp", c.app}, ""},
				{"another cloud", []any{"iss", "https://login.example/" + tenant + "/v2.0", "azp", c.app}, "iss"},
			})
		})
	}
}

func (is *issuer) oauth(change func(*OAuthOptions)) *Verifier {
	is.t.Helper()
	o := OAuthOptions{Issuer: issuerURL, Audience: "keyturn", ClientIDs: []string{"eb"}, Subjects: []string{"eb-sub"}, Scopes: []string{"notify", "post"}, Options: is.options()}
	if change != nil {
		change(&o)
	}
	v, err := OAuth(o)
	if err != nil {
		is.t.Fatal(err)
	}
	return v
}

func TestOAuth(t *testing.T) {
	is := newIssuer(t)
	base := object{"iss": issuerURL, "aud": "keyturn", "sub": "eb-sub", "client_id": "eb", "scope": "openid notify post", "exp": is.now().Unix() + 300}
	claimTable(t, is.oauth(nil), base, append(timeRows(is.now()), []row{
		{"good", nil, ""},
		{"azp in place of client_id", []any{"client_id", nil, "azp", "eb"}, ""},
		{"both", []any{"azp", "eb"}, ""},
		{"two clients", []any{"azp", "evil"}, "azp"},
		{"another client", []any{"client_id", "evil"}, "client_id"},
		{"no client", []any{"client_id", nil}, "tells no client"},
		{"another subject", []any{"sub", "x"}, "sub"},
		{"a scope is missing", []any{"scope", "notify"}, "scopes"},
		{"no scope", []any{"scope", nil}, "scopes"},
		{"scopes in an array", []any{"scope", nil, "scp", []string{"post", "notify"}}, ""},
		{"another issuer", []any{"iss", issuerURL + "/"}, "iss"},
		{"another audience", []any{"aud", "x"}, "aud"},
		{"no audience", []any{"aud", nil}, "aud"},
	}...))
	t.Run("without an audience", func(t *testing.T) {
		v := is.oauth(func(o *OAuthOptions) { o.Audience, o.Subjects, o.Scopes = "", nil, nil })
		claimTable(t, v, base.with("aud", nil), []row{
			{"good", nil, ""},
			{"a token for somebody else", []any{"aud", "x"}, "has an audience"},
			{"another client", []any{"client_id", "evil"}, "client_id"},
		})
	})
	t.Run("two accepted clients in one token", func(t *testing.T) {
		v := is.oauth(func(o *OAuthOptions) { o.ClientIDs = []string{"eb", "eb2"} })
		claimTable(t, v, base, []row{{"refused", []any{"azp", "eb2"}, "two clients"}, {"the second alone", []any{"client_id", "eb2"}, ""}})
	})
	t.Run("ES256, and a key set without discovery", func(t *testing.T) {
		is.publish(public("e1", "", ecKey().Public()))
		is.mu.Lock()
		is.discovery = nil
		is.mu.Unlock()
		v := is.oauth(func(o *OAuthOptions) { o.JWKSURL = issuerURL + "/keys" })
		if err := v.Authenticate(t.Context(), header(sign(t, jose.ES256, ecKey(), object{"kid": "e1", "typ": "at+jwt"}, base))); err != nil {
			t.Error(err)
		}
	})
}

func TestOptions(t *testing.T) {
	g := GoogleOptions{Audience: "a", Emails: []string{"a@b"}}
	e := EntraOptions{TenantID: tenant, Audiences: []string{"a"}}
	o := OAuthOptions{Issuer: issuerURL, Audience: "a", Scopes: []string{"s"}}
	for name, make := range map[string]func() (*Verifier, error){
		"google without an audience":     func() (*Verifier, error) { g := g; g.Audience = ""; return Google(g) },
		"google without addresses":       func() (*Verifier, error) { g := g; g.Emails = nil; return Google(g) },
		"google with an empty address":   func() (*Verifier, error) { g := g; g.Emails = []string{"a@b", ""}; return Google(g) },
		"google, keys without TLS":       func() (*Verifier, error) { g := g; g.JWKSURL = "http://x/"; return Google(g) },
		"entra without a tenant":         func() (*Verifier, error) { e := e; e.TenantID = ""; return Entra(e) },
		"entra for everybody":            func() (*Verifier, error) { e := e; e.TenantID = "common"; return Entra(e) },
		"entra without an audience":      func() (*Verifier, error) { e := e; e.Audiences = nil; return Entra(e) },
		"entra with an empty audience":   func() (*Verifier, error) { e := e; e.Audiences = []string{""}; return Entra(e) },
		"entra, another caller":          func() (*Verifier, error) { e := e; e.CallerAppID = "x"; return Entra(e) },
		"entra, authority without TLS":   func() (*Verifier, error) { e := e; e.Authority = "http://x"; return Entra(e) },
		"entra, issuer without TLS":      func() (*Verifier, error) { e := e; e.V1Issuer = "x"; return Entra(e) },
		"oauth without an issuer":        func() (*Verifier, error) { o := o; o.Issuer = ""; return OAuth(o) },
		"oauth, issuer with a password":  func() (*Verifier, error) { o := o; o.Issuer = "https://a:b@x"; return OAuth(o) },
		"oauth, anybody of the audience": func() (*Verifier, error) { o := o; o.Scopes = nil; return OAuth(o) },
		"oauth without an audience":      func() (*Verifier, error) { o := o; o.Audience = ""; return OAuth(o) },
		"oauth, an empty scope":          func() (*Verifier, error) { o := o; o.Scopes = []string{""}; return OAuth(o) },
		"oauth, keys without TLS":        func() (*Verifier, error) { o := o; o.JWKSURL = "http://x"; return OAuth(o) },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := make()
			wantKind(t, err, fault.Invalid)
		})
	}
	for _, f := range []func() (*Verifier, error){func() (*Verifier, error) { return Google(g) }, func() (*Verifier, error) { return Entra(e) }, func() (*Verifier, error) { return OAuth(o) }} {
		if _, err := f(); err != nil {
			t.Error(err)
		}
	}
}
