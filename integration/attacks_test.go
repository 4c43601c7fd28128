package integration_test

import (
	"bytes"
	"compress/gzip"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/rotators"
)

// TestAttacks lays siege to the built program. Each row is a request that a
// sender might send, with one thing wrong: it has the status that the sender
// acts upon as it should, nothing of it is stored, and nothing of it shows
// anywhere. Behind it the same request made right is let in and stored: so it
// was that one thing.
func TestAttacks(t *testing.T) {
	s := besiege(t)
	for _, c := range allSenders {
		t.Run(c.kind, func(t *testing.T) {
			s.control(t, c)
			for _, row := range rowsOf(c) {
				t.Run(row.name, func(t *testing.T) { s.attack(t, c, row) })
			}
			s.control(t, c)
		})
	}
	t.Run("handshakes", s.handshakes)
	t.Run("names", s.names)
	t.Run("bombs", s.bombs)
	t.Run("connections", s.connections)
	t.Run("a flood of key ids", s.flood)
	t.Run("the end", s.holds)
}

// A row is one attack.
type row struct {
	name string
	want int
	// known says that the sender is let in: what is wrong is the request.
	known bool
	// claims, if any, are the token's, instead of the right ones.
	claims func(siegeObject) siegeObject
	// spoil changes the good request.
	spoil func(s *siege, x *shot)
}

// control sends a good request, of which there must be one event in the end.
func (s *siege) control(t *testing.T, c sender) {
	t.Helper()
	name := s.name("control")
	x := c.shot(s, name)
	// A sender repeats what is answered 503, as on a machine so busy that a key
	// set does not come in time.
	status, answer := 503, ""
	for deadline := time.Now().Add(30 * time.Second); status == 503 && time.Now().Before(deadline); {
		status, answer, _ = s.fire(t, x)
	}
	if status != 200 {
		t.Fatalf("a good request of %s was answered %d %s; want 200", c.kind, status, answer)
	}
	s.stored = append(s.stored, name)
}

// attack sends a row's request. The canary is the name of the secret, and is in
// whatever else a log or metric might print.
func (s *siege) attack(t *testing.T, c sender, r row) {
	t.Helper()
	canary := s.stranger
	if r.known {
		canary = s.known
	}
	x := c.notice(s, "row-"+canary)
	var claims siegeObject
	if c.claims != nil {
		claims = c.claims()
		if r.claims != nil {
			claims = r.claims(claims)
		}
		claims = claims.with("name", canary, "jti", canary)
	}
	c.sign(s, x, claims)
	for _, h := range []string{"User-Agent", "Tracestate", "Cookie", "X-Forwarded-For", "Referer", "Aeg-Subscription-Name"} {
		x.set(h, canary)
	}
	x.path += "?code=" + canary
	if r.spoil != nil {
		r.spoil(s, x)
	}
	status, answer, h := s.fire(t, x)
	if status != r.want {
		t.Errorf("answered %d %q; want %d", status, answer, r.want)
	}
	if status == 401 && h.Get("WWW-Authenticate") == "" {
		t.Error("401 without WWW-Authenticate")
	}
	if status == 503 && h.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
}

