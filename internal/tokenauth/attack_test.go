package tokenauth

import (
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/leaktest"
)

func raw(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

// TestAttacks: each is Denied while a good token passes, and costs at most one
// fetch of keys.
func TestAttacks(t *testing.T) {
	is := newIssuer(t)
	c := is.googleClaims()
	claims := asJSON(c)
	token := good(t, c)
	part := strings.Split(token, ".")
	der, _ := x509.MarshalPKIXPublicKey(&rsaKey().PublicKey)
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	jwk, _ := json.Marshal(public("k1", "RS256", &rsaKey().PublicKey))
	own := jose.JSONWebKey{Key: rsaOther().Public(), KeyID: "k1", Algorithm: "RS256"}
	flip := func(s string) string {
		b, _ := base64.RawURLEncoding.DecodeString(s)
		b[len(b)/2] ^= 1
		return base64.RawURLEncoding.EncodeToString(b)
	}
	long := strings.Repeat("a", maxHeader)
	for _, a := range []struct {
		name string
		h    http.Header
		want string
	}{
		{"no header", http.Header{}, "found 0 Authorization headers"},
		{"two headers", http.Header{"Authorization": {"Bearer " + token, "Bearer " + token}}, "found 2 Authorization headers"},
		{"two in one", http.Header{"Authorization": {"Bearer " + token + ", Bearer " + token}}, "character"},
		{"another scheme", http.Header{"Authorization": {"Basic " + token}}, "another form"},
		{"no scheme", http.Header{"Authorization": {token}}, "another form"},
		{"no token", http.Header{"Authorization": {"Bearer "}}, "another form"},
		{"two spaces", http.Header{"Authorization": {"Bearer  " + token}}, "character"},
		{"a huge token", header(token + long), "at most"},
		{"huge claims", header(part[0] + "." + raw(`{"x":"`+long+`"}`) + "." + part[2]), "at most"},
		{"no JWT", header("abc"), "no JWT"},
		{"two parts", header(part[0] + "." + part[1]), "no JWT"},
		{"four parts", header(token + "." + part[2]), "no JWT"},
		{"JSON serialization", header(raw(`{"payload":"` + part[1] + `"}`)), "no JWT"},
		{"alg none", header(raw(`{"alg":"none","kid":"k1"}`) + "." + part[1] + "."), "no JWT"},
		{"alg None, in other case", header(raw(`{"alg":"nOnE","kid":"k1"}`) + "." + part[1] + "."), "no JWT"},
		{"no alg", header(raw(`{"kid":"k1"}`) + "." + part[1] + "." + part[2]), "no JWT"},
		{"alg confusion: HS256 with the public key in PEM", header(sign(t, jose.HS256, publicPEM, object{"kid": "k1"}, c)), "no JWT"},
		{"alg confusion: HS256 with the public key in DER", header(sign(t, jose.HS256, der, object{"kid": "k1"}, c)), "no JWT"},
		{"alg confusion: HS256 with the published key", header(sign(t, jose.HS256, jwk, object{"kid": "k1"}, c)), "no JWT"},
		{"an algorithm that is not allowed", header(sign(t, jose.RS512, rsaKey(), object{"kid": "k1"}, c)), "no JWT"},
		{"PSS with the same key", header(sign(t, jose.PS256, rsaKey(), object{"kid": "k1"}, c)), "no JWT"},
		{"ES256 is not for Google", header(sign(t, jose.ES256, ecKey(), object{"kid": "k1"}, c)), "no JWT"},
		{"alg twice", header(raw(`{"alg":"none","alg":"RS256","kid":"k1"}`) + "." + part[1] + "." + part[2]), "no JWT"},
		{"no key id", header(sign(t, jose.RS256, rsaKey(), nil, c)), "names no key"},
		{"a key id that is no string", header(raw(`{"alg":"RS256","kid":["k1"]}`) + "." + part[1] + "." + part[2]), ""},
		{"kid injection: a path", header(sign(t, jose.RS256, rsaOther(), object{"kid": "../../../dev/null"}, c)), ""},
		{"kid injection: a query", header(sign(t, jose.RS256, rsaOther(), object{"kid": "k1' OR '1'='1"}, c)), ""},
		{"kid injection: an address", header(sign(t, jose.RS256, rsaOther(), object{"kid": "https://evil.example/k1"}, c)), ""},
		{"the key in the header (jwk)", header(sign(t, jose.RS256, rsaOther(), object{"kid": "k1", "jwk": own}, c)), "signature is wrong"},
		{"the key set in the header (jku)", header(sign(t, jose.RS256, rsaOther(), object{"kid": "k1", "jku": "https://evil.example/keys"}, c)), "signature is wrong"},
		{"a certificate in the header (x5u)", header(sign(t, jose.RS256, rsaOther(), object{"kid": "k1", "x5u": "https://evil.example/cert"}, c)), "signature is wrong"},
		{"critical headers", header(sign(t, jose.RS256, rsaKey(), object{"kid": "k1", "crit": []string{"exp"}, "exp": 1}, c)), ""},
		{"unencoded payload", header(sign(t, jose.RS256, rsaKey(), object{"kid": "k1", "b64": false, "crit": []string{"b64"}}, "x")), ""},
		{"another's key", header(sign(t, jose.RS256, rsaOther(), object{"kid": "k1"}, c)), "signature is wrong"},
		{"other claims under the signature", header(part[0] + "." + raw(strings.Replace(claims, pusher, "evil@x.example", 1)) + "." + part[2]), "signature is wrong"},
		{"a bit of the signature", header(part[0] + "." + part[1] + "." + flip(part[2])), "signature is wrong"},
		{"no signature", header(part[0] + "." + part[1] + "."), "signature is wrong"},
		{"duplicated claims", header(good(t, strings.Replace(claims, `{`, `{"email":"evil@x.example",`, 1))), "there twice"},
		{"claims that are an array", header(good(t, `[]`)), "no JSON object"},
		{"claims that are null", header(good(t, `null`)), "no JSON object"},
		{"claims that are empty", header(good(t, ``)), "no JSON object"},
		{"claims with more behind", header(good(t, claims+`{}`)), "no JSON object"},
		{"a key for encryption", header(sign(t, jose.RS256, rsaOther(), object{"kid": "enc"}, c)), ""},
		{"a short key", header(sign(t, jose.RS256, rsaShort(), object{"kid": "short"}, c)), ""},
		{"a symmetric key", header(sign(t, jose.HS256, []byte("01234567890123456789012345678901"), object{"kid": "oct"}, c)), "no JWT"},
	} {
		t.Run(a.name, func(t *testing.T) {
			is := newIssuer(t)
			is.publish(
				jose.JSONWebKey{KeyID: "oct", Key: []byte("01234567890123456789012345678901")},
				jose.JSONWebKey{KeyID: "enc", Use: "enc", Key: rsaOther().Public()},
				public("short", "RS256", rsaShort().Public()),
				public("k1", "RS256", &rsaKey().PublicKey),
			)
			v := is.google()
			err := v.Authenticate(t.Context(), a.h)
			wantKind(t, err, fault.Denied)
			if err != nil && !strings.Contains(err.Error(), a.want) {
				t.Errorf("error %q; expected %q in it", err, a.want)
			}
			if err := v.Authenticate(t.Context(), header(token)); err != nil {
				t.Errorf("a good token afterwards: %v", err)
			}
			if n := is.fetches.Load(); n > 1 {
				t.Errorf("%d fetches; expected 1 at most", n)
			}
		})
	}
	t.Run("the scheme in other case", func(t *testing.T) {
		if err := is.google().Authenticate(t.Context(), http.Header{"Authorization": {"bEaReR " + token}}); err != nil {
			t.Error(err)
		}
	})
}

// TestNothingLeaks: neither a token nor what a stranger wrote into one is in an
// error or the log, and what the issuer signed is shortened.
func TestNothingLeaks(t *testing.T) {
	is := newIssuer(t)
	v := is.google()
	canary := leaktest.Canary()
	c := is.googleClaims()
	signed := good(t, c)
	part := strings.Split(signed, ".")
	is.logs.Record("begin")
	for _, h := range []http.Header{
		header(canary), header(signed + canary), {"Authorization": {canary}}, {"Authorization": {"Basic " + canary}},
		header(raw(canary) + "." + part[1] + "." + part[2]),
		header(raw(`{"alg":"`+canary+`"}`) + "." + part[1] + "." + part[2]),
		header(sign(t, jose.RS256, rsaOther(), object{"kid": canary, canary: canary}, c.with(canary, canary))),
		header(sign(t, jose.RS256, rsaOther(), object{"kid": "k1"}, c.with("iss", canary, "email", canary))),
		header(good(t, strings.Repeat(canary, 3))),
		header(good(t, c.with("iss", strings.Repeat("x", maxQuoted)+canary))),
		header(good(t, c.with("aud", []string{"1", "2", "3", "4", canary}))),
		header(good(t, c.with("exp", canary))),
	} {
		err := v.Authenticate(t.Context(), h)
		if err == nil {
			t.Error("accepted")
		}
		is.logs.Record(err)
	}
	for _, body := range []string{canary, `{"keys":[{"kty":"` + canary + `"}]}`} {
		is.advance(2 * refresh)
		is.respond(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Canary", canary)
			w.WriteHeader(200 + len(body)%2)
			_, _ = fmt.Fprint(w, body)
		})
		is.logs.Record(v.Authenticate(t.Context(), header(sign(t, jose.RS256, rsaOther(), object{"kid": canary}, c))))
		settle(v)
	}
	is.logs.Check(t, canary)
}

