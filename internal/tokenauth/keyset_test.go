package tokenauth

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/keyturn/keyturn/fault"
	"github.com/keyturn/keyturn/internal/testenv"
)

// auth verifies a token by a key under an id.
func (is *issuer) auth(v *Verifier, kid string) error {
	return v.Authenticate(is.t.Context(), header(sign(is.t, jose.RS256, rsaKey(), object{"kid": kid}, is.googleClaims())))
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

// TestOutage, trap 17: whatever goes wrong with the key set is Unavailable,
// never Denied, and mends itself.
func TestOutage(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"500":       status(500),
		"401":       status(401),
		"404":       status(404),
		"no answer": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"a redirect": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://evil.example/keys", http.StatusFound)
		},
		"not JSON": func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) },
		"no keys":  func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"keys":[]}`)) },
		"broken keys": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"keys":[{},[],null,{"kty":"RSA","kid":"k1","n":"AQAB"}]}`))
		},
		"endless keys": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"keys":[`))
			for range 2 * maxAnswer / 1000 {
				if _, err := w.Write([]byte(strings.Repeat(" ", 1000))); err != nil {
					return
				}
			}
			_, _ = w.Write([]byte(`]}`))
		},
	} {
		t.Run("trap 17: "+name, func(t *testing.T) {
			is := newIssuer(t)
			v := is.google()
			is.respond(answer)
			wantKind(t, is.auth(v, "k1"), fault.Unavailable)
			wantKind(t, v.Warm(t.Context()), fault.Unavailable)
			for range 10 {
				wantKind(t, is.auth(v, "k1"), fault.Unavailable)
			}
			if n := is.fetches.Load(); n > 2 { // net/http repeats a GET without an answer
				t.Errorf("%d fetches within the pause; expected one", n)
			}
			is.respond(nil)
			is.advance(pause)
			if err := is.auth(v, "k1"); err != nil {
				t.Errorf("after the outage: %v", err)
			}
		})
	}
}

func TestOutageOfDiscovery(t *testing.T) {
	for name, doc := range map[string]map[string]any{
		"another issuer":   {"issuer": "https://evil.example", "jwks_uri": issuerURL + "/keys"},
		"no key set":       {"issuer": issuerURL},
		"keys without TLS": {"issuer": issuerURL, "jwks_uri": "http://" + issuerHost + "/keys"},
	} {
		t.Run(name, func(t *testing.T) {
			is := newIssuer(t)
			is.discovery = doc
			wantKind(t, is.oauth(nil).Warm(t.Context()), fault.Unavailable)
		})
	}
	t.Run("an authority that nobody trusts", func(t *testing.T) {
		is := newIssuer(t)
		v, err := OAuth(OAuthOptions{Issuer: issuerURL, Audience: "a", Scopes: []string{"s"}, Options: func() Options {
			o := is.options()
			o.HTTP.Transport.(*http.Transport).TLSClientConfig = nil
			return o
		}()})
		if err != nil {
			t.Fatal(err)
		}
		err = v.Warm(t.Context())
		wantKind(t, err, fault.Unavailable)
		if fault.ClassOf(err) != fault.ClassTLS {
			t.Errorf("class of %v is %q; expected tls", err, fault.ClassOf(err))
		}
	})
}

// Keys that are known serve for a day without the issuer, and are fetched anew
// each hour when it is there.
func TestStaleKeys(t *testing.T) {
	is := newIssuer(t)
	v := is.google()
	if err := v.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	is.respond(status(503))
	for is.ahead.Load() < int64(maxStale-2*refresh) {
		is.advance(refresh)
		if err := is.auth(v, "k1"); err != nil {
			t.Fatalf("after %s without the issuer: %v", time.Duration(is.ahead.Load()), err)
		}
		settle(v)
		wantKind(t, is.auth(v, "k2"), fault.Unavailable) // nobody knows
	}
	if n := is.fetches.Load(); n < 20 || n > 30 {
		t.Errorf("%d fetches in 22 hours; expected one an hour", n)
	}
	if !strings.Contains(is.logs.String(), "cannot be fetched") {
		t.Error("nothing was logged")
	}
	is.advance(2 * refresh)
	wantKind(t, is.auth(v, "k1"), fault.Unavailable)
	settle(v)
	is.respond(nil)
	is.advance(pause)
	if err := is.auth(v, "k1"); err != nil {
		t.Error(err)
	}
}

// A key that the issuer took back is refused after an hour; a new one is
// accepted with the first token that it signed.
func TestRotation(t *testing.T) {
	is := newIssuer(t)
	v := is.google()
	if err := is.auth(v, "k1"); err != nil {
		t.Fatal(err)
	}
	is.publish(public("k2", "RS256", &rsaKey().PublicKey))
	wantKind(t, is.auth(v, "k2"), fault.Unavailable) // fetched a moment ago: may have come up since
	is.advance(pause)
	if err := is.auth(v, "k2"); err != nil {
		t.Errorf("the new key: %v", err)
	}
	wantKind(t, is.auth(v, "k1"), fault.Unavailable)
	is.advance(pause)
	wantKind(t, is.auth(v, "k1"), fault.Denied)

	is.publish(public("k3", "RS256", &rsaKey().PublicKey))
	is.advance(refresh)
	if err := is.auth(v, "k2"); err != nil {
		t.Errorf("an old key while the set is fetched anew: %v", err)
	}
	settle(v)
	is.advance(pause)
	wantKind(t, is.auth(v, "k2"), fault.Denied)
	if err := is.auth(v, "k3"); err != nil {
		t.Error(err)
	}
}

// A flood of forged key ids costs one fetch each pause, and neither turns away
// nor delays a good token, even while the issuer does not answer.
func TestFlood(t *testing.T) {
	is := newIssuer(t)
	v := is.google()
	if err := v.Warm(t.Context()); err != nil {
		t.Fatal(err)
	}
	is.advance(pause)
	release := make(chan struct{})
	is.respond(func(w http.ResponseWriter, _ *http.Request) { <-release; w.WriteHeader(http.StatusInternalServerError) })
	before := is.fetches.Load()
	var wg sync.WaitGroup
	var refused atomic.Int64
	claims := is.googleClaims()
	for i := range 200 {
		h := header(sign(t, jose.RS256, rsaOther(), object{"kid": fmt.Sprint("forged", i)}, claims))
		wg.Go(func() {
			wantKind(t, v.Authenticate(t.Context(), h), fault.Unavailable)
			refused.Add(1)
		})
	}
	token := header(good(t, claims))
	testenv.Eventually(t, 10*time.Second, "a fetch", func() bool { return is.fetches.Load() > before })
	for range 50 {
		if err := v.Authenticate(t.Context(), token); err != nil {
			t.Errorf("a good token during the flood: %v", err)
		}
	}
	if n := refused.Load(); n != 0 {
		t.Errorf("%d forged tokens were answered before the fetch; expected them to wait, and the good ones not to", n)
	}
	close(release)
	wg.Wait()
	if n := is.fetches.Load() - before; n != 1 {
		t.Errorf("%d fetches for 200 forged key ids; expected 1", n)
	}
}

// A request that ends does not take the fetch away from those that wait too.
func TestRequestEnds(t *testing.T) {
	is := newIssuer(t)
	v := is.google()
	release := make(chan struct{})
	is.respond(func(w http.ResponseWriter, r *http.Request) {
		<-release
		is.respond(nil)
		is.serve(w, r)
	})
	h := header(good(t, is.googleClaims()))
	ctx, cancel := context.WithCancel(t.Context())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- v.Authenticate(ctx, h) }()
	testenv.Eventually(t, 10*time.Second, "a fetch", func() bool { return is.fetches.Load() == 1 })
	go func() { second <- v.Authenticate(t.Context(), h) }()
	cancel()
	wantKind(t, <-first, fault.Unavailable)
	close(release)
	if err := <-second; err != nil {
		t.Errorf("the one that waited: %v", err)
	}
}

// An issuer that hangs is given up within the time that senders wait.
func TestSlowIssuer(t *testing.T) {
	is := newIssuer(t)
	v := is.google()
	is.respond(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	began := time.Now()
	err := is.auth(v, "k1")
	wantKind(t, err, fault.Unavailable)
	if d := time.Since(began); d > fetchTimeout+10*time.Second || fault.ClassOf(err) != fault.ClassTimeout {
		t.Errorf("took %s with class %q; expected %s and timeout", d, fault.ClassOf(err), fetchTimeout)
	}
}

// What else is in a key set does not matter: other types, uses, algorithms, and
// certificates beside a key.
func TestOddKeys(t *testing.T) {
	is := newIssuer(t)
	is.respond(func(w http.ResponseWriter, _ *http.Request) {
		k, _ := public("k1", "RS256", &rsaKey().PublicKey).MarshalJSON()
		good := strings.TrimSuffix(string(k), "}") + `,"x5c":["AAAA"],"x5t":"!","issuer":"x"}`
		_, _ = fmt.Fprintf(w, `{"keys":[7,null,{"kty":"new","kid":"k1"},{"kty":"OKP","crv":"Ed448","kid":"a","x":"AA"},{"kty":"RSA"},%s],"more":1}`, good)
	})
	if err := is.auth(is.google(), "k1"); err != nil {
		t.Error(err)
	}
}