// rowsOf returns the attacks on a sender's route.
func rowsOf(c sender) (out []row) {
	drop := func(names ...string) func(*siege, *shot) {
		return func(_ *siege, x *shot) {
			for _, n := range names {
				x.header.Del(n)
			}
		}
	}
	twice := func(name string) func(*siege, *shot) {
		return func(_ *siege, x *shot) { x.header.Add(name, x.header.Get(name)) }
	}
	credentials := map[string]string{"eventbridge, key": "X-Api-Key", "vaultaudit": "X-Api-Key", "eventgrid, header": "X-Keyturn-Key", "sns": "", "cloudevents": "Webhook-Signature"}
	header, ok := credentials[c.kind]
	if !ok {
		header = "Authorization"
	}
	if header != "" {
		out = append(out,
			row{name: "no credentials", want: 401, spoil: drop(header)},
			row{name: "empty credentials", want: 401, spoil: func(_ *siege, x *shot) { x.set(header, "") }},
			row{name: "credentials twice", want: 401, spoil: twice(header)},
			row{name: "wrong credentials", want: 401, spoil: func(s *siege, x *shot) { x.set(header, s.stranger) }},
			row{name: "wrong credentials first", want: 401, spoil: func(s *siege, x *shot) { x.header[header] = []string{s.stranger, x.header.Get(header)} }},
			row{name: "two values in one header", want: 401, spoil: func(s *siege, x *shot) { x.set(header, s.stranger+", "+x.header.Get(header)) }},
			row{name: "credentials in the query and not in the header", want: 401, spoil: func(s *siege, x *shot) { x.path += "&" + header + "=" + s.stranger; x.header.Del(header) }},
			row{name: "credentials of another route", want: 401, spoil: func(s *siege, x *shot) {
				x.header.Del(header)
				if c.kind == "eventgrid, header" {
					x.set("X-Api-Key", s.key)
				} else {
					x.set("X-Keyturn-Key", s.gridKey)
				}
			}},
			row{name: "the method hides behind an override", want: 401, spoil: func(s *siege, x *shot) {
				x.method = http.MethodGet
				x.header.Del(header)
				x.set("X-Http-Method-Override", "POST")
			}},
			row{name: "DELETE", want: 405, known: true, spoil: func(_ *siege, x *shot) { x.method = http.MethodDelete }},
			row{name: "no body is unpacked: gzip", want: 415, known: true, spoil: zipped},
			row{name: "no body is unpacked: gzip that says it is none", want: 415, known: true, spoil: func(s *siege, x *shot) {
				zipped(s, x)
				x.header["Content-Encoding"] = []string{"identity", "gzip"}
			}},
			row{name: "longer than the route takes", want: 413, known: true, spoil: func(_ *siege, x *shot) { x.body = bytes.Repeat([]byte(" "), 15<<20) }},
			row{name: "longer than the route takes, in chunks", want: 413, known: true, spoil: func(_ *siege, x *shot) {
				x.reader = io.MultiReader(bytes.NewReader(x.body), io.LimitReader(zeroes{}, 64<<20))
			}},
		)
		if header == "Webhook-Signature" { // a stranger until the body was read
			for i := range out {
				out[i].known = false
			}
			// A list of signatures, one of which is right.
			out = slices.DeleteFunc(out, func(r row) bool { return r.name == "two values in one header" })
		}
	}
	if header == "X-Api-Key" || header == "X-Keyturn-Key" {
		out = append(out,
			row{name: "half of the key", want: 401, spoil: func(_ *siege, x *shot) { x.set(header, x.header.Get(header)[:15]) }},
			row{name: "the key in capitals", want: 401, spoil: func(_ *siege, x *shot) { x.set(header, strings.ToUpper(x.header.Get(header))) }},
			row{name: "the key as a bearer token", want: 401, spoil: func(_ *siege, x *shot) {
				x.set("Authorization", "Bearer "+x.header.Get(header))
				x.header.Del(header)
			}},
		)
	}
	if c.claims != nil {
		out = append(out, tokenRows(c)...)
	}
	switch c.kind {
	case "eventbridge, basic":
		as := func(user, password string) func(*siege, *shot) {
			return func(s *siege, x *shot) {
				p := strings.ReplaceAll(password, "PASSWORD", s.password)
				x.set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(user+":"+p)))
			}
		}
		out = append(out,
			row{name: "another user", want: 401, spoil: as("admin", "PASSWORD")},
			row{name: "an empty password", want: 401, spoil: as("keyturn", "")},
			row{name: "the password with NUL behind it", want: 401, spoil: as("keyturn", "PASSWORD\x00")},
			row{name: "an empty user", want: 401, spoil: as("", "keyturn:PASSWORD")},
		)
	case "sns":
		out = append(out, snsRows()...)
	case "cloudevents":
		out = append(out, hmacRows()...)
	}
	if c.kind == "eventbridge, key" || c.kind == "eventgrid, header" {
		out = append(out,
			row{name: "not JSON by its type", want: 415, known: true, spoil: func(_ *siege, x *shot) { x.set("Content-Type", "text/plain") }},
			row{name: "a form, which a browser may send", want: 415, known: true, spoil: func(_ *siege, x *shot) { x.set("Content-Type", "application/x-www-form-urlencoded") }},
			row{name: "another charset", want: 415, known: true, spoil: func(_ *siege, x *shot) { x.set("Content-Type", "application/json; charset=utf-16") }},
			row{name: "a type that cannot be read", want: 415, known: true, spoil: func(_ *siege, x *shot) { x.set("Content-Type", "application/json; charset=\"") }},
		)
	}
	return out
}