// FuzzAuthenticate: no header panics, is accepted, or shows up in an error.
func FuzzAuthenticate(f *testing.F) {
	is := newIssuer(f)
	v := is.google()
	token := good(f, is.googleClaims())
	for _, s := range []string{"", "Bearer", "Bearer ", "Bearer " + token[:len(token)-4], "Bearer a.b.c", "Bearer " + raw(`{"alg":"RS256","kid":"k1"}`) + "." + raw(`{}`) + ".", "Basic eA=="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		err := v.Authenticate(t.Context(), http.Header{"Authorization": {s}})
		if err == nil {
			t.Fatal("accepted")
		}
		if k := fault.KindOf(err); k != fault.Denied && k != fault.Unavailable {
			t.Fatalf("kind %s", k)
		}
	})
}

func BenchmarkAuthenticate(b *testing.B) {
	is := newIssuer(b)
	is.publish(public("k1", "RS256", &rsaKey().PublicKey), public("e1", "ES256", ecKey().Public()))
	v, g := is.oauth(func(o *OAuthOptions) { o.Subjects, o.Scopes = nil, nil }), is.google()
	c := object{"iss": issuerURL, "aud": "keyturn", "client_id": "eb", "exp": is.now().Unix() + 3600}
	for name, x := range map[string]struct {
		v *Verifier
		h http.Header
	}{
		"Google RS256": {g, header(good(b, is.googleClaims()))},
		"OAuth RS256":  {v, header(good(b, c))},
		"OAuth ES256":  {v, header(sign(b, jose.ES256, ecKey(), object{"kid": "e1"}, c))},
		"forged":       {g, header(sign(b, jose.RS256, rsaOther(), object{"kid": "k1"}, is.googleClaims()))},
	} {
		b.Run(name, func(b *testing.B) {
			_ = x.v.Warm(b.Context())
			b.ReportAllocs()
			for b.Loop() {
				if err := x.v.Authenticate(b.Context(), x.h); (err == nil) == (name == "forged") {
					b.Fatal(err)
				}
			}
		})
	}
}