type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = '0'
	}
	return len(b), nil
}

// zipped packs a body that has 256 MiB when it is unpacked.
func zipped(_ *siege, x *shot) {
	x.body = gzipBomb()
	x.set("Content-Encoding", "gzip")
}

func gzipBomb() []byte {
	var b bytes.Buffer
	w, _ := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	_, _ = io.Copy(w, io.LimitReader(zeroes{}, 64<<20))
	_ = w.Close()
	return b.Bytes()
}

// tokenRows are a token with each thing wrong in turn.
func tokenRows(c sender) (out []row) {
	claim := func(name string, members ...any) {
		out = append(out, row{name: name, want: 401, claims: func(o siegeObject) siegeObject { return o.with(members...) }})
	}
	now := time.Now().Unix()
	claim("expired", "exp", now-120, "iat", now-4000, "nbf", now-4000)
	claim("never expires", "exp", nil)
	claim("expires in a text", "exp", fmt.Sprint(now+3600))
	claim("expires beyond time", "exp", 1e300)
	// Which of two clocks is wrong nobody knows, and it may be ours.
	for name, member := range map[string]string{"not valid yet": "nbf", "issued in the future": "iat"} {
		out = append(out, row{name: name, want: 503, claims: func(o siegeObject) siegeObject { return o.with(member, now+600) }})
	}
	claim("wrong issuer", "iss", "https://evil.test")
	claim("no issuer", "iss", nil)
	claim("issuer with a slash more", "iss", c.claims()["iss"].(string)+"/")
	claim("issuer in a list", "iss", []any{c.claims()["iss"]})
	claim("wrong audience", "aud", "https://other.example.com")
	claim("no audience", "aud", nil)
	claim("audience that begins alike", "aud", fmt.Sprint(c.claims()["aud"], ".evil.test"))
	claim("audiences, none of them ours", "aud", []string{"a", "b"})
	claim("audience null", "aud", []any{nil})
	switch c.kind {
	case "eventbridge, OAuth":
		claim("wrong client", "client_id", "somebody")
		claim("no client", "client_id", nil, "sub", nil)
		claim("two clients", "azp", "somebody")
		claim("no scope", "scope", nil)
		claim("scope that begins alike", "scope", "notify.all")
	case "eventgrid, Entra v2":
		claim("wrong tenant", "tid", "0a1b2c3d-0000-4000-8000-00000000000b")
		claim("no tenant", "tid", nil)
		claim("trap 21: any application of the tenant", "azp", "0a1b2c3d-0000-4000-8000-0000000000ff")
		claim("no caller", "azp", nil)
		claim("the caller where version 1 has it", "azp", nil, "appid", gridCaller)
		claim("wrong role", "roles", []string{"Reader"})
		claim("no role", "roles", nil)
		claim("the role as a scope", "roles", nil, "scp", gridRole)
		claim("another version", "ver", "1.0")
		claim("issuer of version 1, the rest of 2", "iss", "https://sts.windows.net/"+gridTenant+"/")
		claim("issuer of another tenant", "iss", "https://login.microsoftonline.com/0a1b2c3d-0000-4000-8000-00000000000b/v2.0")
		claim("issuer of all tenants", "iss", "https://login.microsoftonline.com/common/v2.0")
	case "eventgrid, Entra v1":
		claim("wrong tenant", "tid", "0a1b2c3d-0000-4000-8000-00000000000b")
		claim("any application of the tenant", "appid", "0a1b2c3d-0000-4000-8000-0000000000ff")
		claim("the caller where version 2 has it", "appid", nil, "azp", gridCaller)
		claim("wrong role", "roles", []string{"Reader"})
		claim("another version", "ver", "2.0")
		claim("issuer of another tenant", "iss", "https://sts.windows.net/0a1b2c3d-0000-4000-8000-00000000000b/")
	case "pubsub":
		claim("trap 34: wrong e-mail", "email", "mallory@evil.iam.gserviceaccount.com")
		claim("no e-mail", "email", nil)
		claim("e-mail in capitals", "email", strings.ToUpper(pushEmail))
		claim("e-mail not verified", "email_verified", false)
		claim("e-mail verified by a text", "email_verified", "true")
		claim("e-mail verified by nobody", "email_verified", nil)
	}
	forge := func(name string, f func(s *siege, payload []byte) string) {
		out = append(out, row{name: name, want: 401, spoil: func(s *siege, x *shot) {
			x.set("Authorization", "Bearer "+f(s, c.claims().with("name", s.stranger).json()))
		}})
	}
	enc := base64.RawURLEncoding.EncodeToString
	forge("signed by another", func(s *siege, p []byte) string { return mint(s.t, jose.RS256, forgerKey(), "k1", p) })
	forge("no key id", func(s *siege, p []byte) string { return mint(s.t, jose.RS256, cloudKey(), "", p) })
	forge("alg none", func(_ *siege, p []byte) string { return enc([]byte(`{"alg":"none","kid":"k1"}`)) + "." + enc(p) + "." })
	forge("alg NONE with a signature", func(s *siege, p []byte) string {
		return enc([]byte(`{"alg":"nOnE","kid":"k1"}`)) + "." + enc(p) + "." + enc([]byte(s.stranger))
	})
	forge("HS256 by the public key", func(s *siege, p []byte) string {
		return mint(s.t, jose.HS256, s.clouds.signing, "k1", p)
	})
	forge("RS512", func(s *siege, p []byte) string { return mint(s.t, jose.RS512, cloudKey(), "k1", p) })
	forge("PS256", func(s *siege, p []byte) string { return mint(s.t, jose.PS256, cloudKey(), "k1", p) })
	forge("the signature cut off", func(s *siege, p []byte) string {
		tok := mint(s.t, jose.RS256, cloudKey(), "k1", p)
		return tok[:strings.LastIndex(tok, ".")+1]
	})
	forge("other claims under the signature", func(s *siege, p []byte) string {
		a := strings.Split(mint(s.t, jose.RS256, cloudKey(), "k1", []byte(`{}`)), ".")
		return a[0] + "." + enc(p) + "." + a[2]
	})
	forge("its own key in the header", func(s *siege, p []byte) string {
		k := forgerKey()
		sg, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: jose.JSONWebKey{Key: k, KeyID: "k1"}}, &jose.SignerOptions{EmbedJWK: true})
		must(s.t, err)
		jws, err := sg.Sign(p)
		must(s.t, err)
		tok, err := jws.CompactSerialize()
		must(s.t, err)
		return tok
	})
	forge("a key set of its own, by jku and x5u", func(s *siege, p []byte) string {
		return headed(s, forgerKey(), p, map[string]any{"jku": s.clouds.trapURL(), "x5u": s.clouds.trapURL()})
	})
	forge("critical headers", func(s *siege, p []byte) string {
		return headed(s, cloudKey(), p, map[string]any{"crit": []string{"b64"}, "b64": true})
	})
	forge("in JSON, not compact", func(s *siege, p []byte) string {
		return string(siegeObject{"payload": enc(p), "signature": s.stranger}.json())
	})
	forge("claims twice", func(s *siege, p []byte) string {
		return mint(s.t, jose.RS256, cloudKey(), "k1", append([]byte(`{"iss":"https://evil.test","aud":"x",`), p[1:]...))
	})
	forge("longer than any", func(s *siege, p []byte) string { return s.stranger + strings.Repeat("a", 14<<10) })
	forge("a good one, and a comma", func(s *siege, p []byte) string { return mint(s.t, jose.RS256, cloudKey(), "k1", p) + "," + s.stranger })
	forge("encrypted", func(s *siege, _ []byte) string { return "a.b.c.d." + s.stranger })
	return out
}

// headed signs a token with members more in its header.
func headed(s *siege, key *rsa.PrivateKey, payload []byte, members map[string]any) string {
	o := &jose.SignerOptions{}
	o.WithHeader("kid", "k1")
	for k, v := range members {
		o.WithHeader(jose.HeaderKey(k), v)
	}
	sg, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.RS256, Key: key}, o)
	must(s.t, err)
	jws, err := sg.Sign(payload)
	must(s.t, err)
	tok, err := jws.CompactSerialize()
	must(s.t, err)
	return tok
}

// hmacRows are signed requests with each thing wrong in turn.
func hmacRows() []row {
	set := func(name, value string) func(*siege, *shot) {
		return func(_ *siege, x *shot) { x.set(name, value) }
	}
	return []row{
		{name: "no id", want: 401, spoil: func(_ *siege, x *shot) { x.header.Del("Webhook-Id") }},
		{name: "another id", want: 401, spoil: set("Webhook-Id", "msg_other")},
		{name: "an id with a full stop", want: 401, spoil: set("Webhook-Id", "msg.other")},
		{name: "another time", want: 401, spoil: set("Webhook-Timestamp", fmt.Sprint(time.Now().Unix()+3))},
		{name: "a time that is no number", want: 401, spoil: set("Webhook-Timestamp", "0x7fffffff")},
		{name: "a time beyond time", want: 401, spoil: set("Webhook-Timestamp", "9223372036854775807")},
		{name: "a time of another form", want: 401, spoil: set("Webhook-Timestamp", "+"+fmt.Sprint(time.Now().Unix()))},
		{name: "replayed after six minutes", want: 401, spoil: func(s *siege, x *shot) { seal(s, x, s.hmac, time.Now().Add(-6*time.Minute)) }},
		{name: "signed for tomorrow", want: 401, spoil: func(s *siege, x *shot) { seal(s, x, s.hmac, time.Now().Add(24*time.Hour)) }},
		{name: "another key", want: 401, spoil: func(s *siege, x *shot) {
			seal(s, x, base64.StdEncoding.EncodeToString([]byte(rotators.NewToken())), time.Now())
		}},
		{name: "another body", want: 401, spoil: func(_ *siege, x *shot) { x.body = append(x.body, ' ') }},
		{name: "no body", want: 401, spoil: func(_ *siege, x *shot) { x.body = nil }},
		{name: "an asymmetric signature", want: 401, spoil: func(_ *siege, x *shot) {
			x.set("Webhook-Signature", strings.Replace(x.header.Get("Webhook-Signature"), "v1,", "v1a,", 1))
		}},
		{name: "a thousand signatures, the last one right", want: 401, spoil: func(_ *siege, x *shot) {
			x.set("Webhook-Signature", strings.Repeat("v1,AAAA ", 1000)+x.header.Get("Webhook-Signature"))
		}},
		{name: "half a signature", want: 401, spoil: func(_ *siege, x *shot) { x.set("Webhook-Signature", x.header.Get("Webhook-Signature")[:19]+"=") }},
	}
}

// snsRows are messages with each thing wrong in turn.
func snsRows() (out []row) {
	add := func(name string, want int, f func(s *siege, m siegeObject) *shot) {
		out = append(out, row{name: name, want: want, spoil: func(s *siege, x *shot) {
			var m siegeObject
			must(s.t, json.Unmarshal(x.body, &m))
			delete(m, "Signature")
			h := x.header
			*x = *f(s, m)
			for _, n := range []string{"User-Agent", "Cookie"} {
				x.set(n, h.Get(n))
			}
		}})
	}
	with := func(name string, want int, members ...any) {
		add(name, want, func(s *siege, m siegeObject) *shot { return snsShot(s, m.with(members...), cloudKey()) })
	}
	age := func(d time.Duration) string { return time.Now().Add(d).UTC().Format("2006-01-02T15:04:05.000Z") }
	for _, v := range []string{"1", "2"} {
		add("signed by another, version "+v, 403, func(s *siege, m siegeObject) *shot { return snsShot(s, m.with("SignatureVersion", v), forgerKey()) })
		add("changed after it was signed, version "+v, 403, func(s *siege, m siegeObject) *shot {
			x := snsShot(s, m.with("SignatureVersion", v), cloudKey())
			x.body = bytes.Replace(x.body, []byte("AWSCURRENT"), []byte("AWSCURRENX"), 1)
			return x
		})
	}
	add("version 1 for a signature of version 2", 403, func(s *siege, m siegeObject) *shot {
		x := snsShot(s, m, cloudKey())
		x.body = bytes.Replace(x.body, []byte(`"SignatureVersion":"2"`), []byte(`"SignatureVersion":"1"`), 1)
		return x
	})
	with("version 3", 403, "SignatureVersion", "3")
	with("a topic of another account", 403, "TopicArn", "arn:aws:sns:eu-west-1:999988887777:keyturn")
	with("a topic of another region", 403, "TopicArn", "arn:aws:sns:us-east-1:111122223333:keyturn")
	with("a topic that begins alike", 403, "TopicArn", siegeTopic+"-2")
	with("too old", 403, "Timestamp", age(-2*time.Hour))
	with("of tomorrow: our clock may be late", 503, "Timestamp", age(24*time.Hour))
	with("of no time", 400, "Timestamp", "now")
	for _, u := range []string{
		"https://sns.us-east-1.amazonaws.com.evil.test/x.pem", "https://evil.test/x.pem", "http://" + snsHost + signingPath,
		"https://" + snsHost + "@evil.test" + signingPath, "https://evil.test@" + snsHost + signingPath, "https://" + snsHost + ":8443" + signingPath,
		"https://" + snsHost + ":" + signingPath, "https://" + snsHost + "/../" + signingPath, "https://" + snsHost + signingPath + "?x=1",
		"https://" + snsHost + signingPath + "#x", "https://" + snsHost + "/x/y.pem", "https://" + snsHost + "/%2e%2e/x.pem", "https://sns.us-east-1.amazonaws.com" + signingPath,
		"https://" + snsHost + "." + signingPath, "https://" + strings.ToUpper(snsHost) + "%00.evil.test/x.pem", "https://s3.amazonaws.com/x.pem",
		"https://sns.eu-west-1.amazonaws.com.cn" + signingPath, "https://127.0.0.1/x.pem", "https://[::1]/x.pem", "https://169.254.169.254/x.pem",
		"file:///etc/passwd", "//" + snsHost + signingPath, "https:" + snsHost + signingPath, "https:\\\\evil.test\\x.pem", "", " https://" + snsHost + signingPath,
		"gopher://" + snsHost + signingPath, "https://" + snsHost + "\\@evil.test/x.pem",
	} {
		with("certificate at "+u, 403, "SigningCertURL", u)
	}
	add("certificate at the trap", 403, func(s *siege, m siegeObject) *shot {
		return snsShot(s, m.with("SigningCertURL", s.clouds.trapURL()+"x.pem"), cloudKey())
	})
	with("no certificate there", 403, "SigningCertURL", "https://"+snsHost+"/nothing.pem")
	add("a certificate of another, at SNS", 403, func(s *siege, m siegeObject) *shot {
		return snsShot(s, m.with("SigningCertURL", "https://"+snsHost+"/forged.pem"), forgerKey())
	})
	// What SNS itself does wrong is an outage.
	with("a redirect", 503, "SigningCertURL", "https://"+snsHost+"/redirect.pem")
	with("a certificate of 64 MiB", 503, "SigningCertURL", "https://"+snsHost+"/bomb.pem")
	add("not JSON", 400, func(s *siege, m siegeObject) *shot {
		x := snsShot(s, m, cloudKey())
		x.body = []byte(s.stranger)
		return x
	})
	add("a member twice", 400, func(s *siege, m siegeObject) *shot {
		x := snsShot(s, m, cloudKey())
		x.body = append([]byte(`{"Message":"`+s.stranger+`",`), x.body[1:]...)
		return x
	})
	add("a member twice, in another case", 400, func(s *siege, m siegeObject) *shot {
		x := snsShot(s, m, cloudKey())
		x.body = append([]byte(`{"message":"`+s.stranger+`",`), x.body[1:]...)
		return x
	})
	add("something behind the object", 400, func(s *siege, m siegeObject) *shot {
		x := snsShot(s, m, cloudKey())
		x.body = append(x.body, x.body...)
		return x
	})
	with("no string", 400, "Subject", []string{"a"})
	add("raw delivery", 400, func(_ *siege, m siegeObject) *shot {
		return jsonShot("/v1/sns", []byte(m["Message"].(string)))
	})
	add("raw delivery with the header", 400, func(_ *siege, m siegeObject) *shot {
		return jsonShot("/v1/sns", []byte(m["Message"].(string))).set("X-Amz-Sns-Message-Type", "Notification")
	})
	add("the header says another type", 400, func(s *siege, m siegeObject) *shot {
		return snsShot(s, m, cloudKey()).set("X-Amz-Sns-Message-Type", "SubscriptionConfirmation")
	})
	add("longer than a message can be", 413, func(s *siege, m siegeObject) *shot {
		x := snsShot(s, m, cloudKey())
		x.body = append(x.body, bytes.Repeat([]byte(" "), 2<<20)...)
		return x
	})
	add("packed", 415, func(s *siege, m siegeObject) *shot {
		x := snsShot(s, m, cloudKey())
		zipped(s, x)
		return x
	})
	add("GET", 405, func(s *siege, m siegeObject) *shot {
		x := snsShot(s, m, cloudKey())
		x.method = http.MethodGet
		return x
	})
	return out
}
